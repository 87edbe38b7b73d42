//! What the two targets of the page codec share: contents, and a guest's memory at the destination that watches its rules.

use std::collections::BTreeMap;
use std::convert::Infallible;

use sterna_model::{PAGE_BYTES, Page, PageHash, PageId, ZERO_PAGE};
use sterna_page_codec::{
    BatchOutcome, MAX_BATCH_PAGES, Missing, PageKey, PageStore, Stored, page_hash,
};
use sterna_sim::random::Random;

/// Pages of the guest.
pub(super) const PAGES: u32 = 64;
/// The key of all hashes.
pub(super) const KEY: PageKey = PageKey([0x42; 32]);

/// A content of a kind: zero, of one byte, sparse, text, random.
pub(super) fn content(kind: u8) -> Page {
    let mut page = ZERO_PAGE;
    let seed = kind / 5;
    match kind % 5 {
        0 => {}
        1 => page.fill(seed | 1),
        2 => page[usize::from(seed) * 64 + 7] = seed | 1,
        3 => {
            let line = format!("line of page {seed}: all is well\n").into_bytes();
            page.iter_mut().zip(line.iter().cycle()).for_each(|(to, from)| *to = *from);
        }
        _ => {
            let mut random = Random::new(seed.into());
            page.as_chunks_mut::<8>()
                .0
                .iter_mut()
                .for_each(|word| *word = random.any().to_le_bytes());
        }
    }
    page
}

/// A memory over one that does not change. It complains about a decoder that breaks the contract.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    pages: BTreeMap<u32, (Stored, Box<Page>)>,
    /// What was asked for again.
    pub(super) missing: BTreeMap<u32, Missing>,
    /// What the decoder did, to compare with what it says.
    did: BatchOutcome,
}

impl Memory {
    /// A memory that has these pages, as version 1.
    pub(super) fn with(contents: &[(u32, u8)]) -> Self {
        let mut memory = Self::default();
        for (page, kind) in contents {
            let content = content(*kind);
            let entry = Stored { version: 1, hash: page_hash(&KEY, &content) };
            memory.pages.insert(*page, (entry, Box::new(content)));
        }
        memory
    }

    /// A page's content.
    pub(super) fn content(&self, page: u32) -> &Page {
        self.pages.get(&page).map_or(&ZERO_PAGE, |(_, content)| content)
    }

    /// Forgets what was counted.
    pub(super) fn begin(&mut self) {
        self.did = BatchOutcome::default();
    }

    /// The decoder says what it did.
    pub(super) fn check(&self, said: BatchOutcome) {
        let did = BatchOutcome { outdated: said.outdated, ..self.did };
        assert_eq!(said, did, "the outcome is not what was done");
        let settled = said.written + said.zeroed + said.confirmed + said.absent;
        let all = settled + said.outdated + said.missing;
        assert!(all as usize <= MAX_BATCH_PAGES, "{all} pages in one batch");
    }

    fn put(&mut self, page: u32, entry: Stored, content: &Page) {
        self.check_newer(page, entry.version);
        assert_eq!(page_hash(&KEY, content), entry.hash, "page {page} is not what its entry says");
        self.pages.insert(page, (entry, Box::new(*content)));
    }

    fn check_newer(&self, page: u32, version: u32) {
        assert!(page < PAGES, "page {page} is outside of the guest");
        let newest = self.pages.get(&page).map_or(0, |(entry, _)| entry.version);
        assert!(version > newest, "version {version} over {newest}");
    }

    fn is_absent(&self, page: u32) -> bool {
        self.pages.get(&page).is_some_and(|(entry, _)| entry.hash == PageHash::ABSENT)
    }
}

impl PageStore for Memory {
    type Error = Infallible;

    fn entry(&mut self, page: PageId) -> Option<Stored> {
        assert!(page.0 < PAGES, "page {} is outside of the guest", page.0);
        self.pages.get(&page.0).map(|(entry, _)| *entry)
    }

    fn read(&mut self, page: PageId, into: &mut Page) -> Result<(), Infallible> {
        assert!(page.0 < PAGES, "page {} is outside of the guest", page.0);
        assert!(!self.is_absent(page.0), "page {} is read, and absent", page.0);
        *into = *self.content(page.0);
        Ok(())
    }

    fn write_run(
        &mut self,
        first: PageId,
        entries: &[Stored],
        contents: &[u8],
    ) -> Result<(), Infallible> {
        assert_eq!(contents.len(), entries.len() * PAGE_BYTES);
        let pages = contents.as_chunks::<PAGE_BYTES>().0;
        for ((page, entry), content) in (first.0..).zip(entries).zip(pages) {
            self.put(page, *entry, content);
            self.did.written += 1;
        }
        Ok(())
    }

    fn write_zeros(&mut self, first: PageId, count: u32, version: u32) -> Result<(), Infallible> {
        for page in first.0..first.0 + count {
            self.put(page, Stored { version, hash: PageHash::ZERO }, &ZERO_PAGE);
            self.did.zeroed += 1;
        }
        Ok(())
    }

    fn write_absent(&mut self, first: PageId, count: u32, version: u32) -> Result<(), Infallible> {
        for page in first.0..first.0 + count {
            self.check_newer(page, version);
            let stale = Box::new(*self.content(page));
            self.pages.insert(page, (Stored { version, hash: PageHash::ABSENT }, stale));
            self.did.absent += 1;
        }
        Ok(())
    }

    fn confirm(&mut self, page: PageId, entry: Stored) -> Result<(), Infallible> {
        let content = *self.content(page.0);
        self.put(page.0, entry, &content);
        self.did.confirmed += 1;
        Ok(())
    }

    fn missing(&mut self, page: PageId, _version: u32, why: Missing) -> Result<(), Infallible> {
        assert!(page.0 < PAGES);
        self.missing.insert(page.0, why);
        self.did.missing += 1;
        Ok(())
    }
}
