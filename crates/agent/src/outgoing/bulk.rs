//! The bulk side of a move that leaves: data connections, workers, rounds.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sterna_migration::source::Finish;
use sterna_migration::tracker::{Round, Tracker};
use sterna_model::{PageHash, PageId, Rate, Root};
use sterna_page_codec::{Known, Processors};

use super::limiter::Limiter;
use super::links::{Connected, Links, Reports, Settings, UrgentLink, start_urgent, start_worker};
use super::looks::Looks;
use super::memory::SourceMemory;
use super::shared::{InFlight, Shared, Totals};
use super::worker::{Order, RoundDone};

/// The workers of a job, and where its round stands.
pub(super) struct Bulk {
    shared: Arc<Shared>,
    workers: Vec<Connected>,
    urgent: Option<UrgentLink>,
    round: RoundState,
    delivered_bytes: u64,
    verify_full: bool,
}

/// A round, while its workers are at it.
#[derive(Debug)]
struct RoundState {
    number: u32,
    begun: Instant,
    waiting_for: usize,
    sum: RoundDone,
    frames: Vec<u64>,
    /// What was under way when it began.
    unacknowledged_bytes: u64,
}

/// A round that all workers are through with.
#[derive(Clone, Debug)]
pub(super) struct RoundSum {
    /// Its number, from 1.
    pub number: u32,
    /// How long it took.
    pub duration: Duration,
    /// What the link carried meanwhile: not what only went into buffers.
    pub carried_bytes: u64,
    /// All workers' parts.
    pub sum: RoundDone,
    /// Frames of each connection so far.
    pub frames: Vec<u64>,
}

impl Bulk {
    /// Starts a worker for each connection. What the destination has from before is `known`.
    ///
    /// # Errors
    /// In words, when a worker cannot be made.
    pub(super) fn start(
        known: Known,
        links: Links,
        memory: Arc<SourceMemory>,
        tracker: Arc<Tracker>,
        settings: &Settings,
        reports: &Reports,
    ) -> Result<Self, String> {
        let known = Arc::new(known);
        let limiter = Limiter::new(settings.rate);
        let deferrable = settings.deferrable.clone();
        let shared = Arc::new(Shared::new(tracker, memory, known, limiter, deferrable));
        let round = RoundState::new(0, links.data.len());
        let verify_full = settings.verify_full;
        let mut bulk = Self {
            shared,
            workers: Vec::new(),
            urgent: None,
            round,
            delivered_bytes: 0,
            verify_full,
        };
        bulk.join(links, settings, reports)?;
        Ok(bulk)
    }

    /// Starts a worker for each connection, the first time or after [`Bulk::leave`].
    ///
    /// # Errors
    /// In words, when a worker cannot be made.
    pub(super) fn join(
        &mut self,
        links: Links,
        settings: &Settings,
        reports: &Reports,
    ) -> Result<(), String> {
        let count = links.data.len();
        self.shared.go_on();
        for (number, (link, frames)) in links.data.into_iter().enumerate() {
            let shared = &self.shared;
            let worker = start_worker(number, count, link, frames, shared, settings, reports)?;
            self.workers.push(worker);
        }
        if let Some((link, frames)) = links.urgent {
            let shared = &self.shared;
            self.urgent = Some(start_urgent(count, link, frames, shared, settings, reports)?);
        }
        Ok(())
    }

    /// Gives the connections up, with the guest still running here: the round that is going on ends nowhere. What was not
    /// acknowledged is to be sent again. Waits until nobody sends any more. Gives how many pages that is.
    pub(super) fn leave(&mut self) -> usize {
        self.shared.abandon();
        let mut threads = Vec::with_capacity(self.workers.len() + 1);
        let mut unknown = Vec::new();
        if let Some(UrgentLink { handle, thread, requests }) = self.urgent.take() {
            handle.close();
            drop(requests);
            threads.push(thread);
        }
        for Connected { handle, thread, orders, in_flight } in self.workers.drain(..) {
            handle.close();
            drop(orders);
            threads.push(thread);
            unknown.push(in_flight);
        }
        for thread in threads {
            // One that panicked has ended as well.
            let _ = thread.join();
        }
        self.round.waiting_for = 0;
        unknown.iter().map(|in_flight| self.take_back(in_flight)).sum()
    }

