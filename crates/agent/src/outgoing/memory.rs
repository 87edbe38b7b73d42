//! The source's guest memory: each block read from outside where that is possible, else from a staging file that the
//! reader fills from QEMU's stream (ROMs, video memory).

use std::io;
use std::ops::Range;

use sterna_host::memory::BlockMemory;
use sterna_model::{Block, BlockName, Layout, PAGE_BYTES, Page, PageId};

/// All blocks of the guest, readable.
#[derive(Debug)]
pub(super) struct SourceMemory {
    layout: Layout,
    blocks: Vec<SourceBlock>,
}

#[derive(Debug)]
struct SourceBlock {
    memory: BlockMemory,
    staged: bool,
}

impl SourceMemory {
    /// The memory of a guest with this layout, of which `readable` blocks can be read from outside. The others are
    /// staged, as long as they are at most `budget_bytes` together.
    ///
    /// # Errors
    /// When the others are too large, or a staging file cannot be made.
    pub(super) fn open(
        layout: &Layout,
        readable: Vec<(BlockName, BlockMemory)>,
        budget_bytes: u64,
    ) -> io::Result<Self> {
        let mut readable = readable;
        let mut staged_bytes = 0;
        let mut blocks = Vec::with_capacity(layout.blocks().len());
        for block in layout.blocks() {
            let length_bytes = u64::from(block.pages) * PAGE_BYTES as u64;
            if let Some(at) = readable.iter().position(|(name, _)| *name == block.name) {
                blocks.push(SourceBlock { memory: readable.swap_remove(at).1, staged: false });
                continue;
            }
            staged_bytes += length_bytes;
            if staged_bytes > budget_bytes {
                return Err(io::Error::other(format!(
                    "expected at most {budget_bytes} bytes of guest memory that cannot be read from outside, found \
                     {staged_bytes} with {}; run the agent as root or as QEMU's user, or raise limits.memory_budget",
                    block.name
                )));
            }
            let memory =
                BlockMemory::staging(block.name.clone(), length_bytes).map_err(io::Error::other)?;
            blocks.push(SourceBlock { memory, staged: true });
        }
        Ok(Self { layout: layout.clone(), blocks })
    }

    /// The blocks' names and lengths.
    #[must_use]
    pub(super) const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Keeps a page's content, if its block is one that cannot be read from outside.
    ///
    /// # Errors
    /// When the staging file cannot be written.
    pub(super) fn stage(&self, page: PageId, content: &Page) -> io::Result<()> {
        self.staged(page, |memory, offset| {
            memory.write_at(offset, content).map_err(io::Error::other)
        })
    }

    /// Keeps that a page is zero.
    ///
    /// # Errors
    /// As [`SourceMemory::stage`].
    pub(super) fn stage_zero(&self, page: PageId) -> io::Result<()> {
        self.staged(page, |memory, offset| {
            memory.write_zeroes(offset, PAGE_BYTES as u64).map_err(io::Error::other)
        })
    }

    fn staged(
        &self,
        page: PageId,
        write: impl FnOnce(&BlockMemory, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        match self.layout.block_index_of(page) {
            Some(at) if self.blocks[at].staged => {
                write(&self.blocks[at].memory, self.layout.blocks()[at].offset_bytes(page))
            }
            _ => Ok(()),
        }
    }

    /// Reads consecutive pages of one block; `contents` is whole pages long.
    ///
    /// # Errors
    /// When they cannot be read, or are not all of one block.
    pub(super) fn read(&self, first: PageId, contents: &mut [u8]) -> io::Result<()> {
        let at = self.layout.block_index_of(first);
        let at = at.ok_or_else(|| io::Error::other(format!("there is no page {}", first.0)))?;
        let offset = self.layout.blocks()[at].offset_bytes(first);
        self.blocks[at].memory.read_at(offset, contents).map_err(io::Error::other)
    }

    /// Whether all of it is in files that are open here, and outlives QEMU.
    #[must_use]
    pub(super) fn is_held(&self) -> bool {
        self.blocks.iter().all(|block| matches!(block.memory, BlockMemory::File { .. }))
    }

    /// Whether a block is read from QEMU's memory, and not held here.
    #[must_use]
    pub(super) fn is_readable(&self, block: &Block) -> bool {
        let at = self.layout.blocks().iter().position(|known| known.name == block.name);
        at.is_some_and(|at| !self.blocks[at].staged)
    }

    /// Tells the runs of a block's pages that may hold something, ascending; the others are zero without a look.
    ///
    /// # Errors
    /// When that cannot be told, after some of them.
    pub(super) fn each_present(
        &self,
        block: &Block,
        mut visit: impl FnMut(Range<u32>),
    ) -> io::Result<()> {
        let page_of = |bytes: u64| {
            let page = u32::try_from(bytes / PAGE_BYTES as u64).unwrap_or(u32::MAX);
            block.first.0.saturating_add(page)
        };
        let at = self.layout.blocks().iter().position(|known| known.name == block.name);
        let at = at.ok_or_else(|| io::Error::other(format!("there is no block {}", block.name)))?;
        let told = self.blocks[at]
            .memory
            .each_present(|range| visit(page_of(range.start)..page_of(range.end)));
        told.map_err(io::Error::other)
    }

    /// Whether two pages are neighbours in one block, so that one read can take both.
    #[must_use]
    pub(super) fn are_neighbours(&self, page: PageId, next: PageId) -> bool {
        next.0 == page.0 + 1 && self.layout.block_index_of(page) == self.layout.block_index_of(next)
    }
}
