//! Programs in the chroot: the disk of applications is mounted at /apps, a tmpfs at its /tmp.

use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use super::resp::RespError;

/// Where init mounts the disk of the applications.
const ROOT: &str = "/apps";
const BUSYBOX: &str = "/bin/busybox";

/// Why an application does not work, or works no more.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplicationError {
    /// A file, a pipe, a process.
    #[error("{doing}: {source}")]
    Io {
        /// What was tried.
        doing: String,
        /// What the system answered.
        source: io::Error,
    },
    /// A program has ended.
    #[error("{program} ended: {status}")]
    Ended {
        /// Which one.
        program: &'static str,
        /// How.
        status: ExitStatus,
    },
    /// A program is silent.
    #[error("{program}: no answer in {seconds} s to {question}")]
    Silent {
        /// Which one.
        program: &'static str,
        /// What was asked.
        question: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// Something on the disk of applications, or an answer, is not as it should be.
    #[error("{what}: expected {expected}, found {found:?}")]
    Unexpected {
        /// Of what.
        what: String,
        /// What belongs there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// The server's protocol.
    #[error(transparent)]
    Resp(#[from] RespError),
}

impl ApplicationError {
    /// For `map_err`.
    pub(super) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

/// A path in the chroot as it is outside of it.
pub(super) fn outside(path: &str) -> PathBuf {
    PathBuf::from(format!("{ROOT}{path}"))
}

/// A program of the chroot with an environment of its own.
pub(super) fn command(program: &str) -> Command {
    let mut command = Command::new(BUSYBOX);
    command.args(["chroot", ROOT, program]);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/tmp");
    command.env("TERM", "xterm").env("LC_ALL", "C");
    command
}

/// A text on the disk of applications.
///
/// # Errors
/// It cannot be read: the disk is missing, or is another one.
pub(super) fn read_text(path: &str) -> Result<String, ApplicationError> {
    let path = outside(path);
    std::fs::read_to_string(&path)
        .map_err(ApplicationError::io(format!("reading {} (scripts/build-apps)", path.display())))
}
