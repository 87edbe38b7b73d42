//! Somebody who connects with a valid certificate, and then says what the test wants.

use std::time::Duration;

use sterna_host::tls::{Connection, LinkOptions, TlsIdentity, read_frame, write_frame};
use sterna_model::Refusal;
use sterna_wire::message::Echo;
use sterna_wire::{
    Capabilities, FrameKind, FrameReader, FrameWriter, HEADER_BYTES, Hello, Message, Offer, Reply,
    Role, Sender,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::bench::Bench;
use crate::{Failure, Result};

const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// A connection after the handshake.
pub(crate) struct Caller {
    pub(crate) connection: Connection,
    pub(crate) reader: FrameReader,
    pub(crate) writer: FrameWriter,
}

impl Caller {
    /// A connection on which nothing was said yet.
    pub(crate) async fn connect(bench: &Bench, identity: &TlsIdentity) -> Result<Self> {
        let (name, options) = (bench.name().parse()?, LinkOptions::default());
        let connection = Connection::connect(bench.address(), identity, &name, options).await?;
        Ok(Self { connection, reader: FrameReader::new(), writer: FrameWriter::new() })
    }

    /// A connection that was welcomed.
    pub(crate) async fn call(bench: &Bench, identity: &TlsIdentity, role: Role) -> Result<Self> {
        let mut caller = Self::connect(bench, identity).await?;
        match caller.hello(&offer(1, 1, &[]), role).await? {
            Reply::Welcome(_) => Ok(caller),
            Reply::Refused { refusal } => Err(format!("refused: {refusal}").into()),
        }
    }

    /// Says hello in vain; gives the reason.
    pub(crate) async fn refused(
        bench: &Bench,
        identity: &TlsIdentity,
        role: Role,
    ) -> Result<Refusal> {
        match Self::connect(bench, identity).await?.hello(&offer(1, 1, &[]), role).await? {
            Reply::Refused { refusal } => Ok(refusal),
            Reply::Welcome(welcome) => Err(format!("expected a refusal, found {welcome:?}").into()),
        }
    }

    pub(crate) async fn hello(&mut self, offer: &Offer, role: Role) -> Result<Reply> {
        let hello = Hello { offer: offer.clone(), role };
        self.send_frame(FrameKind::Hello, &hello.encode()?).await?;
        if !self.read().await? {
            return Err("the connection was closed instead of an answer to the hello".into());
        }
        let frame = self.reader.frame().ok_or("no frame")?;
        Ok(Reply::decode(frame.payload)?)
    }

    pub(crate) async fn send(&mut self, message: &Message) -> Result<()> {
        self.send_frame(FrameKind::Control, &message.encode()?).await
    }

    pub(crate) async fn send_frame(&mut self, kind: FrameKind, payload: &[u8]) -> Result<()> {
        Ok(write_frame(self.connection.stream(), &mut self.writer, kind, payload).await?)
    }

    /// Sends bytes as they are.
    pub(crate) async fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.connection.stream().write_all(bytes).await?;
        Ok(self.connection.stream().flush().await?)
    }

    /// The next message; `None` when the agent has closed the connection.
    pub(crate) async fn receive(&mut self) -> Result<Option<Message>> {
        if !self.read().await? {
            return Ok(None);
        }
        let frame = self.reader.frame().ok_or("no frame")?;
        Ok(Some(Message::decode(frame.payload, Sender::Destination)?))
    }

    pub(crate) async fn ping(&mut self) -> Result<()> {
        let echo = Echo { nonce: 7, sent_ns: 1 };
        self.send(&Message::Ping(echo)).await?;
        match self.receive().await? {
            Some(Message::Pong(found)) if found == echo => Ok(()),
            other => Err(format!("expected a pong, found {other:?}").into()),
        }
    }

    /// Waits until the agent closes the connection; whatever comes before is thrown away.
    pub(crate) async fn wait_for_close(&mut self, limit: Duration) -> Result<()> {
        let mut scratch = vec![0; 64 << 10];
        let closed = async {
            while self.connection.stream().read(&mut scratch).await.is_ok_and(|count| count > 0) {}
        };
        let late = |_| Failure::from(format!("the agent kept the connection for {limit:?}"));
        tokio::time::timeout(limit, closed).await.map_err(late)
    }

    async fn read(&mut self) -> Result<bool> {
        let read = read_frame(self.connection.stream(), &mut self.reader);
        Ok(tokio::time::timeout(ANSWER_LIMIT, read).await.map_err(|_| "no answer")??)
    }
}

/// What an agent of these protocols offers.
pub(crate) fn offer(protocol_min: u16, protocol_max: u16, capabilities: &[&str]) -> Offer {
    let capabilities = Capabilities::new(capabilities).unwrap_or_default();
    Offer { protocol_min, protocol_max, software: "hostile 1".to_owned(), capabilities }
}

/// A frame's header as it lies on the wire, right or wrong.
pub(crate) fn header(kind: u8, flags: u8, length_bytes: u32, sequence: u64) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..2].copy_from_slice(b"St");
    (bytes[2], bytes[3]) = (kind, flags);
    bytes[4..8].copy_from_slice(&length_bytes.to_le_bytes());
    bytes[8..].copy_from_slice(&sequence.to_le_bytes());
    bytes
}
