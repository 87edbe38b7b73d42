//! How long a guest waited for pages in post-copy: a histogram of fixed size, since there may be millions of waits.

use std::time::Duration;

/// Steps in each power of two: a percentile is at most this part (a thirty-second) too high.
const STEPS: usize = 32;
const BUCKETS: usize = 32 * STEPS;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Latency {
    /// Pages that were asked for and that only the source had.
    pub requests: u64,
    counts: Box<[u64]>,
    max_us: u64,
}

impl Default for Latency {
    fn default() -> Self {
        Self { requests: 0, counts: vec![0; BUCKETS].into(), max_us: 0 }
    }
}

impl Latency {
    /// One wait is over.
    pub(crate) fn note(&mut self, waited: Duration) {
        let us = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        self.max_us = self.max_us.max(us);
        self.counts[bucket(us)] += 1;
    }

    /// The longest wait, in microseconds.
    pub(crate) const fn max_us(&self) -> u64 {
        self.max_us
    }

    /// So many percent of the waits were no longer than this, in microseconds.
    pub(crate) fn percentile_us(&self, percent: u64) -> u64 {
        let total: u64 = self.counts.iter().sum();
        let rank = (total * percent).div_ceil(100);
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank && *count > 0 {
                return upper_us(at).min(self.max_us);
            }
        }
        0
    }
}

/// Below [`STEPS`] a bucket each, then [`STEPS`] for each power of two.
fn bucket(us: u64) -> usize {
    let small = us < STEPS as u64;
    let exponent = if small { 0 } else { us.ilog2() as usize - STEPS.ilog2() as usize };
    let step = usize::try_from(us >> exponent).unwrap_or(usize::MAX) % STEPS;
    let base = if small { 0 } else { (exponent + 1) * STEPS };
    (base + step).min(BUCKETS - 1)
}

/// The longest wait that a bucket counts.
fn upper_us(bucket: usize) -> u64 {
    let (power, step) = (bucket / STEPS, (bucket % STEPS) as u64);
    match power.checked_sub(1) {
        None => step,
        Some(exponent) => ((step + STEPS as u64 + 1) << exponent) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_close_and_never_too_low() {
        let mut latency = Latency::default();
        assert_eq!(latency.percentile_us(50), 0);
        (1..=1000).for_each(|us| latency.note(Duration::from_micros(us)));
        for (percent, exact) in [(1, 10), (50, 500), (99, 990), (100, 1000)] {
            let told = latency.percentile_us(percent);
            assert!(told >= exact && told <= exact + exact / 32 + 1, "{percent}: {told}");
        }
        assert_eq!(latency.max_us(), 1000);
        latency.note(Duration::MAX);
        assert_eq!(latency.percentile_us(100), upper_us(BUCKETS - 1));
    }
}
