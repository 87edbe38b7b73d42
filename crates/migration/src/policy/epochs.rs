//! The epochs of a followed guest: how many stale pages go in the next one, how long it is, and below which hazard sending
//! a page pays.
//!
//! A page that is sent now and dirtied again before the hand-over was sent in vain. With hand-overs of hazard `mu`, pages
//! dirtied at hazard `lambda`, and a page's cost `c_s` now and `c_h` at the hand-over, sending pays when
//!
//! ```text
//! c_h * mu / (mu + lambda) > c_s        that is        lambda < limit = mu * (c_h / c_s - 1)
//! ```
//!
//! So there is one limit on the hazard. Nobody knows `mu`; what is known is how much may be stale for the hand-over to be
//! in time, and the limit is steered by that. The window is TCP's: it doubles, then grows, and is halved when pages come
//! back dirty, when messages queue up behind it, or when the guest has to wait for processors meanwhile. A reconstruction; see `docs/model.md`.

use core::time::Duration;

use sterna_model::ByteCount;

/// Pages of the first window, and the least.
const FIRST_WINDOW_PAGES: u32 = 64;
/// No larger window is needed: 4 GiB of pages in an epoch.
const MAX_WINDOW_PAGES: u32 = 1 << 20;
/// The shortest and first epoch, and the longest.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);
/// The limit on the hazard, per second: at first, and its bounds.
const FIRST_LIMIT: f64 = 0.5;
const LEAST_LIMIT: f64 = 0.001;
const MOST_LIMIT: f64 = 1000.0;
/// More than this of what may be stale is: the limit is raised. Less than that: it is lowered.
const RAISE_ABOVE_PERCENT: u64 = 80;
const LOWER_BELOW_PERCENT: u64 = 40;
const RAISE_BY: f64 = 1.25;
const LOWER_BY: f64 = 0.9;
/// More of what was sent than one in so many is dirty again: the window is too large.
const WASTE_ONE_IN: u64 = 4;
/// Fewer pages tell nothing of that.
const MIN_WASTE_SAMPLE_PAGES: u64 = 16;
/// The guest's processors may wait for the host's while we send for so much more of their time than else.
const MOST_HARM_PERCENT: u32 = 5;
/// Messages that wait longer queue up behind us.
const QUEUEING_LIMIT: Duration = Duration::from_millis(25);

/// What is known at the end of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EpochFacts {
    /// What the stale pages would cost on the wire.
    pub stale_bytes: ByteCount,
    /// What may be stale, for the hand-over to be in time.
    pub allowed_bytes: ByteCount,
    /// Pages that were below the limit when the epoch began.
    pub eligible_pages: u64,
    /// Pages of them that were sent.
    pub sent_pages: u64,
    /// Pages of those that are dirty again.
    pub dirtied_again: u64,
    /// How much longer a message took than the fastest did.
    pub queueing: Duration,
    /// How much more of their time the guest's processors waited for one of the host's while pages were sent than while none
    /// were, in percent.
    pub harm_percent: u32,
}

/// What is left out of following, so that a measurement shows what it is good for. Nobody else wants that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ablation {
    /// Every stale page goes, however soon it will be dirtied again.
    pub prediction: bool,
    /// As many as there are, at the shortest epochs.
    pub slow_start: bool,
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Epochs {
    ablation: Ablation,
    window_pages: u32,
    /// From here on the window grows slowly.
    slow_from: Option<u32>,
    length: Duration,
    limit_per_second: f64,
}

impl Default for Epochs {
    fn default() -> Self {
        Self::without(Ablation::default())
    }
}

impl Epochs {
    /// Epochs in which something is left out.
    #[must_use]
    pub const fn without(ablation: Ablation) -> Self {
        Self {
            ablation,
            window_pages: if ablation.slow_start { MAX_WINDOW_PAGES } else { FIRST_WINDOW_PAGES },
            slow_from: None,
            length: SHORTEST,
            limit_per_second: if ablation.prediction { MOST_LIMIT } else { FIRST_LIMIT },
        }
    }

    /// Pages that may go in the next epoch.
    #[must_use]
    pub const fn window_pages(&self) -> u32 {
        self.window_pages
    }

    /// How long the next epoch is.
    #[must_use]
    pub const fn length(&self) -> Duration {
        self.length
    }

    /// The hazard per second below which sending a page pays.
    #[must_use]
    pub const fn limit_per_second(&self) -> f64 {
        self.limit_per_second
    }

    /// The same for an epoch of the present length.
    #[must_use]
    pub fn limit_per_epoch(&self) -> f64 {
        self.limit_per_second * self.length.as_secs_f64()
    }

    /// An epoch is over.
    pub fn ended(&mut self, facts: &EpochFacts) {
        if !self.ablation.prediction {
            self.steer(facts);
        }
        if !self.ablation.slow_start {
            self.resize(facts);
        }
    }

    fn resize(&mut self, facts: &EpochFacts) {
        let wasted = facts.sent_pages >= MIN_WASTE_SAMPLE_PAGES
            && facts.dirtied_again.saturating_mul(WASTE_ONE_IN) > facts.sent_pages;
        let harms = facts.harm_percent > MOST_HARM_PERCENT;
        if wasted || harms || facts.queueing > QUEUEING_LIMIT {
            self.window_pages = (self.window_pages / 2).max(FIRST_WINDOW_PAGES);
            self.slow_from = Some(self.window_pages);
            self.length = (self.length * 2).min(LONGEST);
        } else if facts.eligible_pages <= u64::from(self.window_pages) {
            // Nothing waits for a larger window.
            self.length = (self.length * 2).min(LONGEST);
        } else {
            let grown = match self.slow_from {
                Some(from) if self.window_pages >= from => self.window_pages + FIRST_WINDOW_PAGES,
                _ => self.window_pages * 2,
            };
            self.window_pages = grown.min(MAX_WINDOW_PAGES);
            self.length = (self.length / 2).max(SHORTEST);
        }
    }

