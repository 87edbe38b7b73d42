//! The destination's guest memory: written page by page into the file behind it, with a table of what is there.
//!
//! Blocks on a shared backend are QEMU's own files; the others (ROMs, video memory) are staged in files of ours, from
//! which the loader feeds QEMU. The table knows each page's version and hash, so that older versions are dropped,
//! differences are applied only to what they were made against, and the root is there without reading anything again.

mod adopting;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use sterna_host::memory::{BlockMemory, MemoryError};
use sterna_model::{BlockName, ByteCount, Layout, PAGE_BYTES, Page, PageHash, PageId, Root};
use sterna_page_codec::{Missing, PageKey, PageStore, Stored, page_hashes};

use super::faulting::{Faulting, Lane};
use super::recover::Present;

/// Locks for pages; a page's is that of its stripe.
const LOCKS: usize = 64;
/// Pages of a stripe, as at the source.
const STRIPE_PAGES: usize = 512;
/// Pages that are read at a time when all memory is read again.
const SWEEP_PAGES: u32 = 256;

/// All memory of a guest that is being moved here.
#[derive(Debug)]
pub(super) struct DestinationMemory {
    layout: Layout,
    blocks: Vec<DestinationBlock>,
    hashes: Box<[[AtomicU64; 2]]>,
    versions: Box<[AtomicU32]>,
    locks: Vec<Mutex<Root>>,
    missing: Mutex<BTreeMap<PageId, u32>>,
    asked: Mutex<Vec<(PageId, u32)>>,
    hashed: AtomicU64,
    /// The guest runs here, or is about to, and lacks pages.
    faulting: OnceLock<Arc<Faulting>>,
}

#[derive(Debug)]
struct DestinationBlock {
    memory: BlockMemory,
    shared: bool,
}

impl DestinationBlock {
    /// How many pages from this one on, at this offset, lie in one stripe and this block: if all are newer than what is
    /// there, they are written or thrown away by one call.
    fn pages_at_once(&self, page: PageId, offset: u64) -> u32 {
        let in_stripe = STRIPE_PAGES - page.index() % STRIPE_PAGES;
        let in_block = (self.memory.length_bytes() - offset) / PAGE_BYTES as u64;
        u32::try_from(in_block.min(in_stripe as u64)).unwrap_or(u32::MAX)
    }
}

impl DestinationMemory {
    /// The memory of a guest with this layout; `shared` are the blocks that QEMU shares with us.
    ///
    /// # Errors
    /// When a shared block is not as long as it should be or not in the layout, the others are more than `budget`, or a
    /// file cannot be made.
    pub(super) fn open(
        layout: Layout,
        shared: Vec<BlockMemory>,
        budget: ByteCount,
    ) -> Result<Self, MemoryError> {
        for memory in &shared {
            // Whatever QEMU put there at its start is not the guest's.
            memory.punch(0, memory.length_bytes())?;
        }
        Self::open_as_it_is(layout, shared, budget)
    }

    /// As [`DestinationMemory::open`], of a guest that runs here already: nothing of it is touched.
    ///
    /// # Errors
    /// As there.
    pub(super) fn open_as_it_is(
        layout: Layout,
        shared: Vec<BlockMemory>,
        budget: ByteCount,
    ) -> Result<Self, MemoryError> {
        let mut shared = shared;
        let mut staged_bytes: u64 = 0;
        let mut blocks = Vec::with_capacity(layout.blocks().len());
        for block in layout.blocks() {
            let length_bytes = u64::from(block.pages) * PAGE_BYTES as u64;
            let at = shared.iter().position(|memory| *memory.block() == block.name);
            blocks.push(match at {
                Some(at) => {
                    let memory = shared.swap_remove(at);
                    check_length(&memory, length_bytes)?;
                    DestinationBlock { memory, shared: true }
                }
                None => {
                    staged_bytes = staged_bytes.saturating_add(length_bytes);
                    if staged_bytes > budget.0 {
                        let expected =
                            format!("at most {budget} of memory that QEMU does not share");
                        return Err(not_found(
                            &block.name,
                            &expected,
                            &ByteCount(staged_bytes).to_string(),
                        ));
                    }
                    let memory = BlockMemory::staging(block.name.clone(), length_bytes)?;
                    DestinationBlock { memory, shared: false }
                }
            });
        }
        if let Some(unknown) = shared.first() {
            return Err(not_found(
                unknown.block(),
                "a block that the source has",
                "none of this name",
            ));
        }
        let pages = layout.pages() as usize;
        Ok(Self {
            layout,
            blocks,
            hashes: (0..pages).map(|_| [AtomicU64::new(0), AtomicU64::new(0)]).collect(),
            versions: (0..pages).map(|_| AtomicU32::new(0)).collect(),
            locks: (0..LOCKS).map(|_| Mutex::default()).collect(),
            missing: Mutex::default(),
            asked: Mutex::default(),
            hashed: AtomicU64::new(0),
            faulting: OnceLock::new(),
        })
    }

