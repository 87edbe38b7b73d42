//! Post-copy, the destination's side: which pages the running guest lacks, and the order in which QEMU is given them.
//!
//! ```text
//! receivers --pages--> queue: what the guest waits for, then the rest --> loader --> QEMU
//!                        ^ zero pages that nobody wrote: known here
//! return path --requests-+--> those that are lacking --> source
//! ```
//!
//! A page that is lacking is given to QEMU exactly once: whoever clears its bit queues it. What QEMU asks for and is not
//! lacking is either on its way to it, or a zero page, which is a hole in the file behind the memory: QEMU cannot tell.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use sterna_model::{Page, PageId};

use super::latency::Latency;

/// Pages that wait for QEMU, at most: who brings more waits, but with what the guest waits for.
const MAX_QUEUED: usize = 1024;
const WORD_PAGES: usize = u64::BITS as usize;

/// See the module.
#[derive(Debug)]
pub(super) struct Faulting {
    lacking: Bits,
    /// Zero pages that QEMU was given because it asked.
    zeroed: Bits,
    /// What is lacking was found out by looking at what is there: zero pages that nobody wrote are among it then, and come
    /// like the others.
    with_zeros: AtomicBool,
    left: AtomicU64,
    queue: Mutex<Queue>,
    filled: Condvar,
    emptied: Condvar,
    waits: Mutex<Waits>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Counts the streams: only the last one is given pages.
    stream: u32,
    urgent: VecDeque<Placed>,
    others: VecDeque<Placed>,
    closed: bool,
}

/// A page for QEMU; without content it is zero.
#[derive(Debug)]
pub(super) struct Placed {
    /// The page.
    pub page: PageId,
    /// What is in it.
    pub content: Option<Box<Page>>,
}

/// What the guest waits for.
#[derive(Debug, Default)]
struct Waits {
    since: BTreeMap<PageId, Instant>,
    latency: Latency,
}

/// Which connection brought a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// The one for what the guest waits for.
    Urgent,
    /// One of the others.
    Bulk,
}

/// What the loader does next.
#[derive(Debug)]
pub(super) enum Next {
    /// Give QEMU these.
    Pages(Vec<Placed>),
    /// Nothing is lacking any more.
    Complete,
    /// Nobody needs it any more.
    Closed,
}

impl Faulting {
    /// A guest of `pages` pages that lacks these.
    pub(super) fn new(pages: u32, lacking: impl Iterator<Item = PageId>) -> Self {
        let bits = Bits::new(pages);
        let left = lacking.filter(|page| bits.set(*page)).count() as u64;
        Self {
            lacking: bits,
            zeroed: Bits::new(pages),
            with_zeros: AtomicBool::new(false),
            left: AtomicU64::new(left),
            queue: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            waits: Mutex::default(),
        }
    }

    /// What is lacking was found out anew: what was queued, or given to a stream that broke, counts only if it arrived.
    pub(super) fn reset(&self, lacking: impl Iterator<Item = PageId>) {
        let mut queue = lock(&self.queue);
        *queue = Queue { stream: queue.stream + 1, closed: queue.closed, ..Queue::default() };
        self.with_zeros.store(true, Ordering::Release);
        self.lacking.clear_all();
        self.zeroed.clear_all();
        let left = lacking.filter(|page| self.lacking.set(*page)).count() as u64;
        self.left.store(left, Ordering::Release);
        self.filled.notify_all();
        self.emptied.notify_all();
    }

    /// Pages that have not come.
    pub(super) fn left(&self) -> u64 {
        self.left.load(Ordering::Acquire)
    }

    /// What has not come, in runs.
    pub(super) fn runs(&self) -> Vec<Range<u32>> {
        self.lacking.runs()
    }

    /// A page came. Waits while QEMU has much to take, unless the guest waits for this one.
    pub(super) fn place(&self, page: PageId, content: Option<&Page>, lane: Lane) {
        if !self.lacking.is_set(page) {
            return;
        }
        let placed = Placed { page, content: content.map(|content| Box::new(*content)) };
        let awaited = lock(&self.waits).since.contains_key(&page);
        let mut queue = lock(&self.queue);
        let stream = queue.stream;
        if !self.lacking.clear(page) {
            return;
        }
        let lane = if awaited { Lane::Urgent } else { lane };
        while !awaited && !queue.closed && queue.of(lane).len() >= MAX_QUEUED {
            queue = self.emptied.wait(queue).unwrap_or_else(PoisonError::into_inner);
            if queue.stream != stream {
                // What is lacking was found out anew meanwhile, and this page is among it: it comes again. Placed twice,
                // it would end QEMU.
                return;
            }
        }
        queue.of(lane).push_back(placed);
        // Counted only now: with none left and an empty queue, all is done.
        self.left.fetch_sub(1, Ordering::AcqRel);
        self.filled.notify_one();
    }

