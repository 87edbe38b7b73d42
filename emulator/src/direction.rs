//! One direction of a link, in virtual time: what becomes of a packet, and when.
//!
//! ```text
//!   offer --> queue (dropped when full) --> put on the wire at the rate --> lost?
//!         --> under way for the delay --> take_due
//! ```
//!
//! A lost packet has used the wire like any other: it is lost behind the bottleneck. Nothing overtakes.
//! The caller's time should not go back: a packet from the past would meet a queue of the present.

use std::collections::VecDeque;

use serde::Serialize;
use sterna_model::{ByteCount, Instant};

use crate::link::{Link, bytes_in};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrives at this time.
    Arrives(Instant),
    /// It is lost on the wire.
    Lost,
    /// There was no room in the queue.
    Dropped,
}

/// What has become of all packets so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Packets taken out at the end.
    pub forwarded_packets: u64,
    /// Their bytes.
    pub forwarded_bytes: u64,
    /// Packets lost on the wire.
    pub lost_packets: u64,
    /// Their bytes.
    pub lost_bytes: u64,
    /// Packets for which there was no room in the queue.
    pub dropped_packets: u64,
    /// Their bytes.
    pub dropped_bytes: u64,
}

/// One direction of a [`Link`], with packets of whatever kind.
#[derive(Debug)]
pub struct Direction<P> {
    link: Link,
    random: SplitMix,
    /// When the last packet has left the queue altogether.
    wire_is_free: Instant,
    /// What that is late by for being whole nanoseconds, in `1 / rate` of a nanosecond.
    fraction: u64,
    under_way: VecDeque<UnderWay<P>>,
    counters: Counters,
}

#[derive(Debug)]
struct UnderWay<P> {
    arrives: Instant,
    length_bytes: u64,
    packet: P,
}

