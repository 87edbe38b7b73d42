//! How soon a connection notices that its link is back.
//!
//! TCP sends what was not acknowledged again after a time that doubles with each attempt, up to two minutes: after a cut of a
//! minute it may say nothing for another one. Linux 6.15 and later let a socket limit that time.

use std::os::fd::{AsFd, AsRawFd};

use nix::libc;

/// After the link is back, something is sent within this where the kernel can limit it.
const LONGEST_WAIT_MS: libc::c_int = 2000;
/// `TCP_RTO_MAX_MS` of `linux/tcp.h`, which the library does not have yet.
const TCP_RTO_MAX_MS: libc::c_int = 44;

/// Whether the kernel was able to limit the time between two attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notices {
    /// A link that is back is noticed within seconds.
    Soon,
    /// A link that is back is noticed within as long as it was away.
    Late,
}

/// Limits the time between two attempts to send the same again.
pub(super) fn limit_waits(socket: &impl AsFd) -> Notices {
    let value = LONGEST_WAIT_MS;
    let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or_default();
    // SAFETY: the kernel reads `length` bytes from `value`, which lives until the call returns; the descriptor is borrowed for
    // as long. A kernel that does not know the option changes nothing.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_RTO_MAX_MS,
            std::ptr::from_ref(&value).cast(),
            length,
        )
    };
    if result == 0 { Notices::Soon } else { Notices::Late }
}
