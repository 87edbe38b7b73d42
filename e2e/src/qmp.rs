//! One QMP client, blocking: for what a user might do to a guest beside Sterna.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::{Error, Result};

const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A connection to QEMU's monitor.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    /// Events that came while something else was waited for.
    events: VecDeque<Value>,
    socket: PathBuf,
}

impl Qmp {
    /// Connects and leaves the negotiation mode.
    ///
    /// # Errors
    /// Nobody listens, or it is no QMP.
    pub fn connect(socket: &Path) -> Result<Self> {
        let doing = || format!("connecting to {}", socket.display());
        let writer = UnixStream::connect(socket).map_err(Error::io(doing()))?;
        writer.set_read_timeout(Some(ANSWER_LIMIT)).map_err(Error::io(doing()))?;
        let reader = BufReader::new(writer.try_clone().map_err(Error::io(doing()))?);
        let mut qmp =
            Self { reader, writer, events: VecDeque::new(), socket: socket.to_path_buf() };
        qmp.message("the greeting")?;
        qmp.command("qmp_capabilities")?;
        Ok(qmp)
    }

    /// A command without arguments; gives what it returns.
    ///
    /// # Errors
    /// QEMU refuses it, or is gone.
    pub fn command(&mut self, name: &str) -> Result<Value> {
        self.command_with(name, &json!({}))
    }

    /// A command with arguments; gives what it returns. Events that come in between are kept.
    ///
    /// # Errors
    /// QEMU refuses it, or is gone.
    pub fn command_with(&mut self, name: &str, arguments: &Value) -> Result<Value> {
        let line = format!("{}\n", json!({"execute": name, "arguments": arguments}));
        self.writer.write_all(line.as_bytes()).map_err(Error::io(format!("sending {name}")))?;
        loop {
            let mut message = self.message(name)?;
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = message.get("error") {
                return Err(Error::unexpected(name, "a return", error));
            }
            self.events.push_back(message);
        }
    }

    /// An event that has been read already, while something else was waited for.
    pub fn take_event(&mut self) -> Option<Value> {
        self.events.pop_front()
    }

    /// The next event, in the order in which QEMU sent them.
    ///
    /// # Errors
    /// None comes in ten seconds, or QEMU is gone.
    pub fn event(&mut self) -> Result<Value> {
        match self.events.pop_front() {
            Some(event) => Ok(event),
            None => self.message("an event"),
        }
    }

    /// Passes over events up to the first that `is_wanted`.
    ///
    /// # Errors
    /// As for [`Self::event`].
    pub fn wait_for_event(&mut self, is_wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        loop {
            let event = self.event()?;
            if is_wanted(&event) {
                return Ok(event);
            }
        }
    }

    /// The guest's run state, as QEMU names it.
    ///
    /// # Errors
    /// As for [`Self::command`].
    pub fn run_state(&mut self) -> Result<String> {
        let status = self.command("query-status")?;
        Ok(status["status"].as_str().unwrap_or_default().to_owned())
    }

    fn message(&mut self, awaited: &str) -> Result<Value> {
        let mut line = String::new();
        let doing = || format!("waiting for {awaited} at {}", self.socket.display());
        self.reader.read_line(&mut line).map_err(Error::io(doing()))?;
        serde_json::from_str(&line).map_err(|error| {
            Error::unexpected("QMP", "a line of JSON", format!("{line:?}: {error}"))
        })
    }
}
