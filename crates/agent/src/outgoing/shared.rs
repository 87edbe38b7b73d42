//! What all workers of a job share: what is to be sent, what the destination has, how fast, and what became of it.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sterna_migration::tracker::Tracker;
use sterna_model::PageId;
use sterna_page_codec::{BatchStats, Known, Processors, Sent};

use super::limiter::Limiter;
use super::memory::SourceMemory;
use super::pacer::Pacer;

/// Totals of all workers, for progress and report.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// Bytes handed to TLS.
    pub wire_bytes: AtomicU64,
    /// Pages sent in any way but unchanged.
    pub pages_sent: AtomicU64,
    /// By kind.
    pub zero: AtomicU64,
    /// See [`sterna_api::PageCounts`].
    pub unchanged: AtomicU64,
    /// See [`sterna_api::PageCounts`].
    pub reference: AtomicU64,
    /// See [`sterna_api::PageCounts`].
    pub delta: AtomicU64,
    /// See [`sterna_api::PageCounts`].
    pub compressed: AtomicU64,
    /// See [`sterna_api::PageCounts`].
    pub raw: AtomicU64,
}

/// What all workers of a job share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Which pages are to be sent.
    pub tracker: Arc<Tracker>,
    /// Their contents.
    pub memory: Arc<SourceMemory>,
    /// What the destination has.
    pub known: Arc<Known>,
    /// Totals.
    pub totals: Totals,
    /// The rate.
    pub limiter: Limiter,
    /// Keeps the link's queue short while the guest waits for pages at the destination.
    pub pacer: Pacer,
    /// Pages that may follow in post-copy: those of blocks that the destination's QEMU shares with its agent.
    deferrable: Vec<Range<u32>>,
    /// How often each page was marked absent: a mark counts as a version and is no send.
    marks: Box<[AtomicU8]>,
    requested: Requested,
    /// The machine's processors are all taken.
    processors_taken: AtomicBool,
    /// The job is over, or its connections are given up: whoever still works for it stops.
    abandoned: AtomicBool,
    /// The round is to end before its time: what it has not sent stays marked.
    cut_short: AtomicBool,
    /// Pages go whole, whatever the destination has: a measurement wants it.
    unchecked: AtomicBool,
    /// Workers that are marking pages ahead of the stop.
    marking: AtomicUsize,
}

/// Pages that the destination asked for again.
#[derive(Debug, Default)]
struct Requested {
    count: AtomicUsize,
    pages: Mutex<HashSet<PageId>>,
}

/// Frames of one connection that the destination has not confirmed.
#[derive(Debug, Default)]
pub(super) struct InFlight(Mutex<VecDeque<(u64, Vec<Sent>)>>);

impl Shared {
    /// What the workers of a job share, at its beginning.
    #[must_use]
    pub(super) fn new(
        tracker: Arc<Tracker>,
        memory: Arc<SourceMemory>,
        known: Arc<Known>,
        limiter: Limiter,
        deferrable: Vec<Range<u32>>,
    ) -> Self {
        let marks = (0..known.pages()).map(|_| AtomicU8::new(0)).collect();
        Self {
            tracker,
            memory,
            known,
            totals: Totals::default(),
            limiter,
            pacer: Pacer::default(),
            deferrable,
            marks,
            requested: Requested::default(),
            processors_taken: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            cut_short: AtomicBool::new(false),
            unchecked: AtomicBool::new(false),
            marking: AtomicUsize::new(0),
        }
    }

    /// The job is over.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    /// It goes on, over new connections.
    pub(super) fn go_on(&self) {
        self.cut_short(false);
        self.abandoned.store(false, Ordering::Release);
    }

    /// Whether the job is over.
    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    /// So many workers begin to mark pages ahead of the stop.
    pub(super) fn begins_to_mark(&self, workers: usize) {
        self.marking.store(workers, Ordering::Release);
    }

