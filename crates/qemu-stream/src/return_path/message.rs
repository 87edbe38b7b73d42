//! What QEMU says on the way back.

use alloc::vec::Vec;
use core::ops::Range;
use core::{fmt, iter};

use sterna_model::{Block, PageId};

/// A message of a destination's QEMU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReturnMessage {
    /// It closes the way back: 0 when everything went well.
    Shut(u32),
    /// The answer to a ping, with its number: what was fed before has been read.
    Pong(u32),
    /// The guest waits for these pages, all of one block. A page may be asked for more than once.
    Wanted {
        /// The first page.
        first: PageId,
        /// How many, at least one: more than one where QEMU places pages only together.
        count: u32,
    },
    /// Which pages of a block QEMU has placed.
    Received {
        /// The block, as an index into the layout.
        block: usize,
        /// Its pages that were placed. Those that were written beside QEMU are not among them.
        pages: PlacedPages,
    },
    /// It is ready for pages again: 1.
    ResumeAck(u32),
}

/// The pages of one block that QEMU has placed: a bit for each page of the block.
#[derive(Clone, PartialEq, Eq)]
pub struct PlacedPages {
    first: PageId,
    /// Pages in the block.
    pages: u32,
    /// Of the pages in words that did not come, none was placed.
    words: Vec<u64>,
}

impl PlacedPages {
    /// Whether this page was placed. A page of another block was not.
    #[must_use]
    pub fn contains(&self, page: PageId) -> bool {
        let number = page.0.checked_sub(self.first.0).filter(|number| *number < self.pages);
        number.is_some_and(|number| self.word(number / 64) >> (number % 64) & 1 == 1)
    }

    /// Pages that were placed.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether none was placed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The pages that were placed, as runs of guest page numbers: ascending, not touching one another.
    pub fn runs(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        let mut at = 0;
        iter::from_fn(move || {
            let start = self.find(at, 0);
            let end = self.find(start, u64::MAX);
            at = end;
            (start < end).then(|| self.first.0 + start..self.first.0 + end)
        })
    }

    /// No page of this block yet.
    pub(super) const fn none_of(block: &Block) -> Self {
        Self { first: block.first, pages: block.pages, words: Vec::new() }
    }

    /// No page of no block.
    pub(super) const fn none() -> Self {
        Self { first: PageId(0), pages: 0, words: Vec::new() }
    }

    /// Words of a bitmap of the whole block.
    pub(super) const fn all_words(&self) -> u32 {
        self.pages.div_ceil(64)
    }

    /// Whether the words of the whole block came.
    pub(super) fn is_complete(&self) -> bool {
        self.words.len() >= self.all_words() as usize
    }

    /// Takes the next word of the bitmap. Bits behind the block's last page mean nothing, as in QEMU.
    pub(super) fn push(&mut self, word: u64) {
        let before = u64::from(self.pages).saturating_sub(64 * self.words.len() as u64);
        let mask = if before < 64 { (1 << before) - 1 } else { u64::MAX };
        self.words.push(word & mask);
    }

    fn word(&self, index: u32) -> u64 {
        self.words.get(index as usize).copied().unwrap_or(0)
    }

    /// The first page of the block at or behind `from` whose bit is not as in `bits`, or the block's end.
    fn find(&self, from: u32, bits: u64) -> u32 {
        let mut at = from;
        while at < self.pages {
            let rest = (self.word(at / 64) ^ bits) >> (at % 64);
            if rest != 0 {
                return (at + rest.trailing_zeros()).min(self.pages);
            }
            at = (at | 63).saturating_add(1);
        }
        self.pages
    }
}

impl fmt::Debug for PlacedPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PlacedPages({} of {} from {})", self.len(), self.pages, self.first.0)
    }
}