    fn take_back(&self, in_flight: &InFlight) -> usize {
        let pages = in_flight.take();
        for page in &pages {
            self.shared.known.forget(*page);
            self.shared.tracker.give_back(*page);
        }
        pages.len()
    }

    /// Whether there are connections.
    pub(super) fn is_linked(&self) -> bool {
        !self.workers.is_empty()
    }

    /// Lets the workers begin the next round; the first one follows QEMU's first pass.
    pub(super) fn begin_round(&mut self) {
        let number = self.round.number + 1;
        // The first one may have been broken off before QEMU was through.
        let round = if number == 1 || !self.shared.tracker.first_pass_over() {
            Round::First
        } else {
            self.shared.tracker.begin_round();
            Round::Later
        };
        self.order(number, Order::Round(round));
    }

    /// Lets the workers begin the round anew that a broken link has ended. With `once` it is one over what never arrived: what
    /// has changed since waits for the stop.
    pub(super) fn begin_round_anew(&mut self, once: bool) {
        if !once || !self.shared.tracker.first_pass_over() {
            return self.begin_round();
        }
        let lacking = lacking(&self.shared.tracker, &self.shared.known);
        self.shared.tracker.begin_round_of(&lacking);
        self.order(self.round.number + 1, Order::Round(Round::Later));
    }

    /// Ends the round that is going on before its time; what it has not sent stays marked.
    pub(super) fn cut_short(&self) {
        self.shared.cut_short(true);
    }

    /// Lets the workers send these of the waiting pages, a bit for each, at no more than this rate. Returns how many.
    pub(super) fn begin_round_of(&mut self, chosen: &[u64], rate: Option<Rate>) -> u32 {
        self.set_rate(rate);
        let pages = self.shared.tracker.begin_round_of(chosen);
        self.order(self.round.number + 1, Order::Round(Round::Later));
        pages
    }

    /// Whether pages go whole from here on, whatever the destination has: for measurements.
    pub(super) fn leave_unchecked(&self, unchecked: bool) {
        self.shared.leave_unchecked(unchecked);
    }

    /// Another limit for all connections together from here on, or none.
    pub(super) fn set_rate(&self, rate: Option<Rate>) {
        self.shared.limiter.set_rate(rate);
    }

    /// Lets the workers look again at all pages that the destination is believed to have and that are read from QEMU's
    /// memory: their hashes tell whether it has. What is stale stays so.
    pub(super) fn begin_to_reread(&mut self) {
        let tracker = &self.shared.tracker;
        let stale = tracker.stale();
        self.mark_all();
        let marked = tracker.stale();
        let believed: Vec<u64> = marked.iter().zip(&stale).map(|(now, old)| now & !old).collect();
        tracker.begin_round_of(&believed);
        self.order(self.round.number + 1, Order::Round(Round::Later));
    }

    /// Marks all pages that are read from QEMU's memory, but those that were never written and that the destination knows to
    /// be zero.
    fn mark_all(&self) {
        let Shared { memory, tracker, known, .. } = &*self.shared;
        let mark = |page| tracker.give_back(PageId(page));
        let is_zero_there =
            |page| known.get(PageId(page)).is_some_and(|entry| entry.hash == PageHash::ZERO);
        let readable = memory.layout().blocks().iter().filter(|block| memory.is_readable(block));
        for block in readable {
            let Range { start, end } = block.page_numbers();
            let mut reached = start;
            let told = memory.each_present(block, |present| {
                (reached..present.start).filter(|page| !is_zero_there(*page)).for_each(mark);
                present.clone().for_each(mark);
                reached = present.end;
            });
            match told {
                Ok(()) => (reached..end).filter(|page| !is_zero_there(*page)).for_each(mark),
                Err(error) => {
                    tracing::debug!(%error, "all pages are read, also where none may be");
                    (reached..end).for_each(mark);
                }
            }
        }
    }

    /// Lets the workers mark what is stale and may follow, while the guest still runs: little is left for
    /// [`Bulk::begin_last`] then, when it stands. What changes meanwhile is stale all the same.
    pub(super) fn begin_to_mark(&mut self) {
        if self.is_idle() && self.shared.tracker.first_pass_over() && !self.verify_full {
            self.shared.cut_short(false);
            self.shared.tracker.begin_round();
            self.shared.begins_to_mark(self.workers.len());
            self.order(self.round.number + 1, Order::MarkAhead);
        }
    }

