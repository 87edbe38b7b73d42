//! How a guest's memory is cut: named blocks of pages, numbered through.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use serde::{Deserialize, Serialize};

use crate::PAGE_BYTES;

/// Blocks in one guest, at most. QEMU guests have about ten; DIMMs and video cards add one each.
pub const MAX_BLOCKS: usize = 1024;

/// The name of a RAM block as QEMU's stream writes it: 1 to 255 bytes of printable ASCII (`pc.ram`, `/rom@etc/acpi/tables`).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlockName(Box<str>);

impl BlockName {
    /// The name that these bytes spell.
    ///
    /// # Errors
    /// When it is empty, longer than 255 bytes or not printable ASCII.
    pub fn new(bytes: &[u8]) -> Result<Self, LayoutError> {
        let printable = bytes.iter().all(|byte| (0x20..0x7f).contains(byte));
        match core::str::from_utf8(bytes) {
            Ok(name) if printable && (1..=255).contains(&bytes.len()) => Ok(Self(name.into())),
            _ => Err(LayoutError::Name { length: bytes.len() }),
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BlockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BlockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl TryFrom<String> for BlockName {
    type Error = LayoutError;
    fn try_from(name: String) -> Result<Self, LayoutError> {
        Self::new(name.as_bytes())
    }
}

impl From<BlockName> for String {
    fn from(name: BlockName) -> Self {
        name.as_str().to_string()
    }
}

/// A page's number over all blocks of a [`Layout`], in its order. 32 bits name 16 TiB of guest memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct PageId(pub u32);

impl PageId {
    /// The number as an index into a table.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// One RAM block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Block {
    /// QEMU's name of it.
    pub name: BlockName,
    /// The number of its first page.
    pub first: PageId,
    /// Its length, in pages.
    pub pages: u32,
}

impl Block {
    /// The page at `offset` bytes from the block's start, if it is aligned and inside.
    #[must_use]
    pub fn page_at(&self, offset_bytes: u64) -> Option<PageId> {
        let page = offset_bytes / PAGE_BYTES as u64;
        if !offset_bytes.is_multiple_of(PAGE_BYTES as u64) || page >= u64::from(self.pages) {
            return None;
        }
        u32::try_from(page).ok().map(|page| PageId(self.first.0 + page))
    }

    /// Where `page` lies, in bytes from the block's start. The page must be one of this block.
    #[must_use]
    pub fn offset_bytes(&self, page: PageId) -> u64 {
        u64::from(page.0 - self.first.0) * PAGE_BYTES as u64
    }

    /// The numbers of its pages.
    #[must_use]
    pub fn page_numbers(&self) -> Range<u32> {
        self.first.0..self.first.0 + self.pages
    }
}

/// All RAM blocks of a guest, in the order in which QEMU's stream names them. Both ends hold the same layout.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Vec<(BlockName, u64)>", into = "Vec<(BlockName, u64)>")]
pub struct Layout {
    blocks: Vec<Block>,
    pages: u32,
}

impl Layout {
    /// The layout of blocks with these names and lengths in bytes.
    ///
    /// # Errors
    /// When there is no block, more than [`MAX_BLOCKS`], a length that is not whole pages, a name twice, or more pages
    /// than a [`PageId`] can number.
    pub fn new(blocks: &[(BlockName, u64)]) -> Result<Self, LayoutError> {
        if blocks.is_empty() || blocks.len() > MAX_BLOCKS {
            return Err(LayoutError::BlockCount { found: blocks.len() });
        }
        let mut layout = Self { blocks: Vec::with_capacity(blocks.len()), pages: 0 };
        for (name, length_bytes) in blocks {
            layout.push(name, *length_bytes)?;
        }
        Ok(layout)
    }

    fn push(&mut self, name: &BlockName, length_bytes: u64) -> Result<(), LayoutError> {
        if length_bytes == 0 || !length_bytes.is_multiple_of(PAGE_BYTES as u64) {
            return Err(LayoutError::Length { name: name.clone(), length_bytes });
        }
        if self.block_named(name).is_some() {
            return Err(LayoutError::Duplicate { name: name.clone() });
        }
        let pages = u32::try_from(length_bytes / PAGE_BYTES as u64).ok();
        let total = pages.and_then(|pages| self.pages.checked_add(pages));
        let (Some(pages), Some(total)) = (pages, total) else {
            return Err(LayoutError::TooLarge);
        };
        self.blocks.push(Block { name: name.clone(), first: PageId(self.pages), pages });
        self.pages = total;
        Ok(())
    }

    /// The blocks, in order.
    #[must_use]
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Pages in all blocks together.
    #[must_use]
    pub const fn pages(&self) -> u32 {
        self.pages
    }

    /// The block with this name.
    #[must_use]
    pub fn block_named(&self, name: &BlockName) -> Option<&Block> {
        self.blocks.iter().find(|block| block.name == *name)
    }

    /// The number, in order, of the block that holds `page`, if the layout has such a page.
    #[must_use]
    pub fn block_index_of(&self, page: PageId) -> Option<usize> {
        if page.0 >= self.pages {
            return None;
        }
        Some(self.blocks.partition_point(|block| block.first <= page) - 1)
    }
}

impl TryFrom<Vec<(BlockName, u64)>> for Layout {
    type Error = LayoutError;
    fn try_from(blocks: Vec<(BlockName, u64)>) -> Result<Self, LayoutError> {
        Self::new(&blocks)
    }
}

impl From<Layout> for Vec<(BlockName, u64)> {
    fn from(layout: Layout) -> Self {
        let length = |block: &Block| u64::from(block.pages) * PAGE_BYTES as u64;
        layout.blocks.iter().map(|block| (block.name.clone(), length(block))).collect()
    }
}

/// Why a list of blocks is no layout.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LayoutError {
    /// A name that QEMU would not use.
    #[error("expected a RAM block name of 1 to 255 printable characters, found {length} bytes")]
    Name {
        /// Bytes in what was found.
        length: usize,
    },
    /// None, or too many.
    #[error("expected 1 to {MAX_BLOCKS} RAM blocks, found {found}")]
    BlockCount {
        /// Blocks in what was found.
        found: usize,
    },
    /// Not whole pages.
    #[error(
        "expected RAM block {name} to be whole pages of {PAGE_BYTES} bytes, found {length_bytes} bytes"
    )]
    Length {
        /// The block.
        name: BlockName,
        /// Its length.
        length_bytes: u64,
    },
    /// The same name twice.
    #[error("RAM block {name} is named twice")]
    Duplicate {
        /// The block.
        name: BlockName,
    },
    /// More pages than can be numbered.
    #[error("expected at most 2^32 - 1 pages (16 TiB) of guest memory, found more")]
    TooLarge,
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn name(text: &str) -> BlockName {
        BlockName::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn pages_are_numbered_through() {
        let layout =
            Layout::new(&[(name("pc.ram"), 3 * 4096), (name("pc.bios"), 2 * 4096)]).unwrap();
        assert_eq!(layout.pages(), 5);
        let bios = &layout.blocks()[1];
        assert_eq!(bios.page_at(4096), Some(PageId(4)));
        assert_eq!(bios.page_at(4097), None);
        assert_eq!(bios.page_at(8192), None);
        assert_eq!(bios.offset_bytes(PageId(4)), 4096);
        assert_eq!(layout.block_index_of(PageId(2)), Some(0));
        assert_eq!(layout.block_index_of(PageId(3)), Some(1));
        assert_eq!(layout.block_index_of(PageId(5)), None);
    }

    #[test]
    fn refuses_what_is_no_layout() {
        assert!(matches!(Layout::new(&[]), Err(LayoutError::BlockCount { found: 0 })));
        assert!(matches!(Layout::new(&[(name("a"), 4097)]), Err(LayoutError::Length { .. })));
        let twice = vec![(name("a"), 4096), (name("a"), 4096)];
        assert!(matches!(Layout::new(&twice), Err(LayoutError::Duplicate { .. })));
        assert_eq!(Layout::new(&[(name("a"), 1 << 44)]), Err(LayoutError::TooLarge));
        assert!(BlockName::new(b"").is_err());
        assert!(BlockName::new(b"a\nb").is_err());
    }
}
