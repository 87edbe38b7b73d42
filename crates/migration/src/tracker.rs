//! The page tracker: which pages the destination lacks, who sends them, and how often they changed.
//!
//! Three parties share it without locks. The *reader* of QEMU's stream [reports](Tracker::report) pages. *Workers*
//! [claim](Tracker::claim) them, each from its own stripes of the memory, so that a page always travels on the same
//! connection and in the order of its versions. The drive loop [begins rounds](Tracker::begin_round) and
//! [counts](Tracker::waiting).
//!
//! # Why contents may be read later
//! A page is held by reference: only its number is remembered, its content is read from guest memory when it is sent.
//! QEMU clears a page's dirty bit before it reports the page, so every write that the report stands for is visible to
//! whoever reads after the report, and every later write is reported again. A claim therefore clears the page's mark
//! *before* the worker reads it: a report that arrives in between marks it anew. A page torn by a write in progress is
//! reported again, or, once the guest is stopped, cannot exist.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use sterna_model::PageId;

/// Pages of a stripe: 2 MiB of guest memory, long enough for reads and batches to be sequential.
const STRIPE_PAGES: usize = 512;
const WORD_PAGES: usize = 64;
const STRIPE_WORDS: usize = STRIPE_PAGES / WORD_PAGES;

/// Shared tracker of one move.
#[derive(Debug)]
pub struct Tracker {
    /// Reported, and not claimed since.
    dirty: Box<[AtomicU64]>,
    /// Reported since the last [`Tracker::take_touched`].
    touched: Box<[AtomicU64]>,
    /// To be sent in the current round (from the second round on).
    round: Box<[AtomicU64]>,
    /// The last report said that the page is zero.
    zero: Box<[AtomicU64]>,
    /// Reports of each page, saturating: its dirty history.
    reports: Box<[AtomicU8]>,
    /// QEMU has reported everything once and had nothing left for a moment.
    first_pass_over: AtomicBool,
    pages: u32,
    workers: usize,
}

/// Where a worker is in its stripes.
#[derive(Debug)]
pub struct Cursor {
    worker: usize,
    word: usize,
}

/// A page that a worker took to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    /// The page.
    pub page: PageId,
    /// QEMU reported it as zero, and any later write will be reported again: it need not be read.
    pub zero: bool,
    /// It was reported more than once: it changes, so its content is worth remembering for a delta.
    pub hot: bool,
}

/// Which pages a worker may claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Round {
    /// The first: whatever was reported, as it is reported. Pages that changed while they waited are held back, since
    /// they would be sent twice.
    First,
    /// A later one: what [`Tracker::begin_round`] put into it.
    Later,
    /// As [`Round::Later`], and of that only what changed more than once: the guest will want it soonest.
    Hot,
    /// As [`Round::Later`], and of that only what is not known to be zero; the rest stays in the round.
    Content,
}

impl Tracker {
    /// A tracker for `pages` pages and `workers` workers; nothing is reported yet.
    #[must_use]
    pub fn new(pages: u32, workers: usize) -> Self {
        let words = (pages as usize).div_ceil(WORD_PAGES);
        let bits = || (0..words).map(|_| AtomicU64::new(0)).collect();
        Self {
            dirty: bits(),
            touched: bits(),
            round: bits(),
            zero: bits(),
            reports: (0..pages).map(|_| AtomicU8::new(0)).collect(),
            first_pass_over: AtomicBool::new(false),
            pages,
            workers: workers.max(1),
        }
    }

    /// Notes that QEMU reported `page`, and whether as zero. Called by the reader only. Tells whether it is the page's
    /// first report.
    pub fn report(&self, page: PageId, zero: bool) -> bool {
        let (word, bit) = place(page);
        let Some(reports) = self.reports.get(page.index()) else { return false };
        let count = reports.load(Ordering::Relaxed);
        reports.store(count.saturating_add(1), Ordering::Relaxed);
        if zero {
            self.zero[word].fetch_or(bit, Ordering::Relaxed);
        } else {
            self.zero[word].fetch_and(!bit, Ordering::Relaxed);
        }
        self.touched[word].fetch_or(bit, Ordering::Relaxed);
        // Release: whoever sees the mark sees the zero flag of this report or of a later one.
        self.dirty[word].fetch_or(bit, Ordering::Release);
        count == 0
    }

    /// Notes that the destination lacks `page` after all (it asked again, or its connection broke).
    pub fn give_back(&self, page: PageId) {
        if page.0 < self.pages {
            let (word, bit) = place(page);
            self.zero[word].fetch_and(!bit, Ordering::Relaxed);
            self.dirty[word].fetch_or(bit, Ordering::Release);
        }
    }

