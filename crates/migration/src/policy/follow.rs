//! Following: the destination is kept nearly current for as long as nobody asks for the hand-over; then it hands over at
//! once.
//!
//! Until then no round ends the copying; what is sent in them, and when, is the business of the [epochs](super::Epochs).
//! Asked for the hand-over, it decides as pre-copy does, rounds while they shrink the rest. But whoever asks waits: when
//! the goal for the hand-over cannot be met by another round, a rest that fits the downtime limit is sent with the guest
//! stopped, and one that does not follows by post-copy where that was prepared.

use core::time::Duration;

use super::{Decision, Policy, Precopy, RoundFacts, downtime};

/// From asking for the hand-over until the guest runs at the destination.
pub const HAND_OVER_GOAL: Duration = Duration::from_secs(1);
/// Of it, what stopping, loading the devices and the commit take: an assumption, on the safe side.
pub const HAND_OVER_FIXED: Duration = Duration::from_millis(200);

/// The `follow` strategy.
#[derive(Debug)]
pub struct Follow {
    precopy: Precopy,
    max_downtime: Duration,
    post_copy_possible: bool,
    hand_over: HandOver,
}

#[derive(Debug)]
enum HandOver {
    NotAsked,
    Asked,
    /// Since the round that was the first to end after it was asked for.
    Since {
        round: u32,
        wire_bytes: u64,
        spent: Duration,
    },
}

impl Follow {
    /// Follows, and hands over with the guest stopped for at most `max_downtime`, as far as can be foreseen.
    #[must_use]
    pub const fn new(max_downtime: Duration, post_copy_possible: bool) -> Self {
        Self {
            precopy: Precopy::with_post_copy(max_downtime, post_copy_possible),
            max_downtime,
            post_copy_possible,
            hand_over: HandOver::NotAsked,
        }
    }

    /// The hand-over is asked for: the end of the next round counts.
    pub const fn hand_over(&mut self) {
        if matches!(self.hand_over, HandOver::NotAsked) {
            self.hand_over = HandOver::Asked;
        }
    }

    fn decide(&mut self, facts: &RoundFacts, spent: Duration) -> Decision {
        let decision = self.precopy.round_ended(facts);
        let downtime = downtime(facts);
        let in_time = spent.saturating_add(downtime).saturating_add(HAND_OVER_FIXED);
        if decision != Decision::NextRound || in_time <= HAND_OVER_GOAL {
            return decision;
        }
        if downtime <= self.max_downtime {
            Decision::Stop
        } else if self.post_copy_possible {
            Decision::StopForPostCopy
        } else {
            decision
        }
    }
}

impl Policy for Follow {
    fn name(&self) -> &'static str {
        "follow"
    }

    fn round_ended(&mut self, facts: &RoundFacts) -> Decision {
        let spent = match self.hand_over {
            HandOver::NotAsked => return Decision::NextRound,
            HandOver::Asked => {
                self.hand_over = HandOver::Since {
                    round: facts.number.saturating_sub(1),
                    wire_bytes: facts.total_wire_bytes.0.saturating_sub(facts.wire_bytes.0),
                    spent: facts.duration,
                };
                facts.duration
            }
            HandOver::Since { ref mut spent, .. } => {
                *spent = spent.saturating_add(facts.duration);
                *spent
            }
        };
        let mut since = facts.clone();
        // Pre-copy bounds its rounds and bytes; hours of following are none of its.
        if let HandOver::Since { round, wire_bytes, .. } = self.hand_over {
            since.number = facts.number.saturating_sub(round);
            since.total_wire_bytes.0 = facts.total_wire_bytes.0.saturating_sub(wire_bytes);
        }
        self.decide(&since, spent)
    }

    fn timed_out(&mut self) -> Decision {
        self.precopy.timed_out()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_model::{ByteCount, Rate};

    fn facts(number: u32, rest_kib: u64, duration_ms: u64) -> RoundFacts {
        RoundFacts {
            number,
            pages: 1000,
            wire_bytes: ByteCount(1 << 20),
            duration: Duration::from_millis(duration_ms),
            dirty_pages: rest_kib / 4,
            rest_bytes: ByteCount(rest_kib << 10),
            link_rate: Rate { bytes_per_second: 12_500_000 },
            round_trip: Duration::from_millis(1),
            total_wire_bytes: ByteCount(u64::from(number) << 20),
            memory: ByteCount(256 << 20),
        }
    }

    fn follow(post_copy_possible: bool) -> Follow {
        Follow::new(Duration::from_millis(300), post_copy_possible)
    }

    #[test]
    fn it_never_ends_by_itself() {
        let mut policy = follow(true);
        for number in 1..100_000 {
            assert_eq!(policy.round_ended(&facts(number, 0, 1)), Decision::NextRound);
        }
        policy.hand_over();
        assert_eq!(policy.round_ended(&facts(100_000, 0, 1)), Decision::Stop);
    }

    /// Hours of rounds and bytes before do not make pre-copy give up.
    #[test]
    fn only_what_follows_the_hand_over_is_bounded() {
        let mut policy = follow(false);
        let before = policy.round_ended(&facts(1_000_000, 3000, 10));
        assert_eq!(before, Decision::NextRound);
        policy.hand_over();
        assert_eq!(policy.round_ended(&facts(1_000_001, 100_000, 10)), Decision::NextRound);
        assert_eq!(policy.round_ended(&facts(1_000_002, 10, 10)), Decision::Stop);
    }

    #[test]
    fn whoever_asks_does_not_wait_for_smaller_rests_beyond_the_goal() {
        let mut policy = follow(true);
        policy.hand_over();
        assert_eq!(policy.round_ended(&facts(1, 3000, 300)), Decision::NextRound, "time is left");
        assert_eq!(policy.round_ended(&facts(2, 2000, 500)), Decision::Stop);
        let mut late = follow(true);
        late.hand_over();
        assert_eq!(late.round_ended(&facts(1, 20_000, 900)), Decision::StopForPostCopy);
        let mut without = follow(false);
        without.hand_over();
        assert_eq!(without.round_ended(&facts(1, 20_000, 900)), Decision::NextRound);
    }

    #[test]
    fn a_rest_that_a_round_could_not_send_in_time_follows_at_once() {
        let nothing_sent = RoundFacts { pages: 0, ..facts(8, 50_000, 0) };
        let mut policy = follow(true);
        policy.hand_over();
        assert_eq!(policy.round_ended(&nothing_sent), Decision::StopForPostCopy);
        let mut fits = follow(true);
        fits.hand_over();
        let little = RoundFacts { pages: 0, ..facts(8, 3000, 0) };
        assert_eq!(
            fits.round_ended(&little),
            Decision::NextRound,
            "a round is short, and the stop too"
        );
    }

    #[test]
    fn a_time_out_ends_it_as_it_ends_pre_copy() {
        assert_eq!(follow(true).timed_out(), Decision::StopForPostCopy);
        assert!(matches!(follow(false).timed_out(), Decision::GiveUp(_)));
    }
}
