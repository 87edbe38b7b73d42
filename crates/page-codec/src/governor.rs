//! How hard to compress: as hard as shortens the move, and not at all where the link is faster than the compressor.
//!
//! A worker prepares a batch, finishes it at some effort, and writes it; the write blocks while the link is busy. So
//! a byte of page content takes the longer of two times, in nanoseconds a byte:
//!
//! ```text
//! processor(effort) = prepare + finish(effort)          link(effort) = ratio(effort) * nanoseconds per wire byte
//! ```
//!
//! The governor learns both from the caller's measurements and takes the effort with the smallest maximum. What raw
//! costs is always known (no finish, ratio 1), so compression is used only while it is measured to be faster than raw.
//! Efforts next to the current one are tried for a moment when the bottleneck says that they may be better.
//!
//! The link's time is seen only while writes block. While they do not, the link may be faster than we know: its
//! estimate fades slowly, until raw looks better and is tried. Where encryption takes a large part of a write, it passes
//! for the link: that is what it costs per wire byte, and the trials show whether compressing first is faster.
//!
//! The two times are thought of as running beside each other. Where the machine's processors are all taken they do not: a
//! write then waits for a processor, which compressing takes away as well. So there raw is tried for a moment, and what it
//! took as a whole, against what compressing took as a whole, decides.

use core::time::Duration;

use crate::{Effort, Level};

/// Batches between two decisions: enough to even out a socket's buffer taking some at once and blocking for others.
const WINDOW_BATCHES: u32 = 4;
/// Batches with less to compress than this on average say nothing.
const MIN_BODY_BYTES: u64 = 64 << 10;
/// Decisions after which a measurement of an effort is too old to forbid another try.
const STALE_DECISIONS: u64 = 128;
/// Share of a measurement in the new estimate.
const LEARN: f64 = 0.5;
/// Gain below which it is not worth changing the effort.
const HYSTERESIS: f64 = 0.95;
/// How much one side has to exceed the other to be the bottleneck.
const DOMINANCE: f64 = 1.25;
/// Share of the time blocked from which on the link is busy all the time.
const BUSY: f64 = 0.125;
/// Share of the time that compressing must take for raw to be tried: more cannot be gained by it.
const WORTH_TRYING_RAW: f64 = 0.04;
/// Windows of such a trial: the first one also pays for what was written before.
const TRIAL_WINDOWS: u32 = 2;
/// What is left of the link's estimate after a decision without blocking.
const FADE: f64 = 0.97;

/// Levels below 1 were measured to be no faster here, and to compress less.
const LADDER: [Effort; 5] =
    [Effort::Raw, Effort::Zstd(Level::FAST), Effort::Zstd(Level::NORMAL), level(6), level(9)];
/// Where to begin: a guess that is not bad on any link.
const START: usize = 1;

const fn level(level: i8) -> Effort {
    match Level::new(level) {
        Some(level) => Effort::Zstd(level),
        None => Effort::Raw,
    }
}

/// How busy the machine's processors are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Processors {
    /// Some are idle: what waits, waits for the link.
    #[default]
    Idle,
    /// All are taken.
    Taken,
}

/// What happened to one batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BatchFacts {
    /// Bytes of literals and deltas before compression.
    pub body_bytes: u64,
    /// Bytes of the batch.
    pub wire_bytes: u64,
    /// Time spent in reading and pushing pages.
    pub prepare: Duration,
    /// Time spent in finishing the batch.
    pub finish: Duration,
    /// Time spent in writing it, which is nearly all waiting for the link.
    pub blocked: Duration,
    /// How busy the machine was meanwhile.
    pub processors: Processors,
}

/// What is known of an effort.
#[derive(Clone, Copy, Debug)]
struct Measured {
    /// Nanoseconds per byte of content.
    finish: f64,
    /// Nanoseconds per byte of content as a whole: prepared, finished, written.
    whole: f64,
    /// Wire bytes per byte of content.
    ratio: f64,
    /// The decision that it was measured for.
    decision: u64,
}