    /// Notes that QEMU has gone through the whole memory once. Called by the reader.
    pub fn end_first_pass(&self) {
        self.first_pass_over.store(true, Ordering::Release);
    }

    /// Whether QEMU has gone through the whole memory once.
    #[must_use]
    pub fn first_pass_over(&self) -> bool {
        self.first_pass_over.load(Ordering::Acquire)
    }

    /// Puts every marked page into the new round. Returns how many pages the round has.
    pub fn begin_round(&self) -> u32 {
        let mut pages = 0;
        for (dirty, round) in self.dirty.iter().zip(&self.round) {
            let taken = dirty.swap(0, Ordering::AcqRel);
            pages += (round.fetch_or(taken, Ordering::AcqRel) | taken).count_ones();
        }
        pages
    }

    /// Puts the marked pages among `chosen` (a bit for each page) into the new round; the others stay marked and wait.
    /// Returns how many pages the round has.
    pub fn begin_round_of(&self, chosen: &[u64]) -> u32 {
        let mut pages = 0;
        for ((dirty, round), chosen) in self.dirty.iter().zip(&self.round).zip(chosen) {
            let taken = dirty.fetch_and(!chosen, Ordering::AcqRel) & chosen;
            pages += (round.fetch_or(taken, Ordering::AcqRel) | taken).count_ones();
        }
        pages
    }

    /// The pages that were reported since this was asked last, a bit for each.
    #[must_use]
    pub fn take_touched(&self) -> Vec<u64> {
        self.touched.iter().map(|word| word.swap(0, Ordering::Relaxed)).collect()
    }

    /// The pages that the destination lacks, as far as QEMU has told, a bit for each.
    #[must_use]
    pub fn stale(&self) -> Vec<u64> {
        let both = self.dirty.iter().zip(&self.round);
        let either = |(dirty, round): (&AtomicU64, &AtomicU64)| {
            dirty.load(Ordering::Relaxed) | round.load(Ordering::Relaxed)
        };
        both.map(either).collect()
    }

