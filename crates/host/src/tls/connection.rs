//! Making and taking connections: TCP, the handshake, and the peer's name, under one deadline.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::net::sockopt;
use sterna_model::HostName;
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::ALPN;
use super::certificate::{Validity, peer_name};
use super::data::DataStream;
use super::error::TlsError;
use super::identity::{TlsIdentity, server_name};
use super::retransmission::{Notices, limit_waits};

/// How a connection is made and watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkOptions {
    /// From the first packet to the end of the handshake, at most.
    pub handshake_limit: Duration,
    /// A cut of the link that is no longer than this is ridden out; a peer that the network has not heard of for so long
    /// (twice so long before Linux 6.15) is gone: unacknowledged data, or unanswered keep-alives.
    pub silence_limit: Duration,
}

impl Default for LinkOptions {
    fn default() -> Self {
        let (handshake_limit, silence_limit) = (Duration::from_secs(10), Duration::from_secs(90));
        Self { handshake_limit, silence_limit }
    }
}

/// A connection to a peer whose name is proven.
///
/// A client's connection proves who the server is; that the server took us is proven only by its first answer.
#[derive(Debug)]
pub struct Connection {
    peer: HostName,
    address: SocketAddr,
    stream: TlsStream<TcpStream>,
}

impl Connection {
    /// Connects to `address` (host and port), where the peer named `peer` must answer.
    ///
    /// # Errors
    /// When nobody answers in time, or it is not that peer, or it is not an agent.
    pub async fn connect<A: ToSocketAddrs + std::fmt::Display>(
        address: A,
        identity: &TlsIdentity,
        peer: &HostName,
        options: LinkOptions,
    ) -> Result<Self, TlsError> {
        let limit = options.handshake_limit;
        let late = |_| TlsError::Timeout { step: "a connection to the peer", limit };
        timeout(limit, Self::connect_at_leisure(address, identity, peer, options))
            .await
            .map_err(late)?
    }

    async fn connect_at_leisure<A: ToSocketAddrs + std::fmt::Display>(
        address: A,
        identity: &TlsIdentity,
        peer: &HostName,
        options: LinkOptions,
    ) -> Result<Self, TlsError> {
        let name = server_name(peer).ok_or_else(|| TlsError::Name { name: peer.clone() })?;
        let socket = TcpStream::connect(&address).await.map_err(|error| {
            let address = address.to_string();
            TlsError::Connect { address, error }
        })?;
        let address = socket.peer_addr().map_err(TlsError::Io)?;
        set_options(&socket, options)?;
        let connector = TlsConnector::from(identity.client_config());
        let stream = connector
            .connect(name, socket)
            .await
            .map_err(|error| TlsError::of_io(error, Some(peer)))?;
        let connection = Self::proven(TlsStream::Client(stream), address)?;
        if connection.peer != *peer {
            let found = connection.peer.to_string();
            return Err(TlsError::PeerIsOther { expected: peer.clone(), found });
        }
        Ok(connection)
    }

    /// Takes a connection that arrived on `socket`.
    ///
    /// # Errors
    /// When the handshake is not finished in time, or the peer proves no name.
    pub async fn accept(
        socket: TcpStream,
        identity: &TlsIdentity,
        options: LinkOptions,
    ) -> Result<Self, TlsError> {
        let limit = options.handshake_limit;
        let address = socket.peer_addr().map_err(TlsError::Io)?;
        set_options(&socket, options)?;
        let acceptor = TlsAcceptor::from(identity.server_config());
        let stream = timeout(limit, acceptor.accept(socket))
            .await
            .map_err(|_| TlsError::Timeout { step: "a handshake by the peer", limit })?
            .map_err(|error| TlsError::of_io(error, None))?;
        Self::proven(TlsStream::Server(stream), address)
    }

    /// The peer's name, as its certificate says it.
    #[must_use]
    pub const fn peer(&self) -> &HostName {
        &self.peer
    }

    /// From when to when the peer's certificate holds.
    #[must_use]
    pub fn peer_validity(&self) -> Option<Validity> {
        let (_, tls) = self.stream.get_ref();
        tls.peer_certificates()?.first().and_then(Validity::of)
    }

