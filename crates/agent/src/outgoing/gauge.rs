//! The measurements of a move: what the policy is told at the end of a round, what the user sees, and the report.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sterna_api::{
    DiskReport, DowntimeParts, MemoryReport, PageCounts, PhaseTimes, Progress, Report, RoundReport,
    VerifyReport, WireBytes,
};
use sterna_migration::outcome::Outcome;
use sterna_migration::policy::{Decision, RoundFacts};
use sterna_model::{ByteCount, PAGE_BYTES, Rate};

use super::bulk::{Bulk, RoundSum};
use super::post_copy::PostCopy;
use crate::jobs::Job;
use crate::link::Link;

/// Rounds that put less on the wire say nothing about the link's rate.
const MIN_RATE_SAMPLE: ByteCount = ByteCount(256 << 10);
/// Rounds with fewer pages say nothing about what a page costs.
const MIN_COST_SAMPLE_PAGES: u64 = 32;
/// Progress until the move is done, at most.
const MAX_PERCENT: f64 = 99.9;

/// Points in time of a move.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Marks {
    /// The destination was prepared.
    pub prepared: Option<Instant>,
    /// The policy decided to stop.
    pub decided: Option<Instant>,
    /// QEMU was told to stop.
    pub stop_sent: Option<Instant>,
    /// It had stopped.
    pub stopped: Option<Instant>,
    /// Its stream was complete.
    pub drained: Option<Instant>,
    /// Everything was handed to the connections.
    pub flushed: Option<Instant>,
    /// The destination had loaded it.
    pub loaded: Option<Instant>,
    /// The commit was sent.
    pub committed: Option<Instant>,
    /// The guest runs at the destination, or here again.
    pub running: Option<Instant>,
    /// All pages of post-copy were handed to the connections.
    pub pushed: Option<Instant>,
    /// The source may be destroyed.
    pub over: Option<Instant>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Gauge {
    begun: Instant,
    /// Points in time.
    pub marks: Marks,
    /// The guest's memory, once known.
    pub memory: ByteCount,
    /// A message there and its answer.
    pub round_trip: Option<Duration>,
    /// The destination's QEMU start.
    pub destination_start: Duration,
    /// The destination agent's anonymous memory at most.
    pub destination_memory: ByteCount,
    /// Pages whose content the destination hashed.
    pub pages_hashed: u64,
    /// The roots agreed.
    pub roots_match: bool,
    /// Pages that the destination asked for again.
    pub requested: u64,
    /// Guest memory that changes per second, lately.
    pub dirty_rate: Rate,
    /// The job follows its VM: what was sent before the hand-over was asked for was sent in the background.
    pub follows: bool,
    /// When the hand-over was asked for, and the bytes that were on the wire by then.
    pub switch: Option<(Instant, u64)>,
    /// How long the last message and its answer took.
    pub last_round_trip: Option<Duration>,
    /// The destination has most of what the first round goes over.
    pub begins_over_known: bool,
    rounds: Vec<RoundReport>,
    link_rate: Option<Rate>,
    page_cost: Option<ByteCount>,
    held_back: u64,
    /// Post-copy, if it came to that.
    post_copy: PostCopy,
    /// Pages sent with the guest stopped, and the device state.
    downtime_page_bytes: u64,
    tail_bytes: u64,
    percent: f64,
    recent: Option<(Instant, u64)>,
    recent_rate: Rate,
}

impl Gauge {
    /// A move that was accepted at this moment.
    #[must_use]
    pub(super) fn begin() -> Self {
        Self {
            begun: Instant::now(),
            marks: Marks::default(),
            memory: ByteCount(0),
            round_trip: None,
            destination_start: Duration::ZERO,
            destination_memory: ByteCount(0),
            pages_hashed: 0,
            roots_match: false,
            requested: 0,
            dirty_rate: Rate::default(),
            follows: false,
            switch: None,
            last_round_trip: None,
            begins_over_known: false,
            rounds: Vec::new(),
            link_rate: None,
            page_cost: None,
            held_back: 0,
            post_copy: PostCopy::default(),
            downtime_page_bytes: 0,
            tail_bytes: 0,
            percent: 0.0,
            recent: None,
            recent_rate: Rate::default(),
        }
    }