impl<P> Direction<P> {
    pub(crate) fn new(link: &Link, seed: u64) -> Self {
        Self {
            link: *link,
            random: SplitMix { state: seed },
            wire_is_free: Instant { nanos: 0 },
            fraction: 0,
            under_way: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// Takes a packet in.
    pub fn offer(&mut self, now: Instant, length: ByteCount, packet: P) -> Fate {
        if self.queued(now).0.saturating_add(length.0) > self.link.queue.0 {
            self.counters.dropped_packets += 1;
            self.counters.dropped_bytes += length.0;
            return Fate::Dropped;
        }
        self.put_on_wire(now, length.0);
        if self.link.loss.meets(self.random.next()) {
            self.counters.lost_packets += 1;
            self.counters.lost_bytes += length.0;
            return Fate::Lost;
        }
        let arrives = self.wire_is_free.after(self.link.delay);
        self.under_way.push_back(UnderWay { arrives, length_bytes: length.0, packet });
        Fate::Arrives(arrives)
    }

    /// When the next packet arrives, if any is under way.
    #[must_use]
    pub fn next_arrival(&self) -> Option<Instant> {
        self.under_way.front().map(|next| next.arrives)
    }

    /// The next packet that has arrived by `now`, and when it did.
    pub fn take_due(&mut self, now: Instant) -> Option<(Instant, P)> {
        let due = self.under_way.pop_front_if(|next| next.arrives <= now)?;
        self.counters.forwarded_packets += 1;
        self.counters.forwarded_bytes += due.length_bytes;
        Some((due.arrives, due.packet))
    }

    /// The bytes that wait for the wire; of the packet that is being put on it, the rest.
    #[must_use]
    pub fn queued(&self, now: Instant) -> ByteCount {
        bytes_in(self.link.rate, self.wire_is_free.since(now))
    }

    /// The packets that will still arrive.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// What has become of all packets so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Whole nanoseconds alone would make the rate wrong by up to one in a thousand at 10 Gbit/s.
    fn put_on_wire(&mut self, now: Instant, length_bytes: u64) {
        if self.wire_is_free < now {
            self.wire_is_free = now;
            self.fraction = 0;
        }
        let rate = u128::from(self.link.rate.bytes_per_second);
        let parts = u128::from(length_bytes) * 1_000_000_000 + u128::from(self.fraction);
        let nanos = u64::try_from(parts / rate).unwrap_or(u64::MAX);
        // Less than the rate, which is 64 bits long.
        self.fraction = u64::try_from(parts % rate).unwrap_or(0);
        self.wire_is_free.nanos = self.wire_is_free.nanos.saturating_add(nanos);
    }
}

/// The generator `SplitMix64`: small, and good enough to decide about packets.
#[derive(Debug)]
struct SplitMix {
    state: u64,
}

impl SplitMix {
    const fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sterna_model::Rate;

    use super::*;
    use crate::link::Loss;

    const START: Instant = Instant { nanos: 5_000_000_000 };
    const FULL: ByteCount = ByteCount(1500);

    /// 20 Mbit/s, 50 ms each way: a full packet takes 600 us.
    fn direction(loss_per_million: u32, seed: u64) -> Direction<u32> {
        let rate = Rate { bytes_per_second: 2_500_000 };
        let loss = Loss::per_million(loss_per_million).unwrap();
        let link = Link::new(rate, Duration::from_millis(100), loss, seed).unwrap();
        let [direction, _] = link.directions();
        direction
    }

    fn later(micros: u64) -> Instant {
        START.after(Duration::from_micros(micros))
    }

    #[test]
    fn a_lone_packet_takes_its_length_and_the_delay() {
        let mut direction = direction(0, 1);
        assert_eq!(direction.offer(START, FULL, 7), Fate::Arrives(later(50_600)));
        assert_eq!(direction.next_arrival(), Some(later(50_600)));
        assert_eq!(direction.take_due(later(50_599)), None);
        assert_eq!(direction.take_due(later(60_000)), Some((later(50_600), 7)));
        assert_eq!((direction.next_arrival(), direction.under_way()), (None, 0));
    }

    #[test]
    fn packets_wait_for_those_before_them() {
        let mut direction = direction(0, 1);
        direction.offer(START, FULL, 0);
        assert_eq!(direction.offer(START, FULL, 1), Fate::Arrives(later(51_200)));
        assert_eq!(direction.queued(START), ByteCount(3000));
        assert_eq!(direction.queued(later(900)), ByteCount(750));
        assert_eq!(direction.offer(later(900), ByteCount(100), 2), Fate::Arrives(later(51_240)));
        // Nothing is saved up while nobody sends.
        assert_eq!(direction.offer(later(9000), FULL, 3), Fate::Arrives(later(59_600)));
    }

    #[test]
    fn a_full_queue_drops_until_there_is_room() {
        let mut direction = direction(0, 1);
        let fates: Vec<Fate> = (0..200).map(|n| direction.offer(START, FULL, n)).collect();
        let taken = fates.iter().take_while(|fate| **fate != Fate::Dropped).count();
        assert_eq!(taken, 250_000 / 1500);
        assert!(fates[taken..].iter().all(|fate| *fate == Fate::Dropped));
        let counters = direction.counters();
        assert_eq!((counters.dropped_packets, counters.dropped_bytes), (34, 34 * 1500));
        assert_eq!(direction.offer(later(199), FULL, 0), Fate::Dropped);
        assert!(matches!(direction.offer(later(200), FULL, 0), Fate::Arrives(_)));
    }

    #[test]
    fn the_same_seed_loses_the_same_packets() {
        let fates = |seed| {
            let mut direction = direction(100_000, seed);
            (0..100_u32).map(|n| direction.offer(START, FULL, n)).collect::<Vec<_>>()
        };
        assert_eq!(fates(1), fates(1));
        assert_ne!(fates(1), fates(2));
    }

    #[test]
    fn the_two_directions_lose_different_packets() {
        let loss = Loss::per_million(500_000).unwrap();
        let rate = Rate { bytes_per_second: 2_500_000 };
        let link = Link::new(rate, Duration::ZERO, loss, 3).unwrap();
        let fates = link.directions().map(|mut direction: Direction<()>| {
            (0..40).map(|_| direction.offer(START, FULL, ()) == Fate::Lost).collect::<Vec<_>>()
        });
        assert_ne!(fates[0], fates[1]);
    }

    /// Five standard deviations around the mean.
    #[test]
    fn as_many_are_lost_as_was_asked_for() {
        for (per_million, expected) in [(1000, 850..1150), (10_000, 9500..10_500)] {
            let mut direction = direction(per_million, 42);
            for n in 0..1_000_000 {
                direction.offer(later(u64::from(n) * 600), FULL, n);
                while direction.take_due(later(u64::from(n) * 600)).is_some() {}
            }
            let counters = direction.counters();
            assert!(expected.contains(&counters.lost_packets), "{counters:?}");
            assert_eq!(counters.lost_bytes, counters.lost_packets * 1500);
        }
    }

    #[test]
    fn lost_packets_use_the_wire() {
        let mut direction = direction(1_000_000, 1);
        assert_eq!(direction.offer(START, FULL, 0), Fate::Lost);
        assert_eq!(direction.queued(START), FULL);
        assert_eq!(direction.next_arrival(), None);
    }

    #[test]
    fn a_rate_that_is_no_whole_number_of_nanoseconds_is_kept() {
        let rate = Rate { bytes_per_second: 1_234_567_891 };
        let link = Link::new(rate, Duration::ZERO, Loss::default(), 1).unwrap();
        let [mut direction, _] = link.directions();
        let mut last = Fate::Lost;
        let mut now = Instant::default();
        for _ in 0..1_000_000 {
            last = direction.offer(now, FULL, ());
            if let Fate::Arrives(arrives) = last {
                now = arrives;
            }
            direction.take_due(now);
        }
        let nanos = 1500 * 1_000_000_000 * 1_000_000_u128 / 1_234_567_891;
        let Fate::Arrives(Instant { nanos: found }) = last else { panic!("{last:?}") };
        assert!(u128::from(found).abs_diff(nanos) <= 1, "{found}, {nanos}");
    }
}
