//! A guest's memory at the destination, and contents to put into it.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;

use sterna_model::{PAGE_BYTES, Page, PageHash, PageId, ZERO_PAGE};
use sterna_page_codec::{
    Decoder, Encoder, EncoderConfig, Known, Missing, PageKey, PageStore, Stored, page_hash,
};

/// The key of all tests.
pub(crate) const KEY: PageKey = PageKey([0x42; 32]);

/// A memory that keeps what it is given.
#[derive(Clone)]
pub(crate) struct Memory {
    pub(crate) pages: Vec<Page>,
    pub(crate) entries: Vec<Option<Stored>>,
    /// What it asked for, and why.
    pub(crate) missing: BTreeMap<PageId, Missing>,
    /// Pages whose content is not here: what stands in their place means nothing.
    pub(crate) absent: BTreeSet<PageId>,
    /// First page and length of each run written.
    pub(crate) runs: Vec<(u32, usize)>,
}

impl Memory {
    pub(crate) fn new(pages: usize) -> Self {
        Self {
            pages: vec![ZERO_PAGE; pages],
            entries: vec![None; pages],
            missing: BTreeMap::new(),
            absent: BTreeSet::new(),
            runs: Vec::new(),
        }
    }

    /// Checks that every entry tells the truth.
    pub(crate) fn check(&self) {
        for ((page, entry), number) in self.pages.iter().zip(&self.entries).zip(0..) {
            let found = entry.map_or(PageHash::ZERO, |entry| entry.hash);
            let is_absent = self.absent.contains(&PageId(number));
            assert_eq!(found == PageHash::ABSENT, is_absent, "page {number}");
            assert!(is_absent || found == page_hash(&KEY, page), "page {number}");
        }
    }

    fn note(&mut self, page: PageId, entry: Stored) {
        let newest = self.entries[page.index()].map_or(0, |entry| entry.version);
        assert!(entry.version > newest, "an old version was written");
        self.entries[page.index()] = Some(entry);
    }

    fn put(&mut self, page: PageId, entry: Stored, content: &[u8]) {
        self.note(page, entry);
        self.absent.remove(&page);
        self.pages[page.index()].copy_from_slice(content);
    }
}

impl PageStore for Memory {
    type Error = Infallible;

    fn entry(&mut self, page: PageId) -> Option<Stored> {
        self.entries[page.index()]
    }

    fn read(&mut self, page: PageId, into: &mut Page) -> Result<(), Infallible> {
        assert!(!self.absent.contains(&page), "the content of an absent page was read");
        *into = self.pages[page.index()];
        Ok(())
    }

    fn write_run(
        &mut self,
        first: PageId,
        entries: &[Stored],
        contents: &[u8],
    ) -> Result<(), Infallible> {
        assert_eq!(contents.len(), entries.len() * PAGE_BYTES);
        self.runs.push((first.0, entries.len()));
        for ((page, entry), content) in (first.0..).zip(entries).zip(contents.chunks(PAGE_BYTES)) {
            self.put(PageId(page), *entry, content);
        }
        Ok(())
    }

    fn write_zeros(&mut self, first: PageId, count: u32, version: u32) -> Result<(), Infallible> {
        for page in first.0..first.0 + count {
            self.put(PageId(page), Stored { version, hash: PageHash::ZERO }, &ZERO_PAGE);
        }
        Ok(())
    }

    fn write_absent(&mut self, first: PageId, count: u32, version: u32) -> Result<(), Infallible> {
        for page in (first.0..first.0 + count).map(PageId) {
            self.note(page, Stored { version, hash: PageHash::ABSENT });
            self.absent.insert(page);
        }
        Ok(())
    }

    fn confirm(&mut self, page: PageId, entry: Stored) -> Result<(), Infallible> {
        let content = self.pages[page.index()];
        self.put(page, entry, &content);
        Ok(())
    }

    fn missing(&mut self, page: PageId, _version: u32, why: Missing) -> Result<(), Infallible> {
        self.missing.insert(page, why);
        Ok(())
    }
}

/// An encoder with caches large enough for any test.
pub(crate) fn encoder(known: &Arc<Known>) -> Encoder {
    encoder_with(known, 1 << 20, 1 << 20)
}

/// An encoder with these budgets, in bytes.
pub(crate) fn encoder_with(
    known: &Arc<Known>,
    content_cache_bytes: usize,
    digest_bytes: usize,
) -> Encoder {
    let known = Arc::clone(known);
    Encoder::new(EncoderConfig { key: KEY, known, content_cache_bytes, digest_bytes }).unwrap()
}

pub(crate) fn decoder(pages: u32) -> Decoder {
    Decoder::new(KEY, pages).unwrap()
}

/// Content without any pattern; another for each seed.
pub(crate) fn random_page(seed: u64) -> Page {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
    let mut page = ZERO_PAGE;
    for word in page.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    page
}

/// Content that compresses; another for each seed.
pub(crate) fn text_page(seed: u64) -> Page {
    let text: String =
        (0..).map(|line| format!("line {line} of page {seed}: all is well\n")).take(150).collect();
    text.as_bytes()[..PAGE_BYTES].try_into().unwrap()
}