    /// A round has ended; gives what the policy wants to know.
    pub(super) fn round_ended(&mut self, round: &RoundSum, bulk: &Bulk) -> RoundFacts {
        let wire_bytes = ByteCount(round.sum.wire_bytes);
        self.held_back += round.sum.held_back;
        let carried = ByteCount(round.carried_bytes);
        if carried >= MIN_RATE_SAMPLE {
            self.link_rate = Some(Rate::of(carried, round.duration));
        } else if self.link_rate.is_none() {
            // Too little to tell; at least the link took it.
            self.link_rate = Some(Rate::of(wire_bytes, round.duration));
        }
        // Zero pages cost nothing, and do not become dirty again as such.
        let zeros = if round.number == 1 { bulk.totals().zero.load(Ordering::Relaxed) } else { 0 };
        let pages = round.sum.pages.saturating_sub(zeros);
        if pages >= MIN_COST_SAMPLE_PAGES {
            self.page_cost = Some(ByteCount(round.sum.wire_bytes / pages));
        }
        let dirty_pages = bulk.waiting_pages();
        RoundFacts {
            number: round.number,
            pages: round.sum.pages,
            wire_bytes,
            duration: round.duration,
            dirty_pages,
            rest_bytes: self.cost_of(dirty_pages),
            link_rate: self.link_rate.unwrap_or_default(),
            round_trip: self.round_trip.unwrap_or_default(),
            total_wire_bytes: ByteCount(bulk.wire_bytes()),
            memory: self.memory,
        }
    }

    /// As [`Self::round_ended`], of a round over pages most of which the destination had already: what such pages cost says
    /// nothing of those that follow.
    pub(super) fn round_over_known(&mut self, round: &RoundSum, bulk: &Bulk) -> RoundFacts {
        let page_cost = self.page_cost;
        let facts = self.round_ended(round, bulk);
        self.page_cost = page_cost;
        facts
    }

    /// As [`Self::round_ended`], of a round in the background: it was paced, and says nothing of what the link can do.
    pub(super) fn background_round_ended(&mut self, round: &RoundSum, bulk: &Bulk) -> RoundFacts {
        let link_rate = self.link_rate;
        let facts = if std::mem::take(&mut self.begins_over_known) {
            self.round_over_known(round, bulk)
        } else {
            self.round_ended(round, bulk)
        };
        self.link_rate = link_rate.or(self.link_rate);
        facts
    }

    /// What the link carries, as far as can be told before anything was sent.
    pub(super) const fn assume_link_rate(&mut self, rate: Rate) {
        self.link_rate = Some(rate);
    }

    /// As [`Self::round_over_known`], of a round that took as long as it takes to read all memory.
    pub(super) fn reread_round_ended(&mut self, round: &RoundSum, bulk: &Bulk) -> RoundFacts {
        let page_cost = self.page_cost;
        let facts = self.background_round_ended(round, bulk);
        self.page_cost = page_cost;
        RoundFacts {
            link_rate: self.link_rate.unwrap_or(facts.link_rate),
            rest_bytes: self.cost_of(facts.dirty_pages),
            ..facts
        }
    }

    /// More pages became known to be dirty since the facts were put together.
    pub(super) fn recount(&self, facts: &mut RoundFacts, bulk: &Bulk, untold_pages: u64) {
        facts.dirty_pages = bulk.waiting_pages() + untold_pages;
        facts.rest_bytes = self.cost_of(facts.dirty_pages);
    }

    /// What so many pages are expected to cost on the wire.
    pub(super) fn cost_of(&self, pages: u64) -> ByteCount {
        let cost = self.page_cost.unwrap_or(ByteCount(PAGE_BYTES as u64));
        ByteCount(pages.saturating_mul(cost.0))
    }

    /// What the link carried, lately.
    pub(super) const fn link_rate(&self) -> Option<Rate> {
        self.link_rate
    }

    /// The guest runs at the destination, and its last pages follow.
    pub(super) fn post_copy_began(&mut self, bulk: Option<&Bulk>) {
        self.post_copy.began(bulk);
    }

    /// Connections are given up; what went over them counts.
    pub(super) fn leave(&mut self, bulk: &Bulk) {
        self.post_copy.leave(bulk);
    }

    /// The destination has every page.
    pub(super) fn complete(&mut self, complete: &sterna_wire::post_copy::Complete) {
        self.destination_memory =
            self.destination_memory.max(ByteCount(complete.peak_anonymous_bytes));
        self.post_copy.complete = Some(*complete);
    }

    /// What the policy made of a round.
    pub(super) fn decided(&mut self, facts: &RoundFacts, decision: &Decision) {
        self.rounds.push(RoundReport {
            pages: facts.pages,
            bytes_wire: facts.wire_bytes.0,
            duration_ms: millis(facts.duration),
            dirty_pages: facts.dirty_pages,
            decision: decision.name(),
        });
    }