    /// Pages that the destination lacks, as far as QEMU has told.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        let both = self.dirty.iter().zip(&self.round);
        both.map(|(dirty, round)| {
            (dirty.load(Ordering::Relaxed) | round.load(Ordering::Relaxed)).count_ones()
        })
        .sum()
    }

    /// The pages of a worker's stripes, ascending.
    pub fn pages_of(&self, worker: usize) -> impl Iterator<Item = PageId> + use<> {
        let (pages, workers) = (self.pages as usize, self.workers);
        let stripes = (worker % workers..pages.div_ceil(STRIPE_PAGES)).step_by(workers);
        let of_stripe =
            move |stripe: usize| stripe * STRIPE_PAGES..((stripe + 1) * STRIPE_PAGES).min(pages);
        stripes.flat_map(of_stripe).filter_map(|page| u32::try_from(page).ok().map(PageId))
    }

    /// A cursor at the start of a worker's stripes.
    #[must_use]
    pub fn cursor(&self, worker: usize) -> Cursor {
        Cursor { worker: worker % self.workers, word: (worker % self.workers) * STRIPE_WORDS }
    }

    /// Takes up to `limit` pages from the worker's stripes, ascending, going on from its cursor, and clears their marks.
    /// Returns how many pages it left out because they changed while waiting. When it takes none and the cursor is
    /// [at the end](Cursor::is_at_end), the worker's stripes have been gone through; [`Cursor::rewind`] starts again.
    pub fn claim(
        &self,
        round: Round,
        cursor: &mut Cursor,
        limit: usize,
        taken: &mut impl Extend<Claim>,
    ) -> u32 {
        let mut left = limit;
        let mut held_back = 0;
        while left > 0 && cursor.word < self.dirty.len() {
            let word = cursor.word;
            let (mut bits, late) = self.claimable(round, word);
            held_back += late.count_ones();
            while bits.count_ones() as usize > left {
                bits &= !(1 << (63 - bits.leading_zeros()));
            }
            left -= bits.count_ones() as usize;
            let took_all = self.take(round, word, bits, taken);
            if took_all || left > 0 {
                cursor.advance(self.workers);
            }
        }
        held_back
    }

    /// Takes one page, whoever's it is, and clears its marks; `None` when it is not marked. For a page that a guest waits
    /// for, while workers go through theirs: whoever takes it is the only one who sends it.
    #[must_use]
    pub fn claim_page(&self, page: PageId) -> Option<Claim> {
        let (word, bit) = (page.0 < self.pages).then(|| place(page))?;
        let in_round = self.round[word].fetch_and(!bit, Ordering::AcqRel);
        let marked = self.dirty[word].fetch_and(!bit, Ordering::AcqRel);
        ((in_round | marked) & bit != 0).then(|| Claim {
            page,
            zero: self.zero[word].load(Ordering::Acquire) & bit != 0,
            hot: self.reports[page.index()].load(Ordering::Relaxed) > 1,
        })
    }

    /// The pages of a word that can be claimed, and those that are left for the next round.
    fn claimable(&self, round: Round, word: usize) -> (u64, u64) {
        match round {
            Round::Later => (self.round[word].load(Ordering::Acquire), 0),
            Round::Hot => (self.hot(word, self.round[word].load(Ordering::Acquire)), 0),
            Round::Content => {
                let zeros = self.zero[word].load(Ordering::Acquire);
                (self.round[word].load(Ordering::Acquire) & !zeros, 0)
            }
            Round::First => {
                let marked = self.dirty[word].load(Ordering::Acquire);
                let late = self.hot(word, marked);
                (marked & !late, late)
            }
        }
    }

    /// Which of these pages of a word were reported more than once.
    fn hot(&self, word: usize, bits: u64) -> u64 {
        let mut hot = 0;
        let mut rest = bits;
        while rest != 0 {
            let bit = rest & rest.wrapping_neg();
            rest ^= bit;
            let page = word * WORD_PAGES + bit.trailing_zeros() as usize;
            if self.reports[page].load(Ordering::Relaxed) > 1 {
                hot |= bit;
            }
        }
        hot
    }

    /// Clears the marks of `bits` and hands the pages over. Returns whether nothing claimable stays in the word.
    fn take(&self, round: Round, word: usize, bits: u64, taken: &mut impl Extend<Claim>) -> bool {
        let mut bits = bits;
        if bits != 0 {
            // Some may have been taken one by one since they were looked at.
            let in_round = self.round[word].fetch_and(!bits, Ordering::AcqRel);
            let marked = self.dirty[word].fetch_and(!bits, Ordering::AcqRel);
            bits &= in_round | marked;
        }
        let zeros = self.zero[word].load(Ordering::Acquire);
        let mut rest = bits;
        taken.extend(core::iter::from_fn(|| {
            let bit = rest & rest.wrapping_neg();
            rest ^= bit;
            let page = word * WORD_PAGES + bit.trailing_zeros() as usize;
            let number = u32::try_from(page).ok().filter(|_| bit != 0)?;
            let hot = self.reports[page].load(Ordering::Relaxed) > 1;
            Some(Claim { page: PageId(number), zero: zeros & bit != 0, hot })
        }));
        self.claimable(round, word).0 == 0
    }
}

impl Cursor {
    /// Whether all stripes of the worker have been gone through.
    #[must_use]
    pub fn is_at_end(&self, tracker: &Tracker) -> bool {
        self.word >= tracker.dirty.len()
    }

    /// Goes back to the start of the worker's stripes.
    pub fn rewind(&mut self) {
        self.word = self.worker * STRIPE_WORDS;
    }

    fn advance(&mut self, workers: usize) {
        self.word += 1;
        if self.word.is_multiple_of(STRIPE_WORDS) {
            self.word += (workers - 1) * STRIPE_WORDS;
        }
    }
}

