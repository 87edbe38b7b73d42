//! A control connection to a peer, once both have said hello: messages out, messages in, each direction a task.
//!
//! What comes in waits in a queue of bounded length. When it is full nothing more is read, so that a peer that sends
//! faster than it is heard waits in its own buffers; whoever empties the queue must therefore never wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sterna_host::tls::{Connection, FrameStreamError, read_frame, write_frame};
use sterna_model::HostName;
use sterna_wire::{
    Capabilities, FrameKind, FrameReader, FrameWriter, HEADER_BYTES, Message, MessageError, Sender,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::{Notify, mpsc};
use tracing::Instrument as _;

/// What may wait to be heard of one connection: each is a frame, so at most so many MiB.
pub(crate) const MAX_UNREAD: usize = 16;
/// Messages that wait to be written, at most. A job has few; a peer that does not read is noticed.
const MAX_UNSENT: usize = 256;
/// How long a message waits for one to be written when so many wait.
const UNSENT_WAIT: Duration = Duration::from_millis(500);
/// How long a connection that nobody here needs any more waits for the peer to close it.
const LINGER: Duration = Duration::from_secs(10);
/// Bytes of device state in a frame.
const TAIL_PIECE_BYTES: usize = 256 << 10;

/// What a peer sent.
#[derive(Debug)]
pub(crate) enum Inbound {
    /// A message.
    Message(Box<Message>),
    /// A piece of the device state.
    Tail(Vec<u8>),
    /// Nothing more will come; why.
    Closed(String),
}

/// Why a message cannot be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// The connection is gone.
    #[error("the connection to {0} is closed")]
    Closed(HostName),
    /// We would break our own limits.
    #[error("cannot send a message: {0}")]
    Message(#[from] MessageError),
}

/// A control connection. Clones share it; it closes when the last one is dropped and everything is written.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    peer: HostName,
    unsent: mpsc::Sender<(FrameKind, Vec<u8>)>,
    counts: Arc<Counts>,
    capabilities: Arc<Capabilities>,
    left: Arc<Notify>,
}

/// Bytes of a control connection, frame headers included.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Sent.
    pub sent_bytes: AtomicU64,
    /// Received.
    pub received_bytes: AtomicU64,
}

/// A connection after the hello, with the state of both directions' frames.
pub(crate) struct Greeted {
    /// The connection.
    pub connection: Connection,
    /// What comes.
    pub reader: FrameReader,
    /// What goes.
    pub writer: FrameWriter,
    /// What both ends do beyond the protocol's minimum.
    pub capabilities: Capabilities,
}

impl Link {
    /// Starts both directions. `them` is what the peer is in the job; what it sends is given to `inbound`, to the last
    /// word why nothing more comes, or until nobody listens any more.
    pub(crate) fn start(greeted: Greeted, them: Sender, inbound: mpsc::Sender<Inbound>) -> Self {
        let peer = greeted.connection.peer().clone();
        let capabilities = Arc::new(greeted.capabilities);
        let (read_half, write_half) = tokio::io::split(greeted.connection.into_stream());
        let (unsent, messages) = mpsc::channel(MAX_UNSENT);
        let counts = Arc::new(Counts::default());
        let writing = write_all(write_half, greeted.writer, messages, Arc::clone(&counts));
        tokio::spawn(writing.in_current_span());
        let (reading, reader_of) = (Arc::clone(&counts), peer.clone());
        let left = Arc::new(Notify::new());
        let leaving = Arc::clone(&left);
        tokio::spawn(async move {
            let mut read_half = read_half;
            let end = tokio::select! {
                end = read_all(&mut read_half, greeted.reader, them, &reading, &inbound) => end,
                () = inbound.closed() => End::Unheard,
                () = leaving.notified() => End::Unheard,
            };
            if let End::Misbehaved(_) = &end {
                tracing::warn!(peer = %reader_of, why = %end, "a peer's connection is closed");
            }
            if let End::Unheard = &end {
                return linger(&mut read_half).await;
            }
            let _ = inbound.send(Inbound::Closed(end.to_string())).await;
        });
        Self { peer, unsent, counts, capabilities, left }
    }

    /// What both ends do beyond the protocol's minimum.
    #[must_use]
    pub(crate) fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Sends a message.
    ///
    /// # Errors
    /// When the connection is gone, or the message is above a limit.
    pub(crate) async fn send(&self, message: &Message) -> Result<(), LinkError> {
        self.push(FrameKind::Control, message.encode()?).await
    }

    /// Sends device state, in pieces.
    ///
    /// # Errors
    /// When the connection is gone.
    pub(crate) async fn send_tail(&self, bytes: &[u8]) -> Result<(), LinkError> {
        for piece in bytes.chunks(TAIL_PIECE_BYTES) {
            self.push(FrameKind::Tail, piece.to_vec()).await?;
        }
        Ok(())
    }

    /// Nobody here listens to it any more; it closes when the last clone is dropped.
    pub(crate) fn leave(&self) {
        self.left.notify_one();
    }

    /// Whether it is this very connection.
    #[must_use]
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.counts, &other.counts)
    }

    /// Nothing can be sent any more.
    #[must_use]
    pub(crate) fn is_closed(&self) -> bool {
        self.unsent.is_closed()
    }

    /// Bytes so far.
    #[must_use]
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    async fn push(&self, kind: FrameKind, payload: Vec<u8>) -> Result<(), LinkError> {
        // A peer that does not read must not hold up whoever has a guest to resume.
        let sent = tokio::time::timeout(UNSENT_WAIT, self.unsent.send((kind, payload))).await;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(LinkError::Closed(self.peer.clone())),
        }
    }
}

