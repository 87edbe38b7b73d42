//! Peers: connecting to one, taking a connection from one, and the hello on both ends.
//!
//! TLS proves who the peer is; the configuration's `[peers]` decides whether it may talk to us at all, and `accept`
//! whether it may send VMs.

use sterna_host::tls::{
    Connection, FrameStreamError, LinkOptions, TlsError, TlsIdentity, read_frame, write_frame,
};
use sterna_model::{HostName, Refusal};
use sterna_wire::evidence::EVIDENCE;
use sterna_wire::keep::KEEP;
use sterna_wire::message::PACKED_STATE;
use sterna_wire::post_copy::POST_COPY;
use sterna_wire::{
    Agreed, Capabilities, Frame, FrameKind, FrameReader, FrameWriter, Hello, HelloError, Offer,
    Reply, Role, Welcome, negotiate,
};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::agent::Agent;
use crate::link::Greeted;

/// This build's version, for people.
pub(crate) const SOFTWARE: &str = concat!("sterna ", env!("CARGO_PKG_VERSION"));

/// What this build does beyond the protocol's minimum.
const CAPABILITIES: [&str; 4] = [EVIDENCE, KEEP, PACKED_STATE, POST_COPY];

/// A peer to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    /// Its name.
    pub name: HostName,
    /// Where it listens.
    pub address: String,
}

/// Why a peer is not to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerError {
    /// Network or identity.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It broke the frame format.
    #[error("{peer} misbehaves: {error}")]
    Frame {
        /// The peer.
        peer: HostName,
        /// How.
        error: FrameStreamError,
    },
    /// It broke the hello.
    #[error("{peer} misbehaves: {error}")]
    Hello {
        /// The peer.
        peer: HostName,
        /// How.
        error: HelloError,
    },
    /// It broke the protocol after that.
    #[error("{peer} misbehaves: {why}")]
    Misbehaves {
        /// The peer.
        peer: HostName,
        /// How: what was expected, what was found.
        why: String,
    },
    /// It closed the connection instead of answering.
    #[error("{peer} closed the connection instead of answering our hello")]
    Closed {
        /// The peer.
        peer: HostName,
    },
    /// It says no.
    #[error("{peer} refuses: {refusal}")]
    Refused {
        /// The peer.
        peer: HostName,
        /// Why.
        refusal: Box<Refusal>,
    },
    /// We say no to it.
    #[error("{peer} was refused: {refusal}")]
    TurnedAway {
        /// The peer.
        peer: HostName,
        /// Why.
        refusal: Box<Refusal>,
    },
    /// It keeps a connection open without using it.
    #[error("{peer} misbehaves: expected something from it within {limit_s} s, found silence", limit_s = limit.as_secs())]
    Idle {
        /// The peer.
        peer: HostName,
        /// How long it was given.
        limit: std::time::Duration,
    },
    /// It had not said who it is when newer connections needed its place.
    #[error(
        "expected the handshake to end before very many others began, found a flood of connections"
    )]
    CrowdedOut,
    /// It says nothing.
    #[error("{peer} does not answer our hello")]
    Silent {
        /// The peer.
        peer: HostName,
    },
}

impl PeerError {
    /// Whether the host is there and nobody listens: its agent has ended.
    #[must_use]
    pub(crate) fn nobody_listens(&self) -> bool {
        let Self::Tls(TlsError::Connect { error, .. }) = self else { return false };
        error.kind() == std::io::ErrorKind::ConnectionRefused
    }

    /// The error as a refusal: what a plan tells before anything is touched.
    #[must_use]
    pub(crate) fn to_refusal(&self) -> Refusal {
        match self {
            Self::Tls(error) => error.to_refusal(),
            Self::Refused { refusal, .. } | Self::TurnedAway { refusal, .. } => (**refusal).clone(),
            Self::Closed { .. } | Self::Silent { .. } | Self::Idle { .. } | Self::CrowdedOut => {
                Refusal::new("peer-silent", self.to_string(), "look at the peer's log")
            }
            Self::Frame { .. } | Self::Hello { .. } | Self::Misbehaves { .. } => {
                let remedy =
                    "check that a Sterna agent listens there, and upgrade the older one of both";
                Refusal::new("peer-misbehaves", self.to_string(), remedy)
            }
        }
    }
}

/// The peer that `text` names: a peer of the configuration, or `name=host:port`.
///
/// # Errors
/// As a refusal, when it is neither.
pub(crate) fn destination(agent: &Agent, text: &str) -> Result<Destination, Refusal> {
    let unknown = |reason: String| {
        let remedy = "name a peer of the configuration, or give name=host:port";
        Refusal::new("peer-unknown", reason, remedy)
    };
    let (name, address) = match text.split_once('=') {
        Some((name, address)) => (name, Some(address.to_owned())),
        None => (text, None),
    };
    let name: HostName = name.parse().map_err(|error| unknown(format!("{error}")))?;
    match address {
        Some(address) => Ok(Destination { name, address }),
        None => configured(agent, &name)
            .ok_or_else(|| unknown(format!("there is no [peers.{name}] in the configuration"))),
    }
}

/// The peer of this name, where the configuration says that it listens.
#[must_use]
pub(crate) fn configured(agent: &Agent, name: &HostName) -> Option<Destination> {
    let address = agent.config.peers.get(name)?.address.clone();
    Some(Destination { name: name.clone(), address })
}

