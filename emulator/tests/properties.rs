//! What holds for every link and every sequence of packets.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use sterna_emulator::{Direction, Fate, Link, LinkError, Loss};
use sterna_model::{ByteCount, Instant, Rate};

/// Pauses between packets in microseconds, and lengths in bytes.
fn packets() -> impl Strategy<Value = Vec<(u64, u64)>> {
    vec((prop_oneof![Just(0), 0..2000_u64, 0..500_000_u64], 20..=1500_u64), 1..400)
}

#[derive(Clone, Debug)]
struct Setting {
    rate: u64,
    round_trip_ms: u64,
    loss_per_million: u32,
    seed: u64,
    queue: u64,
}

fn settings() -> impl Strategy<Value = Setting> {
    let loss = prop_oneof![Just(0), 0..=1_000_000_u32];
    (1000..20_000_000_u64, 0..400_u64, loss, any::<u64>(), 1500..300_000_u64).prop_map(
        |(rate, round_trip_ms, loss_per_million, seed, queue)| Setting {
            rate,
            round_trip_ms,
            loss_per_million,
            seed,
            queue,
        },
    )
}

impl Setting {
    fn direction(&self) -> Result<Direction<usize>, LinkError> {
        let rate = Rate { bytes_per_second: self.rate };
        let loss = Loss::per_million(self.loss_per_million)?;
        let link = Link::new(rate, Duration::from_millis(self.round_trip_ms), loss, self.seed);
        let [direction, _] = link?.with_queue(ByteCount(self.queue))?.directions();
        Ok(direction)
    }

    fn delay(&self) -> Duration {
        Duration::from_millis(self.round_trip_ms) / 2
    }

    fn nanos_for(&self, length_bytes: u64) -> u64 {
        length_bytes * 1_000_000_000 / self.rate
    }
}

proptest! {
    /// In order, never early, never later than a full queue allows, and not faster than the rate.
    #[test]
    fn packets_keep_order_and_time(setting in settings(), packets in packets()) {
        let mut direction = setting.direction()?;
        let mut now = Instant::default();
        let mut last = Instant::default();
        for (number, (pause_micros, length)) in packets.into_iter().enumerate() {
            now = now.after(Duration::from_micros(pause_micros));
            if let Fate::Arrives(arrives) = direction.offer(now, ByteCount(length), number) {
                let took = arrives.since(now.after(setting.delay())).as_nanos();
                let took = u64::try_from(took).unwrap();
                prop_assert!(took >= setting.nanos_for(length));
                prop_assert!(took <= setting.nanos_for(setting.queue + 2) + 1);
                let gap = arrives.nanos - last.nanos;
                prop_assert!(gap + 1 >= setting.nanos_for(length), "{gap}");
                last = arrives;
            }
            prop_assert!(direction.queued(now).0 <= setting.queue + 1);
        }
    }

    /// Every packet is forwarded, lost, dropped or under way; what comes out is what went in.
    #[test]
    fn no_packet_is_forgotten(
        setting in settings(),
        packets in packets(),
        looks in vec(0..400_000_u64, 400),
    ) {
        let mut direction = setting.direction()?;
        let mut now = Instant::default();
        let (mut expected, mut found) = (Vec::new(), Vec::new());
        let total_bytes: u64 = packets.iter().map(|(_, length)| length).sum();
        let total = packets.len();
        for (number, (pause_micros, length)) in packets.into_iter().enumerate() {
            now = now.after(Duration::from_micros(pause_micros));
            if let Fate::Arrives(arrives) = direction.offer(now, ByteCount(length), number) {
                expected.push((arrives, number));
            }
            let look = now.after(Duration::from_micros(looks[number] / 10));
            while direction.next_arrival().is_some_and(|arrives| arrives <= now) {
                found.extend(direction.take_due(now));
            }
            prop_assert!(direction.next_arrival().is_none_or(|arrives| arrives > now));
            now = now.max(look);
            let seen = direction.counters();
            let gone = seen.forwarded_packets + seen.lost_packets + seen.dropped_packets;
            prop_assert_eq!(gone + direction.under_way() as u64, number as u64 + 1);
        }
        let end = Instant { nanos: u64::MAX };
        found.extend(std::iter::from_fn(|| direction.take_due(end)));
        prop_assert_eq!(found, expected);
        let seen = direction.counters();
        let gone = seen.forwarded_packets + seen.lost_packets + seen.dropped_packets;
        prop_assert_eq!(gone, total as u64);
        prop_assert_eq!(seen.forwarded_bytes + seen.lost_bytes + seen.dropped_bytes, total_bytes);
    }

    /// The same link, seed and packets: the same fates.
    #[test]
    fn a_seed_says_it_all(setting in settings(), packets in packets()) {
        let fates = || {
            let mut direction = setting.direction().unwrap();
            let mut now = Instant::default();
            let offer = |(number, (pause_micros, length)): (usize, &(u64, u64))| {
                now = now.after(Duration::from_micros(*pause_micros));
                direction.offer(now, ByteCount(*length), number)
            };
            packets.iter().enumerate().map(offer).collect::<Vec<_>>()
        };
        prop_assert_eq!(fates(), fates());
    }
}