    /// The last pages and the device state were handed to the connections.
    pub(super) fn flushed(&mut self, round: &RoundSum, tail_bytes: u64) {
        self.downtime_page_bytes += round.sum.wire_bytes;
        self.tail_bytes = tail_bytes;
    }

    /// Where the move is, for the user.
    pub(super) fn progress(&mut self, job: &Job, phase: &str, bulk: Option<&Bulk>) -> Progress {
        let now = Instant::now();
        let wire_bytes = bulk.map_or(0, Bulk::wire_bytes);
        if let Some((at, bytes)) = self.recent {
            self.recent_rate = Rate::of(ByteCount(wire_bytes.saturating_sub(bytes)), now - at);
        }
        self.recent = Some((now, wire_bytes));
        let remaining = bulk.map_or(self.memory.0, |bulk| self.remaining_bytes(bulk));
        let done = self.memory.0.saturating_sub(remaining);
        if self.memory.0 > 0 && bulk.is_some() {
            let permille = done.saturating_mul(1000) / self.memory.0;
            let percent = f64::from(u32::try_from(permille).unwrap_or(1000)) / 10.0;
            self.percent = self.percent.max(percent.min(MAX_PERCENT));
        }
        Progress {
            job: job.id().clone(),
            phase: phase.to_owned(),
            elapsed_ms: u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            round: bulk.map_or(0, Bulk::round_number),
            percent: self.percent,
            memory_done_bytes: done,
            memory_total_bytes: self.memory.0,
            remaining_bytes: remaining,
            wire_bytes,
            rate_bytes_per_second: self.recent_rate.bytes_per_second,
            dirty_bytes_per_second: self.dirty_rate.bytes_per_second,
            eta_ms: self.eta_ms(remaining),
        }
    }

    /// Before QEMU's first pass is over, what it has not reported yet is to be sent as well.
    fn remaining_bytes(&self, bulk: &Bulk) -> u64 {
        let page = PAGE_BYTES as u64;
        if bulk.tracker().first_pass_over() {
            return bulk.waiting_pages() * page;
        }
        let totals = bulk.totals();
        let done = totals.pages_sent.load(Ordering::Relaxed);
        self.memory.0.saturating_sub(done * page)
    }

    /// At the present rates; none when the guest writes at least as fast as we send.
    fn eta_ms(&self, remaining_bytes: u64) -> Option<u64> {
        let cost = self.page_cost.map_or(PAGE_BYTES as u64, |cost| cost.0.max(1));
        let pages_per_second = self.recent_rate.bytes_per_second / cost;
        let dirty_per_second = self.dirty_rate.bytes_per_second / PAGE_BYTES as u64;
        let shrinking = pages_per_second.checked_sub(dirty_per_second).filter(|rate| *rate > 0)?;
        Some(remaining_bytes / PAGE_BYTES as u64 * 1000 / shrinking)
    }

    /// The report of a job that is over.
    pub(super) fn report(&self, ends: &Ends<'_>, outcome: &Outcome, bulk: Option<&Bulk>) -> Report {
        let histogram = self.post_copy.histogram(bulk);
        let sends = histogram.len().saturating_sub(1);
        let (error, refusals) = match outcome {
            Outcome::Done => (None, Vec::new()),
            Outcome::Refused(refusals) => (Some(refusal_text(refusals)), refusals.clone()),
            Outcome::Cancelled => (Some(ends.job.cancelled_because().to_owned()), Vec::new()),
            Outcome::Failed(why) | Outcome::Unknown(why) | Outcome::Lost(why) => {
                (Some(why.clone()), Vec::new())
            }
        };
        let switched = self.switch.map(|(asked, _)| between(Some(asked), self.marks.running));
        Report {
            job: ends.job.id().clone(),
            vm: ends.job.vm().clone(),
            strategy: ends.strategy.to_owned(),
            source: ends.source.to_owned(),
            destination: ends.job.peer().to_string(),
            started_at: ends.job.started_at().to_owned(),
            outcome: outcome.name(),
            guest_is: outcome.guest_is(),
            error,
            refusals,
            total_ms: millis(
                self.marks.over.map_or_else(|| self.begun.elapsed(), |over| over - self.begun),
            ),
            downtime_ms: between(self.marks.stop_sent, self.marks.running),
            downtime_parts_ms: self.downtime_parts(),
            rounds: self.rounds.clone(),
            wire_bytes: self.wire(ends.link, bulk),
            pages: self.pages(bulk),
            max_sends_per_page: u32::try_from(sends).unwrap_or(u32::MAX),
            resend_histogram: histogram,
            disk: DiskReport::default(),
            memory: MemoryReport {
                agent_peak_anon_bytes_source: ends.peak_memory.0,
                agent_peak_anon_bytes_destination: self.destination_memory.0,
            },
            phases_ms: self.phases(),
            requests: self.post_copy.requests(),
            fault_latency_us: self.post_copy.fault_latency(),
            switch_ms: switched.filter(|_| matches!(outcome, Outcome::Done)),
            verify: VerifyReport { pages_hashed: self.pages_hashed, roots_match: self.roots_match },
        }
    }

