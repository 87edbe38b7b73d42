//! What is kept of a guest from an earlier job: taken over, hashed, and told.

use std::ops::Range;
use std::sync::atomic::Ordering;

use sterna_host::memory::{BlockMemory, MemoryError};
use sterna_model::{PAGE_BYTES, PageHash, PageId};
use sterna_page_codec::{PageKey, page_hashes};

use super::{DestinationMemory, SWEEP_PAGES};

impl DestinationMemory {
    /// Begins with what is kept of this guest from before: it is moved here and hashed, and counts as version 0. What has no
    /// place here is left out. Nobody may write meanwhile.
    ///
    /// # Errors
    /// When either memory cannot be read or written.
    pub(in crate::incoming) fn adopt(
        &self,
        kept: &[BlockMemory],
        key: &PageKey,
    ) -> Result<(), MemoryError> {
        for (block, stored) in self.layout.blocks().iter().zip(&self.blocks) {
            let same = |kept: &&BlockMemory| {
                *kept.block() == block.name && kept.length_bytes() == stored.memory.length_bytes()
            };
            let Some(kept) = kept.iter().find(same).filter(|_| stored.shared) else { continue };
            let first = block.page_numbers().start;
            let mut contents = vec![0; SWEEP_PAGES as usize * PAGE_BYTES];
            let mut offset = 0;
            while let Some(run) = kept.next_present(offset)? {
                let length = contents.len().min(usize::try_from(run.end - run.start).unwrap_or(0));
                let piece = &mut contents[..length];
                kept.read_at(run.start, piece)?;
                let page = first + u32::try_from(run.start / PAGE_BYTES as u64).unwrap_or(u32::MAX);
                self.adopt_run(&stored.memory, (PageId(page), run.start), piece, key)?;
                // So that both together take no more room than one.
                kept.punch(run.start, length as u64)?;
                offset = run.start + length as u64;
            }
        }
        Ok(())
    }