/// Raw against an effort, as a whole.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Trial {
    /// Not tried yet, or not for this long.
    Over { decision: Option<u64> },
    /// Raw is being tried instead of `rung`, which took `before` nanoseconds a byte.
    Running { rung: usize, before: f64, windows: u32 },
    /// Raw was faster than `before`, and stays for as long as it is.
    RawWon { before: f64, decision: u64 },
}

/// Picks the effort for each batch of one connection.
#[derive(Clone, Debug)]
pub struct Governor {
    /// Where on the ladder; `None`: the effort is fixed.
    rung: Option<usize>,
    fixed: Effort,
    measured: [Option<Measured>; LADDER.len()],
    /// Nanoseconds per byte of content.
    prepare: f64,
    /// Nanoseconds per wire byte; 0: the link was never busy.
    link: f64,
    trial: Trial,
    window: BatchFacts,
    window_batches: u32,
    decisions: u64,
}

impl Default for Governor {
    fn default() -> Self {
        Self::automatic()
    }
}

impl Governor {
    /// A governor that adapts.
    #[must_use]
    pub const fn automatic() -> Self {
        Self {
            rung: Some(START),
            fixed: Effort::Raw,
            measured: [None; LADDER.len()],
            prepare: 0.0,
            link: 0.0,
            trial: Trial::Over { decision: None },
            window: NO_FACTS,
            window_batches: 0,
            decisions: 0,
        }
    }

    /// A governor that always says the same.
    #[must_use]
    pub const fn fixed(effort: Effort) -> Self {
        Self { rung: None, fixed: effort, ..Self::automatic() }
    }

    /// The effort for the next batch.
    #[must_use]
    pub fn effort(&self) -> Effort {
        self.rung.map_or(self.fixed, |rung| LADDER[rung])
    }

    /// Takes note of a batch that was finished at [`Self::effort`].
    pub fn observe(&mut self, facts: &BatchFacts) {
        let Some(rung) = self.rung else { return };
        let window = &mut self.window;
        window.body_bytes = window.body_bytes.saturating_add(facts.body_bytes);
        window.wire_bytes = window.wire_bytes.saturating_add(facts.wire_bytes);
        window.prepare = window.prepare.saturating_add(facts.prepare);
        window.finish = window.finish.saturating_add(facts.finish);
        window.blocked = window.blocked.saturating_add(facts.blocked);
        window.processors = facts.processors;
        self.window_batches += 1;
        if self.window_batches < WINDOW_BATCHES {
            return;
        }
        if self.window.body_bytes / u64::from(WINDOW_BATCHES) >= MIN_BODY_BYTES {
            let whole = self.learn(rung);
            self.rung = Some(self.try_raw(rung, whole).unwrap_or_else(|| self.decide(rung)));
        }
        self.window = NO_FACTS;
        self.window_batches = 0;
    }

    /// Learns from the window; gives the nanoseconds that a byte of content took as a whole.
    fn learn(&mut self, rung: usize) -> f64 {
        let content = as_f64(self.window.body_bytes);
        let wire = as_f64(self.window.wire_bytes.max(1));
        let [prepare, finish, blocked] =
            [self.window.prepare, self.window.finish, self.window.blocked]
                .map(|time| time.as_secs_f64() * 1e9);
        self.decisions += 1;
        self.prepare = learn(Some(self.prepare).filter(|known| *known > 0.0), prepare / content);
        let known = self.measured[rung];
        self.measured[rung] = Some(Measured {
            finish: learn(known.map(|known| known.finish), finish / content),
            whole: learn(known.map(|known| known.whole), (prepare + finish + blocked) / content),
            ratio: learn(known.map(|known| known.ratio), wire / content),
            decision: self.decisions,
        });
        let total = prepare + finish + blocked;
        self.link = if blocked >= total * BUSY {
            learn(Some(self.link).filter(|known| *known > 0.0), total / wire)
        } else {
            (self.link * FADE).min(total / wire)
        };
        total / content
    }

