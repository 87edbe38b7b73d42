//! Random bytes from the kernel: keys, tokens, names of jobs, VM ids.

use std::fs::File;
use std::io::Read;

use sterna_model::{JobId, Uuid};

/// So many random bytes.
///
/// # Errors
/// When the kernel's generator cannot be read; nothing secret can be made then.
pub(crate) fn bytes<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A new job's id.
///
/// # Errors
/// As [`bytes`].
pub(crate) fn job_id() -> std::io::Result<JobId> {
    let number = u64::from_le_bytes(bytes::<8>()?);
    format!("job-{number:016x}").parse().map_err(std::io::Error::other)
}

/// A new VM's id, for one whose definition names none.
///
/// # Errors
/// As [`bytes`].
pub(crate) fn uuid() -> std::io::Result<Uuid> {
    let mut bytes = bytes::<16>()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(Uuid(bytes))
}
