//! What QEMU reports about itself: events of a QMP connection of their own, with QEMU's timestamps.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use sterna_e2e::{Error, Result};

/// An event.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    /// Its name: `STOP`, `MIGRATION`, …
    pub(crate) name: String,
    /// What it says.
    pub(crate) data: Value,
    /// When QEMU raised it: milliseconds since 1970 on the machine's clock.
    pub(crate) unix_ms: f64,
}

/// The events since the connection was made; the thread behind it ends with QEMU.
#[derive(Debug)]
pub(crate) struct Events {
    receiver: Receiver<Event>,
    seen: Vec<Event>,
}

impl Events {
    /// Listens at a QMP socket.
    ///
    /// # Errors
    /// Nobody is there.
    pub(crate) fn listen(socket: &Path) -> Result<Self> {
        let doing = || format!("listening at {}", socket.display());
        let mut stream = UnixStream::connect(socket).map_err(Error::io(doing()))?;
        stream.write_all(b"{\"execute\":\"qmp_capabilities\"}\n").map_err(Error::io(doing()))?;
        let (sender, receiver) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stream).lines() {
                let Ok(line) = line else { return };
                let Some(event) = parse(&line) else { continue };
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        Ok(Self { receiver, seen: Vec::new() })
    }

    /// The first event, old or new, that `is_it` accepts; none when it does not come in `limit` or
    /// QEMU ends.
    pub(crate) fn wait_for(
        &mut self,
        limit: Duration,
        is_it: impl Fn(&Event) -> bool,
    ) -> Option<Event> {
        if let Some(event) = self.seen.iter().find(|event| is_it(event)) {
            return Some(event.clone());
        }
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receiver.recv_timeout(left) {
                Ok(event) => {
                    self.seen.push(event.clone());
                    if is_it(&event) {
                        return Some(event);
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// The last event of that name so far.
    pub(crate) fn last(&mut self, name: &str) -> Option<&Event> {
        self.seen.extend(self.receiver.try_iter());
        self.seen.iter().rev().find(|event| event.name == name)
    }
}

fn parse(line: &str) -> Option<Event> {
    let message: Value = serde_json::from_str(line).ok()?;
    let name = message["event"].as_str()?.to_owned();
    let seconds = message["timestamp"]["seconds"].as_f64()?;
    let microseconds = message["timestamp"]["microseconds"].as_f64()?;
    let unix_ms = seconds * 1e3 + microseconds / 1e3;
    Some(Event { name, data: message["data"].clone(), unix_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_a_name_data_and_a_time() {
        let line = r#"{"timestamp": {"seconds": 2, "microseconds": 500}, "event": "STOP", "data": {"a": 1}}"#;
        let event = parse(line).unwrap();
        assert_eq!((event.name.as_str(), event.unix_ms), ("STOP", 2000.5));
        assert_eq!(event.data["a"], 1);
        assert_eq!(parse(r#"{"return": {}}"#), None);
    }
}
