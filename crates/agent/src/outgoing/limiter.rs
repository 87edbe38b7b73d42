//! A bandwidth limit over all connections of a job: a bucket that fills at the rate, and may run into debt.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sterna_model::{PAGE_BYTES, Rate};

/// How much may be sent at once after a pause.
const BURST: Duration = Duration::from_millis(20);

/// Shared by the workers of a job.
#[derive(Debug)]
pub(super) struct Limiter(Mutex<Bucket>);

#[derive(Debug)]
struct Bucket {
    rate: Option<Rate>,
    /// When everything that was let through will have been sent at the rate.
    clear_at: Option<Instant>,
}

impl Limiter {
    /// A limit, or none.
    #[must_use]
    pub(super) const fn new(rate: Option<Rate>) -> Self {
        Self(Mutex::new(Bucket { rate, clear_at: None }))
    }

    /// Another limit from here on, or none. What waits already waits as long as it was told.
    pub(super) fn set_rate(&self, rate: Option<Rate>) {
        *self.lock() = Bucket { rate, clear_at: None };
    }

    fn lock(&self) -> MutexGuard<'_, Bucket> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many pages may be sent at a time, so that a batch is not a burst: at a low rate, what takes a tenth of a second.
    #[must_use]
    pub(crate) fn batch_pages(&self, most: usize) -> usize {
        let Some(rate) = self.lock().rate else { return most };
        let pages = rate.bytes_per_second / 10 / PAGE_BYTES as u64;
        usize::try_from(pages).map_or(most, |pages| pages.clamp(1, most))
    }

    /// Takes note that so many bytes are sent, and tells how long to wait first.
    #[must_use]
    pub(super) fn wait_for(&self, bytes: u64, now: Instant) -> Duration {
        let mut bucket = self.lock();
        let Some(rate) = bucket.rate else { return Duration::ZERO };
        let start =
            bucket.clear_at.map_or(now, |clear| clear.max(now.checked_sub(BURST).unwrap_or(now)));
        let sending = rate.time_for(sterna_model::ByteCount(bytes)).min(Duration::from_secs(3600));
        bucket.clear_at = Some(start + sending);
        start.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_its_rate() {
        let limiter = Limiter::new(Some(Rate { bytes_per_second: 1_000_000 }));
        let start = Instant::now();
        let mut now = start;
        for _ in 0..100 {
            now += limiter.wait_for(10_000, now);
        }
        let took = now - start;
        assert!(
            took >= Duration::from_millis(960) && took <= Duration::from_millis(1000),
            "{took:?}"
        );
        assert_eq!(Limiter::new(None).wait_for(u64::MAX, start), Duration::ZERO);
    }

    #[test]
    fn another_rate_holds_at_once() {
        let limiter = Limiter::new(Some(Rate { bytes_per_second: 1000 }));
        let now = Instant::now();
        let _ = limiter.wait_for(100_000, now);
        assert!(limiter.wait_for(1, now) > Duration::from_secs(50));
        limiter.set_rate(None);
        assert_eq!(limiter.wait_for(1, now), Duration::ZERO);
    }

    #[test]
    fn a_pause_earns_no_more_than_a_burst() {
        let limiter = Limiter::new(Some(Rate { bytes_per_second: 1_000_000 }));
        let start = Instant::now();
        let _ = limiter.wait_for(1000, start);
        let later = start + Duration::from_secs(10);
        assert_eq!(limiter.wait_for(20_000, later), Duration::ZERO);
        assert_eq!(limiter.wait_for(20_000, later), Duration::ZERO);
        assert!(limiter.wait_for(1000, later) >= Duration::from_millis(19));
    }
}