    /// What the guest lacks, once it runs without all its pages.
    #[must_use]
    pub(super) fn faulting(&self) -> Option<&Arc<Faulting>> {
        self.faulting.get()
    }

    /// From now on pages that come are for QEMU to place, not for us to write. Gives nothing when no page is absent.
    pub(super) fn begin_faulting(&self) -> Option<Arc<Faulting>> {
        let absent = |page: &PageId| {
            self.stored(*page).is_some_and(|stored| stored.hash == PageHash::ABSENT)
        };
        let pages = self.layout.pages();
        (0..pages).map(PageId).any(|page| absent(&page)).then(|| {
            let lacking = (0..pages).map(PageId).filter(absent);
            Arc::clone(self.faulting.get_or_init(|| Arc::new(Faulting::new(pages, lacking))))
        })
    }

    /// The guest runs here, and this is what it lacks: found out anew.
    pub(super) fn fault_again(&self, lacking: Vec<PageId>) {
        let pages = self.layout.pages();
        let faulting =
            self.faulting.get_or_init(|| Arc::new(Faulting::new(pages, std::iter::empty())));
        faulting.reset(lacking.into_iter());
    }

    /// Which pages of a block are data in the file behind it. Nothing is touched by looking.
    ///
    /// # Errors
    /// When the guest has no such block, or its file cannot be looked into.
    pub(super) fn present(&self, name: &BlockName) -> Result<Present, MemoryError> {
        let at = self.layout.blocks().iter().position(|block| block.name == *name);
        let at = at.ok_or_else(|| not_found(name, "a block of the guest", "none of this name"))?;
        let memory = &self.blocks[at].memory;
        let (mut data, mut offset) = (Vec::new(), 0);
        while let Some(run) = memory.next_present(offset)? {
            offset = run.end;
            data.push(run);
        }
        Ok(Present::new(self.layout.blocks()[at].page_numbers(), data))
    }

    /// The blocks' names and lengths.
    #[must_use]
    pub(super) const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The root of what is here.
    #[must_use]
    pub(super) fn root(&self) -> Root {
        let mut root = Root::ZERO_MEMORY;
        self.locks.iter().for_each(|part| root.add(*guard(part)));
        root
    }

    /// Pages whose content was hashed.
    #[must_use]
    pub(super) fn pages_hashed(&self) -> u64 {
        self.hashed.load(Ordering::Relaxed)
    }

    /// Pages to ask for since this was last called.
    #[must_use]
    pub(super) fn take_asked(&self) -> Vec<(PageId, u32)> {
        std::mem::take(&mut *guard(&self.asked))
    }

    /// The pages that were asked for and have not come.
    #[must_use]
    pub(super) fn missing(&self) -> Vec<(PageId, u32)> {
        guard(&self.missing).iter().map(|(page, version)| (*page, *version)).collect()
    }

    /// Whether pages were asked for that have not come.
    #[must_use]
    pub(super) fn lacks_pages(&self) -> bool {
        !guard(&self.missing).is_empty()
    }

    /// A page's version and hash; version 0: it never came.
    #[must_use]
    pub(super) fn stored(&self, page: PageId) -> Option<Stored> {
        let version = self.versions.get(page.index())?.load(Ordering::Acquire);
        let [low, high] = &self.hashes[page.index()];
        let number = u128::from(low.load(Ordering::Relaxed))
            | u128::from(high.load(Ordering::Relaxed)) << 64;
        Some(Stored { version, hash: PageHash::from_u128(number) })
    }