    fn downtime_parts(&self) -> DowntimeParts {
        let marks = &self.marks;
        DowntimeParts {
            stop: between(marks.stop_sent, marks.stopped),
            drain: between(marks.stopped, marks.drained),
            flush: between(marks.drained, marks.flushed),
            load: between(marks.flushed, marks.loaded),
            commit: between(marks.loaded, marks.committed),
            resume: between(marks.committed, marks.running),
        }
    }

    fn phases(&self) -> PhaseTimes {
        let marks = &self.marks;
        PhaseTimes {
            prepare: between(Some(self.begun), marks.prepared),
            destination_qemu_start: millis(self.destination_start),
            copy: between(marks.prepared, marks.decided),
            switchover: between(marks.decided, marks.running),
            cleanup: between(marks.running, marks.over),
        }
    }

    fn wire(&self, link: Option<&Link>, bulk: Option<&Bulk>) -> WireBytes {
        let (sent, received) = link.map_or((0, 0), |link| {
            let counts = link.counts();
            (
                counts.sent_bytes.load(Ordering::Relaxed),
                counts.received_bytes.load(Ordering::Relaxed),
            )
        });
        let pages = bulk.map_or(0, Bulk::wire_bytes) + self.post_copy.left_bytes;
        let postcopy = self.post_copy.bytes(pages);
        let background = match self.switch {
            Some((_, background)) => background,
            None if self.follows => pages,
            None => 0,
        };
        WireBytes {
            total: pages + sent + received,
            precopy: pages.saturating_sub(self.downtime_page_bytes + postcopy + background),
            background,
            postcopy,
            downtime: self.downtime_page_bytes + self.tail_bytes,
            // Device state travels on the control connection.
            control: sent.saturating_sub(self.tail_bytes),
            received,
            ..WireBytes::default()
        }
    }

    fn pages(&self, bulk: Option<&Bulk>) -> PageCounts {
        let Some(totals) = bulk.map(Bulk::totals) else { return PageCounts::default() };
        let count = |total: &std::sync::atomic::AtomicU64| total.load(Ordering::Relaxed);
        let mut pages = PageCounts {
            total: 0,
            zero: count(&totals.zero),
            same: count(&totals.unchanged),
            r#ref: count(&totals.reference),
            delta: count(&totals.delta),
            compressed: count(&totals.compressed),
            raw: count(&totals.raw),
            held_back: self.held_back,
            requested: self.requested,
        };
        pages.total =
            pages.zero + pages.same + pages.r#ref + pages.delta + pages.compressed + pages.raw;
        pages
    }
}

/// What a report needs beside the measurements.
pub(super) struct Ends<'a> {
    /// The job.
    pub job: &'a Job,
    /// The strategy.
    pub strategy: &'a str,
    /// This host.
    pub source: &'a str,
    /// The control connection, if there was one.
    pub link: Option<&'a Link>,
    /// Our own anonymous memory at most.
    pub peak_memory: ByteCount,
}

fn refusal_text(refusals: &[sterna_model::Refusal]) -> String {
    let reasons: Vec<String> = refusals.iter().map(ToString::to_string).collect();
    format!("refused: {}", reasons.join("; "))
}

fn between(from: Option<Instant>, to: Option<Instant>) -> f64 {
    match (from, to) {
        (Some(from), Some(to)) => millis(to.saturating_duration_since(from)),
        _ => 0.0,
    }
}

/// Milliseconds with microseconds behind the point.
fn millis(time: Duration) -> f64 {
    f64::from(u32::try_from(time.as_micros() % 1000).unwrap_or(0)) / 1000.0
        + f64::from(u32::try_from(time.as_millis()).unwrap_or(u32::MAX))
}