async fn write_all(
    mut stream: impl AsyncWrite + Unpin,
    mut writer: FrameWriter,
    mut messages: mpsc::Receiver<(FrameKind, Vec<u8>)>,
    counts: Arc<Counts>,
) {
    while let Some((kind, payload)) = messages.recv().await {
        counts.sent_bytes.fetch_add((payload.len() + HEADER_BYTES) as u64, Ordering::Relaxed);
        if let Err(error) = write_frame(&mut stream, &mut writer, kind, &payload).await {
            tracing::debug!(%error, "the control connection cannot be written");
            return;
        }
    }
    let _ = tokio::io::AsyncWriteExt::shutdown(&mut stream).await;
}

/// Why nothing more comes.
#[derive(Debug)]
enum End {
    Closed(String),
    Misbehaved(String),
    /// Nobody here listens any more.
    Unheard,
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed(why) => f.write_str(why),
            Self::Misbehaved(why) => write!(f, "the peer misbehaves: {why}"),
            Self::Unheard => f.write_str("nobody listens to the peer any more"),
        }
    }
}

/// Reads until nothing more comes; tells why.
async fn read_all(
    stream: &mut (impl AsyncRead + Unpin),
    mut reader: FrameReader,
    them: Sender,
    counts: &Counts,
    inbound: &mpsc::Sender<Inbound>,
) -> End {
    loop {
        match read_frame(stream, &mut reader).await {
            Ok(true) => {}
            Ok(false) => return End::Closed("the peer has closed the connection".into()),
            Err(FrameStreamError::Connection(error)) => return End::Closed(error.to_string()),
            Err(FrameStreamError::Frame(error)) => return End::Misbehaved(error.to_string()),
        }
        let Some(frame) = reader.frame() else { continue };
        counts
            .received_bytes
            .fetch_add((frame.payload.len() + HEADER_BYTES) as u64, Ordering::Relaxed);
        let heard = match frame.kind {
            FrameKind::Control => match Message::decode(frame.payload, them) {
                Ok(message) => Inbound::Message(Box::new(message)),
                Err(error) => return End::Misbehaved(error.to_string()),
            },
            FrameKind::Tail => Inbound::Tail(frame.payload.to_vec()),
            kind => {
                let why = format!("expected a message, found a frame of kind {kind}");
                return End::Misbehaved(why);
            }
        };
        if inbound.send(heard).await.is_err() {
            return End::Unheard;
        }
    }
}

/// Reads on for a while, for nobody: a socket that is closed with unread bytes is reset, which can destroy our last words
/// before the peer has read them. A peer that does not close its end then is not waited for.
async fn linger(stream: &mut (impl AsyncRead + Unpin)) {
    let read = async {
        let mut scratch = [0; 4096];
        while stream.read(&mut scratch).await.is_ok_and(|count| count > 0) {}
    };
    let _ = tokio::time::timeout(LINGER, read).await;
}

#[cfg(test)]
mod tests {
    use sterna_wire::message::Echo;
    use tokio::io::DuplexStream;

    use super::*;

    /// A peer that has said hello, and what reads it.
    async fn greeted(room: usize) -> ((DuplexStream, FrameWriter), (DuplexStream, FrameReader)) {
        let (mut theirs, mut ours) = tokio::io::duplex(room);
        let (mut writer, mut reader) = (FrameWriter::new(), FrameReader::new());
        write_frame(&mut theirs, &mut writer, FrameKind::Hello, b"{}").await.unwrap();
        assert!(read_frame(&mut ours, &mut reader).await.unwrap());
        ((theirs, writer), (ours, reader))
    }

    async fn flood((mut stream, mut writer): (DuplexStream, FrameWriter), count: u64) {
        for nonce in 0..count {
            let ping = Message::Ping(Echo { nonce, sent_ns: 0 }).encode().unwrap();
            write_frame(&mut stream, &mut writer, FrameKind::Control, &ping).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_peer_that_floods_waits_in_its_own_buffers() {
        const SENT: u64 = 500;
        const MAX_FRAME_BYTES: u64 = 128;
        let (theirs, (mut ours, reader)) = greeted(256).await;
        let (sender, mut queue) = mpsc::channel(MAX_UNREAD);
        let flooding = tokio::spawn(flood(theirs, SENT));
        let counts = Arc::new(Counts::default());
        let counted = Arc::clone(&counts);
        let reading = tokio::spawn(async move {
            read_all(&mut ours, reader, Sender::Source, &counted, &sender).await
        });
        // One thread, so both tasks have had every turn that they could use.
        for _ in 0..10_000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(queue.len(), MAX_UNREAD);
        assert!(!flooding.is_finished(), "it waits");
        let read = counts.received_bytes.load(Ordering::Relaxed);
        assert!(read <= (MAX_UNREAD as u64 + 1) * MAX_FRAME_BYTES, "{read} bytes read ahead");
        for expected in 0..SENT {
            let Some(Inbound::Message(message)) = queue.recv().await else { panic!("closed") };
            assert!(matches!(*message, Message::Ping(echo) if echo.nonce == expected));
        }
        flooding.await.unwrap();
        assert!(reading.await.unwrap().to_string().contains("closed"));
    }

    #[tokio::test]
    async fn nobody_reads_on_when_nobody_listens() {
        let (theirs, (mut ours, reader)) = greeted(64 << 10).await;
        let (sender, queue) = mpsc::channel(MAX_UNREAD);
        drop(queue);
        flood(theirs, 3).await;
        let counts = Counts::default();
        let why = read_all(&mut ours, reader, Sender::Source, &counts, &sender).await;
        assert!(why.to_string().contains("nobody listens"));
    }
}