    /// The guest waits for these pages. Gives those that only the source has; `is_zero` tells which are known to be zero.
    pub(super) fn asked(&self, pages: Range<u32>, is_zero: impl Fn(PageId) -> bool) -> Vec<PageId> {
        let mut from_source = Vec::new();
        for page in pages.map(PageId) {
            if self.lacking.is_set(page) {
                let mut waits = lock(&self.waits);
                waits.latency.requests += 1;
                waits.since.insert(page, Instant::now());
                from_source.push(page);
            } else if lock(&self.queue).hurry(page) {
                // It is here, behind others.
            } else if !self.with_zeros.load(Ordering::Acquire)
                && is_zero(page)
                && self.zeroed.set(page)
            {
                lock(&self.queue).urgent.push_back(Placed { page, content: None });
                self.filled.notify_one();
            }
        }
        from_source
    }

    /// The guest waits for these since before a restart; what has come of them is not lacking.
    pub(super) fn asked_before(&self, pages: &[PageId]) {
        let mut waits = lock(&self.waits);
        for page in pages.iter().filter(|page| self.lacking.is_set(**page)) {
            waits.since.entry(*page).or_insert_with(Instant::now);
        }
    }

    /// What the guest waits for and has not come: to be asked for again after a cut.
    pub(super) fn awaited(&self) -> Vec<PageId> {
        let waits = lock(&self.waits);
        waits.since.keys().copied().filter(|page| self.lacking.is_set(*page)).collect()
    }

    /// The stream that is given pages now.
    pub(super) fn stream(&self) -> u32 {
        lock(&self.queue).stream
    }

