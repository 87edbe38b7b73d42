//! What a guest did not do because it was moved, in seconds of its work before, and when it was at its old pace again.
//!
//! The guest prints its own clock and a count of its work. While it is stopped its clock stands, so
//! from a tick before the move to a tick after it
//!
//! ```text
//! lost = downtime + (guest's time) - (work done) / (rate of work before)
//! recovered = downtime + (guest's time from the last tick before the stop to the first half second at 95 % of its pace)
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sterna_e2e::command::wait_for;
use sterna_e2e::{GuestLog, Result, Tick};

/// How long after a move the guest may still be slower for it (pages that it waits for).
const AFTERMATH_MS: u64 = 2000;
/// Ticks come every 100 ms.
const TICK_LIMIT: Duration = Duration::from_secs(20);
/// What is looked at for the rate of work before the move.
pub(crate) const BASELINE: Duration = Duration::from_secs(2);

/// The share of its old pace at which a guest has come back to its work.
const OLD_PACE: f64 = 0.95;
/// For at least so long.
const SUSTAINED_MS: u64 = 500;

/// How a guest came back to its work.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Recovery {
    /// Its work each second before the move.
    pub(crate) work_per_s: f64,
    /// From the stop until it was at its old pace again; none when it was not within the time that was watched.
    pub(crate) recovered_ms: Option<f64>,
}

/// A guest's work until the move.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    before: Tick,
    /// Work by millisecond; none when the guest does nothing.
    rate: Option<f64>,
}

impl Work {
    /// Looks at what the guest has done in the last two seconds.
    ///
    /// # Errors
    /// The guest is damaged, or has not begun.
    pub(crate) fn start(log: &GuestLog) -> Result<Self> {
        let before = log.last_tick()?;
        let since = before.time_ms.saturating_sub(BASELINE.as_millis().try_into().unwrap_or(0));
        let ticks = log.ticks()?;
        let first = ticks.iter().find(|tick| tick.time_ms >= since).copied().unwrap_or(before);
        Ok(Self { before, rate: rate(first, before) })
    }

    /// Waits until the aftermath of the move is over, and gives what was lost by a guest that works.
    ///
    /// # Errors
    /// The guest is damaged, or stands still.
    pub(crate) fn lost_s(&self, log: &GuestLog, downtime_ms: f64) -> Result<Option<f64>> {
        let until = log.last_tick()?.time_ms + AFTERMATH_MS;
        let after = wait_for("the guest's ticks after the move", TICK_LIMIT, || {
            Ok(Some(log.last_tick()?).filter(|tick| tick.time_ms >= until))
        })?;
        Ok(self.rate.map(|rate| lost_ms(self.before, after, rate, downtime_ms) / 1e3))
    }

    /// How the guest came back to its work; none when it has none, or was not moved.
    ///
    /// # Errors
    /// The guest is damaged.
    pub(crate) fn recovery(&self, log: &GuestLog, downtime_ms: f64) -> Result<Option<Recovery>> {
        let (Some(rate), Some(left)) = (self.rate, log.last_tick_before_move()?) else {
            return Ok(None);
        };
        let ticks: Vec<Tick> =
            log.ticks()?.into_iter().filter(|tick| tick.time_ms >= left.time_ms).collect();
        let back = back_at_work(&ticks, OLD_PACE * rate);
        let recovered_ms = back.map(|back| downtime_ms + between(left, back).1);
        Ok(Some(Recovery { work_per_s: 1e3 * rate, recovered_ms }))
    }
}

/// The first tick from which on the pace is kept long enough.
fn back_at_work(ticks: &[Tick], pace: f64) -> Option<Tick> {
    let sustained = |from: &Tick| {
        let until = ticks.iter().find(|tick| tick.time_ms >= from.time_ms + SUSTAINED_MS)?;
        (rate(*from, *until)? >= pace).then_some(*from)
    };
    ticks.iter().find_map(sustained)
}

fn rate(from: Tick, to: Tick) -> Option<f64> {
    let (work, time) = between(from, to);
    (work > 0.0 && time > 0.0).then(|| work / time)
}

fn lost_ms(before: Tick, after: Tick, rate: f64, downtime_ms: f64) -> f64 {
    let (work, time) = between(before, after);
    downtime_ms + time - work / rate
}

/// Work and milliseconds.
#[expect(clippy::cast_precision_loss, reason = "counts of a run of minutes are far below 2^52")]
fn between(from: Tick, to: Tick) -> (f64, f64) {
    ((to.writes - from.writes) as f64, (to.time_ms - from.time_ms) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn tick(time_ms: u64, writes: u64) -> Tick {
        Tick { time_ms, writes }
    }

    #[test]
    fn a_guest_that_only_stood_still_lost_its_downtime() {
        let rate = rate(tick(0, 0), tick(1000, 500)).unwrap();
        assert!((lost_ms(tick(1000, 500), tick(5000, 2500), rate, 80.0) - 80.0).abs() < 1e-9);
    }

    #[test]
    fn a_guest_at_half_its_speed_lost_half_the_time() {
        let lost = lost_ms(tick(1000, 500), tick(5000, 1500), 0.5, 0.0);
        assert!((lost - 2000.0).abs() < 1e-9);
    }

    #[test]
    fn a_guest_is_back_when_it_keeps_its_pace() {
        let slow = (0..10).map(|n| tick(100 * n, 10 * n));
        let fast = (0..10).map(|n| tick(1000 + 100 * n, 100 + 100 * n));
        let ticks: Vec<Tick> = slow.chain(fast).collect();
        assert_eq!(back_at_work(&ticks, 0.95), Some(tick(1000, 100)));
        assert_eq!(back_at_work(&ticks, 0.05), Some(tick(0, 0)), "it was never slower");
        assert_eq!(back_at_work(&ticks[..12], 0.95), None, "not kept for half a second");
    }

    #[test]
    fn who_does_nothing_loses_nothing() {
        assert_eq!(rate(tick(0, 7), tick(1000, 7)), None);
    }
}
