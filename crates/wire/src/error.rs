//! Why something is no message, and the check of what has a range.

use crate::answer::Sender;
use crate::json::JsonError;

/// Why a payload is no message of this peer, or a message cannot be sent.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MessageError {
    /// Not the JSON that was expected.
    #[error("in a message: {0}")]
    Json(#[from] JsonError),
    /// A list, a text or a number outside its limits.
    #[error("in a message: expected {least} to {most} {what}, found {found}")]
    Range {
        /// What it is.
        what: &'static str,
        /// The least that is allowed.
        least: u64,
        /// The most that is allowed.
        most: u64,
        /// What was found.
        found: u64,
    },
    /// A text for people that is too long or has control characters.
    #[error("in a message: expected {what} within their limits and printable, found others")]
    Unprintable {
        /// What it is.
        what: &'static str,
    },
    /// The other side's message.
    #[error("expected no {name} message from {sender}, found one")]
    Sender {
        /// The message's type.
        name: &'static str,
        /// Who sent it.
        sender: Sender,
    },
}

/// Holds a length or a number to its range.
pub(crate) fn within(
    what: &'static str,
    range: (u64, u64),
    found: u64,
) -> Result<(), MessageError> {
    let (least, most) = range;
    if (least..=most).contains(&found) {
        return Ok(());
    }
    Err(MessageError::Range { what, least, most, found })
}
