//! Post-copy: how much of what is pushed may be under way.
//!
//! All connections of a job share the link, and what is pushed must not stand in its queue before a page that the guest
//! waits for. With what the link carries in a round trip under way it is busy; more only waits. So the window is the
//! product of both, and [`QUEUE`] beyond. Rate and round trip are learned on the way, in a cycle as in BBR (Cardwell et al.,
//! "BBR: congestion-based congestion control", ACM Queue 14(5), 2016):
//!
//! - a larger window, which shows whether the link carries more; while it does, the window grows;
//! - a smaller one, which empties the queue and so shows the round trip: what was under way, by what was delivered in a
//!   second (Little's law);
//! - then the window as it is. Is more under way than rate and round trip tell, the round trip grew, or others' traffic
//!   is in the queue, and the window grows with it. The highest rate of a cycle counts: a window that is too small
//!   shows only what it lets through, and would make itself smaller and smaller.

use core::time::Duration;

use sterna_model::{ByteCount, PAGE_BYTES, Rate};

/// What may wait in the link's queue, beyond what is on its way.
const QUEUE: Duration = Duration::from_millis(1);
/// What a larger window adds to the queue, at first.
const PROBE: Duration = Duration::from_millis(4);
/// A larger window adds twice as much each time that it was of use, so often at most.
const MAX_DOUBLINGS: u32 = 6;
/// Stretches of time with a smaller window: until the queue is empty, and to measure.
const DRAINING: usize = 2;
/// Stretches with the window as it is.
const CRUISING: usize = 6;
/// Rates that are kept; the highest counts.
const KEPT: usize = CRUISING + DRAINING;
/// The shortest stretch of time that is looked at; on long links it is two round trips.
const STRETCH: Duration = Duration::from_millis(50);
/// A window is not made smaller than for this: who looks after it sleeps in between.
const SHORTEST: Duration = Duration::from_millis(1);
/// Longer ones are not believed.
const MAX_ROUND_TRIP: Duration = Duration::from_secs(2);
/// Until the link was measured.
const GUESS: Rate = Rate { bytes_per_second: 12_500_000 };
/// Bytes that may always be under way: a page and what goes with it, twice.
const LEAST_BYTES: u64 = 2 * (PAGE_BYTES as u64 + 256);

/// See the module.
#[derive(Debug)]
pub struct PushWindow {
    rate: Rate,
    round_trip: Duration,
    /// The shortest so far.
    least: Duration,
    phase: Phase,
    /// Rates of the last stretches, the oldest first to be replaced.
    recent: [Option<Rate>; KEPT],
    learned: usize,
    drained: Flow,
    cruised: Flow,
    stretch: Option<Stretch>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The window is larger than the link needs, as far as is known.
    Probing { doublings: u32 },
    /// It is smaller, for so many more stretches.
    Draining { left: usize },
    /// It is as it should be, for so many more stretches.
    Cruising { left: usize },
}

/// What was under way, and what of it arrived.
#[derive(Clone, Copy, Debug)]
struct Flow {
    /// Bytes under way, times the microseconds that they were.
    area: u128,
    delivered: ByteCount,
}

/// A stretch of time.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    begun: Duration,
    delivered: ByteCount,
    /// More would have been written if it had been allowed.
    held_back: bool,
    looked: Duration,
    under_way: ByteCount,
    area: u128,
}

/// How the push stands.
#[derive(Clone, Copy, Debug)]
pub struct Pushed {
    /// Since any beginning.
    pub now: Duration,
    /// What has arrived, in all.
    pub delivered: ByteCount,
    /// What was written and has not arrived.
    pub under_way: ByteCount,
    /// More would have been written if it had been allowed.
    pub held_back: bool,
}

impl PushWindow {
    /// For a link that a message and its answer take `round_trip` over, and that carried `rate` before if that is known.
    #[must_use]
    pub const fn new(rate: Option<Rate>, round_trip: Duration) -> Self {
        let rate = match rate {
            Some(rate) => rate,
            None => GUESS,
        };
        Self {
            rate,
            round_trip,
            least: round_trip,
            phase: Phase::Probing { doublings: 0 },
            recent: [None; KEPT],
            learned: 0,
            drained: Flow::NONE,
            cruised: Flow::NONE,
            stretch: None,
        }
    }

    /// What the link is taken to carry.
    #[must_use]
    pub const fn rate(&self) -> Rate {
        self.rate
    }

    /// What may be under way, over all connections.
    #[must_use]
    pub fn limit(&self) -> ByteCount {
        let base = self.base(self.rate);
        let bytes = match self.phase {
            Phase::Probing { doublings } => base.saturating_add(probe(self.rate, base, doublings)),
            Phase::Draining { .. } => {
                // One that grew may have been a queue, so it is gone back on by half.
                let half_way = (self.round_trip + self.least) / 2;
                carried(self.rate, (half_way / 8 * 7).max(SHORTEST))
            }
            Phase::Cruising { .. } => base,
        };
        ByteCount(bytes.max(LEAST_BYTES))
    }