    /// One of them is through, and has said so.
    pub(super) fn has_marked(&self) {
        self.marking.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether any is still at it.
    pub(super) fn is_marking(&self) -> bool {
        self.marking.load(Ordering::Acquire) > 0
    }

    /// Whether the round is to end before its time.
    pub(super) fn is_cut_short(&self) -> bool {
        self.cut_short.load(Ordering::Acquire)
    }

    /// Says whether the round is to end before its time.
    pub(super) fn cut_short(&self, cut: bool) {
        self.cut_short.store(cut, Ordering::Release);
    }

    /// Whether pages go whole, whatever the destination has.
    pub(super) fn is_unchecked(&self) -> bool {
        self.unchecked.load(Ordering::Acquire)
    }

    /// Says whether pages go whole, whatever the destination has.
    pub(super) fn leave_unchecked(&self, unchecked: bool) {
        self.unchecked.store(unchecked, Ordering::Release);
    }

    /// How busy the machine is; the workers' governors ask.
    pub(super) fn note_processors(&self, processors: Processors) {
        self.processors_taken.store(processors == Processors::Taken, Ordering::Relaxed);
    }

    /// How busy the machine is.
    pub(super) fn processors(&self) -> Processors {
        if self.processors_taken.load(Ordering::Relaxed) {
            Processors::Taken
        } else {
            Processors::Idle
        }
    }

    /// The destination asks for a page again.
    pub(super) fn request(&self, page: PageId) {
        self.known.forget(page);
        if self.requested.lock().insert(page) {
            self.requested.count.fetch_add(1, Ordering::Release);
        }
        self.tracker.give_back(page);
    }

    /// How often the page was marked absent: once, or more often where QEMU forestalled a stop.
    pub(super) fn marks_of(&self, page: PageId) -> usize {
        self.marks.get(page.index()).map_or(0, |marks| marks.load(Ordering::Relaxed).into())
    }

    /// Notes that the page was marked absent, by the worker whose page it is.
    pub(super) fn mark(&self, page: PageId) {
        if let Some(marks) = self.marks.get(page.index()) {
            marks.store(marks.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
        }
    }

    /// Whether the page may follow in post-copy.
    pub(super) fn is_deferrable(&self, page: PageId) -> bool {
        self.deferrable.iter().any(|range| range.contains(&page.0))
    }

    /// Whether the page was asked for again; asked once, it is taken off.
    pub(super) fn was_requested(&self, page: PageId) -> bool {
        if self.requested.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let was = self.requested.lock().remove(&page);
        if was {
            self.requested.count.fetch_sub(1, Ordering::Release);
        }
        was
    }
}

impl Requested {
    fn lock(&self) -> MutexGuard<'_, HashSet<PageId>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InFlight {
    /// A frame goes out with these pages.
    pub(super) fn push(&self, frame: u64, sent: &[Sent]) {
        self.lock().push_back((frame, sent.to_vec()));
    }

    /// The destination has applied so many frames of this connection.
    pub(super) fn confirm(&self, frames: u64, known: &Known) {
        let mut queue = self.lock();
        while queue.front().is_some_and(|(frame, _)| *frame <= frames) {
            for sent in queue.pop_front().map(|(_, sent)| sent).unwrap_or_default() {
                known.acknowledge(sent.page, sent.version);
            }
        }
    }

    /// The pages that were not confirmed, which never will be.
    pub(super) fn take(&self) -> Vec<PageId> {
        self.lock().drain(..).flat_map(|(_, sent)| sent).map(|sent| sent.page).collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(u64, Vec<Sent>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Totals {
    /// Notes a frame that was handed to its connection.
    pub(super) fn note_sent(&self, payload_bytes: usize, pages: usize) {
        let wire_bytes = (payload_bytes + sterna_wire::HEADER_BYTES) as u64;
        self.wire_bytes.fetch_add(wire_bytes, Ordering::Relaxed);
        self.pages_sent.fetch_add(pages as u64, Ordering::Relaxed);
    }

    /// Counts a batch's pages by kind.
    pub(super) fn add(&self, stats: &BatchStats) {
        let pages = &stats.pages;
        for (total, count) in [
            (&self.zero, pages.zero),
            (&self.unchanged, pages.unchanged + pages.same),
            (&self.reference, pages.reference),
            (&self.delta, pages.delta),
            (&self.compressed, pages.compressed),
            (&self.raw, pages.raw),
        ] {
            total.fetch_add(u64::from(count), Ordering::Relaxed);
        }
    }
}