/// The word of a page's mark, and its bit there.
const fn place(page: PageId) -> (usize, u64) {
    (page.index() / WORD_PAGES, 1 << (page.index() % WORD_PAGES))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    fn claim_all(tracker: &Tracker, round: Round, worker: usize, limit: usize) -> Vec<Claim> {
        let mut all = Vec::new();
        let mut cursor = tracker.cursor(worker);
        while !cursor.is_at_end(tracker) {
            let mut some = Vec::new();
            tracker.claim(round, &mut cursor, limit, &mut some);
            assert!(some.len() <= limit);
            all.extend(some);
        }
        all
    }

    #[test]
    fn pages_that_are_zero_stay_in_a_round_of_content() {
        let tracker = Tracker::new(200, 1);
        for (page, zero) in [(3, false), (4, true), (150, true), (151, false)] {
            tracker.report(PageId(page), zero);
        }
        assert_eq!(tracker.begin_round(), 4);
        let pages =
            |claims: Vec<Claim>| claims.iter().map(|claim| claim.page.0).collect::<Vec<_>>();
        assert_eq!(pages(claim_all(&tracker, Round::Content, 0, 10)), [3, 151]);
        // One of them is written meanwhile.
        tracker.report(PageId(150), false);
        assert_eq!(tracker.begin_round(), 2);
        assert_eq!(pages(claim_all(&tracker, Round::Content, 0, 10)), [150]);
        let left = claim_all(&tracker, Round::Later, 0, 10);
        assert_eq!(left, [Claim { page: PageId(4), zero: true, hot: false }]);
    }

    #[test]
    fn a_page_dirtied_again_before_it_was_sent_is_sent_once() {
        let tracker = Tracker::new(1000, 1);
        tracker.report(PageId(7), false);
        assert_eq!(tracker.begin_round(), 1);
        tracker.report(PageId(7), false);
        assert_eq!(tracker.waiting(), 1);
        let claims = claim_all(&tracker, Round::Later, 0, 10);
        assert_eq!(claims, [Claim { page: PageId(7), zero: false, hot: true }]);
        assert_eq!(tracker.waiting(), 0);
        tracker.report(PageId(7), true);
        assert_eq!(tracker.begin_round(), 1, "a report after the claim counts");
    }

    #[test]
    fn the_first_round_holds_changing_pages_back() {
        let tracker = Tracker::new(1000, 1);
        tracker.report(PageId(1), false);
        tracker.report(PageId(2), false);
        tracker.report(PageId(2), false);
        let mut taken = Vec::new();
        let mut cursor = tracker.cursor(0);
        let held_back = tracker.claim(Round::First, &mut cursor, 100, &mut taken);
        assert_eq!((taken.len(), held_back), (1, 1));
        assert_eq!(tracker.waiting(), 1);
        assert_eq!(tracker.begin_round(), 1);
        assert_eq!(claim_all(&tracker, Round::Later, 0, 100)[0].page, PageId(2));
    }

    #[test]
    fn hot_pages_can_be_had_first_and_single_ones_out_of_turn() {
        let tracker = Tracker::new(1000, 1);
        for page in [3, 5, 5, 200, 200, 201] {
            tracker.report(PageId(page), false);
        }
        assert_eq!(tracker.begin_round(), 4);
        let numbers =
            |claims: Vec<Claim>| -> Vec<u32> { claims.iter().map(|claim| claim.page.0).collect() };
        assert_eq!(numbers(claim_all(&tracker, Round::Hot, 0, 10)), [5, 200]);
        assert_eq!(tracker.claim_page(PageId(201)).map(|claim| claim.page), Some(PageId(201)));
        assert_eq!(tracker.claim_page(PageId(201)), None, "once");
        assert_eq!(tracker.claim_page(PageId(1000)), None, "there is no such page");
        assert_eq!(numbers(claim_all(&tracker, Round::Later, 0, 10)), [3]);
    }

    #[test]
    fn a_round_of_some_leaves_the_others_waiting() {
        let tracker = Tracker::new(200, 2);
        for page in [3, 70, 150] {
            tracker.report(PageId(page), false);
        }
        assert_eq!(tracker.stale(), [1 << 3, 1 << 6, 1 << 22, 0]);
        assert_eq!(tracker.take_touched(), tracker.stale());
        assert_eq!(tracker.take_touched(), [0; 4], "each report is told once");
        // A page that is not stale, and one that is.
        assert_eq!(tracker.begin_round_of(&[1 << 4, 1 << 6, 0, 0]), 1);
        let claims: Vec<Claim> =
            (0..2).flat_map(|worker| claim_all(&tracker, Round::Later, worker, 10)).collect();
        assert_eq!(claims.iter().map(|claim| claim.page.0).collect::<Vec<_>>(), [70]);
        assert_eq!(tracker.waiting(), 2);
        assert_eq!(tracker.begin_round(), 2, "a whole round takes the rest");
    }

    proptest! {
        #[test]
        fn every_page_is_claimed_by_one_worker_once(
            pages in 1_u32..5000, workers in 1_usize..6, limit in 1_usize..300, seed: u64,
        ) {
            let tracker = Tracker::new(pages, workers);
            let chosen: BTreeSet<u32> =
                (0..pages).filter(|page| (seed >> (page % 61)) & 1 == 1).collect();
            for page in &chosen {
                prop_assert!(tracker.report(PageId(*page), page % 2 == 0));
            }
            let mut seen = BTreeSet::new();
            for worker in 0..workers {
                for claim in claim_all(&tracker, Round::First, worker, limit) {
                    prop_assert!(seen.insert(claim.page.0));
                    prop_assert_eq!(claim.zero, claim.page.0 % 2 == 0);
                }
            }
            prop_assert_eq!(seen, chosen);
            let all: BTreeSet<PageId> = (0..workers).flat_map(|worker| tracker.pages_of(worker)).collect();
            prop_assert_eq!(all.len(), pages as usize);
            prop_assert_eq!(tracker.waiting(), 0);
        }
    }
}