    /// The rung for the next window, as far as raw as a whole decides it.
    fn try_raw(&mut self, rung: usize, whole: f64) -> Option<usize> {
        match self.trial {
            Trial::Running { rung: before_rung, before, windows } if windows >= TRIAL_WINDOWS => {
                let decision = self.decisions;
                let has_won = whole < before * HYSTERESIS;
                self.trial = if has_won {
                    Trial::RawWon { before, decision }
                } else {
                    Trial::Over { decision: Some(decision) }
                };
                Some(if has_won { 0 } else { before_rung })
            }
            Trial::Running { rung, before, windows } => {
                self.trial = Trial::Running { rung, before, windows: windows + 1 };
                Some(0)
            }
            Trial::RawWon { before, decision }
                if whole < before && self.decisions - decision < STALE_DECISIONS =>
            {
                Some(0)
            }
            Trial::RawWon { decision, .. } => {
                self.trial = Trial::Over { decision: Some(decision) };
                None
            }
            Trial::Over { .. } if self.window.processors == Processors::Idle => None,
            Trial::Over { decision } => {
                let is_due = decision.is_none_or(|last| self.decisions - last >= STALE_DECISIONS);
                let known = self.measured[rung].filter(|known| {
                    rung > 0 && is_due && known.finish > known.whole * WORTH_TRYING_RAW
                })?;
                self.trial = Trial::Running { rung, before: known.whole, windows: 1 };
                Some(0)
            }
        }
    }

    fn decide(&self, rung: usize) -> usize {
        let (processor, link) = self.times(rung).unwrap_or((0.0, 0.0));
        let current = processor.max(link);
        let time = |rung: &usize| self.times(*rung).map_or(f64::MAX, |(cpu, link)| cpu.max(link));
        let best = (0..LADDER.len()).min_by(|one, other| time(one).total_cmp(&time(other)));
        if let Some(best) = best
            && time(&best) < current * HYSTERESIS
        {
            return best;
        }
        let neighbour = if link > processor * DOMINANCE {
            rung + 1
        } else if processor > link * DOMINANCE {
            rung.saturating_sub(1)
        } else {
            rung
        };
        if neighbour != 0 && neighbour < LADDER.len() && self.is_stale(neighbour) {
            return neighbour;
        }
        rung
    }

    fn is_stale(&self, rung: usize) -> bool {
        self.measured[rung].is_none_or(|known| self.decisions - known.decision >= STALE_DECISIONS)
    }

    /// Nanoseconds per byte of content that processor and link take at an effort, if it was measured.
    fn times(&self, rung: usize) -> Option<(f64, f64)> {
        if rung == 0 {
            return Some((self.prepare, self.link));
        }
        let known = self.measured[rung]?;
        Some((self.prepare + known.finish, known.ratio * self.link))
    }
}

const NO_FACTS: BatchFacts = BatchFacts {
    body_bytes: 0,
    wire_bytes: 0,
    prepare: Duration::ZERO,
    finish: Duration::ZERO,
    blocked: Duration::ZERO,
    processors: Processors::Idle,
};

fn learn(known: Option<f64>, sample: f64) -> f64 {
    known.map_or(sample, |known| known + (sample - known) * LEARN)
}

