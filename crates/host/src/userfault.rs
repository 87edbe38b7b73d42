//! Whether QEMU can be told of pages that a guest touches before they are there (userfaultfd): what post-copy stands on.

use std::path::Path;

use rustix::fs::{Access, access};

/// Lets every process handle faults of the kernel on its behalf.
const SETTING: &str = "/proc/sys/vm/unprivileged_userfaultfd";
/// Gives the same to whoever may open it (Linux 6.1 and later; QEMU 8.0 and later).
const DEVICE: &str = "/dev/userfaultfd";

/// Why it cannot.
#[derive(Debug, thiserror::Error)]
pub enum UserfaultError {
    /// The kernel does not have it.
    #[error("this host's kernel has no userfaultfd")]
    Absent,
    /// The kernel keeps it from this user.
    #[error(
        "this host's kernel gives userfaultfd only to root: expected {SETTING} to be 1, or {DEVICE} to be ours to open"
    )]
    Denied,
}

/// Whether a process of this user can use it.
///
/// # Errors
/// Why it cannot.
pub fn check() -> Result<(), UserfaultError> {
    let has_device = || access(Path::new(DEVICE), Access::READ_OK | Access::WRITE_OK).is_ok();
    let is_root = || rustix::process::geteuid().is_root();
    decide(std::fs::read_to_string(SETTING).ok().as_deref(), || has_device() || is_root())
}

fn decide(
    setting: Option<&str>,
    is_privileged: impl FnOnce() -> bool,
) -> Result<(), UserfaultError> {
    match setting.map(str::trim) {
        None => Err(UserfaultError::Absent),
        Some("1") => Ok(()),
        Some(_) if is_privileged() => Ok(()),
        Some(_) => Err(UserfaultError::Denied),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_or_a_privilege_will_do() {
        assert!(matches!(decide(None, || true), Err(UserfaultError::Absent)));
        assert!(matches!(decide(Some("0\n"), || false), Err(UserfaultError::Denied)));
        assert!(decide(Some("1\n"), || false).is_ok());
        assert!(decide(Some("0\n"), || true).is_ok());
    }
}
