//! Mutual TLS 1.3 between agents: who a peer is, and bytes that nobody else reads or changes.
//!
//! ```text
//!   files --TlsIdentity::load--> TlsIdentity --connect / accept--> Connection --into_blocking--> DataStream
//!                                                  (tokio, one          |  control: frames         |  bulk: one thread,
//!                                                   deadline)           v  on tokio                v  one direction
//! ```
//!
//! Every connection makes a full handshake in which both sides show a certificate of a CA that the other one knows; there
//! is no resumption and no early data, and nothing but TLS 1.3 with the protocol name `sterna/1`. A peer's name is the one
//! DNS name in its certificate, never its address. This module says who the peer is; whether that peer may do what it
//! asks is the agent's decision.
//!
//! A certificate that its authority has revoked gets nobody in, in either direction: the lists are looked at when a
//! connection is made, and read again when their file has changed. Connections that stand are left alone.
//!
//! A client can finish its handshake before the server has looked at its certificate: only the first answer (the reply to
//! the hello) proves that it was accepted, and reading that answer gives the server's reason when it was not.

mod certificate;
mod connection;
mod data;
mod error;
mod frames;
mod identity;
mod retransmission;
mod revocation;
#[cfg(test)]
mod tests;

pub use certificate::{Validity, peer_name};
pub use connection::{Connection, LinkOptions};
pub use data::{DataHandle, DataStream};
pub use error::{Blame, IdentityError, TlsError};
pub use frames::{FrameStreamError, read_frame, write_frame};
pub use identity::{TlsFiles, TlsIdentity};
pub(crate) use revocation::CRL_NAME;
pub use revocation::CrlFile;

/// The protocol name (ALPN) that both sides must agree on.
pub const ALPN: &[u8] = b"sterna/1";

#[cfg(test)]
pub(crate) fn test_folder() -> tests::authority::Folder {
    tests::authority::Folder::new()
}
