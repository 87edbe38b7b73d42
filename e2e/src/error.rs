//! What can go wrong in a test or a measurement, in words that say where to look.

use std::fmt;
use std::io;
use std::time::Duration;

/// What the harness's functions give.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a story ended early. Prints the same with `{:?}`, which is how the test runner shows it.
#[derive(thiserror::Error)]
pub enum Error {
    /// The machine, not Sterna: a file, a socket, a process.
    #[error("{doing}: {source}")]
    Io {
        /// What was tried.
        doing: String,
        /// What the system answered.
        source: io::Error,
    },
    /// A program that should have succeeded did not.
    #[error("`{line}` ended with {code:?}, expected 0\n{stderr}")]
    Command {
        /// The command line.
        line: String,
        /// Its exit code; none when a signal ended it.
        code: Option<i32>,
        /// What it printed.
        stderr: String,
    },
    /// Something did not happen in time.
    #[error("waited {after:?} in vain for {what}; last seen: {seen}")]
    TimedOut {
        /// What should have happened.
        what: String,
        /// How long it was waited for.
        after: Duration,
        /// What there was instead.
        seen: String,
    },
    /// Something is not as the contract says.
    #[error("{what}: expected {expected}, found {found}")]
    Unexpected {
        /// Of what.
        what: String,
        /// What the contract says.
        expected: String,
        /// What there is.
        found: String,
    },
    /// The guest itself says that it lost something.
    #[error("the guest is damaged: {line}\nits last lines:\n{tail}")]
    GuestDamaged {
        /// The line that says so.
        line: String,
        /// The end of its log.
        tail: String,
    },
    /// This machine lacks something that the tests need.
    #[error("cannot run here: {0}")]
    Unavailable(String),
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    /// For `map_err`: an I/O error with what was tried.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// Something that is not as the contract says.
    pub fn unexpected(
        what: impl Into<String>,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Self {
        Self::Unexpected {
            what: what.into(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}

/// Goes on only when `is_so`; else says what was expected and what was found.
///
/// # Errors
/// [`Error::Unexpected`].
pub fn expect_that(
    is_so: bool,
    what: &str,
    expected: impl fmt::Display,
    found: impl fmt::Display,
) -> Result<()> {
    if is_so { Ok(()) } else { Err(Error::unexpected(what, expected, found)) }
}