    /// What the loader of this stream does next; waits for it. What the guest waits for comes first.
    pub(super) fn next(&self, stream: u32, most: usize) -> Next {
        let mut queue = lock(&self.queue);
        loop {
            if queue.closed || queue.stream != stream {
                return Next::Closed;
            }
            let mut pages = Vec::new();
            while pages.len() < most {
                let placed = queue.urgent.pop_front().or_else(|| queue.others.pop_front());
                let Some(placed) = placed else { break };
                pages.push(placed);
            }
            if !pages.is_empty() {
                self.emptied.notify_all();
                return Next::Pages(pages);
            }
            if self.left() == 0 {
                return Next::Complete;
            }
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// QEMU has been given these.
    pub(super) fn given(&self, pages: &[Placed]) {
        let mut waits = lock(&self.waits);
        if waits.since.is_empty() {
            return;
        }
        for placed in pages {
            if let Some(since) = waits.since.remove(&placed.page) {
                waits.latency.note(since.elapsed());
            }
        }
    }

    /// What the guest waited for, and how long.
    pub(super) fn latency(&self) -> Latency {
        lock(&self.waits).latency.clone()
    }

    /// Nobody needs it any more: whoever waits goes on.
    pub(super) fn close(&self) {
        lock(&self.queue).closed = true;
        self.filled.notify_all();
        self.emptied.notify_all();
    }
}

impl Queue {
    fn of(&mut self, lane: Lane) -> &mut VecDeque<Placed> {
        match lane {
            Lane::Urgent => &mut self.urgent,
            Lane::Bulk => &mut self.others,
        }
    }

    /// Puts a page that waits among the others before them; says whether it was there.
    fn hurry(&mut self, page: PageId) -> bool {
        let at = self.others.iter().position(|placed| placed.page == page);
        let placed = at.and_then(|at| self.others.remove(at));
        self.urgent.extend(placed);
        at.is_some()
    }
}

/// A bit a page.
#[derive(Debug)]
struct Bits(Box<[AtomicU64]>);

impl Bits {
    fn new(pages: u32) -> Self {
        let words = (pages as usize).div_ceil(WORD_PAGES);
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    fn place(&self, page: PageId) -> Option<(&AtomicU64, u64)> {
        let word = self.0.get(page.index() / WORD_PAGES)?;
        Some((word, 1 << (page.index() % WORD_PAGES)))
    }

    fn is_set(&self, page: PageId) -> bool {
        self.place(page).is_some_and(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
    }

    /// Whether it was clear before.
    fn set(&self, page: PageId) -> bool {
        let before = self.place(page).map(|(word, bit)| word.fetch_or(bit, Ordering::AcqRel) & bit);
        before == Some(0)
    }

    /// Whether it was set before.
    fn clear(&self, page: PageId) -> bool {
        let before = |(word, bit): (&AtomicU64, u64)| word.fetch_and(!bit, Ordering::AcqRel) & bit;
        self.place(page).is_some_and(|place| before(place) != 0)
    }

    fn clear_all(&self) {
        self.0.iter().for_each(|word| word.store(0, Ordering::Release));
    }

    fn runs(&self) -> Vec<Range<u32>> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        for (at, word) in self.0.iter().enumerate() {
            let mut rest = word.load(Ordering::Acquire);
            while rest != 0 {
                let bit = rest.trailing_zeros();
                rest &= rest - 1;
                let page = u32::try_from(at * WORD_PAGES).unwrap_or(u32::MAX) + bit;
                match runs.last_mut().filter(|run| run.end == page) {
                    Some(run) => run.end += 1,
                    None => runs.push(page..page + 1),
                }
            }
        }
        runs
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_model::PAGE_BYTES;

    fn pages(next: Next) -> Vec<u32> {
        match next {
            Next::Pages(pages) => pages.iter().map(|placed| placed.page.0).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_the_guest_waits_for_goes_first_and_each_page_once() {
        let faulting = Faulting::new(200, [5, 70, 71, 199].into_iter().map(PageId));
        assert_eq!(faulting.runs(), [5..6, 70..72, 199..200]);
        let content = [7; PAGE_BYTES];
        faulting.place(PageId(5), Some(&content), Lane::Bulk);
        faulting.place(PageId(5), Some(&content), Lane::Urgent);
        assert_eq!(faulting.asked(70..72, |_| false), [PageId(70), PageId(71)]);
        assert_eq!(faulting.awaited(), [PageId(70), PageId(71)]);
        faulting.place(PageId(71), Some(&content), Lane::Bulk);
        assert_eq!(pages(faulting.next(0, 10)), [71, 5]);
        faulting.place(PageId(70), None, Lane::Urgent);
        faulting.place(PageId(199), None, Lane::Bulk);
        assert_eq!(faulting.left(), 0);
        assert_eq!(pages(faulting.next(0, 1)), [70]);
        assert_eq!(pages(faulting.next(0, 1)), [199]);
        assert!(matches!(faulting.next(0, 1), Next::Complete));
    }

    #[test]
    fn what_has_come_and_is_waited_for_goes_before_what_has_come() {
        let faulting = Faulting::new(10, (0..5).map(PageId));
        (0..5).for_each(|page| faulting.place(PageId(page), None, Lane::Bulk));
        assert!(faulting.asked(3..4, |_| true).is_empty(), "the source is not asked");
        assert_eq!(pages(faulting.next(0, 10)), [3, 0, 1, 2, 4]);
    }

    #[test]
    fn what_was_asked_for_before_a_restart_is_asked_for_again() {
        let faulting = Faulting::new(10, std::iter::empty());
        faulting.reset([2, 4, 6].into_iter().map(PageId));
        faulting.asked_before(&[PageId(1), PageId(4), PageId(99)]);
        assert_eq!(faulting.awaited(), [PageId(4)]);
        faulting.place(PageId(2), None, Lane::Bulk);
        faulting.place(PageId(4), None, Lane::Bulk);
        assert_eq!(pages(faulting.next(1, 10)), [4, 2], "it goes first");
        assert_eq!(faulting.awaited(), []);
    }

    #[test]
    fn a_zero_page_is_answered_here_and_once() {
        let faulting = Faulting::new(10, std::iter::once(PageId(1)));
        assert!(faulting.asked(3..5, |page| page.0 == 3).is_empty());
        assert!(faulting.asked(3..4, |_| true).is_empty());
        assert_eq!(pages(faulting.next(0, 10)), [3]);
    }

    #[test]
    fn a_stream_that_broke_is_given_nothing_more() {
        let faulting = Faulting::new(10, (1..3).map(PageId));
        faulting.place(PageId(1), None, Lane::Bulk);
        assert_eq!(faulting.left(), 1);
        faulting.reset((1..4).map(PageId));
        assert_eq!((faulting.left(), faulting.stream()), (3, 1));
        faulting.place(PageId(1), None, Lane::Bulk);
        assert!(matches!(faulting.next(0, 1), Next::Closed));
        assert_eq!(pages(faulting.next(1, 1)), [1]);
        // It is on its way: a zero page before it would be a lie.
        assert!(faulting.asked(1..2, |_| true).is_empty());
        faulting.place(PageId(2), None, Lane::Bulk);
        assert_eq!(pages(faulting.next(1, 5)), [2]);
    }

    #[test]
    fn a_page_that_waited_while_the_stream_broke_comes_again() {
        let most = u32::try_from(MAX_QUEUED).unwrap();
        let faulting = Faulting::new(5000, (0..5000).map(PageId));
        (0..most).for_each(|page| faulting.place(PageId(page), None, Lane::Bulk));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| faulting.place(PageId(most), None, Lane::Bulk));
            // Its bit is cleared with the queue locked, which it leaves only to wait.
            while faulting.lacking.is_set(PageId(most)) {
                std::thread::yield_now();
            }
            drop(lock(&faulting.queue));
            faulting.reset((most..most + 1).map(PageId));
            waits.join().unwrap();
        });
        assert_eq!(faulting.left(), 1);
        faulting.place(PageId(most), None, Lane::Bulk);
        assert_eq!(pages(faulting.next(1, 10)), [most]);
        assert!(matches!(faulting.next(1, 10), Next::Complete));
    }

    #[test]
    fn nobody_waits_for_a_loader_that_is_gone() {
        let faulting = Faulting::new(5000, (0..5000).map(PageId));
        faulting.close();
        (0..5000).for_each(|page| faulting.place(PageId(page), None, Lane::Bulk));
        assert!(matches!(faulting.next(0, 1), Next::Closed));
    }
}