    /// Whether they are still at it.
    pub(super) fn is_marking(&self) -> bool {
        self.shared.is_marking()
    }

    /// Lets the workers send all that is left, or mark what may follow, with the guest stopped. With `--verify full` they
    /// read all memory for that: what the destination has is not sent again, and what it has not, though QEMU did not
    /// report it, is. The root is then that of what is in memory.
    pub(super) fn begin_last(&mut self, finish: Finish) {
        self.shared.cut_short(false);
        if self.verify_full {
            self.mark_all();
        }
        self.shared.tracker.begin_round();
        let looks = (!self.verify_full).then(Looks::default);
        self.order(self.round.number + 1, Order::Last { finish, looks });
    }

    /// Lets the workers send what the guest lacks at the destination, while it runs there.
    ///
    /// # Errors
    /// When a connection cannot be looked at.
    pub(super) fn begin_push(
        &mut self,
        rate: Option<Rate>,
        round_trip: Duration,
    ) -> Result<(), String> {
        let handles = self.workers.iter().map(|worker| worker.handle.try_clone());
        let handles = handles.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
        self.shared.pacer.begin(handles, rate, round_trip);
        self.shared.tracker.begin_round();
        self.order(self.round.number + 1, Order::Push);
        Ok(())
    }

    /// The guest waits for these pages at the destination.
    pub(super) fn wanted(&self, pages: Vec<PageId>) {
        if let Some(urgent) = &self.urgent {
            // One that is gone has reported why. A destination that asks faster than its link carries is not remembered
            // without end: what is left out comes by the push.
            let _ = urgent.requests.try_send(pages);
        }
    }

    fn order(&mut self, number: u32, order: Order) {
        let unacknowledged_bytes = self.unacknowledged_bytes() as u64;
        self.round =
            RoundState { unacknowledged_bytes, ..RoundState::new(number, self.workers.len()) };
        for worker in &self.workers {
            // A worker that is gone has reported why.
            let _ = worker.orders.send(order);
        }
    }

    /// A worker is through with its part. Gives the round when it was the last one.
    pub(super) fn worker_done(&mut self, worker: usize, done: RoundDone) -> Option<RoundSum> {
        let round = &mut self.round;
        round.sum.pages += done.pages;
        round.sum.wire_bytes += done.wire_bytes;
        round.sum.held_back += done.held_back;
        round.sum.root.add(done.root);
        round.sum.absent += done.absent;
        if let Some(frames) = round.frames.get_mut(worker) {
            *frames = done.frames;
        }
        round.waiting_for = round.waiting_for.saturating_sub(1);
        (round.waiting_for == 0).then(|| self.round_sum())
    }

    fn round_sum(&self) -> RoundSum {
        let (round, waiting) = (&self.round, self.unacknowledged_bytes() as u64);
        let written = round.unacknowledged_bytes + round.sum.wire_bytes;
        RoundSum {
            number: round.number,
            duration: round.begun.elapsed(),
            carried_bytes: written.saturating_sub(waiting),
            sum: round.sum,
            frames: round.frames.clone(),
        }
    }

    /// Whether no round is going on.
    pub(super) fn is_idle(&self) -> bool {
        self.round.waiting_for == 0
    }

    /// Whether the last round found nothing to send.
    pub(super) fn sent_nothing(&self) -> bool {
        self.is_idle() && self.round.sum.pages == 0
    }

    /// The current round's number.
    pub(super) fn round_number(&self) -> u32 {
        self.round.number
    }

    /// The destination has applied so many frames of each connection.
    pub(super) fn confirm(&self, frames: &[u64]) {
        for (worker, frames) in self.workers.iter().zip(frames) {
            worker.in_flight.confirm(*frames, &self.shared.known);
        }
    }

    /// The destination asks for pages again.
    pub(super) fn request(&self, pages: &[(PageId, u32)]) {
        for (page, version) in pages {
            // An older version than the one sent last is not missed.
            let sent = self.shared.known.get(*page).map(|entry| entry.version);
            if sent.is_none_or(|sent| sent <= *version) {
                self.shared.request(*page);
            }
        }
    }

    /// Pages that the destination lacks.
    pub(super) fn waiting_pages(&self) -> u64 {
        u64::from(self.shared.tracker.waiting())
    }

