//! How many pages may be written now, so that the load keeps its rate without making up for time
//! in which the guest did not run.

use std::time::Duration;

use crate::options::Rate;
use crate::page::PAGE_BYTES;

/// Credit is given for at most this much time at once: after a pause the load goes on at its rate.
const CATCH_UP: Duration = Duration::from_millis(50);

/// Nano-bytes of one page: credit is bytes per second times nanoseconds.
const PAGE_CREDIT: u128 = PAGE_BYTES as u128 * 1_000_000_000;

/// Credit for page writes at a rate.
#[derive(Debug)]
pub(crate) struct Pacer {
    rate: Rate,
    credit: u128,
}

impl Pacer {
    /// A pacer without credit.
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, credit: 0 }
    }

    /// Adds the credit for the time that has passed.
    pub(crate) fn advance(&mut self, elapsed: Duration) {
        if let Rate::BytesPerSecond(rate) = self.rate {
            let most = (u128::from(rate) * CATCH_UP.as_nanos()).max(PAGE_CREDIT);
            let earned = u128::from(rate) * elapsed.min(CATCH_UP).as_nanos();
            self.credit = (self.credit + earned).min(most);
        }
    }

    /// Pays for one page write; false says that it must wait.
    pub(crate) fn take_page(&mut self) -> bool {
        match self.rate {
            Rate::Max => true,
            Rate::BytesPerSecond(_) if self.credit >= PAGE_CREDIT => {
                self.credit -= PAGE_CREDIT;
                true
            }
            Rate::BytesPerSecond(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(pacer: &mut Pacer) -> u32 {
        let mut count = 0;
        while pacer.take_page() {
            count += 1;
        }
        count
    }

    #[test]
    fn keeps_its_rate_over_uneven_ticks() {
        let mut pacer = Pacer::new(Rate::BytesPerSecond(20 << 20));
        let mut pages = 0;
        for _ in 0..100 {
            for millis in [3, 7, 11, 19] {
                pacer.advance(Duration::from_millis(millis));
                pages += taken(&mut pacer);
            }
        }
        assert_eq!(pages, 5120 * 4);
    }

    #[test]
    fn a_pause_is_not_made_up_for() {
        let mut pacer = Pacer::new(Rate::BytesPerSecond(20 << 20));
        pacer.advance(Duration::from_secs(10));
        assert_eq!(taken(&mut pacer), 256);
    }

    #[test]
    fn a_slow_rate_still_writes_pages() {
        let mut pacer = Pacer::new(Rate::BytesPerSecond(4096));
        let mut pages = 0;
        for _ in 0..300 {
            pacer.advance(Duration::from_millis(10));
            pages += taken(&mut pacer);
        }
        assert_eq!(pages, 3);
    }

    #[test]
    fn rate_zero_writes_nothing() {
        let mut pacer = Pacer::new(Rate::BytesPerSecond(0));
        pacer.advance(Duration::from_secs(1));
        assert_eq!(taken(&mut pacer), 0);
    }
}
