//! What following costs, and what it harms: bytes and pages of the epochs, processors, the guest's own work.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sterna_api::{EpochView, FollowView};
use sterna_e2e::Tick;

use super::processes::Usage;
use crate::record::float;

const PAGE_BYTES: f64 = 4096.0;
/// Of the normal distribution: half the width of an interval of 95 %, in standard errors.
const WIDTH_95: f64 = 1.96;
/// Work is counted over so long at a time.
const SLICE_MS: u64 = 1000;
/// A spread of fewer slices tells nothing.
const LEAST_SLICES: usize = 4;

/// How a guest was followed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Followed {
    /// From the command until all memory was copied once, in milliseconds.
    pub(crate) first_copy_ms: f64,
    /// How long it was watched from then on, in seconds.
    pub(crate) watched_s: f64,
    /// What went on the wire meanwhile.
    pub(crate) background_bytes: u64,
    /// The epochs that ended meanwhile.
    pub(crate) epochs: Vec<EpochView>,
    /// What `status` told last, before the hand-over was asked for.
    pub(crate) last: FollowView,
    /// The guest's work.
    pub(crate) slowdown: Option<Slowdown>,
    /// What following takes of one processor, in percent.
    pub(crate) hold_cpu_percent: f64,
    /// Of that, the source's agent.
    pub(crate) agent_cpu_percent: f64,
}

impl Followed {
    /// Bytes a second.
    pub(crate) fn background_per_s(&self) -> f64 {
        float(self.background_bytes) / self.watched_s
    }

    /// By the pages that were dirtied; none when none was.
    pub(crate) fn background_percent(&self) -> Option<f64> {
        let dirtied: u64 = self.epochs.iter().map(|epoch| epoch.dirtied_pages).sum();
        (dirtied > 0).then(|| 100.0 * float(self.background_bytes) / (float(dirtied) * PAGE_BYTES))
    }
}

/// How much less a guest does than before.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Slowdown {
    /// Its work each second before.
    pub(crate) before_per_s: f64,
    /// And while it was followed.
    pub(crate) followed_per_s: f64,
    /// The loss in percent; below zero it did more.
    pub(crate) percent: f64,
    /// The ends of its 95 % interval.
    pub(crate) least_percent: f64,
    /// See [`Self::least_percent`].
    pub(crate) most_percent: f64,
}

impl Slowdown {
    /// Of a guest's ticks before and while it was followed; none when it does nothing, or too few are there.
    pub(crate) fn of(before: &[Tick], followed: &[Tick]) -> Option<Self> {
        let (before, followed) = (Sample::of(before)?, Sample::of(followed)?);
        if before.mean <= 0.0 {
            return None;
        }
        let percent = |lost: f64| 100.0 * lost / before.mean;
        let lost = before.mean - followed.mean;
        let width = WIDTH_95 * (before.error_squared + followed.error_squared).sqrt();
        Some(Self {
            before_per_s: before.mean,
            followed_per_s: followed.mean,
            percent: percent(lost),
            least_percent: percent(lost - width),
            most_percent: percent(lost + width),
        })
    }
}

/// A mean with the square of its standard error.
#[derive(Clone, Copy, Debug)]
struct Sample {
    mean: f64,
    error_squared: f64,
}

impl Sample {
    fn of(ticks: &[Tick]) -> Option<Self> {
        let mut from = *ticks.first()?;
        let mut rates = Vec::new();
        for tick in ticks {
            let time_ms = tick.time_ms - from.time_ms;
            if time_ms >= SLICE_MS {
                rates.push(1e3 * float(tick.writes - from.writes) / float(time_ms));
                from = *tick;
            }
        }
        if rates.len() < LEAST_SLICES {
            return None;
        }
        let count = float(rates.len() as u64);
        let mean = rates.iter().sum::<f64>() / count;
        let variance = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / (count - 1.0);
        Some(Self { mean, error_squared: variance / count })
    }
}

/// Collects what `status` tells while a guest is followed.
#[derive(Debug)]
pub(crate) struct Collector {
    begun: Instant,
    begun_bytes: u64,
    begun_epochs: u64,
    epochs: BTreeMap<u64, EpochView>,
}

impl Collector {
    /// Begins at a first status; none when copying has not begun.
    pub(crate) fn begin(view: &FollowView) -> Option<Self> {
        let copy = view.copy?;
        let (begun_bytes, begun_epochs) = (copy.background_bytes, copy.epochs);
        Some(Self { begun: Instant::now(), begun_bytes, begun_epochs, epochs: BTreeMap::new() })
    }

    /// One more status.
    pub(crate) fn look(&mut self, view: &FollowView) {
        let Some(copy) = view.copy else { return };
        if let Some(epoch) = copy.last_epoch.filter(|_| copy.epochs > self.begun_epochs) {
            self.epochs.insert(copy.epochs, epoch);
        }
    }

    /// How long it has collected.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Ends with a last status, and what the processes used before and meanwhile, each by its time.
    pub(crate) fn finish(
        self,
        last: FollowView,
        first_copy_ms: f64,
        [before, meanwhile]: [(Usage, Duration); 2],
    ) -> Followed {
        let share = |(usage, time): &(Usage, Duration)| {
            let all: f64 = usage.agents.iter().chain(&usage.qemus).map(|used| used.cpu_s).sum();
            100.0 * all / time.as_secs_f64()
        };
        let agent = meanwhile.0.agents[0].cpu_s / meanwhile.1.as_secs_f64();
        let bytes = last.copy.map_or(0, |copy| copy.background_bytes);
        Followed {
            first_copy_ms,
            watched_s: self.elapsed().as_secs_f64(),
            background_bytes: bytes.saturating_sub(self.begun_bytes),
            epochs: self.epochs.into_values().collect(),
            last,
            slowdown: None,
            hold_cpu_percent: share(&meanwhile) - share(&before),
            agent_cpu_percent: 100.0 * agent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(work_each_s: &[u64]) -> Vec<Tick> {
        let mut writes = 0;
        let mut all = vec![Tick { time_ms: 0, writes }];
        for (second, work) in (1..).zip(work_each_s) {
            writes += work;
            all.push(Tick { time_ms: 1000 * second, writes });
        }
        all
    }

    #[test]
    fn a_guest_that_does_a_tenth_less_is_so_much_slower() {
        let before = ticks(&[100, 110, 90, 100, 100]);
        // Variances of 50, standard errors squared of 10.
        let followed = ticks(&[90, 80, 100, 90, 90]);
        let slowdown = Slowdown::of(&before, &followed).unwrap();
        assert!((slowdown.percent - 10.0).abs() < 1e-9, "{slowdown:?}");
        let width = 1.96 * 20.0_f64.sqrt();
        assert!((slowdown.most_percent - 10.0 - width).abs() < 1e-9, "{slowdown:?}");
        assert!((slowdown.least_percent - 10.0 + width).abs() < 1e-9, "{slowdown:?}");
    }

    #[test]
    fn who_does_nothing_is_not_slowed_down_and_few_slices_tell_nothing() {
        assert_eq!(Slowdown::of(&ticks(&[0; 9]), &ticks(&[0; 9])), None);
        assert_eq!(Slowdown::of(&ticks(&[5; 3]), &ticks(&[5; 9])), None);
    }
}