    /// See [`Totals`].
    pub(super) fn totals(&self) -> &Totals {
        &self.shared.totals
    }

    /// How busy the machine is.
    pub(super) fn note_processors(&self, processors: Processors) {
        self.shared.note_processors(processors);
    }

    /// Bytes handed to TLS.
    pub(super) fn wire_bytes(&self) -> u64 {
        self.shared.totals.wire_bytes.load(Ordering::Relaxed)
    }

    /// The tracker.
    pub(super) fn tracker(&self) -> &Tracker {
        &self.shared.tracker
    }

    /// How many pages were sent how often, by the number of sends.
    pub(super) fn resend_histogram(&self) -> Vec<u64> {
        histogram_of((0..self.shared.known.pages()).map(|page| self.sends_of(PageId(page))))
    }

    /// How often a page was sent.
    pub(super) fn sends_of(&self, page: PageId) -> usize {
        let versions = self.shared.known.get(page).map_or(0, |entry| entry.version as usize);
        // A mark has a version too, and is no send.
        versions.saturating_sub(self.shared.marks_of(page))
    }

    /// Pages of the guest.
    pub(super) fn pages(&self) -> u32 {
        self.shared.known.pages()
    }

    /// Bytes that were written and have not arrived: they are ahead of whatever is written next.
    pub(super) fn unacknowledged_bytes(&self) -> usize {
        let of_each = self.workers.iter().map(|worker| worker.handle.unacknowledged_bytes());
        // A connection that cannot be asked is not waited for.
        of_each.map(|bytes| bytes.unwrap_or(0)).sum()
    }

    /// Whether the peer's system has acknowledged more since this was asked last. What TLS adds is not counted as
    /// written but as waiting; that shifts the count a little and not its growth.
    pub(super) fn has_delivered_more(&mut self) -> bool {
        let waiting = self.unacknowledged_bytes() as u64;
        let delivered = self.wire_bytes().saturating_sub(waiting);
        let before = self.delivered_bytes;
        self.delivered_bytes = before.max(delivered);
        delivered > before
    }

    /// Breaks off: workers that wait for the link end at once.
    pub(super) fn abandon(&mut self) {
        self.shared.abandon();
        for worker in self.workers.drain(..) {
            worker.handle.close();
        }
        if let Some(urgent) = self.urgent.take() {
            urgent.handle.close();
        }
    }

    /// Ends in order: the connections are closed when everything is written.
    pub(super) fn finish(&mut self) {
        self.workers.clear();
        self.urgent = None;
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        self.shared.abandon();
    }
}

/// The marked pages of which the destination has no version, a bit for each.
fn lacking(tracker: &Tracker, known: &Known) -> Vec<u64> {
    let mut lacking = tracker.stale();
    for (word, bits) in (0_u32..).zip(&mut lacking) {
        let is_there = |bit: &u32| known.get(PageId(word * u64::BITS + bit)).is_some();
        let marked = (0..u64::BITS).filter(|bit| *bits >> bit & 1 == 1);
        let there = marked.filter(is_there).fold(0, |all, bit| all | 1 << bit);
        *bits &= !there;
    }
    lacking
}

impl RoundState {
    fn new(number: u32, workers: usize) -> Self {
        let sum = RoundDone { root: Root::ZERO_MEMORY, ..RoundDone::default() };
        Self {
            number,
            begun: Instant::now(),
            waiting_for: workers,
            sum,
            frames: vec![0; workers],
            unacknowledged_bytes: 0,
        }
    }
}

/// How many have each number.
pub(super) fn histogram_of(numbers: impl Iterator<Item = usize>) -> Vec<u64> {
    let mut histogram = Vec::new();
    for number in numbers {
        if histogram.len() <= number {
            histogram.resize(number + 1, 0);
        }
        histogram[number] += 1;
    }
    histogram
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_arrived_and_changed_is_not_lacking() {
        let (tracker, known) = (Tracker::new(200, 1), Known::new(200));
        for page in [3, 70, 150, 199] {
            tracker.report(PageId(page), false);
        }
        known.record_sent(PageId(3), PageHash::from_u128(1));
        // Its connection broke.
        known.record_sent(PageId(150), PageHash::from_u128(2));
        known.forget(PageId(150));
        assert_eq!(lacking(&tracker, &known), [0, 1 << 6, 1 << 22, 1 << 7]);
    }
}