    /// The pages of blocks that QEMU has to be fed.
    pub(super) fn staged_pages(&self) -> impl Iterator<Item = PageId> + '_ {
        let staged =
            self.layout.blocks().iter().zip(&self.blocks).filter(|(_, block)| !block.shared);
        staged.flat_map(|(block, _)| block.page_numbers()).map(PageId)
    }

    /// Reads a page.
    ///
    /// # Errors
    /// When its block cannot be read.
    pub(super) fn read_page(&self, page: PageId, into: &mut Page) -> Result<(), MemoryError> {
        let (block, offset) = self.place(page)?;
        block.memory.read_at(offset, into)
    }

    /// Reads all memory again and compares it with the table: `--verify full`.
    ///
    /// # Errors
    /// The first page that differs, or what kept a block from being read.
    pub(super) fn sweep(&self, key: &PageKey) -> Result<(), String> {
        let mut contents = vec![0; SWEEP_PAGES as usize * PAGE_BYTES];
        for (block, stored) in self.layout.blocks().iter().zip(&self.blocks) {
            let numbers = block.page_numbers();
            for first in numbers.clone().step_by(SWEEP_PAGES as usize) {
                let count = (numbers.end - first).min(SWEEP_PAGES) as usize;
                let contents = &mut contents[..count * PAGE_BYTES];
                let offset = block.offset_bytes(PageId(first));
                stored.memory.read_at(offset, contents).map_err(|error| error.to_string())?;
                self.compare(first, contents, key)?;
            }
        }
        Ok(())
    }

    fn compare(&self, first: u32, contents: &[u8], key: &PageKey) -> Result<(), String> {
        let pages = contents.as_chunks::<PAGE_BYTES>().0;
        let mut hashes = [PageHash::ZERO; SWEEP_PAGES as usize];
        page_hashes(key, pages, &mut hashes);
        for (page, found) in (first..).map(PageId).zip(hashes.into_iter().take(pages.len())) {
            let expected = self.stored(page).map_or(PageHash::ZERO, |stored| stored.hash);
            // Its content follows, and is checked when it comes.
            if expected == PageHash::ABSENT {
                continue;
            }
            if expected != found {
                return Err(format!(
                    "page {} differs when read again: expected {expected:?}, found {found:?}",
                    page.0
                ));
            }
        }
        self.hashed.fetch_add(contents.len() as u64 / PAGE_BYTES as u64, Ordering::Relaxed);
        Ok(())
    }

    fn place(&self, page: PageId) -> Result<(&DestinationBlock, u64), MemoryError> {
        match self.layout.block_index_of(page) {
            Some(at) => Ok((&self.blocks[at], self.layout.blocks()[at].offset_bytes(page))),
            None => Err(not_found(
                self.blocks[0].memory.block(),
                "a page of the guest",
                &format!("page {}", page.0),
            )),
        }
    }

    /// Notes a page's new content, under its stripe's lock. Tells whether it is newer than what is there.
    fn note(&self, page: PageId, entry: Stored, root: &mut Root) -> bool {
        let before =
            self.stored(page).unwrap_or(Stored { version: u32::MAX, hash: PageHash::ZERO });
        if before.version >= entry.version {
            return false;
        }
        root.replace(page, before.hash, entry.hash);
        self.set_hash(page, entry.hash);
        self.versions[page.index()].store(entry.version, Ordering::Release);
        let mut missing = guard(&self.missing);
        if !missing.is_empty() && missing.get(&page).is_some_and(|version| *version < entry.version)
        {
            missing.remove(&page);
        }
        true
    }

    fn set_hash(&self, page: PageId, hash: PageHash) {
        let number = hash.to_u128();
        let [low, high] = &self.hashes[page.index()];
        #[expect(clippy::cast_possible_truncation, reason = "the two halves of the hash")]
        {
            low.store(number as u64, Ordering::Relaxed);
            high.store((number >> 64) as u64, Ordering::Relaxed);
        }
    }

    fn lock_of(&self, page: PageId) -> MutexGuard<'_, Root> {
        guard(&self.locks[page.index() / STRIPE_PAGES % LOCKS])
    }
}

/// One connection's hand on the memory. While the guest runs here, pages go to QEMU instead.
#[derive(Debug)]
pub(super) struct Store<'a>(pub &'a DestinationMemory, pub Lane);

