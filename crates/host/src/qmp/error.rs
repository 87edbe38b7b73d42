//! What can go wrong on a QMP connection, sorted by who is to blame.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Why a QMP command has no result.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket could not be reached.
    #[error("cannot connect to the QMP socket {path}: {error}", path = path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the last attempt said.
        error: Arc<io::Error>,
    },
    /// No reply in time. The command may still be carried out: ask for the state before acting on this.
    #[error("QEMU did not answer {command} within {waited:?}")]
    Timeout {
        /// The command; `(greeting)` where QEMU has not said hello (another client may hold the monitor).
        command: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// QEMU refused the command.
    #[error("QEMU refused {command}: {desc} ({class})")]
    Command {
        /// The command.
        command: String,
        /// QEMU's class of errors, mostly `GenericError`; `CommandNotFound` where this QEMU is too old.
        class: String,
        /// QEMU's words.
        desc: String,
    },
    /// The connection is over, so QEMU is gone or has dropped us.
    #[error("the QMP connection is closed: {cause}")]
    Closed {
        /// What ended it.
        cause: Arc<str>,
    },
    /// QEMU said what the protocol does not have. Where it breaks the framing, it ends the connection too.
    #[error("QMP: expected {expected}, found {found}")]
    Protocol {
        /// What was expected.
        expected: String,
        /// What came, shortened.
        found: String,
    },
}

impl QmpError {
    /// That the connection is over.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed { .. })
    }

    /// That this QEMU does not know the command.
    #[must_use]
    pub fn is_unknown_command(&self) -> bool {
        matches!(self, Self::Command { class, .. } if class == "CommandNotFound")
    }

    pub(super) fn protocol(expected: impl Into<String>, found: &str) -> Self {
        Self::Protocol { expected: expected.into(), found: shortened(found) }
    }

    pub(super) fn closed(cause: &str) -> Self {
        Self::Closed { cause: cause.into() }
    }
}

/// At most 200 characters of a text, for an error message; a `?` for each that could drive a terminal, since a guest can
/// make QEMU say much.
pub(super) fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    let driving = |char: char| char.is_control() && !matches!(char, '\n' | '\t');
    let mut chars = text.chars();
    let shown = chars.by_ref().take(MAX_CHARS);
    let mut short: String = shown.map(|char| if driving(char) { '?' } else { char }).collect();
    if chars.next().is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_qemu_are_short_and_drive_no_terminal() {
        assert_eq!(shortened("no\nspace"), "no\nspace");
        assert_eq!(shortened("\u{1b}[2J\u{9b}31m\0"), "?[2J?31m?");
        assert_eq!(shortened(&"é".repeat(200)), "é".repeat(200));
        assert_eq!(shortened(&"é".repeat(201)), "é".repeat(200) + "…");
    }
}
