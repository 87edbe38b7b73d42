//! Three-stage copy: everything once while the guest runs, then stop, then what has changed, by push and on demand while the
//! guest runs at the destination. No page is sent more than twice.
//!
//! A reconstruction of the idea of TSMC, the three-stage memory copy of Yin, Liu and Song (2014); their own rule for the
//! end of the first stage was not at hand. Ours: one round, never a second. If the rest fits the downtime limit it is
//! sent with the guest stopped, and pre-copy completes; else only *which* pages are lacking is sent, and post-copy begins.
//!
//! The bound: with `M` pages of memory and `D` of them dirty when the guest is stopped, `M + D` pages at most are sent, and
//! the guest stands as long as `D` pages take on the link, or as long as their numbers and the devices take, whichever fits.

use core::time::Duration;

use alloc::format;
use alloc::string::String;

use super::{Decision, NEGLIGIBLE, Policy, RoundFacts, downtime, out_of_time};

/// Rounds over nothing before the first one that has pages, at most.
const MAX_EMPTY_ROUNDS: u32 = 1000;

/// The `three-stage` strategy.
#[derive(Debug)]
pub struct ThreeStage {
    max_downtime: Duration,
    post_copy_possible: bool,
    first_round_over: bool,
}

impl ThreeStage {
    /// Three stages; the second one takes at most `max_downtime`, as far as can be foreseen. Whether post-copy is possible
    /// is known before the move: a plan refuses this strategy where it is not.
    #[must_use]
    pub const fn new(max_downtime: Duration, post_copy_possible: bool) -> Self {
        Self { max_downtime, post_copy_possible, first_round_over: false }
    }
}

impl Policy for ThreeStage {
    fn name(&self) -> &'static str {
        "three-stage"
    }

    fn round_ended(&mut self, facts: &RoundFacts) -> Decision {
        let rest = facts.link_rate.time_for(facts.rest_bytes);
        self.first_round_over |= facts.pages > 0 || facts.number >= MAX_EMPTY_ROUNDS;
        if rest <= NEGLIGIBLE || downtime(facts) <= self.max_downtime {
            return Decision::Stop;
        }
        // A round over nothing sent no page once, so the next one sends none twice.
        if !self.first_round_over {
            return Decision::NextRound;
        }
        if self.post_copy_possible {
            return Decision::StopForPostCopy;
        }
        Decision::GiveUp(does_not_fit(facts, self.max_downtime))
    }

    fn timed_out(&mut self) -> Decision {
        if self.post_copy_possible { Decision::StopForPostCopy } else { out_of_time() }
    }
}

fn does_not_fit(facts: &RoundFacts, limit: Duration) -> String {
    format!(
        "three-stage cannot go on without post-copy: after one round {} pages are still to be sent, about {} ms at {}, \
         expected at most {} ms; make post-copy possible for this VM, raise --max-downtime or --bandwidth, or take \
         --strategy precopy",
        facts.dirty_pages,
        downtime(facts).as_millis(),
        facts.link_rate,
        limit.as_millis(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_model::{ByteCount, Rate};

    fn facts(number: u32, pages: u64, rest_kib: u64) -> RoundFacts {
        RoundFacts {
            number,
            pages,
            wire_bytes: ByteCount(1 << 20),
            duration: Duration::from_millis(100),
            dirty_pages: rest_kib / 4,
            rest_bytes: ByteCount(rest_kib << 10),
            link_rate: Rate { bytes_per_second: 12_500_000 },
            round_trip: Duration::from_millis(1),
            total_wire_bytes: ByteCount(1 << 20),
            memory: ByteCount(256 << 20),
        }
    }

    fn three_stage(post_copy_possible: bool) -> ThreeStage {
        ThreeStage::new(Duration::from_millis(300), post_copy_possible)
    }

    #[test]
    fn there_is_no_second_round() {
        for rest_kib in [0, 400, 3000, 100_000, 1 << 30] {
            for possible in [false, true] {
                let decision = three_stage(possible).round_ended(&facts(1, 1000, rest_kib));
                assert_ne!(decision, Decision::NextRound, "{rest_kib} KiB, {possible}");
            }
        }
    }

    #[test]
    fn a_rest_that_fits_is_sent_with_the_guest_stopped() {
        assert_eq!(three_stage(true).round_ended(&facts(1, 1000, 3000)), Decision::Stop);
        assert_eq!(three_stage(false).round_ended(&facts(1, 1000, 3000)), Decision::Stop);
        let mut strict = ThreeStage::new(Duration::ZERO, true);
        assert_eq!(strict.round_ended(&facts(1, 1000, 0)), Decision::Stop, "nothing is left");
        assert_eq!(strict.round_ended(&facts(1, 1000, 400)), Decision::StopForPostCopy);
    }

    #[test]
    fn a_rest_that_does_not_fit_follows_by_post_copy() {
        assert_eq!(
            three_stage(true).round_ended(&facts(1, 1000, 50_000)),
            Decision::StopForPostCopy
        );
        let without = three_stage(false).round_ended(&facts(1, 1000, 50_000));
        assert!(matches!(without, Decision::GiveUp(why) if why.contains("12500 pages")));
    }

    #[test]
    fn a_time_out_ends_the_first_round() {
        assert_eq!(three_stage(true).timed_out(), Decision::StopForPostCopy);
        assert!(matches!(three_stage(false).timed_out(), Decision::GiveUp(_)));
    }

    #[test]
    fn rounds_over_nothing_do_not_count() {
        let mut policy = three_stage(true);
        for number in 1..100 {
            assert_eq!(policy.round_ended(&facts(number, 0, 50_000)), Decision::NextRound);
        }
        assert_eq!(policy.round_ended(&facts(100, 7, 50_000)), Decision::StopForPostCopy);
        assert_eq!(policy.round_ended(&facts(101, 0, 50_000)), Decision::StopForPostCopy);
        let mut endless = three_stage(true);
        let last = endless.round_ended(&facts(MAX_EMPTY_ROUNDS, 0, 50_000));
        assert_eq!(last, Decision::StopForPostCopy, "they are bounded");
    }
}
