//! What the destination has, as far as the source knows: shared by all encoders of a move, without locks.
//!
//! Each page has one writer at a time (the worker that owns its stripe), besides acknowledgements and losses, which
//! come from whoever reads the answers. All memory orders are relaxed: hash halves and state may be read torn, or a
//! little old. That is tolerable because nothing rests on it. A wrong hash makes the encoder send a ref or a delta
//! that does not fit; the destination sees that by its own hash and asks for the page. The one belief that sends
//! nothing, "unchanged", reads a page's entry on the thread that wrote it.
//!
//! Memory: 25 bytes a page (16 hash, 4 state, 5 ref index), 0.6 % of the guest.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use sterna_model::{PageHash, PageId};

/// State bit: the destination has answered that it has this version.
const ACKNOWLEDGED: u32 = 1 << 31;
/// State bit: the hash means something. Not set before the first send, nor after [`Known::forget`].
const PRESENT: u32 = 1 << 30;
/// State bits that count the sends. 2^30 sends of one page are 4 TiB of it: the count ends there.
const VERSION: u32 = PRESENT - 1;
/// Slot of the ref index that names no page: its page bits are beyond every table.
const EMPTY: u32 = u32::MAX;
/// Slots in a bucket of the ref index.
const WAYS: usize = 2;

/// What the destination has of one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The content; [`PageHash::ABSENT`]: it knows that the content will follow in post-copy.
    pub hash: PageHash,
    /// Sends of this page in this move; 0: the destination has it from before.
    pub version: u32,
    /// Whether the destination said so, or it is on its way.
    pub acknowledged: bool,
}

/// Table of what the destination has, and a lossy index from content to a page that has it there.
#[derive(Debug)]
pub struct Known {
    hashes: Box<[[AtomicU64; 2]]>,
    states: Box<[AtomicU32]>,
    /// Buckets of [`WAYS`] slots, by hash: pages whose content can be referred to. A slot is a page's number and, in
    /// the bits that no number needs, some of its hash: most slots with another content are told by that alone, where
    /// looking the page up would be two more misses of the cache.
    index: Box<[[AtomicU32; WAYS]]>,
    /// The bits of a slot that are the page's number.
    page_mask: u32,
}

impl Known {
    /// A table for `pages` pages of which the destination has none.
    #[must_use]
    pub fn new(pages: u32) -> Self {
        let beyond = pages.checked_add(1).and_then(u32::checked_next_power_of_two);
        let page_mask = beyond.map_or(u32::MAX, |beyond| beyond - 1);
        let pages = pages as usize;
        let buckets = (pages * 5).div_ceil(8).max(1);
        Self {
            hashes: (0..pages).map(|_| [AtomicU64::new(0), AtomicU64::new(0)]).collect(),
            states: (0..pages).map(|_| AtomicU32::new(0)).collect(),
            index: (0..buckets).map(|_| core::array::from_fn(|_| AtomicU32::new(EMPTY))).collect(),
            page_mask,
        }
    }

    /// Pages in the table.
    #[must_use]
    pub fn pages(&self) -> u32 {
        u32::try_from(self.states.len()).unwrap_or(u32::MAX)
    }

    /// What the destination has of `page`; `None` if nothing that is worth building on.
    #[must_use]
    pub fn get(&self, page: PageId) -> Option<Entry> {
        let state = self.states.get(page.index())?.load(Relaxed);
        (state & PRESENT != 0).then(|| Entry {
            hash: self.hash_of(page.index()),
            version: state & VERSION,
            acknowledged: state & ACKNOWLEDGED != 0,
        })
    }

    /// Notes that `page` is being sent with this content; gives the version to send it as. Pages beyond the table
    /// are not noted and get version 0.
    pub fn record_sent(&self, page: PageId, hash: PageHash) -> u32 {
        let Some(state) = self.states.get(page.index()) else { return 0 };
        // Not acknowledged first, so that nobody takes the new hash for one that the destination has confirmed.
        let before = state.fetch_and(VERSION, Relaxed);
        self.set_hash(page.index(), hash);
        let version = ((before & VERSION) + 1).min(VERSION);
        state.store(PRESENT | version, Relaxed);
        version
    }

    /// Notes that the destination has `page` with this content from before the move (version 0), confirmed.
    pub fn record_present(&self, page: PageId, hash: PageHash) {
        let Some(state) = self.states.get(page.index()) else { return };
        self.set_hash(page.index(), hash);
        state.fetch_or(PRESENT | ACKNOWLEDGED, Relaxed);
        self.index_page(page, hash);
    }

    /// Notes that the destination has this version of `page`; from now on other pages may refer to it. An answer
    /// about a version that was followed by another is ignored.
    pub fn acknowledge(&self, page: PageId, version: u32) {
        let Some(state) = self.states.get(page.index()) else { return };
        let expected = PRESENT | (version & VERSION);
        let current = state.compare_exchange(expected, expected | ACKNOWLEDGED, Relaxed, Relaxed);
        if current.is_ok() {
            self.index_page(page, self.hash_of(page.index()));
        }
    }

    /// Notes that the destination lacks `page`: it said so, or the connection that carried it was lost. The count of
    /// versions goes on, so that the next send is newer than anything still under way.
    ///
    /// To be called before the page is marked to be sent again, or it may be found unchanged in between.
    pub fn forget(&self, page: PageId) {
        if let Some(state) = self.states.get(page.index()) {
            state.fetch_and(VERSION, Relaxed);
        }
    }

