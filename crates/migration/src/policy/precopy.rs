//! Pre-copy: rounds until the rest fits the downtime limit, and as long as one more round still makes it smaller.
//!
//! QEMU stops as soon as the rest fits the limit. Rounds over a small rest are cheap, though, and each one that halves
//! the rest halves the time that the guest stands still; so this policy goes on until the rest no longer shrinks.
//!
//! Where post-copy was prepared ([`Precopy::with_post_copy`]), rounds that do not converge or take too long end in it; else
//! the policy gives up, and the guest stays where it is.

use core::time::Duration;

use alloc::format;

use super::{Decision, NEGLIGIBLE, Policy, RoundFacts, downtime, out_of_time};

/// A round shrinks the rest if it leaves less than this share of what the best round before left.
const SHRINKS_PERCENT: u64 = 80;
/// Rounds in a row that may fail to shrink the rest, while it does not fit the limit.
const PATIENCE_ROUNDS: u32 = 12;
/// The same where post-copy is possible: more rounds would only send the same pages again. One alone may be chance.
const PATIENCE_WITH_POST_COPY_ROUNDS: u32 = 2;
/// Bytes on the wire, at most, in multiples of the guest's memory.
const MEMORY_MULTIPLES: u64 = 16;
/// Rounds, at most.
const MAX_ROUNDS: u32 = 1000;

/// The `precopy` strategy.
#[derive(Debug)]
pub struct Precopy {
    max_downtime: Duration,
    best_rest: Option<Duration>,
    fruitless_rounds: u32,
    post_copy_possible: bool,
    timed_out: bool,
}

impl Precopy {
    /// Pre-copy that stops the guest for at most `max_downtime`, as far as can be foreseen.
    #[must_use]
    pub const fn new(max_downtime: Duration) -> Self {
        Self::with_post_copy(max_downtime, false)
    }

    /// The same; where it would give up or runs out of time, it ends in post-copy if that is `possible`.
    #[must_use]
    pub const fn with_post_copy(max_downtime: Duration, possible: bool) -> Self {
        Self {
            max_downtime,
            best_rest: None,
            fruitless_rounds: 0,
            post_copy_possible: possible,
            timed_out: false,
        }
    }

    fn shrank(&mut self, rest: Duration, pages: u64) -> bool {
        let limit = self.best_rest.map(|best| best.as_micros() * u128::from(SHRINKS_PERCENT) / 100);
        let shrank = limit.is_none_or(|limit| rest.as_micros() < limit);
        if shrank {
            self.best_rest = Some(rest);
            self.fruitless_rounds = 0;
        } else if pages > 0 {
            // A round over nothing is over at once, and tells nothing of what the link can do.
            self.fruitless_rounds += 1;
        }
        shrank
    }
}

impl Policy for Precopy {
    fn name(&self) -> &'static str {
        "precopy"
    }

    fn round_ended(&mut self, facts: &RoundFacts) -> Decision {
        let rest = facts.link_rate.time_for(facts.rest_bytes);
        let downtime = downtime(facts);
        let shrank = self.shrank(rest, facts.pages);
        let fits = downtime <= self.max_downtime;
        // A rest this small costs nothing: whatever the downtime will be, another round does not make it shorter.
        if rest <= NEGLIGIBLE || (fits && (!shrank || self.timed_out)) {
            return Decision::Stop;
        }
        let bytes_limit = facts.memory.0.saturating_mul(MEMORY_MULTIPLES);
        let exhausted = facts.number >= MAX_ROUNDS || facts.total_wire_bytes.0 >= bytes_limit;
        let patience =
            if self.post_copy_possible { PATIENCE_WITH_POST_COPY_ROUNDS } else { PATIENCE_ROUNDS };
        let hopeless = exhausted || self.fruitless_rounds >= patience;
        // A completion of QEMU's own may bring rounds back whose time is over.
        if !hopeless && !self.timed_out {
            return Decision::NextRound;
        }
        if self.post_copy_possible {
            return Decision::StopForPostCopy;
        }
        Decision::GiveUp(does_not_converge(facts, downtime, self.max_downtime))
    }

    fn timed_out(&mut self) -> Decision {
        self.timed_out = true;
        if self.post_copy_possible { Decision::StopForPostCopy } else { out_of_time() }
    }
}

