//! What the parser delivers.

use serde::{Deserialize, Serialize};
use sterna_model::{Layout, Page, PageId};

use crate::command::Command;
use crate::configuration::Configuration;

/// What a stream says, in its order. Borrowed data lives as long as the call that delivers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event<'a> {
    /// The configuration: once, first.
    Configuration(&'a Configuration),
    /// A command before the end of guest memory: to be forwarded.
    Command(Command),
    /// The guest's memory blocks: once, before any page.
    Layout {
        /// The section that carries memory.
        ram: RamSection,
        /// The blocks, in the stream's order.
        layout: &'a Layout,
    },
    /// The content of a page.
    Page {
        /// The page.
        page: PageId,
        /// Its content.
        content: &'a Page,
    },
    /// A page that is zero everywhere.
    ZeroPage {
        /// The page.
        page: PageId,
    },
    /// A piece of the RAM section has ended. Many come in one round; one without pages means that QEMU had nothing left.
    RamPart {
        /// Which piece.
        kind: RamPartKind,
        /// Pages in it, zero pages included.
        pages: u64,
    },
    /// Guest memory is complete: what follows is the tail.
    RamComplete,
    /// The next bytes of the tail: device state, end and description. They come in pieces of any length. If the device
    /// state is packaged, the end and an empty description are the parser's.
    Tail(&'a [u8]),
    /// The tail is complete and can be handed over, though the stream is not at its end: only what holds the source
    /// still comes. At most once; a stream whose device state is not packaged does not say this, its tail ends where the
    /// stream ends.
    TailComplete,
}

/// The header of the RAM section, which the destination's stream repeats.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RamSection {
    /// The section's number.
    pub section_id: u32,
    /// The instance, 0 in practice.
    pub instance_id: u32,
}

/// Which piece of the RAM section.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RamPartKind {
    /// `SECTION_START`: the block list.
    Start,
    /// `SECTION_PART`.
    Part,
    /// `SECTION_END`: the last pages.
    End,
}

/// What a complete stream was, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamEnd {
    /// Bytes in the stream.
    pub bytes: u64,
    /// Bytes in its tail, the sum over [`Event::Tail`]; so the eight that end a packaged one are among them.
    pub tail_bytes: u64,
    /// Bytes that were dropped: everything that belongs to the bitmap that holds the source.
    pub dropped_bytes: u64,
}
