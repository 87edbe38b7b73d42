//! A small client of QEMU's machine protocol (QMP) on a unix socket.
//!
//! [`Qmp`] is a handle that can be cloned and used by many callers at a time; replies find their callers by id. Two tasks stand behind it
//! (`connection.rs`), so QEMU's output is always read, whoever waits or has stopped waiting. Every command
//! has a time limit. A command that timed out may still be carried out: whoever gets [`QmpError::Timeout`] asks for
//! the state before acting on it.
//!
//! Nothing here depends on QEMU's version: unknown fields, events and statuses pass, missing fields are their defaults,
//! and what a QEMU can do is asked of its [`Schema`].
//!
//! ```text
//! Qmp::execute --line--> write task --> QEMU --> read task --by id--> the caller
//!                                                    \------events--> Qmp::subscribe, each a bounded queue
//! ```

mod connection;
mod error;
mod event;
mod machine;
mod message;
mod migration;
mod program;
mod schema;
#[cfg(test)]
mod tests;

pub use error::QmpError;
pub use event::{Delivery, Event, Events, KEY_EVENTS, Timestamp};
pub use machine::{
    Accelerator, BlockDevice, Cpu, Image, Inserted, Machine, MemoryBackend, MemoryDevice,
    MemoryDeviceData, RunState, Status,
};
pub use message::{Greeting, Version, VersionNumber};
pub use migration::{MigrationInfo, MigrationParameters, MigrationStatus, RamInfo};
pub use program::{CpuFeatures, CpuModel, Program, ProgramError};
pub use schema::Schema;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;

use connection::{Lines, MAX_UNSENT, Outgoing, Shared};
use message::Message;

/// How long the typed commands wait for QEMU, unless [`Qmp::with_timeout`] says otherwise. Generous: QEMU's main loop may be held up by a
/// migration's last pass.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a socket is tried that does not accept yet.
const CONNECT_EVERY: Duration = Duration::from_millis(2);

/// A connection to one QEMU. Clones share it; it closes when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Qmp {
    link: Arc<Link>,
    timeout: Duration,
}

#[derive(Debug)]
struct Link {
    shared: Arc<Shared>,
    unsent: mpsc::Sender<Outgoing>,
    /// QEMU keeps only the descriptors that came last, so a second one must wait until the first is taken.
    descriptors: Mutex<()>,
    next_id: AtomicU64,
    /// Tells the ids of this connection from those of an earlier one whose late replies QEMU may still send.
    tag: u64,
    tasks: [tokio::task::AbortHandle; 2],
}

impl Drop for Link {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.shared.finish(QmpError::closed("dropped here"));
    }
}

impl Qmp {
    /// Connects to the monitor socket at `path`, trying until it accepts, and negotiates (out-of-band commands where
    /// QEMU offers them). `deadline` bounds it all, from now.
    ///
    /// # Errors
    /// [`QmpError::Connect`] when the socket does not accept in time or never can; [`QmpError::Timeout`] when QEMU does not greet, which is what
    /// happens when another client holds this monitor.
    pub async fn connect(path: &Path, deadline: Duration) -> Result<(Self, Greeting), QmpError> {
        let until = Instant::now() + deadline;
        let stream = loop {
            let error = match UnixStream::connect(path).await {
                Ok(stream) => break stream,
                Err(error) => error,
            };
            let may_come =
                matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
            if !may_come || Instant::now() + CONNECT_EVERY > until {
                return Err(QmpError::Connect { path: path.into(), error: Arc::new(error) });
            }
            tokio::time::sleep(CONNECT_EVERY).await;
        };
        Self::over(stream, until.saturating_duration_since(Instant::now())).await
    }

    /// Speaks QMP over a socket that is connected already.
    ///
    /// # Errors
    /// As [`Qmp::connect`].
    pub async fn over(
        stream: UnixStream,
        deadline: Duration,
    ) -> Result<(Self, Greeting), QmpError> {
        let until = Instant::now() + deadline;
        let mut lines = Lines::default();
        let greeting = tokio::time::timeout_at(until, greeting(&stream, &mut lines))
            .await
            .map_err(|_| QmpError::Timeout { command: "(greeting)".into(), waited: deadline })??;
        let qmp = Self { link: Arc::new(Link::start(stream, lines)), timeout: DEFAULT_TIMEOUT };
        let oob = greeting.capabilities.iter().filter(|name| *name == "oob").collect::<Vec<_>>();
        let left = until.saturating_duration_since(Instant::now());
        qmp.execute("qmp_capabilities", json!({ "enable": oob }), left).await?;
        Ok((qmp, greeting))
    }