impl PageStore for Store<'_> {
    type Error = MemoryError;

    fn entry(&mut self, page: PageId) -> Option<Stored> {
        // The guest changes what is there: nothing may be built on it.
        let still = self.0.faulting().is_none();
        let is_here = |stored: &Stored| stored.version > 0 || stored.hash != PageHash::ZERO;
        self.0.stored(page).filter(|stored| is_here(stored) && still)
    }

    fn read(&mut self, page: PageId, into: &mut Page) -> Result<(), MemoryError> {
        self.0.hashed.fetch_add(1, Ordering::Relaxed);
        self.0.read_page(page, into)
    }

    fn write_run(
        &mut self,
        first: PageId,
        entries: &[Stored],
        contents: &[u8],
    ) -> Result<(), MemoryError> {
        self.0.hashed.fetch_add(entries.len() as u64, Ordering::Relaxed);
        let pages = contents.as_chunks::<PAGE_BYTES>().0;
        if let Some(faulting) = self.0.faulting() {
            for (page, content) in (first.0..).map(PageId).zip(pages) {
                faulting.place(page, Some(content), self.1);
            }
            return Ok(());
        }
        let numbers = first.0..;
        let mut begun = 0;
        while begun < entries.len() {
            let page = PageId(numbers.start + u32::try_from(begun).unwrap_or(u32::MAX));
            let (block, offset) = self.0.place(page)?;
            let mut root = self.0.lock_of(page);
            let limit = block.pages_at_once(page, offset) as usize;
            let mut count = 0;
            while count < limit.min(entries.len() - begun) {
                let next = PageId(page.0 + u32::try_from(count).unwrap_or(u32::MAX));
                let newer = self
                    .0
                    .stored(next)
                    .is_some_and(|stored| stored.version < entries[begun + count].version);
                if !newer {
                    break;
                }
                count += 1;
            }
            if count > 0 {
                block.memory.write_at(offset, pages[begun..begun + count].as_flattened())?;
                for (next, entry) in (page.0..).map(PageId).zip(&entries[begun..begun + count]) {
                    self.0.note(next, *entry, &mut root);
                }
            }
            begun += count.max(1);
        }
        Ok(())
    }

    fn write_zeros(&mut self, first: PageId, count: u32, version: u32) -> Result<(), MemoryError> {
        if let Some(faulting) = self.0.faulting() {
            for page in (first.0..first.0.saturating_add(count)).map(PageId) {
                faulting.place(page, None, self.1);
            }
            return Ok(());
        }
        for page in (first.0..first.0.saturating_add(count)).map(PageId) {
            let (block, offset) = self.0.place(page)?;
            let mut root = self.0.lock_of(page);
            let before = self.0.stored(page).map_or(PageHash::ZERO, |stored| stored.hash);
            let newer = self.0.note(page, Stored { version, hash: PageHash::ZERO }, &mut root);
            if newer && before != PageHash::ZERO {
                block.memory.punch(offset, PAGE_BYTES as u64)?;
            }
        }
        Ok(())
    }

    /// What is there is stale, and goes at once: a hole is what lets QEMU ask. Told by QEMU's stream instead, each run would
    /// cost the stopped guest two system calls in one thread.
    fn write_absent(&mut self, first: PageId, count: u32, version: u32) -> Result<(), MemoryError> {
        if self.0.faulting().is_some() {
            // The guest runs on what is there.
            return Ok(());
        }
        let entry = Stored { version, hash: PageHash::ABSENT };
        let (mut begun, end) = (first.0, first.0.saturating_add(count));
        while begun < end {
            let page = PageId(begun);
            let (block, offset) = self.0.place(page)?;
            let mut root = self.0.lock_of(page);
            let limit = end.min(begun.saturating_add(block.pages_at_once(page, offset)));
            let mut next = begun;
            while next < limit && self.0.note(PageId(next), entry, &mut root) {
                next += 1;
            }
            block.memory.punch(offset, u64::from(next - begun) * PAGE_BYTES as u64)?;
            begun = next.max(begun + 1);
        }
        Ok(())
    }

    fn confirm(&mut self, page: PageId, entry: Stored) -> Result<(), MemoryError> {
        self.0.note(page, entry, &mut self.0.lock_of(page));
        Ok(())
    }

    fn missing(&mut self, page: PageId, version: u32, _why: Missing) -> Result<(), MemoryError> {
        guard(&self.0.missing).insert(page, version);
        guard(&self.0.asked).push((page, version));
        Ok(())
    }
}

fn check_length(memory: &BlockMemory, expected_bytes: u64) -> Result<(), MemoryError> {
    if memory.length_bytes() == expected_bytes {
        return Ok(());
    }
    let (expected, found) =
        (format!("{expected_bytes} bytes"), format!("{} bytes", memory.length_bytes()));
    Err(not_found(memory.block(), &expected, &found))
}

fn not_found(block: &BlockName, expected: &str, found: &str) -> MemoryError {
    MemoryError::NotFound {
        block: block.clone(),
        pid: 0,
        expected: expected.into(),
        found: found.into(),
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