    fn steer(&mut self, facts: &EpochFacts) {
        let percent = |percent: u64| facts.allowed_bytes.0 / 100 * percent;
        let factor = if facts.stale_bytes.0 > percent(RAISE_ABOVE_PERCENT) {
            RAISE_BY
        } else if facts.stale_bytes.0 < percent(LOWER_BELOW_PERCENT) {
            LOWER_BY
        } else {
            1.0
        };
        self.limit_per_second = (self.limit_per_second * factor).clamp(LEAST_LIMIT, MOST_LIMIT);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    fn backlog() -> EpochFacts {
        EpochFacts {
            stale_bytes: ByteCount(60 << 20),
            allowed_bytes: ByteCount(100 << 20),
            eligible_pages: 1 << 24,
            sent_pages: 64,
            ..EpochFacts::default()
        }
    }

    #[test]
    fn the_window_doubles_until_something_comes_back_dirty_and_then_grows_slowly() {
        let mut epochs = Epochs::default();
        for window in [128, 256, 512, 1024] {
            epochs.ended(&backlog());
            assert_eq!(epochs.window_pages(), window);
        }
        epochs.ended(&EpochFacts { dirtied_again: 17, ..backlog() });
        assert_eq!((epochs.window_pages(), epochs.length()), (512, SHORTEST * 2));
        epochs.ended(&backlog());
        assert_eq!((epochs.window_pages(), epochs.length()), (576, SHORTEST));
    }

    #[test]
    fn queues_and_waste_shrink_the_window_to_its_least() {
        let mut epochs = Epochs::default();
        for _ in 0..8 {
            epochs.ended(&backlog());
        }
        for _ in 0..20 {
            epochs.ended(&EpochFacts { queueing: QUEUEING_LIMIT * 2, ..backlog() });
        }
        assert_eq!((epochs.window_pages(), epochs.length()), (FIRST_WINDOW_PAGES, LONGEST));
    }

    #[test]
    fn a_guest_that_is_held_up_is_sent_less_of() {
        let mut epochs = Epochs::default();
        for _ in 0..4 {
            epochs.ended(&EpochFacts { harm_percent: MOST_HARM_PERCENT, ..backlog() });
        }
        assert_eq!(
            (epochs.window_pages(), epochs.length()),
            (1024, SHORTEST),
            "that much is noise"
        );
        epochs.ended(&EpochFacts { harm_percent: MOST_HARM_PERCENT + 1, ..backlog() });
        assert_eq!((epochs.window_pages(), epochs.length()), (512, SHORTEST * 2));
    }

    #[test]
    fn with_nothing_to_send_epochs_grow_long() {
        let mut epochs = Epochs::default();
        for _ in 0..6 {
            epochs.ended(&EpochFacts { eligible_pages: 3, sent_pages: 3, ..backlog() });
        }
        assert_eq!((epochs.window_pages(), epochs.length()), (FIRST_WINDOW_PAGES, LONGEST));
    }

    #[test]
    fn the_limit_follows_what_is_stale() {
        let mut epochs = Epochs::default();
        epochs.ended(&backlog());
        assert!((epochs.limit_per_second() - FIRST_LIMIT).abs() < 1e-9, "within the band it stays");
        epochs.ended(&EpochFacts { stale_bytes: ByteCount(90 << 20), ..backlog() });
        assert!(epochs.limit_per_second() > FIRST_LIMIT);
        for _ in 0..100 {
            epochs.ended(&EpochFacts { stale_bytes: ByteCount(0), ..backlog() });
        }
        assert!((epochs.limit_per_second() - LEAST_LIMIT).abs() < 1e-9);
    }

    #[test]
    fn what_is_left_out_is_not_steered() {
        let mut all = Epochs::without(Ablation { prediction: true, slow_start: true });
        for facts in [backlog(), EpochFacts { dirtied_again: 64, ..backlog() }] {
            all.ended(&facts);
            assert_eq!((all.window_pages(), all.length()), (MAX_WINDOW_PAGES, SHORTEST));
            assert!(all.limit_per_epoch() > 100.0, "no page is that hot");
        }
        let mut cautious = Epochs::without(Ablation { prediction: true, slow_start: false });
        cautious.ended(&backlog());
        assert_eq!(cautious.window_pages(), 128);
    }

    proptest! {
        #[test]
        fn everything_stays_within_its_bounds(
            facts in prop::collection::vec(any::<(u64, u64, u64, u64, u64, (u32, u32))>(), 0..200),
        ) {
            let mut epochs = Epochs::default();
            for (stale, allowed, eligible, sent, again, (queueing, harm_percent)) in facts {
                epochs.ended(&EpochFacts {
                    stale_bytes: ByteCount(stale),
                    allowed_bytes: ByteCount(allowed),
                    eligible_pages: eligible,
                    sent_pages: sent,
                    dirtied_again: again,
                    queueing: Duration::from_nanos(u64::from(queueing)),
                    harm_percent,
                });
                prop_assert!((FIRST_WINDOW_PAGES..=MAX_WINDOW_PAGES).contains(&epochs.window_pages()));
                prop_assert!((SHORTEST..=LONGEST).contains(&epochs.length()));
                prop_assert!((LEAST_LIMIT..=MOST_LIMIT).contains(&epochs.limit_per_second()));
            }
        }
    }
}
