//! The way back: what a destination's QEMU says on the connection on which it is fed.
//!
//! ```text
//! message = u16 type, u16 length, data                                all numbers are big endian
//!   1 SHUT          u32 0, or 1 after an error                        nothing follows
//!   2 PONG          u32                                               the answer to a PING
//!   3 REQ_PAGES_ID  u64 start, u32 length, u8 length, block name      in bytes; a guest waits for these pages
//!   4 REQ_PAGES     u64 start, u32 length                             of the block of the request before
//!   5 RECV_BITMAP   u8 length, block name; and behind the message:
//!                   u64 length, bits, u64 0x0123456789abcdef          the answer to a RECV_BITMAP
//!   6 RESUME_ACK    u32 1                                             the answer to a POSTCOPY_RESUME
//!
//! bits = a bit for each page of the block, set if QEMU has placed it: in words of 64, the lowest bit and byte first
//! ```
//!
//! A push parser with an own buffer: bytes are fed as they arrive, then messages are taken until there is none. What is
//! kept is at most one message, or one bit for each page of one block. A connection that is recovered begins anew, and so
//! does QEMU's "block of the request before".

mod error;
mod message;

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use sterna_model::{Block, Layout, PAGE_BYTES};

use crate::error::printable;

use error::name_of;
pub use error::{ReturnFault, ReturnPathError};
pub use message::{PlacedPages, ReturnMessage};

const SHUT: u16 = 1;
const PONG: u16 = 2;
const REQ_PAGES_ID: u16 = 3;
const REQ_PAGES: u16 = 4;
const RECV_BITMAP: u16 = 5;
const RESUME_ACK: u16 = 6;

/// What stands behind a bitmap.
const BITMAP_END: u64 = 0x0123_4567_89ab_cdef;
/// Bytes in a number of 64 bits: a word of a bitmap, its length, its end.
const WORD_BYTES: usize = size_of::<u64>();
/// Bytes of a message before its data: type and length.
const HEADER_BYTES: usize = 4;

/// Where the parser is.
#[derive(Clone, Debug)]
enum State {
    /// Before a message.
    Between,
    /// Behind a `RECV_BITMAP`: the bitmap of the block with this index follows, its length first.
    BitmapLength { block: usize },
    /// In the bitmap of the block with this index.
    Bitmap { block: usize, pages: PlacedPages },
    /// QEMU has said what it should not.
    Failed(ReturnPathError),
}

/// What came of an attempt to go on.
enum Step {
    NeedMore,
    GoOn,
    Message(ReturnMessage),
}

/// What the data of a message say.
enum Said {
    Message(ReturnMessage),
    Request { block: usize, message: ReturnMessage },
    BitmapOf { block: usize },
}

/// An incremental parser of the return path.
///
/// ```
/// use sterna_model::{BlockName, Layout, PageId};
/// use sterna_qemu_stream::{ReturnMessage, ReturnPath};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let layout = Layout::new(&[(BlockName::new(b"pc.ram")?, 8 * 4096)])?;
/// let mut way_back = ReturnPath::new(layout);
/// # let connection = [&b"\0\x02\0\x04\0\0"[..], b"\0\x07\0\x03\0\x13\0\0\0\0\0\0\x20\0\0\0\x10\0\x06pc.ram"];
/// let mut wanted = Vec::new();
/// for bytes in connection {
///     way_back.feed(bytes);
///     while let Some(message) = way_back.next_message()? {
///         if let ReturnMessage::Wanted { first, count } = message {
///             wanted.push((first, count));
///         }
///     }
/// }
/// assert_eq!(wanted, [(PageId(2), 1)]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ReturnPath {
    layout: Layout,
    /// What was fed, and how much of it was taken.
    buffer: Vec<u8>,
    taken: usize,
    /// The offset in the connection of what is taken next.
    offset: u64,
    state: State,
    /// The block of the last request, as an index into the layout.
    last_block: Option<usize>,
}

impl ReturnPath {
    /// A parser of a connection that goes on behind a message that somebody else has read: a request that names no block
    /// is of the block with this index.
    #[must_use]
    pub fn going_on(layout: Layout, last_block: usize) -> Self {
        Self { last_block: Some(last_block), ..Self::new(layout) }
    }

    /// A parser at the start of a connection, for a guest with these blocks.
    #[must_use]
    pub const fn new(layout: Layout) -> Self {
        Self {
            layout,
            buffer: Vec::new(),
            taken: 0,
            offset: 0,
            state: State::Between,
            last_block: None,
        }
    }

