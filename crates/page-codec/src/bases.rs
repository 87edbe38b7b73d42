//! What an encoder remembers of pages that it sent, to send only the difference next time.
//!
//! Two stores with a budget each. *Contents* hold whole pages: the difference is exact, to the byte. *Digests* hold 256
//! bytes a page: the difference is known to the chunk ([`CHUNK_BYTES`](crate::runs::CHUNK_BYTES) bytes), which is
//! enough for a writer that touches a few bytes in each of very many pages. A page is in the contents if there is
//! room for it, else in the digests; a page that has to leave the contents leaves its digests behind.
//!
//! Each memory is tied to the hash of the content that it stands for, and is of use only if that is what the
//! destination has.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use sterna_model::{PAGE_BYTES, Page, PageHash, PageId, ZERO_PAGE};

use crate::PageKey;
use crate::digest::{DigestKey, Digests, changed_chunks};
use crate::runs::{CHUNKS, Coding, encode_chunks, encode_xor};
use crate::slots::{Heat, Slots};

/// Longest delta that is worth it: half a page. Beyond, zstd or the plain page do as well, and need no base.
pub(crate) const DELTA_LIMIT_BYTES: usize = PAGE_BYTES / 2;

/// A page that changes from one content to another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    pub(crate) page: PageId,
    /// What the destination has, if that may be built on.
    pub(crate) before: Option<PageHash>,
    pub(crate) after: PageHash,
    pub(crate) heat: Heat,
}

/// The memories of one encoder.
pub(crate) struct Bases {
    contents: Slots,
    content_pages: Box<[Page]>,
    content_hashes: Box<[PageHash]>,
    digests: Slots,
    digest_pages: Box<[Digests]>,
    digest_hashes: Box<[PageHash]>,
    key: DigestKey,
}

impl Bases {
    pub(crate) fn new(
        key: &PageKey,
        content_budget_bytes: usize,
        digest_budget_bytes: usize,
    ) -> Self {
        let overhead = Slots::BYTES_PER_SLOT + size_of::<PageHash>();
        let contents = content_budget_bytes / (PAGE_BYTES + overhead);
        let digests = digest_budget_bytes / (size_of::<Digests>() + overhead);
        Self {
            contents: Slots::new(contents),
            content_pages: vec![ZERO_PAGE; contents].into(),
            content_hashes: vec![PageHash::ZERO; contents].into(),
            digests: Slots::new(digests),
            digest_pages: vec![[0; CHUNKS]; digests].into(),
            digest_hashes: vec![PageHash::ZERO; digests].into(),
            key: DigestKey::new(key),
        }
    }

    /// Appends the difference that `change` makes to `out`, if the old content is remembered and the difference
    /// short, and remembers the new content.
    pub(crate) fn exchange(
        &mut self,
        change: Change,
        content: &Page,
        out: &mut Vec<u8>,
    ) -> Option<(Coding, usize)> {
        if let Some(slot) = self.contents.find(change.page) {
            let fits = change.before == Some(self.content_hashes[slot]);
            let old = &self.content_pages[slot];
            let delta = fits.then(|| encode_xor(old, content, DELTA_LIMIT_BYTES, out)).flatten();
            self.keep_content(change, content);
            return delta.map(|length| (Coding::Xor, length));
        }
        let mut fresh = None;
        let old = self.digests.find(change.page);
        let delta =
            old.filter(|slot| change.before == Some(self.digest_hashes[*slot])).and_then(|slot| {
                let digests = fresh.insert(self.key.digests(content));
                let changed = changed_chunks(&self.digest_pages[slot], digests);
                encode_chunks(changed, content, DELTA_LIMIT_BYTES, out)
            });
        if !self.keep_content(change, content)
            && let Some(given) = self.digests.give(change.page, change.heat)
        {
            let digests = fresh.unwrap_or_else(|| self.key.digests(content));
            self.digest_pages[given.slot] = digests;
            self.digest_hashes[given.slot] = change.after;
        }
        delta.map(|length| (Coding::Replace, length))
    }

    /// Puts a content into the cache if there is a slot for it; the page that leaves gets its digests kept.
    fn keep_content(&mut self, change: Change, content: &Page) -> bool {
        let Some(given) = self.contents.give(change.page, change.heat) else { return false };
        if let Some(leaving) = given.displaced
            && let Some(digest) = self.digests.give(leaving, Heat::Hot)
        {
            self.digest_pages[digest.slot] = self.key.digests(&self.content_pages[given.slot]);
            self.digest_hashes[digest.slot] = self.content_hashes[given.slot];
        }
        self.content_pages[given.slot] = *content;
        self.content_hashes[given.slot] = change.after;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: PageKey = PageKey([1; 32]);
    const ROOM: usize = 1 << 20;

    fn change(page: u32, before: u128, after: u128) -> Change {
        Change {
            page: PageId(page),
            before: Some(PageHash::from_u128(before)),
            after: PageHash::from_u128(after),
            heat: Heat::Hot,
        }
    }

    fn page_with(at: usize) -> Page {
        let mut page = [0xee; PAGE_BYTES];
        page[at..at + 8].copy_from_slice(b"changed!");
        page
    }

    #[test]
    fn contents_give_exact_differences_and_digests_chunks() {
        for (contents, digests, expected) in [
            (ROOM, 0, Some((Coding::Xor, 11))),
            (0, ROOM, Some((Coding::Replace, 67))),
            (0, 0, None),
        ] {
            let mut bases = Bases::new(&KEY, contents, digests);
            let mut out = Vec::new();
            assert_eq!(bases.exchange(change(4, 0, 1), &[0xee; PAGE_BYTES], &mut out), None);
            assert_eq!(bases.exchange(change(4, 1, 2), &page_with(1000), &mut out), expected);
            assert_eq!(out.len(), expected.map_or(0, |(_, length)| length));
        }
    }

    #[test]
    fn a_base_that_the_destination_has_not_is_not_used() {
        for (contents, digests) in [(ROOM, 0), (0, ROOM)] {
            let mut bases = Bases::new(&KEY, contents, digests);
            let mut out = Vec::new();
            bases.exchange(change(4, 0, 1), &[0xee; PAGE_BYTES], &mut out);
            assert_eq!(bases.exchange(change(4, 9, 2), &page_with(0), &mut out), None);
            assert!(bases.exchange(change(4, 2, 3), &page_with(8), &mut out).is_some());
        }
    }

    #[test]
    fn a_quarter_of_the_default_budget_remembers_a_quarter_of_256_mib() {
        let bases = Bases::new(&KEY, 3 << 20, 5 << 20);
        assert!(bases.digest_pages.len() >= 16_384, "{}", bases.digest_pages.len());
        assert!(bases.content_pages.len() >= 750, "{}", bases.content_pages.len());
    }

    #[test]
    fn a_page_that_leaves_the_contents_leaves_its_digests() {
        let mut bases = Bases::new(&KEY, 2 * PAGE_BYTES - 1, ROOM);
        let mut out = Vec::new();
        let cold = Change { heat: Heat::Cold, ..change(4, 0, 1) };
        bases.exchange(cold, &[0xee; PAGE_BYTES], &mut out);
        bases.exchange(change(5, 0, 7), &page_with(0), &mut out);
        let delta = bases.exchange(change(4, 1, 2), &page_with(64), &mut out);
        assert_eq!(delta, Some((Coding::Replace, 66)));
    }
}