/// Bytes of a window as a floating-point number; beyond 4 GiB the rest does not matter.
fn as_f64(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Content and machine: prepare, then finish (ns/B) and wire bytes of 1000 at each effort of the ladder. The figures are
    /// those that examples/throughput.rs printed for an executable file.
    struct World {
        prepare: f64,
        efforts: [(f64, u32); LADDER.len()],
        link: f64,
        buffer_bytes: f64,
    }

    const TEXT: [(f64, u32); LADDER.len()] =
        [(0.0, 1000), (1.7, 310), (2.7, 280), (8.8, 270), (16.0, 260)];
    const RANDOM: [(f64, u32); LADDER.len()] =
        [(0.0, 1000), (0.1, 1000), (0.1, 1000), (0.1, 1000), (0.1, 1000)];

    impl World {
        fn new(efforts: [(f64, u32); LADDER.len()], link_mbit: f64) -> Self {
            Self { prepare: 0.7, efforts, link: 8000.0 / link_mbit, buffer_bytes: 4e6 }
        }

        /// Nanoseconds that so many batches take under `governor`.
        fn run(&self, governor: &mut Governor, batches: u32) -> f64 {
            const BODY: u32 = 512 << 10;
            let time = |nanos: f64| Duration::from_secs_f64(nanos * 1e-9);
            let body = f64::from(BODY);
            let (mut now, mut queued) = (0.0, 0.0_f64);
            for _ in 0..batches {
                let rung = LADDER.iter().position(|rung| *rung == governor.effort()).unwrap();
                let (finish, ratio) = self.efforts[rung];
                let wire = BODY / 1000 * ratio;
                let busy = (self.prepare + finish) * body;
                queued = (queued - busy / self.link).max(0.0) + f64::from(wire);
                let blocked = (queued - self.buffer_bytes).max(0.0) * self.link;
                queued = queued.min(self.buffer_bytes);
                now += busy + blocked;
                governor.observe(&BatchFacts {
                    body_bytes: BODY.into(),
                    wire_bytes: wire.into(),
                    prepare: time(self.prepare * body),
                    finish: time(finish * body),
                    blocked: time(blocked),
                    processors: Processors::Idle,
                });
            }
            now + queued * self.link
        }
    }

    #[test]
    fn never_much_worse_than_the_best_fixed_effort_nor_than_raw() {
        for efforts in [TEXT, RANDOM] {
            for mbit in [10.0, 30.0, 100.0, 300.0, 1e3, 2e3, 5e3, 1e4, 4e4] {
                let world = World::new(efforts, mbit);
                let mut adaptive = Governor::automatic();
                let time = world.run(&mut adaptive, 800);
                let fixed = (0..LADDER.len()).map(|rung| {
                    let mut governor = Governor::fixed(LADDER[rung]);
                    world.run(&mut governor, 800)
                });
                let best = fixed.fold(f64::MAX, f64::min);
                assert!(time < best * 1.12, "{mbit} Mbit/s: {}", time / best);
                let raw = world.run(&mut Governor::fixed(Effort::Raw), 800);
                assert!(time < raw * 1.02, "{mbit} Mbit/s: {} of raw", time / raw);
            }
        }
    }

    /// A machine whose processors are all taken: a write waits for one, and compressing takes it away from the writes.
    #[test]
    fn raw_where_processors_are_the_bottleneck() {
        let mut governor = Governor::automatic();
        let body: u32 = 512 << 10;
        let nanos = |each: f64| Duration::from_secs_f64(f64::from(body) * each * 1e-9);
        let mut raw_batches = 0;
        for _ in 0..400 {
            let is_raw = governor.effort() == Effort::Raw;
            raw_batches += u32::from(is_raw);
            // A processor's time for a byte: 1 to prepare, 2 to compress, 2 to write; three others wait for it as well.
            let (finish, wire) = if is_raw { (0.0, body) } else { (2.0, body * 9 / 10) };
            let own = 1.0 + finish + 2.0;
            governor.observe(&BatchFacts {
                body_bytes: body.into(),
                wire_bytes: wire.into(),
                prepare: nanos(1.0),
                finish: nanos(finish),
                blocked: nanos(2.0 + 3.0 * own),
                processors: Processors::Taken,
            });
        }
        assert!(raw_batches > 350, "{raw_batches}");
    }

    #[test]
    fn follows_a_link_that_changes() {
        let mut governor = Governor::automatic();
        World::new(TEXT, 40_000.0).run(&mut governor, 100);
        assert_eq!(governor.effort(), Effort::Raw);
        World::new(TEXT, 100.0).run(&mut governor, 200);
        assert!(governor.effort() >= Effort::Zstd(Level::NORMAL));
        World::new(TEXT, 40_000.0).run(&mut governor, 1200);
        assert_eq!(governor.effort(), Effort::Raw);
    }

    #[test]
    fn fixed_is_fixed() {
        let mut governor = Governor::fixed(Effort::Raw);
        World::new(TEXT, 1.0).run(&mut governor, 100);
        assert_eq!(governor.effort(), Effort::Raw);
    }
}