    /// Takes bytes as they arrived. All messages in them are to be taken before the next bytes are fed; what makes no
    /// whole message stays. After an error they are only ignored.
    pub fn feed(&mut self, bytes: &[u8]) {
        if !matches!(self.state, State::Failed(_)) {
            self.buffer.drain(..self.taken);
            self.taken = 0;
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next message, if all of it has arrived.
    ///
    /// # Errors
    /// When QEMU says what it should not. Every later call fails alike.
    pub fn next_message(&mut self) -> Result<Option<ReturnMessage>, ReturnPathError> {
        loop {
            let step = match &self.state {
                State::Between => self.message(),
                State::BitmapLength { block } => self.bitmap_length(*block),
                State::Bitmap { .. } => self.bitmap(),
                State::Failed(error) => return Err(error.clone()),
            };
            match step {
                Ok(Step::GoOn) => {}
                Ok(Step::NeedMore) => return Ok(None),
                Ok(Step::Message(message)) => return Ok(Some(message)),
                Err(fault) => {
                    let error = ReturnPathError { offset: self.offset, fault };
                    self.state = State::Failed(error.clone());
                    self.buffer = Vec::new();
                    self.taken = 0;
                    return Err(error);
                }
            }
        }
    }

    /// Tells the parser that the connection has ended, with all messages taken.
    ///
    /// # Errors
    /// When it ended in the middle of a message, or had failed before.
    pub fn finish(self) -> Result<(), ReturnPathError> {
        let expected = match self.state {
            State::Failed(error) => return Err(error),
            State::Between if self.taken == self.buffer.len() => return Ok(()),
            State::Between => "the rest of a message",
            State::BitmapLength { .. } | State::Bitmap { .. } => "the rest of a bitmap",
        };
        Err(ReturnPathError { offset: self.offset, fault: ReturnFault::Truncated { expected } })
    }

    fn rest(&self) -> &[u8] {
        self.buffer.get(self.taken..).unwrap_or_default()
    }

    fn take(&mut self, length: usize) {
        self.taken += length;
        self.offset += length as u64;
    }

    /// Takes a whole message. Type and length are checked as soon as they are there.
    fn message(&mut self) -> Result<Step, ReturnFault> {
        let Some((header, behind)) = self.rest().split_first_chunk::<HEADER_BYTES>() else {
            return Ok(Step::NeedMore);
        };
        let [number @ .., _, _] = *header;
        let [_, _, length @ ..] = *header;
        let (number, length) = (u16::from_be_bytes(number), u16::from_be_bytes(length));
        if !data_bytes(number)?.contains(&length) {
            return Err(wrong_length(number, usize::from(length)));
        }
        let Some(data) = behind.get(..usize::from(length)) else { return Ok(Step::NeedMore) };
        let said = self.read(number, data)?;
        self.take(HEADER_BYTES + usize::from(length));
        Ok(match said {
            Said::Message(message) => Step::Message(message),
            Said::Request { block, message } => {
                self.last_block = Some(block);
                Step::Message(message)
            }
            Said::BitmapOf { block } => {
                self.state = State::BitmapLength { block };
                Step::GoOn
            }
        })
    }

    /// What a message of this type says with these data.
    fn read(&self, number: u16, data: &[u8]) -> Result<Said, ReturnFault> {
        let wrong = || wrong_length(number, data.len());
        let value = || data.try_into().map(u32::from_be_bytes).map_err(|_| wrong());
        match number {
            SHUT => Ok(Said::Message(ReturnMessage::Shut(value()?))),
            PONG => Ok(Said::Message(ReturnMessage::Pong(value()?))),
            RESUME_ACK => Ok(Said::Message(ReturnMessage::ResumeAck(value()?))),
            REQ_PAGES | REQ_PAGES_ID => {
                let (start, rest) = data.split_first_chunk().ok_or_else(wrong)?;
                let (length, name) = rest.split_first_chunk().ok_or_else(wrong)?;
                let block = match number {
                    REQ_PAGES => self.last_block.ok_or(ReturnFault::NoBlock)?,
                    _ => self.block_named(name)?,
                };
                let block_ref = self.block(block)?;
                let message =
                    wanted(block_ref, u64::from_be_bytes(*start), u32::from_be_bytes(*length))?;
                Ok(Said::Request { block, message })
            }
            _ => Ok(Said::BitmapOf { block: self.block_named(data)? }),
        }
    }

    /// The index of the block that a length byte and a name name, which fill `data`.
    fn block_named(&self, data: &[u8]) -> Result<usize, ReturnFault> {
        let (found, name) = data.split_first().unwrap_or((&0, data));
        if usize::from(*found) != name.len() {
            return Err(ReturnFault::NameLength { expected: name.len(), found: *found });
        }
        let is_named = |block: &Block| block.name.as_str().as_bytes() == name;
        let index = self.layout.blocks().iter().position(is_named);
        index.ok_or_else(|| ReturnFault::UnknownBlock { name: printable(name) })
    }

    fn block(&self, index: usize) -> Result<&Block, ReturnFault> {
        self.layout.blocks().get(index).ok_or(ReturnFault::NoBlock)
    }

    /// The length of a bitmap, which the block decides: a bit for each page, in whole words.
    fn bitmap_length(&mut self, index: usize) -> Result<Step, ReturnFault> {
        let Some(found) = self.rest().first_chunk() else { return Ok(Step::NeedMore) };
        let found = u64::from_be_bytes(*found);
        let block = self.block(index)?;
        let pages = PlacedPages::none_of(block);
        let expected = u64::from(pages.all_words()) * WORD_BYTES as u64;
        if found != expected {
            let block = block.name.as_str().into();
            return Err(ReturnFault::BitmapLength { block, expected, found });
        }
        self.take(WORD_BYTES);
        self.state = State::Bitmap { block: index, pages };
        Ok(Step::GoOn)
    }

    /// The words of a bitmap that are there, and behind the last its end.
    fn bitmap(&mut self) -> Result<Step, ReturnFault> {
        loop {
            let State::Bitmap { block, pages } = &mut self.state else { return Ok(Step::GoOn) };
            let rest = self.buffer.get(self.taken..).unwrap_or_default();
            let Some(word) = rest.first_chunk() else { return Ok(Step::NeedMore) };
            if pages.is_complete() {
                let found = u64::from_be_bytes(*word);
                if found != BITMAP_END {
                    return Err(ReturnFault::BitmapEnd { expected: BITMAP_END, found });
                }
                let pages = core::mem::replace(pages, PlacedPages::none());
                let message = ReturnMessage::Received { block: *block, pages };
                self.state = State::Between;
                self.take(WORD_BYTES);
                return Ok(Step::Message(message));
            }
            pages.push(u64::from_le_bytes(*word));
            self.take(WORD_BYTES);
        }
    }
}

/// The lengths that the data of a message of this type may have, in bytes. A name has at most 255.
fn data_bytes(number: u16) -> Result<RangeInclusive<u16>, ReturnFault> {
    match number {
        SHUT | PONG | RESUME_ACK => Ok(4..=4),
        REQ_PAGES_ID => Ok(13..=12 + 1 + 255),
        REQ_PAGES => Ok(12..=12),
        RECV_BITMAP => Ok(1..=1 + 255),
        _ => Err(ReturnFault::Type { number, name: name_of(number) }),
    }
}

fn wrong_length(number: u16, found: usize) -> ReturnFault {
    match data_bytes(number) {
        Ok(limits) => {
            let (least, most) = (*limits.start(), *limits.end());
            ReturnFault::Length { name: name_of(number), least, most, found }
        }
        Err(fault) => fault,
    }
}

/// The pages that a request wants, which have to be whole pages of the block.
fn wanted(
    block: &Block,
    start_bytes: u64,
    length_bytes: u32,
) -> Result<ReturnMessage, ReturnFault> {
    let page_bytes = PAGE_BYTES as u64;
    let length = u64::from(length_bytes);
    let end = u64::from(block.pages) * page_bytes;
    let is_inside = start_bytes.checked_add(length).is_some_and(|last| last <= end);
    let is_whole = length > 0 && length.is_multiple_of(page_bytes);
    let count = u32::try_from(length / page_bytes).ok();
    match (block.page_at(start_bytes), count) {
        (Some(first), Some(count)) if is_inside && is_whole => {
            Ok(ReturnMessage::Wanted { first, count })
        }
        _ => Err(ReturnFault::Request {
            block: block.name.as_str().into(),
            pages: block.pages,
            start_bytes,
            length_bytes,
        }),
    }
}