fn does_not_converge(
    facts: &RoundFacts,
    downtime: Duration,
    limit: Duration,
) -> alloc::string::String {
    format!(
        "pre-copy does not converge: after {} rounds {} pages are still to be sent, about {} ms at {}, expected at most \
         {} ms; raise --max-downtime or --bandwidth, or move the guest when it writes less",
        facts.number,
        facts.dirty_pages,
        downtime.as_millis(),
        facts.link_rate,
        limit.as_millis(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_model::{ByteCount, Rate};

    fn facts(number: u32, rest_kib: u64) -> RoundFacts {
        RoundFacts {
            number,
            pages: 1000,
            wire_bytes: ByteCount(1 << 20),
            duration: Duration::from_millis(100),
            dirty_pages: rest_kib / 4,
            rest_bytes: ByteCount(rest_kib << 10),
            link_rate: Rate { bytes_per_second: 12_500_000 },
            round_trip: Duration::from_millis(1),
            total_wire_bytes: ByteCount(u64::from(number) << 20),
            memory: ByteCount(256 << 20),
        }
    }

    fn run(rests_kib: impl IntoIterator<Item = u64>) -> (u32, Decision) {
        let mut policy = Precopy::new(Duration::from_millis(300));
        let mut number = 0;
        for rest in rests_kib {
            number += 1;
            let decision = policy.round_ended(&facts(number, rest));
            if decision != Decision::NextRound {
                return (number, decision);
            }
        }
        (number, Decision::NextRound)
    }

    #[test]
    fn stops_at_once_when_nothing_is_left() {
        assert_eq!(run([0]), (1, Decision::Stop));
    }

    #[test]
    fn goes_on_while_rounds_shrink_a_rest_that_fits() {
        assert_eq!(run([2000, 1000, 400, 390]), (4, Decision::Stop));
    }

    #[test]
    fn never_stops_above_the_limit_and_ends_all_the_same() {
        let (rounds, decision) = run(core::iter::repeat(100_000));
        assert!(matches!(decision, Decision::GiveUp(_)), "{decision:?}");
        assert_eq!(rounds, 1 + PATIENCE_ROUNDS);
    }

    /// A paced QEMU knows of more than it has told: there is nothing to send yet, and that is no failure.
    #[test]
    fn rounds_over_nothing_are_not_fruitless() {
        let mut policy = Precopy::new(Duration::from_millis(300));
        for number in 1..100 {
            let empty = RoundFacts { pages: 0, ..facts(number, 50_000) };
            assert_eq!(policy.round_ended(&empty), Decision::NextRound);
        }
        let last = RoundFacts { pages: 0, ..facts(MAX_ROUNDS, 50_000) };
        assert!(matches!(policy.round_ended(&last), Decision::GiveUp(_)), "they are bounded");
    }

    #[test]
    fn what_does_not_converge_ends_in_post_copy_where_that_is_possible() {
        let mut policy = Precopy::with_post_copy(Duration::from_millis(300), true);
        let decisions: alloc::vec::Vec<Decision> = (1..=PATIENCE_WITH_POST_COPY_ROUNDS + 1)
            .map(|n| policy.round_ended(&facts(n, 100_000)))
            .collect();
        let (last, before) = decisions.split_last().unwrap();
        assert!(before.iter().all(|decision| *decision == Decision::NextRound));
        assert_eq!(*last, Decision::StopForPostCopy);
        let mut converging = Precopy::with_post_copy(Duration::from_millis(300), true);
        assert_eq!(converging.round_ended(&facts(1, 0)), Decision::Stop);
    }

    #[test]
    fn a_time_out_ends_the_rounds_for_good() {
        let mut without = Precopy::new(Duration::from_millis(300));
        assert!(matches!(without.timed_out(), Decision::GiveUp(why) if why.contains("time-out")));
        let mut with = Precopy::with_post_copy(Duration::from_millis(300), true);
        assert_eq!(with.timed_out(), Decision::StopForPostCopy);
        assert_eq!(with.round_ended(&facts(3, 100_000)), Decision::StopForPostCopy);
        assert_eq!(with.round_ended(&facts(4, 400)), Decision::Stop, "what fits is sent");
    }

    #[test]
    fn is_bounded_in_bytes() {
        let mut policy = Precopy::new(Duration::from_millis(300));
        let mut last = facts(2, 50_000);
        last.total_wire_bytes = ByteCount(16 * (256 << 20));
        assert!(matches!(policy.round_ended(&last), Decision::GiveUp(_)));
    }
}