    /// Another page than `except` that the destination has confirmed to have this content. Never an absent page.
    #[must_use]
    pub fn find(&self, hash: PageHash, except: PageId) -> Option<PageId> {
        if hash == PageHash::ABSENT {
            return None;
        }
        let bucket = self.index.get(self.bucket_of(hash))?;
        let slots = bucket.iter().map(|slot| slot.load(Relaxed));
        let alike = slots.filter(|slot| slot & !self.page_mask == self.tag_of(hash));
        alike.map(|slot| PageId(slot & self.page_mask)).find(|page| {
            let entry = if *page == except { None } else { self.get(*page) };
            entry.is_some_and(|entry| entry.acknowledged && entry.hash == hash)
        })
    }

    /// Puts a page into its bucket: over itself, a free slot or a slot whose page changed since, else over one of
    /// the others, chosen by the hash. A page whose content can be found already needs no slot.
    fn index_page(&self, page: PageId, hash: PageHash) {
        let nothing = hash == PageHash::ZERO || hash == PageHash::ABSENT;
        if nothing || self.find(hash, page).is_some() {
            return;
        }
        let at = self.bucket_of(hash);
        let bucket = &self.index[at];
        let held = |slot: &AtomicU32| PageId(slot.load(Relaxed) & self.page_mask);
        let own_or_empty = |slot: &&AtomicU32| slot.load(Relaxed) == EMPTY || held(slot) == page;
        let stale = |slot: &&AtomicU32| {
            self.get(held(slot)).is_none_or(|entry| self.bucket_of(entry.hash) != at)
        };
        let replaceable = bucket.iter().find(own_or_empty).or_else(|| bucket.iter().find(stale));
        let unlucky = usize::from(hash.0[15]) % WAYS;
        let slot = replaceable.unwrap_or(&bucket[unlucky]);
        slot.store(page.0 | self.tag_of(hash), Relaxed);
    }

    /// The bits of a hash that stand in a slot beside the page's number. The bucket is chosen by the other half.
    #[expect(clippy::cast_possible_truncation, reason = "some bits are as good as others")]
    fn tag_of(&self, hash: PageHash) -> u32 {
        let [_, high] = halves(hash);
        high as u32 & !self.page_mask
    }

    fn bucket_of(&self, hash: PageHash) -> usize {
        let [low, _] = halves(hash);
        let scaled = (u128::from(low) * self.index.len() as u128) >> 64;
        usize::try_from(scaled).unwrap_or(0)
    }

    fn hash_of(&self, at: usize) -> PageHash {
        let [low, high] = &self.hashes[at];
        PageHash::from_u128(u128::from(low.load(Relaxed)) | u128::from(high.load(Relaxed)) << 64)
    }

    fn set_hash(&self, at: usize, hash: PageHash) {
        let [low, high] = halves(hash);
        self.hashes[at][0].store(low, Relaxed);
        self.hashes[at][1].store(high, Relaxed);
    }
}

fn halves(hash: PageHash) -> [u64; 2] {
    let (words, _) = hash.0.as_chunks::<8>();
    [u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1])]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u64) -> PageHash {
        let factor = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
        PageHash::from_u128(u128::from(number).wrapping_mul(factor) | 1)
    }

    #[test]
    fn a_page_is_sent_acknowledged_and_forgotten() {
        let known = Known::new(4);
        assert_eq!(known.get(PageId(1)), None);
        assert_eq!(known.record_sent(PageId(1), hash(1)), 1);
        let sent = Entry { hash: hash(1), version: 1, acknowledged: false };
        assert_eq!(known.get(PageId(1)), Some(sent));
        known.acknowledge(PageId(1), 1);
        assert_eq!(known.get(PageId(1)), Some(Entry { acknowledged: true, ..sent }));
        known.forget(PageId(1));
        assert_eq!(known.get(PageId(1)), None);
        assert_eq!(known.record_sent(PageId(1), hash(2)), 2, "versions go on");
    }

    #[test]
    fn a_late_answer_is_ignored() {
        let known = Known::new(1);
        known.record_sent(PageId(0), hash(1));
        known.record_sent(PageId(0), hash(2));
        known.acknowledge(PageId(0), 1);
        assert_eq!(known.get(PageId(0)).map(|entry| entry.acknowledged), Some(false));
        known.forget(PageId(0));
        known.acknowledge(PageId(0), 2);
        assert_eq!(known.get(PageId(0)), None);
    }

    #[test]
    fn only_confirmed_contents_of_other_pages_are_found() {
        let known = Known::new(8);
        known.record_sent(PageId(3), hash(9));
        assert_eq!(known.find(hash(9), PageId(0)), None);
        known.acknowledge(PageId(3), 1);
        assert_eq!(known.find(hash(9), PageId(0)), Some(PageId(3)));
        assert_eq!(known.find(hash(9), PageId(3)), None);
        known.record_sent(PageId(3), hash(10));
        assert_eq!(known.find(hash(9), PageId(0)), None);
        known.record_present(PageId(7), hash(11));
        assert_eq!(known.find(hash(11), PageId(0)), Some(PageId(7)));
    }

    #[test]
    fn the_index_finds_most_of_a_full_table() {
        let known = Known::new(10_000);
        for page in 0..10_000 {
            known.record_sent(PageId(page), hash(page.into()));
            known.acknowledge(PageId(page), 1);
        }
        let found = (0..10_000).filter(|page| {
            known.find(hash(u64::from(*page)), PageId(EMPTY)) == Some(PageId(*page))
        });
        assert!(found.count() > 7_000);
    }

    #[test]
    fn pages_beyond_the_table_are_ignored() {
        let known = Known::new(2);
        assert_eq!(known.record_sent(PageId(2), hash(1)), 0);
        known.acknowledge(PageId(EMPTY), 1);
        known.forget(PageId(9));
        known.record_present(PageId(9), hash(1));
        assert_eq!(known.get(PageId(2)), None);
    }
}