    fn adopt_run(
        &self,
        memory: &BlockMemory,
        (first, offset): (PageId, u64),
        contents: &[u8],
        key: &PageKey,
    ) -> Result<(), MemoryError> {
        let pages = contents.as_chunks::<PAGE_BYTES>().0;
        let mut hashes = [PageHash::ZERO; SWEEP_PAGES as usize];
        page_hashes(key, pages, &mut hashes);
        let numbered = (first.0..).map(PageId).zip(pages.iter().zip(hashes)).zip(0_u64..);
        for ((page, (content, hash)), at) in numbered.filter(|one| one.0.1.1 != PageHash::ZERO) {
            memory.write_at(offset + at * PAGE_BYTES as u64, content)?;
            self.lock_of(page).replace(page, PageHash::ZERO, hash);
            self.set_hash(page, hash);
        }
        self.hashed.fetch_add(pages.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// The pages of the blocks that QEMU shares, so many at a time at most.
    pub(in crate::incoming) fn shared_pieces(
        &self,
        count: u32,
    ) -> impl Iterator<Item = Range<u32>> + '_ {
        let blocks = self.layout.blocks().iter().zip(&self.blocks);
        let shared =
            blocks.filter(|(_, block)| block.shared).map(|(block, _)| block.page_numbers());
        shared.flat_map(move |pages| {
            let end = pages.end;
            pages
                .step_by(count as usize)
                .map(move |first| first..first.saturating_add(count).min(end))
        })
    }

    /// The hashes of these pages; none when all of them are zero.
    pub(in crate::incoming) fn hashes(&self, pages: Range<u32>) -> Option<Vec<u8>> {
        let hashes = pages.filter_map(|page| self.stored(PageId(page)));
        let hashes: Vec<PageHash> = hashes.map(|stored| stored.hash).collect();
        let is_empty = hashes.iter().all(|hash| *hash == PageHash::ZERO);
        (!is_empty).then(|| hashes.iter().flat_map(|hash| hash.0).collect())
    }

    /// The files of the blocks that QEMU shares, once more: they outlive it.
    pub(in crate::incoming) fn shared_files(&self) -> Vec<BlockMemory> {
        let shared = self.blocks.iter().filter(|block| block.shared);
        // Without descriptors nothing can be kept.
        shared.filter_map(|block| block.memory.try_clone().ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_model::{BlockName, ByteCount, Layout, Page};
    use sterna_page_codec::{PageStore as _, Stored, page_hash};

    use crate::incoming::faulting::Lane;
    use crate::incoming::memory::Store;

    const PAGES: u32 = 600;

    fn name(name: &str) -> BlockName {
        BlockName::new(name.as_bytes()).unwrap()
    }

    fn block(block: &str, pages: u32) -> BlockMemory {
        BlockMemory::staging(name(block), u64::from(pages) * PAGE_BYTES as u64).unwrap()
    }

    /// A ROM of four pages that QEMU does not share, then the guest's memory.
    fn memory() -> DestinationMemory {
        let bytes = |pages: u32| u64::from(pages) * PAGE_BYTES as u64;
        let layout = Layout::new(&[(name("rom"), bytes(4)), (name("ram"), bytes(PAGES))]).unwrap();
        DestinationMemory::open(layout, vec![block("ram", PAGES)], ByteCount(1 << 20)).unwrap()
    }

    fn content(seed: u8) -> Page {
        [seed; PAGE_BYTES]
    }

    #[test]
    fn what_is_kept_is_taken_over_page_by_page() {
        let key = PageKey([9; 32]);
        let kept = block("ram", PAGES);
        for page in [0_u32, 1, 255, 256, 599] {
            let seed = u8::try_from(page % 200).unwrap() + 1;
            kept.write_at(u64::from(page) * PAGE_BYTES as u64, &content(seed)).unwrap();
        }
        // Data, and zero all the same.
        kept.write_zeroes(7 * PAGE_BYTES as u64, PAGE_BYTES as u64).unwrap();
        let memory = memory();
        memory.adopt(&[kept.try_clone().unwrap()], &key).unwrap();
        let mut expected = sterna_model::Root::ZERO_MEMORY;
        for page in [0_u32, 1, 255, 256, 599] {
            let (at, mut found) = (PageId(4 + page), content(0));
            memory.read_page(at, &mut found).unwrap();
            assert_eq!(found, content(u8::try_from(page % 200).unwrap() + 1));
            let hash = page_hash(&key, &found);
            assert_eq!(memory.stored(at), Some(Stored { version: 0, hash }));
            expected.replace(at, PageHash::ZERO, hash);
        }
        assert_eq!(memory.root(), expected);
        assert_eq!(kept.next_present(0).unwrap(), None, "it takes no room twice");
        memory.sweep(&key).unwrap();
        let told: Vec<_> = memory.shared_pieces(256).collect();
        assert_eq!(told, [4..260, 260..516, 516..604]);
        let hashes = memory.hashes(4..260).unwrap();
        assert_eq!(hashes.len(), 256 * 16);
        assert_eq!(hashes[..16], page_hash(&key, &content(1)).0);
        assert_eq!(hashes[32..48], PageHash::ZERO.0);
        assert!(memory.hashes(260 + 1..516).is_none(), "nothing but zeros");
    }

    #[test]
    fn what_comes_is_newer_than_what_was_kept() {
        let key = PageKey([9; 32]);
        let kept = block("ram", PAGES);
        kept.write_at(0, &content(1)).unwrap();
        let memory = memory();
        memory.adopt(&[kept], &key).unwrap();
        let mut store = Store(&memory, Lane::Bulk);
        let old = store.entry(PageId(4)).unwrap();
        assert_eq!((old.version, old.hash), (0, page_hash(&key, &content(1))));
        assert_eq!(store.entry(PageId(5)), None, "nothing was written");
        let hash = page_hash(&key, &content(2));
        store.write_run(PageId(4), &[Stored { version: 1, hash }], &content(2)).unwrap();
        store.write_zeros(PageId(4), 1, 2).unwrap();
        assert_eq!(memory.root(), sterna_model::Root::ZERO_MEMORY);
    }

    #[test]
    fn what_has_no_place_is_left_out() {
        let key = PageKey([9; 32]);
        let others = [block("ram", PAGES - 1), block("rom", 4), block("other", PAGES)];
        for other in &others {
            other.write_at(0, &content(3)).unwrap();
        }
        let memory = memory();
        memory.adopt(&others, &key).unwrap();
        assert_eq!(memory.root(), sterna_model::Root::ZERO_MEMORY);
    }
}
