//! A control connection to a peer, once both have said hello: messages out, messages in, each direction a task.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sterna_host::tls::{Connection, FrameStreamError, read_frame, write_frame};
use sterna_model::HostName;
use sterna_wire::{
    FrameKind, FrameReader, FrameWriter, HEADER_BYTES, Message, MessageError, Sender,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// Messages that wait to be written, at most. A job has few; a peer that does not read is noticed.
const MAX_UNSENT: usize = 256;
/// How long a message waits for one to be written when so many wait.
const UNSENT_WAIT: Duration = Duration::from_millis(500);
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
}

impl Link {
    /// Starts both directions. `them` is what the peer is in the job; what it sends is given to `inbound`.
    pub(crate) fn start(
        greeted: Greeted,
        them: Sender,
        inbound: impl Fn(Inbound) + Send + Sync + 'static,
    ) -> Self {
        let peer = greeted.connection.peer().clone();
        let (read_half, write_half) = tokio::io::split(greeted.connection.into_stream());
        let (unsent, messages) = mpsc::channel(MAX_UNSENT);
        let counts = Arc::new(Counts::default());
        tokio::spawn(write_all(write_half, greeted.writer, messages, Arc::clone(&counts)));
        let reading = Arc::clone(&counts);
        tokio::spawn(async move {
            let mut read_half = read_half;
            let why = read_all(&mut read_half, greeted.reader, them, &reading, &inbound).await;
            inbound(Inbound::Closed(why));
        });
        Self { peer, unsent, counts }
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

/// Reads until nothing more comes; tells why.
async fn read_all(
    stream: &mut (impl AsyncRead + Unpin),
    mut reader: FrameReader,
    them: Sender,
    counts: &Counts,
    inbound: &(impl Fn(Inbound) + Sync),
) -> String {
    loop {
        match read_frame(stream, &mut reader).await {
            Ok(true) => {}
            Ok(false) => return "the peer has closed the connection".into(),
            Err(FrameStreamError::Connection(error)) => return error.to_string(),
            Err(FrameStreamError::Frame(error)) => return format!("the peer misbehaves: {error}"),
        }
        let Some(frame) = reader.frame() else { continue };
        counts
            .received_bytes
            .fetch_add((frame.payload.len() + HEADER_BYTES) as u64, Ordering::Relaxed);
        match frame.kind {
            FrameKind::Control => match Message::decode(frame.payload, them) {
                Ok(message) => inbound(Inbound::Message(Box::new(message))),
                Err(error) => return format!("the peer misbehaves: {error}"),
            },
            FrameKind::Tail => inbound(Inbound::Tail(frame.payload.to_vec())),
            kind => {
                return format!(
                    "the peer misbehaves: expected a message, found a frame of kind {kind}"
                );
            }
        }
    }
}
