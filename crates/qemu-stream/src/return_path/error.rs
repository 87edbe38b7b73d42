//! What can be wrong on the way back. Each error tells where, what was expected and what was found.

use alloc::string::String;

use super::{PONG, RECV_BITMAP, REQ_PAGES, REQ_PAGES_ID, RESUME_ACK, SHUT};

/// A destination's QEMU says what it should not.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("QEMU's return path at byte {offset}: {fault}")]
pub struct ReturnPathError {
    /// Where the message begins that is wrong, or the number in or around a bitmap, in bytes from the connection's start.
    pub offset: u64,
    /// What is wrong with it.
    pub fault: ReturnFault,
}

/// What is wrong with a message on the way back.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReturnFault {
    /// A message of another type.
    #[error("expected a message of type 1 (SHUT) to 6 (RESUME_ACK), found {number} ({name})")]
    Type {
        /// The type.
        number: u16,
        /// QEMU's name of it.
        name: &'static str,
    },
    /// Data that are too short or too long for their message.
    #[error("expected {least} to {most} bytes of {name}, found {found}")]
    Length {
        /// QEMU's name of the message.
        name: &'static str,
        /// Bytes at least.
        least: u16,
        /// Bytes at most.
        most: u16,
        /// Bytes that came.
        found: usize,
    },
    /// A block's name that does not fill its message.
    #[error(
        "expected a RAM block's name of {expected} bytes up to the message's end, found one of {found}"
    )]
    NameLength {
        /// Bytes that the message has for it.
        expected: usize,
        /// Its length byte.
        found: u8,
    },
    /// A block that the layout does not have.
    #[error("expected a RAM block of the guest, found {name:?}")]
    UnknownBlock {
        /// The block's name, escaped.
        name: String,
    },
    /// A request for the block of the request before, though there was none.
    #[error(
        "expected a request that names its RAM block, found one for the block of the request before it"
    )]
    NoBlock,
    /// A request for something else than pages of the block.
    #[error(
        "expected a request for whole pages of RAM block {block:?}, which has {pages} pages, found {length_bytes} bytes \
         at offset {start_bytes:#x}"
    )]
    Request {
        /// The block's name.
        block: String,
        /// Its length in pages.
        pages: u32,
        /// Where the request begins, in bytes from the block's start.
        start_bytes: u64,
        /// How much it wants, in bytes.
        length_bytes: u32,
    },
    /// A bitmap of another length than the block's.
    #[error("expected a bitmap of {expected} bytes for RAM block {block:?}, found one of {found}")]
    BitmapLength {
        /// The block's name.
        block: String,
        /// Bytes of a bit for each page, in whole words.
        expected: u64,
        /// The length that came.
        found: u64,
    },
    /// A bitmap that does not end with its mark.
    #[error("expected a bitmap's end {expected:#018x}, found {found:#018x}")]
    BitmapEnd {
        /// The mark.
        expected: u64,
        /// What stands in its place.
        found: u64,
    },
    /// The connection ends where it must not.
    #[error("expected {expected}, found the end of the connection")]
    Truncated {
        /// What had to come.
        expected: &'static str,
    },
}

/// QEMU's name of a message, for messages.
pub(super) const fn name_of(number: u16) -> &'static str {
    match number {
        SHUT => "SHUT",
        PONG => "PONG",
        REQ_PAGES_ID => "REQ_PAGES_ID",
        REQ_PAGES => "REQ_PAGES",
        RECV_BITMAP => "RECV_BITMAP",
        RESUME_ACK => "RESUME_ACK",
        7 => "SWITCHOVER_ACK: switch the capability switchover-ack off",
        _ => "unknown",
    }
}