fn our_offer() -> Offer {
    let capabilities = Capabilities::new(&CAPABILITIES).unwrap_or_default();
    Offer::of_this_build(SOFTWARE, capabilities)
}

/// Connects to a peer and says hello.
///
/// # Errors
/// When it cannot be reached, is somebody else, or refuses.
pub(crate) async fn connect(
    identity: &TlsIdentity,
    to: &Destination,
    role: Role,
    options: LinkOptions,
) -> Result<(Greeted, Welcome), PeerError> {
    let mut connection =
        Connection::connect(to.address.as_str(), identity, &to.name, options).await?;
    let peer = to.name.clone();
    let hello_error = |error| PeerError::Hello { peer: peer.clone(), error };
    let frame_error = |error| match error {
        FrameStreamError::Connection(error) => PeerError::Tls(error),
        error @ FrameStreamError::Frame(_) => PeerError::Frame { peer: peer.clone(), error },
    };
    let (mut reader, mut writer) = (FrameReader::new(), FrameWriter::new());
    let hello = Hello { offer: our_offer(), role };
    let payload = hello.encode().map_err(hello_error)?;
    write_frame(connection.stream(), &mut writer, FrameKind::Hello, &payload)
        .await
        .map_err(frame_error)?;
    let answered =
        timeout(options.handshake_limit, read_frame(connection.stream(), &mut reader)).await;
    let more =
        answered.map_err(|_| PeerError::Silent { peer: peer.clone() })?.map_err(frame_error)?;
    let Some(Frame { payload, .. }) = reader.frame().filter(|_| more) else {
        return Err(PeerError::Closed { peer });
    };
    match Reply::decode(payload).map_err(hello_error)? {
        Reply::Refused { refusal } => Err(PeerError::Refused { peer, refusal: Box::new(refusal) }),
        Reply::Welcome(welcome) => {
            let agreed = Agreed::by_welcome(&hello.offer, &welcome).map_err(hello_error)?;
            let capabilities = agreed.capabilities;
            Ok((Greeted { connection, reader, writer, capabilities }, welcome))
        }
    }
}

/// A peer that has connected and said hello, and waits for our reply.
pub(crate) struct Visitor {
    greeted: Greeted,
    hello: Hello,
}

impl Visitor {
    /// Takes a connection, and reads who it is from and what for.
    ///
    /// # Errors
    /// When the handshake fails, or what comes is no hello.
    pub(crate) async fn take(
        socket: TcpStream,
        identity: &TlsIdentity,
        options: LinkOptions,
    ) -> Result<Self, PeerError> {
        let mut connection = Connection::accept(socket, identity, options).await?;
        let peer = connection.peer().clone();
        let mut reader = FrameReader::new();
        let said =
            timeout(options.handshake_limit, read_frame(connection.stream(), &mut reader)).await;
        let more = said.map_err(|_| PeerError::Silent { peer: peer.clone() })?;
        let more = more.map_err(|error| PeerError::Frame { peer: peer.clone(), error })?;
        let Some(Frame { payload, .. }) = reader.frame().filter(|_| more) else {
            return Err(PeerError::Closed { peer });
        };
        let hello = Hello::decode(payload).map_err(|error| PeerError::Hello { peer, error })?;
        let capabilities = our_offer().capabilities.common(&hello.offer.capabilities);
        let writer = FrameWriter::new();
        Ok(Self { greeted: Greeted { connection, reader, writer, capabilities }, hello })
    }

    /// Who it is.
    #[must_use]
    pub(crate) const fn peer(&self) -> &HostName {
        self.greeted.connection.peer()
    }

    /// What for.
    #[must_use]
    pub(crate) const fn role(&self) -> &Role {
        &self.hello.role
    }

    /// Why we cannot speak with the peer, if our protocols do not meet.
    #[must_use]
    pub(crate) fn unmet(&self) -> Option<Refusal> {
        negotiate(&our_offer(), &self.hello.offer).err()
    }

    /// Welcomes the peer, whose protocols meet ours.
    ///
    /// # Errors
    /// When the connection fails.
    pub(crate) async fn welcome(mut self) -> Result<Greeted, PeerError> {
        let reply = Reply::to_offer(&our_offer(), &self.hello.offer);
        self.send(&reply).await?;
        Ok(self.greeted)
    }

    /// Sends the peer away.
    ///
    /// # Errors
    /// When the connection fails.
    pub(crate) async fn refuse(mut self, refusal: &Refusal) -> Result<(), PeerError> {
        self.send(&Reply::refused(refusal)).await?;
        let _ = tokio::io::AsyncWriteExt::shutdown(self.greeted.connection.stream()).await;
        Ok(())
    }

    async fn send(&mut self, reply: &Reply) -> Result<(), PeerError> {
        let peer = self.peer().clone();
        let payload =
            reply.encode().map_err(|error| PeerError::Hello { peer: peer.clone(), error })?;
        let Greeted { connection, writer, .. } = &mut self.greeted;
        let written = write_frame(connection.stream(), writer, FrameKind::Hello, &payload).await;
        written.map_err(|error| PeerError::Frame { peer, error })
    }
}
