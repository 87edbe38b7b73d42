//! What is emulated: a link's properties, checked once, so that the queue need not ask again.

use std::time::Duration;

use sterna_model::{ByteCount, Rate};

use crate::direction::Direction;

/// The longest packet, in bytes: what a TUN device takes unless told otherwise.
pub const MTU_BYTES: u64 = 1500;
/// A queue is this long at least unless its length is given: a slow link's router has memory too.
pub const QUEUE_MIN: ByteCount = ByteCount(64 << 10);
/// A direction may hold so many bytes, queued or under way; more is refused when the link is made.
pub const MAX_HELD: ByteCount = ByteCount(256 << 20);

const MILLION: u32 = 1_000_000;

/// The share of packets that are lost, each for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Loss {
    per_million: u32,
}

impl Loss {
    /// So many of a million packets.
    ///
    /// # Errors
    /// More than a million.
    pub fn per_million(per_million: u32) -> Result<Self, LinkError> {
        let is_share = per_million <= MILLION;
        is_share.then_some(Self { per_million }).ok_or(LinkError::Loss { per_million })
    }

    /// Whether the packet is lost that drew this number, of all numbers equally likely.
    pub(crate) fn meets(self, drawn: u64) -> bool {
        let scaled = (u128::from(drawn) * u128::from(MILLION)) >> 64;
        scaled < u128::from(self.per_million)
    }
}

/// Why there can be no such link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Nothing would ever arrive.
    #[error("rate: expected at least one byte per second, found none")]
    Rate,
    /// No share.
    #[error("loss: expected at most {MILLION} in a million packets, found {per_million}")]
    Loss {
        /// What was asked for.
        per_million: u32,
    },
    /// Not even one packet would fit.
    #[error("queue: expected at least {MTU_BYTES} bytes, one packet, found {found}")]
    Queue {
        /// What was asked for.
        found: ByteCount,
    },
    /// The emulator would need that much memory.
    #[error("expected at most {MAX_HELD} queued and under way in a direction, found {found}")]
    Held {
        /// What rate, delay and queue come to.
        found: ByteCount,
    },
}

/// A link, the same in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    pub(crate) rate: Rate,
    pub(crate) delay: Duration,
    pub(crate) loss: Loss,
    pub(crate) queue: ByteCount,
    seed: u64,
}

impl Link {
    /// A link of this rate (bytes of IP packets), this round trip of a packet that meets no others,
    /// half in each direction, and this loss, without a queue's limit of its own: [`default_queue`].
    /// The same `seed` loses the same packets of a sequence.
    ///
    /// # Errors
    /// No rate, or more to be held than [`MAX_HELD`].
    pub fn new(rate: Rate, round_trip: Duration, loss: Loss, seed: u64) -> Result<Self, LinkError> {
        if rate.bytes_per_second == 0 {
            return Err(LinkError::Rate);
        }
        let queue = default_queue(rate, round_trip);
        Self { rate, delay: round_trip / 2, loss, queue, seed }.checked()
    }

    /// The same with room for so many bytes that wait for the link, in each direction. What does not
    /// fit is dropped (drop-tail).
    ///
    /// # Errors
    /// No room for one packet, or more to be held than [`MAX_HELD`].
    pub fn with_queue(self, queue: ByteCount) -> Result<Self, LinkError> {
        if queue.0 < MTU_BYTES {
            return Err(LinkError::Queue { found: queue });
        }
        Self { queue, ..self }.checked()
    }

    /// Both directions, each with a sequence of losses of its own.
    #[must_use]
    pub fn directions<P>(&self) -> [Direction<P>; 2] {
        [0, 1].map(|number| Direction::new(self, self.seed.wrapping_mul(2).wrapping_add(number)))
    }

    fn checked(self) -> Result<Self, LinkError> {
        let found = ByteCount(bytes_in(self.rate, self.delay).0.saturating_add(self.queue.0));
        if found > MAX_HELD { Err(LinkError::Held { found }) } else { Ok(self) }
    }
}

/// A queue as routers are commonly given one: what the link carries in one round trip (the
/// bandwidth-delay product), and [`QUEUE_MIN`] at least.
#[must_use]
pub fn default_queue(rate: Rate, round_trip: Duration) -> ByteCount {
    bytes_in(rate, round_trip).max(QUEUE_MIN)
}

/// What the rate carries in a time.
pub(crate) fn bytes_in(rate: Rate, time: Duration) -> ByteCount {
    let bytes = u128::from(rate.bytes_per_second).saturating_mul(time.as_nanos()) / 1_000_000_000;
    ByteCount(u64::try_from(bytes).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { bytes_per_second: 2_500_000 };

    fn link(rate: Rate, round_trip_ms: u64) -> Result<Link, LinkError> {
        Link::new(rate, Duration::from_millis(round_trip_ms), Loss::default(), 1)
    }

    #[test]
    fn a_queue_has_room_for_a_round_trip() {
        assert_eq!(link(RATE, 100).unwrap().queue, ByteCount(250_000));
        assert_eq!(link(RATE, 10).unwrap().queue, QUEUE_MIN);
        assert_eq!(link(RATE, 10).unwrap().with_queue(ByteCount(9000)).unwrap().queue.0, 9000);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(link(Rate::default(), 100), Err(LinkError::Rate));
        assert_eq!(Loss::per_million(1_000_001), Err(LinkError::Loss { per_million: 1_000_001 }));
        let small = link(RATE, 100).unwrap().with_queue(ByteCount(1499));
        assert_eq!(small, Err(LinkError::Queue { found: ByteCount(1499) }));
        // One second under way and two in the queue.
        let found = ByteCount(375_000_000);
        let fast = Rate { bytes_per_second: 125_000_000 };
        assert_eq!(link(fast, 2000), Err(LinkError::Held { found }));
        assert!(link(Rate { bytes_per_second: u64::MAX }, u64::MAX).is_err());
        let long = link(RATE, 100).unwrap().with_queue(ByteCount(u64::MAX));
        assert_eq!(long, Err(LinkError::Held { found: ByteCount(u64::MAX) }));
    }

    #[test]
    fn a_share_of_all_numbers_is_lost() {
        let loss = Loss::per_million(250_000).unwrap();
        assert!(loss.meets(0) && loss.meets(u64::MAX / 4 - 1));
        assert!(!loss.meets(u64::MAX / 4 + (1 << 40)) && !loss.meets(u64::MAX));
        assert!(Loss::per_million(1_000_000).unwrap().meets(u64::MAX));
        assert!(!Loss::default().meets(0));
    }
}