    /// This connection with another time limit for the typed commands ([`Qmp::query_status`] and so on).
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { link: Arc::clone(&self.link), timeout }
    }

    /// Carries out a command. `arguments` is an object, or `Null` for none.
    ///
    /// # Errors
    /// [`QmpError`], as it says.
    pub async fn execute(
        &self,
        command: &str,
        arguments: Value,
        timeout: Duration,
    ) -> Result<Value, QmpError> {
        self.call("execute", command, arguments, None, timeout).await
    }

    /// Carries out a command ahead of those that QEMU is busy with (`migrate-recover`, `migrate-pause`, `yank`).
    ///
    /// # Errors
    /// As [`Qmp::execute`]; QEMU refuses where it does not offer out-of-band commands, or not for this command.
    pub async fn execute_out_of_band(
        &self,
        command: &str,
        arguments: Value,
        timeout: Duration,
    ) -> Result<Value, QmpError> {
        self.call("exec-oob", command, arguments, None, timeout).await
    }

    /// Carries out a command that takes a file descriptor along (`getfd`, `add-fd`). It is closed here afterwards.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn execute_with_fd(
        &self,
        command: &str,
        arguments: Value,
        descriptor: OwnedFd,
        timeout: Duration,
    ) -> Result<Value, QmpError> {
        let until = Instant::now() + timeout;
        let late = || QmpError::Timeout { command: command.into(), waited: timeout };
        let _turn = tokio::time::timeout_at(until, self.link.descriptors.lock())
            .await
            .map_err(|_| late())?;
        let left = until.saturating_duration_since(Instant::now());
        self.call("execute", command, arguments, Some(descriptor), left).await
    }

    /// Carries out a command of the human monitor and gives its output. The human monitor reports errors in its
    /// output, too.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn hmp(&self, command_line: &str) -> Result<String, QmpError> {
        self.ask("human-monitor-command", json!({ "command-line": command_line })).await
    }

    /// The events from now on. Subscribe first and ask for the state then, and nothing falls in between.
    #[must_use]
    pub fn subscribe(&self) -> Events {
        self.link.shared.events.subscribe()
    }

    /// Waits until the connection is over, and says why.
    pub async fn closed(&self) -> QmpError {
        self.link.shared.ended().await
    }

    /// Why the connection is over, if it is.
    #[must_use]
    pub fn end(&self) -> Option<QmpError> {
        self.link.shared.end()
    }

    /// A typed command: its result, parsed.
    async fn ask<T: DeserializeOwned>(
        &self,
        command: &str,
        arguments: Value,
    ) -> Result<T, QmpError> {
        let value = self.execute(command, arguments, self.timeout).await?;
        serde_json::from_value(value).map_err(|error| {
            QmpError::protocol(format!("a result of {command}"), &error.to_string())
        })
    }

    /// A typed command whose result says nothing.
    async fn tell(&self, command: &str, arguments: Value) -> Result<(), QmpError> {
        self.execute(command, arguments, self.timeout).await.map(drop)
    }

    async fn call(
        &self,
        verb: &str,
        command: &str,
        arguments: Value,
        descriptor: Option<OwnedFd>,
        timeout: Duration,
    ) -> Result<Value, QmpError> {
        let link = &self.link;
        let id = format!("{:x}-{}", link.tag, link.next_id.fetch_add(1, Ordering::Relaxed));
        let mut line = json!({ verb: command, "id": id });
        if !arguments.is_null() {
            line["arguments"] = arguments;
        }
        let mut line = line.to_string().into_bytes();
        line.push(b'\n');
        let (_ticket, reply) = link.shared.expect(&id);
        let exchange = async {
            // Either may fail only because the connection ended; why is asked below.
            link.unsent.send(Outgoing { id, line, descriptor }).await.ok()?;
            reply.await.ok()
        };
        let answer = tokio::select! {
            // A reply that came before the end counts: QEMU answers `quit` and closes at once.
            biased;
            answer = tokio::time::timeout(timeout, exchange) => answer,
            cause = link.shared.ended() => return Err(cause),
        };
        match answer {
            Ok(Some(Ok(value))) => Ok(value),
            Ok(Some(Err(refusal))) => Err(QmpError::Command {
                command: command.into(),
                class: error::shortened(&refusal.class),
                desc: error::shortened(&refusal.desc),
            }),
            Ok(None) => Err(link.shared.ended().await),
            Err(_) => Err(QmpError::Timeout { command: command.into(), waited: timeout }),
        }
    }
}

impl Link {
    fn start(stream: UnixStream, lines: Lines) -> Self {
        let (stream, shared) = (Arc::new(stream), Shared::new());
        let (unsent, to_write) = mpsc::channel(MAX_UNSENT);
        let read = connection::read_all(Arc::clone(&stream), lines, Arc::clone(&shared));
        let write = connection::write_all(stream, to_write, Arc::clone(&shared));
        let tasks = [tokio::spawn(read).abort_handle(), tokio::spawn(write).abort_handle()];
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let tag = since.as_secs() << 30 ^ u64::from(since.subsec_nanos());
        Self { shared, unsent, descriptors: Mutex::new(()), next_id: AtomicU64::new(0), tag, tasks }
    }
}

/// Reads up to the greeting. Some versions of QEMU send events before it.
async fn greeting(stream: &UnixStream, lines: &mut Lines) -> Result<Greeting, QmpError> {
    loop {
        match message::decode(lines.next(stream).await?)? {
            Message::Greeting(greeting) => return Ok(greeting),
            early => tracing::debug!(?early, "passed over a QMP message before the greeting"),
        }
    }
}
