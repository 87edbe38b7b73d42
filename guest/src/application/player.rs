//! A player's clock and buffer: how much may come now, and when playing stood still for want of it.
//!
//! ```text
//! waiting (has less than it begins with) --- enough has come ---> playing at the nominal rate
//!         ^------------------ nothing is left to play ---------------'
//! ```
//!
//! Times are the guest's, since the player began. A decoder that fell behind catches up by what the
//! buffer holds and no more.

use std::time::Duration;

/// What the buffer holds.
const BUFFER: Duration = Duration::from_secs(1);
/// How much of it must be there before playing begins.
const BEGIN: Duration = Duration::from_millis(500);

/// A player of a stream with a nominal rate.
#[derive(Debug)]
pub(crate) struct Player {
    bytes_per_second: u64,
    received_bytes: u64,
    state: State,
    stalls: u64,
    stalled: Duration,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Until there is enough; `since` is absent before playing began first.
    Waiting { played_bytes: u64, since: Option<Duration> },
    /// At `at`, so many bytes had been played.
    Playing { played_bytes: u64, at: Duration },
}

impl Player {
    /// A player that has received nothing.
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        let state = State::Waiting { played_bytes: 0, since: None };
        Self { bytes_per_second, received_bytes: 0, state, stalls: 0, stalled: Duration::ZERO }
    }

    /// Bytes that it can take now.
    pub(crate) fn room_bytes(&mut self, now: Duration) -> u64 {
        let played_bytes = self.advance(now);
        self.bytes_in(BUFFER).saturating_sub(self.received_bytes - played_bytes)
    }

    /// So much has come.
    pub(crate) fn receive(&mut self, length_bytes: u64, now: Duration) {
        self.advance(now);
        self.received_bytes += length_bytes;
        let State::Waiting { played_bytes, since } = self.state else { return };
        if self.received_bytes - played_bytes >= self.bytes_in(BEGIN) {
            self.stalled += since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
            self.state = State::Playing { played_bytes, at: now };
        }
    }

    /// Whether it plays.
    pub(crate) fn is_playing(&self) -> bool {
        matches!(self.state, State::Playing { .. })
    }

    /// How often it has stood still.
    pub(crate) fn stalls(&self) -> u64 {
        self.stalls
    }

    /// For how long altogether, up to the last time that it went on.
    pub(crate) fn stalled(&self) -> Duration {
        self.stalled
    }

    /// Plays what is due; gives how much has been played.
    fn advance(&mut self, now: Duration) -> u64 {
        let State::Playing { played_bytes, at } = self.state else {
            let State::Waiting { played_bytes, .. } = self.state else { return 0 };
            return played_bytes;
        };
        let due_bytes = played_bytes + self.bytes_in(now.saturating_sub(at));
        if due_bytes <= self.received_bytes {
            return due_bytes;
        }
        let late_us = (due_bytes - self.received_bytes) * 1_000_000 / self.bytes_per_second.max(1);
        let since = now.saturating_sub(Duration::from_micros(late_us));
        self.stalls += 1;
        self.state = State::Waiting { played_bytes: self.received_bytes, since: Some(since) };
        self.received_bytes
    }

    fn bytes_in(&self, time: Duration) -> u64 {
        let bytes = u128::from(self.bytes_per_second) * time.as_micros() / 1_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 1000;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn takes_a_buffer_full_and_then_the_nominal_rate() {
        let mut player = Player::new(RATE);
        assert_eq!(player.room_bytes(ms(0)), 1000);
        player.receive(499, ms(0));
        assert!(!player.is_playing());
        player.receive(501, ms(0));
        assert!(player.is_playing());
        assert_eq!(player.room_bytes(ms(0)), 0);
        assert_eq!(player.room_bytes(ms(250)), 250);
        player.receive(250, ms(250));
        assert_eq!((player.room_bytes(ms(250)), player.stalls()), (0, 0));
    }

    #[test]
    fn stands_still_when_nothing_is_left_and_begins_again_with_half_a_buffer() {
        let mut player = Player::new(RATE);
        player.receive(1000, ms(0));
        assert_eq!(player.room_bytes(ms(1300)), 1000, "no more than the buffer is made up for");
        assert_eq!((player.is_playing(), player.stalls()), (false, 1));
        player.receive(100, ms(1350));
        assert!(!player.is_playing());
        player.receive(400, ms(1400));
        assert!(player.is_playing());
        assert_eq!((player.stalls(), player.stalled()), (1, ms(400)));
        assert_eq!(player.room_bytes(ms(1500)), 600);
    }
}
