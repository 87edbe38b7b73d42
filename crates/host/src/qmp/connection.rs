//! The two tasks behind a [`Qmp`](super::Qmp): one always reads, one writes whole lines. Callers only wait.
//!
//! A caller that gives up, by its time limit or because its future is dropped, takes its entry out of the table of pending commands:
//! a line not yet begun is then never written, and a late reply finds nobody and is dropped. A line once begun is always
//! finished, so that no cancelled caller can break the framing.

use std::collections::HashMap;
use std::io;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use super::error::QmpError;
use super::event::Hub;
use super::message::{self, MAX_LINE_BYTES, Message, Refusal};

/// Bytes that are kept allocated for reading between lines.
const USUAL_BUFFER_BYTES: usize = 64 << 10;

/// Lines that wait to be written, at most. QEMU itself reads up to 8 commands ahead.
pub(super) const MAX_UNSENT: usize = 64;

/// How long the reader has for what is left to read when writing failed.
const READ_OUT: Duration = Duration::from_secs(1);

/// A command on its way out.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) id: String,
    pub(super) line: Vec<u8>,
    pub(super) descriptor: Option<OwnedFd>,
}

/// A reply, or what QEMU said against it.
pub(super) type Answer = Result<Value, Refusal>;

/// What the tasks and the callers share.
#[derive(Debug)]
pub(super) struct Shared {
    pending: Mutex<HashMap<String, oneshot::Sender<Answer>>>,
    pub(super) events: Hub,
    /// Why the connection ended, once it has.
    ended: watch::Sender<Option<QmpError>>,
}

impl Shared {
    pub(super) fn new() -> Arc<Self> {
        let (ended, _) = watch::channel(None);
        Arc::new(Self { pending: Mutex::default(), events: Hub::default(), ended })
    }

    /// Enters a command that waits for its reply, until the ticket is dropped.
    pub(super) fn expect(self: &Arc<Self>, id: &str) -> (Ticket, oneshot::Receiver<Answer>) {
        let (sender, receiver) = oneshot::channel();
        self.pending().insert(id.to_owned(), sender);
        (Ticket { shared: Arc::clone(self), id: id.to_owned() }, receiver)
    }

    /// Why the connection is over, if it is.
    pub(super) fn end(&self) -> Option<QmpError> {
        self.ended.borrow().clone()
    }

    /// Waits for the connection's end.
    pub(super) async fn ended(&self) -> QmpError {
        let mut ended = self.ended.subscribe();
        match ended.wait_for(Option::is_some).await.map(|cause| cause.clone()) {
            Ok(Some(cause)) => cause,
            _ => QmpError::closed("dropped here"),
        }
    }

    /// Ends the connection for everybody; the first cause stays.
    pub(super) fn finish(&self, cause: QmpError) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert(cause);
            first
        });
        self.pending().clear();
        self.events.close();
    }

    fn handle(&self, message: Message, line_bytes: usize) {
        match message {
            Message::Event(event) => self.events.publish(event, line_bytes),
            Message::Reply { id: Some(id), result } => {
                let Some(waiting) = self.pending().remove(&id) else {
                    tracing::debug!(id, "dropped a QMP reply that nobody waits for any more");
                    return;
                };
                // The caller may have given up in this moment: then nobody wants the answer.
                let _ = waiting.send(result);
            }
            Message::Reply { id: None, result } => {
                tracing::warn!(?result, "dropped a QMP reply without an id of ours");
            }
            Message::Greeting(_) => tracing::warn!("dropped a second QMP greeting"),
            Message::Unknown(line) => tracing::debug!(line, "dropped an unknown QMP message"),
        }
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<String, oneshot::Sender<Answer>>> {
        // Every use is one operation on the table, so it is whole even if a thread died holding the lock.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the table of pending commands.
#[derive(Debug)]
pub(super) struct Ticket {
    shared: Arc<Shared>,
    id: String,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.shared.pending().remove(&self.id);
    }
}

/// Reads until the connection ends, and says why it ended.
pub(super) async fn read_all(stream: Arc<UnixStream>, mut lines: Lines, shared: Arc<Shared>) {
    let cause = loop {
        let line = match lines.next(&stream).await {
            Ok(line) => line,
            Err(cause) => break cause,
        };
        match message::decode(line) {
            Ok(message) => {
                let line_bytes = line.len();
                shared.handle(message, line_bytes);
            }
            Err(cause) => break cause,
        }
    };
    shared.finish(cause);
}

/// Writes what the callers hand over, whole lines, in order.
pub(super) async fn write_all(
    stream: Arc<UnixStream>,
    mut unsent: mpsc::Receiver<Outgoing>,
    shared: Arc<Shared>,
) {
    while let Some(Outgoing { id, line, descriptor }) = unsent.recv().await {
        if !shared.pending().contains_key(&id) {
            continue;
        }
        if let Err(error) = write_line(&stream, &line, descriptor.as_ref()).await {
            // What QEMU said before it closed may still be unread; the reader comes to the end of it by itself.
            let _ = tokio::time::timeout(READ_OUT, shared.ended()).await;
            shared.finish(QmpError::closed(&format!("cannot write: {error}")));
            return;
        }
    }
}

/// Writes one line; the descriptor, if there is one, travels with its first byte.
pub(super) async fn write_line(
    stream: &UnixStream,
    line: &[u8],
    mut descriptor: Option<&OwnedFd>,
) -> io::Result<()> {
    let mut written = 0;
    while written < line.len() {
        let rest = &line[written..];
        written +=
            stream.async_io(Interest::WRITABLE, || send_some(stream, rest, descriptor)).await?;
        descriptor = None;
    }
    Ok(())
}

fn send_some(stream: &UnixStream, bytes: &[u8], descriptor: Option<&OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for the descriptor in the message"));
    }
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// Cuts the incoming bytes into lines of at most [`MAX_LINE_BYTES`].
#[derive(Debug, Default)]
pub(super) struct Lines {
    buffer: Vec<u8>,
    /// Bytes at the buffer's start that belong to the line handed out last.
    used: usize,
    /// Bytes after `used` that are known to hold no line end.
    searched: usize,
}

impl Lines {
    /// The next line, without its end. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When the peer closed, reading failed, or the line is too long.
    pub(super) async fn next(&mut self, stream: &UnixStream) -> Result<&[u8], QmpError> {
        self.buffer.drain(..self.used);
        self.used = 0;
        self.buffer.shrink_to(USUAL_BUFFER_BYTES);
        loop {
            let fresh = &self.buffer[self.searched..];
            if let Some(end) = fresh.iter().position(|byte| *byte == b'\n') {
                let end = self.searched + end;
                (self.used, self.searched) = (end + 1, 0);
                return Ok(self.buffer[..end].trim_ascii());
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > MAX_LINE_BYTES {
                let expected = format!("a line of at most {MAX_LINE_BYTES} bytes");
                return Err(QmpError::protocol(expected, &format!("{} bytes", self.searched)));
            }
            self.fill(stream).await?;
        }
    }

    async fn fill(&mut self, stream: &UnixStream) -> Result<(), QmpError> {
        let broken = |error: io::Error| QmpError::closed(&format!("cannot read: {error}"));
        loop {
            stream.readable().await.map_err(broken)?;
            self.buffer.reserve(USUAL_BUFFER_BYTES);
            match stream.try_read_buf(&mut self.buffer) {
                Ok(0) => return Err(QmpError::closed("QEMU closed it")),
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(error)),
            }
        }
    }
}