    /// For a link of this rate. A page is written as a whole, so one more than fits may be under way.
    fn base(&self, rate: Rate) -> u64 {
        carried(rate, self.round_trip.saturating_add(QUEUE)).saturating_add(PAGE_BYTES as u64)
    }

    /// To be called often.
    pub fn note(&mut self, pushed: Pushed) {
        let Pushed { now, delivered, under_way, held_back } = pushed;
        let stretch = self.stretch.get_or_insert(Stretch::begin(&pushed));
        let looked = now.saturating_sub(stretch.looked).as_micros();
        stretch.area += u128::from(stretch.under_way.0) * looked;
        (stretch.looked, stretch.under_way) = (now, under_way);
        stretch.held_back |= held_back;
        let (stretch, lasted) = (*stretch, now.saturating_sub(stretch.begun));
        if lasted < STRETCH.max(self.round_trip * 2) {
            return;
        }
        self.stretch = Some(Stretch::begin(&Pushed { held_back: false, ..pushed }));
        let delivered = ByteCount(delivered.0.saturating_sub(stretch.delivered.0));
        let seen = Rate::of(delivered, lasted);
        // What was not held back shows what there was to send; of the link only that it carries so much.
        if stretch.held_back || seen > self.rate {
            self.learn(seen, Flow { area: stretch.area, delivered });
        }
    }

    fn learn(&mut self, seen: Rate, flow: Flow) {
        let before = self.rate;
        self.recent[self.learned % KEPT] = Some(seen);
        self.learned += 1;
        self.rate = self.recent.iter().flatten().copied().max().unwrap_or(before);
        self.phase = match self.phase {
            Phase::Probing { doublings } if self.was_of_use(before, seen, doublings) => {
                Phase::Probing { doublings: (doublings + 1).min(MAX_DOUBLINGS) }
            }
            Phase::Probing { .. } => Phase::Draining { left: DRAINING - 1 },
            Phase::Draining { left: 0 } => {
                self.drained = flow;
                self.cruised = Flow::NONE;
                Phase::Cruising { left: CRUISING - 1 }
            }
            Phase::Draining { left } => Phase::Draining { left: left - 1 },
            Phase::Cruising { left } => {
                self.cruised.add(flow);
                match left.checked_sub(1) {
                    Some(left) => Phase::Cruising { left },
                    None => {
                        self.round_trip = self.round_trip_now();
                        self.least = self.least.min(self.round_trip);
                        Phase::Probing { doublings: 0 }
                    }
                }
            }
        };
    }

    fn round_trip_now(&self) -> Duration {
        let emptied = self.drained.took();
        if emptied < self.round_trip {
            return emptied;
        }
        self.cruised.took().saturating_sub(QUEUE).max(self.round_trip).min(MAX_ROUND_TRIP)
    }

    /// Half of a stretch shows what a larger window brings, so of its share at most half; half of that is no chance.
    fn was_of_use(&self, before: Rate, seen: Rate, doublings: u32) -> bool {
        let base = self.base(before);
        let probe = probe(before, base, doublings);
        let more = u128::from(before.bytes_per_second) * u128::from(probe) / u128::from(base) / 4;
        u128::from(seen.bytes_per_second) > u128::from(before.bytes_per_second) + more
    }
}

impl Flow {
    const NONE: Self = Self { area: 0, delivered: ByteCount(0) };

    const fn add(&mut self, other: Self) {
        self.area += other.area;
        self.delivered.0 += other.delivered.0;
    }

    /// How long a byte was under way.
    fn took(self) -> Duration {
        let us = self.area / u128::from(self.delivered.0.max(1));
        Duration::from_micros(u64::try_from(us).unwrap_or(u64::MAX))
    }
}

impl Stretch {
    const fn begin(pushed: &Pushed) -> Self {
        let Pushed { now, delivered, under_way, held_back } = *pushed;
        Self { begun: now, delivered, held_back, looked: now, under_way, area: 0 }
    }
}

/// What a larger window adds to this one.
fn probe(rate: Rate, base: u64, doublings: u32) -> u64 {
    carried(rate, PROBE * (1 << doublings)).max(LEAST_BYTES).min(base)
}

