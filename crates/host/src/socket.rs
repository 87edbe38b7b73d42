//! What the system knows of a socket's queue.

use std::io;
use std::os::fd::AsFd;

/// `SIOCOUTQ` of tcp(7) and unix(7), on every architecture.
const SIOCOUTQ: rustix::ioctl::Opcode = 0x5411;

/// Bytes that were written to a socket and are not at their end: not acknowledged by the peer's system (TCP), or not read
/// by the peer (Unix; there with what the system needs around them).
///
/// # Errors
/// When the system does not tell.
pub fn unsent_bytes(socket: impl AsFd) -> io::Result<usize> {
    // SAFETY: the request writes one C integer, which is what the getter has room for.
    let count = unsafe {
        let getter = rustix::ioctl::Getter::<{ SIOCOUTQ }, i32>::new();
        rustix::ioctl::ioctl(socket, getter)
    }?;
    Ok(usize::try_from(count).unwrap_or(0))
}