    /// Where the peer's packets come from.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The bytes, in both directions; for `read_frame`, `write_frame` and [`tokio::io::split`].
    pub const fn stream(&mut self) -> &mut TlsStream<TcpStream> {
        &mut self.stream
    }

    /// The bytes, for a task that keeps them.
    #[must_use]
    pub fn into_stream(self) -> TlsStream<TcpStream> {
        self.stream
    }

    /// The connection for an OS thread that reads, or writes, in bulk. Nothing that arrived already is lost.
    ///
    /// # Errors
    /// When the system does not give the socket back.
    pub fn into_blocking(self) -> Result<DataStream, TlsError> {
        let (socket, tls) = match self.stream {
            TlsStream::Client(stream) => {
                let (socket, tls) = stream.into_inner();
                (socket, rustls::Connection::Client(tls))
            }
            TlsStream::Server(stream) => {
                let (socket, tls) = stream.into_inner();
                (socket, rustls::Connection::Server(tls))
            }
        };
        let socket = socket.into_std().map_err(TlsError::Io)?;
        socket.set_nonblocking(false).map_err(TlsError::Io)?;
        Ok(DataStream::new(socket, tls, self.peer))
    }

    /// Changes after how much silence the peer counts as gone ([`LinkOptions::silence_limit`]): it may be agreed on only
    /// when the connection stands.
    ///
    /// # Errors
    /// When the system does not take it.
    pub fn limit_silence(&self, limit: Duration) -> Result<(), TlsError> {
        let (socket, _) = self.stream.get_ref();
        set_silence_limit(socket, limit).map_err(|error| TlsError::Io(error.into()))
    }

    fn proven(stream: TlsStream<TcpStream>, address: SocketAddr) -> Result<Self, TlsError> {
        let (_, tls) = stream.get_ref();
        let peer = peer_name(tls.peer_certificates().unwrap_or_default())?;
        // A peer that names no protocol at all passes the library's check.
        if tls.alpn_protocol() != Some(ALPN) {
            let problem = "it names no protocol".to_owned();
            return Err(TlsError::PeerIncompatible { problem });
        }
        Ok(Self { peer, address, stream })
    }
}

fn set_options(socket: &TcpStream, options: LinkOptions) -> Result<(), TlsError> {
    let set = || -> Result<(), rustix::io::Errno> {
        sockopt::set_tcp_nodelay(socket, true)?;
        sockopt::set_socket_keepalive(socket, true)?;
        sockopt::set_tcp_keepcnt(socket, 3)?;
        set_silence_limit(socket, options.silence_limit)
    };
    set().map_err(|error| TlsError::Io(error.into()))
}

fn set_silence_limit(socket: &TcpStream, limit: Duration) -> Result<(), rustix::io::Errno> {
    let silence = limit.clamp(Duration::from_secs(4), Duration::from_hours(24));
    // A cut that is shorter than the limit must be ridden out, and it has to be noticed that it is over.
    let given_up = match limit_waits(socket) {
        Notices::Soon => silence,
        Notices::Late => silence * 2,
    };
    let limit_ms = u32::try_from(given_up.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_keepidle(socket, silence / 4)?;
    sockopt::set_tcp_keepintvl(socket, silence / 4)?;
    sockopt::set_tcp_user_timeout(socket, limit_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn silence_is_limited_by_the_kernel() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        set_options(&socket, LinkOptions::default()).unwrap();
        let times = if limit_waits(&socket) == Notices::Soon { 1 } else { 2 };
        assert_eq!(sockopt::tcp_user_timeout(&socket).unwrap(), 90_000 * times);
        set_silence_limit(&socket, Duration::from_secs(20)).unwrap();
        assert_eq!(sockopt::tcp_user_timeout(&socket).unwrap(), 20_000 * times);
        assert_eq!(sockopt::tcp_keepidle(&socket).unwrap(), Duration::from_secs(5));
        set_silence_limit(&socket, Duration::ZERO).unwrap();
        let least = sockopt::tcp_user_timeout(&socket).unwrap();
        assert_eq!(least, 4_000 * times, "none would be no limit");
    }
}