fn carried(rate: Rate, time: Duration) -> u64 {
    let bytes = u128::from(rate.bytes_per_second) * time.as_micros() / 1_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::collections::VecDeque;
    use std::vec::Vec;

    const STEP: Duration = Duration::from_micros(250);
    const WRITE_BYTES: u64 = 4096;

    /// A link with a queue, in virtual time, and somebody who always has something to push.
    struct Link {
        window: PushWindow,
        now: Duration,
        free_at: Duration,
        written: u64,
        delivered: u64,
        under_way: VecDeque<(Duration, u64)>,
    }

    impl Link {
        fn new(known: Option<u64>, round_trip_ms: f64) -> Self {
            let rate = known.map(|bytes_per_second| Rate { bytes_per_second });
            Self {
                window: PushWindow::new(rate, Duration::from_secs_f64(round_trip_ms / 1e3)),
                now: Duration::ZERO,
                free_at: Duration::ZERO,
                written: 0,
                delivered: 0,
                under_way: VecDeque::new(),
            }
        }

        /// Pushes for a while over a link of this rate and round trip; `others` is what others keep in its queue. Gives the
        /// rate that was had, and how long our queue was, in milliseconds: on average, and in 99 % of the time at most.
        fn push(&mut self, seconds: u32, rate: u64, round_trip_ms: f64) -> (u64, f64, f64) {
            let (end, before) = (self.now + Duration::from_secs(seconds.into()), self.delivered);
            let mut queues = Vec::new();
            while self.now < end {
                while self.under_way.front().is_some_and(|(at, _)| *at <= self.now) {
                    self.delivered += self.under_way.pop_front().map_or(0, |(_, bytes)| bytes);
                }
                while self.written - self.delivered + WRITE_BYTES <= self.window.limit().0 {
                    self.written += WRITE_BYTES;
                    let takes = Duration::from_secs_f64(WRITE_BYTES as f64 / rate as f64);
                    self.free_at = self.free_at.max(self.now) + takes;
                    let arrives = self.free_at + Duration::from_secs_f64(round_trip_ms / 1e3);
                    self.under_way.push_back((arrives, WRITE_BYTES));
                    self.note(false);
                }
                self.note(true);
                queues.push(self.free_at.saturating_sub(self.now).as_secs_f64() * 1e3);
                self.now += STEP;
            }
            let average = queues.iter().sum::<f64>() / queues.len() as f64;
            queues.sort_by(f64::total_cmp);
            let most = queues[queues.len() / 100 * 99];
            ((self.delivered - before) / u64::from(seconds), average, most)
        }
    }

    impl Link {
        fn note(&mut self, held_back: bool) {
            self.window.note(Pushed {
                now: self.now,
                delivered: ByteCount(self.delivered),
                under_way: ByteCount(self.written - self.delivered),
                held_back,
            });
        }
    }

    /// Megabytes a second, milliseconds.
    const LINKS: [(u64, f64); 5] = [(125, 0.2), (12, 0.5), (2, 100.0), (125, 50.0), (1, 20.0)];

    #[test]
    fn a_link_is_kept_busy_and_its_queue_short() {
        for (megabytes, round_trip_ms) in LINKS {
            let rate = megabytes * 1_000_000;
            for known in [Some(rate), Some(rate * 8), Some(rate / 8), None] {
                let mut link = Link::new(known, round_trip_ms);
                let _ = link.push(10, rate, round_trip_ms);
                let (had, average, most) = link.push(20, rate, round_trip_ms);
                let what = std::format!("{megabytes} MB/s, {round_trip_ms} ms, {known:?} known");
                assert!(had > rate * 9 / 10, "{what}: {had}");
                // One write takes a slow link some milliseconds.
                let write_ms = WRITE_BYTES as f64 / rate as f64 * 1e3;
                assert!(average < 6.0 + 2.0 * write_ms, "{what}: on average {average} ms");
                assert!(most < 15.0 + 3.0 * write_ms, "{what}: at most {most} ms");
            }
        }
    }

    #[test]
    fn a_link_that_changes_is_followed() {
        let mut link = Link::new(Some(12_500_000), 20.0);
        let _ = link.push(5, 12_500_000, 20.0);
        let _ = link.push(10, 2_000_000, 20.0);
        let (had, average, _) = link.push(10, 2_000_000, 20.0);
        assert!(had > 1_800_000 && average < 10.0, "slower: {had}, {average} ms");
        let _ = link.push(20, 12_500_000, 20.0);
        let (had, average, _) = link.push(10, 12_500_000, 20.0);
        assert!(had > 11_000_000 && average < 10.0, "faster again: {had}, {average} ms");
    }

    #[test]
    fn a_round_trip_that_grows_does_not_starve_the_push() {
        for grown_ms in [40.0, 100.0, 400.0] {
            let mut link = Link::new(Some(12_500_000), 20.0);
            let _ = link.push(5, 12_500_000, 20.0);
            let (had, ..) = link.push(60, 12_500_000, grown_ms);
            assert!(had > 12_500_000 / 4, "{grown_ms} ms: {had}");
        }
    }

    #[test]
    fn what_has_little_to_send_learns_nothing_bad_of_the_link() {
        let mut window = PushWindow::new(Some(GUESS), Duration::from_millis(1));
        for tick in 0..1000 {
            window.note(Pushed {
                now: Duration::from_millis(tick),
                delivered: ByteCount(tick * 10),
                under_way: ByteCount(0),
                held_back: false,
            });
        }
        assert_eq!(window.rate(), GUESS);
    }
}
