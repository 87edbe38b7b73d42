//! Quantities: bytes, bytes per second, points in time.

use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;
use core::time::Duration;

use serde::{Deserialize, Serialize};

/// A number of bytes; prints in IEC units.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct ByteCount(pub u64);

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let power = self.0.ilog2() / 10;
        let tenths = u128::from(self.0) * 10 / (1 << (10 * power));
        write!(f, "{}.{} {}", tenths / 10, tenths % 10, UNITS[power as usize - 1])
    }
}

/// A rate, in bytes per second. Parses as people write link rates: bits per second (`100M`, `2.5G`), or bytes (`12.5MB`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Rate {
    /// Bytes per second.
    pub bytes_per_second: u64,
}

impl Rate {
    /// The rate of so many bytes in such a time; zero when no time has passed.
    #[must_use]
    pub fn of(bytes: ByteCount, time: Duration) -> Self {
        let rate = u128::from(bytes.0) * 1_000_000_000 / time.as_nanos().max(1);
        let known = if time.is_zero() { 0 } else { rate };
        Self { bytes_per_second: u64::try_from(known).unwrap_or(u64::MAX) }
    }

    /// How long so many bytes take; [`Duration::MAX`] at rate zero.
    #[must_use]
    pub fn time_for(self, bytes: ByteCount) -> Duration {
        if self.bytes_per_second == 0 {
            return if bytes.0 == 0 { Duration::ZERO } else { Duration::MAX };
        }
        let nanos = u128::from(bytes.0) * 1_000_000_000 / u128::from(self.bytes_per_second);
        u64::try_from(nanos).map_or(Duration::MAX, Duration::from_nanos)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", ByteCount(self.bytes_per_second))
    }
}

/// Why a text is no rate.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "expected a rate such as 100M (bits per second) or 12.5MB (bytes per second), found {found:?}"
)]
pub struct ParseRateError {
    found: String,
}

impl FromStr for Rate {
    type Err = ParseRateError;

    fn from_str(text: &str) -> Result<Self, ParseRateError> {
        parse_rate(text).ok_or_else(|| ParseRateError { found: text.chars().take(80).collect() })
    }
}

fn parse_rate(text: &str) -> Option<Rate> {
    let (number, in_bytes) = match text.strip_suffix('B') {
        Some(number) => (number, true),
        None => (text, false),
    };
    let (number, unit) = match number.char_indices().next_back()? {
        (at, 'k' | 'K') => (&number[..at], 1_000),
        (at, 'M') => (&number[..at], 1_000_000),
        (at, 'G') => (&number[..at], 1_000_000_000),
        (at, 'T') => (&number[..at], 1_000_000_000_000),
        _ => (number, 1_u64),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |part: &str| {
        (1..=9).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let scale = 10_u64.pow(u32::try_from(fraction.len()).ok()?);
    let parts = whole.parse::<u64>().ok()?.checked_mul(scale)? + fraction.parse::<u64>().ok()?;
    let units = u128::from(parts) * u128::from(unit) / u128::from(scale);
    let bytes = if in_bytes { units } else { units / 8 };
    let bytes_per_second = u64::try_from(bytes).ok().filter(|rate| *rate > 0)?;
    Some(Rate { bytes_per_second })
}

/// A point in time: nanoseconds since a start that the caller chose. Pure code gets it handed in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Instant {
    /// Nanoseconds since the start.
    pub nanos: u64,
}

impl Instant {
    /// The time from `earlier` to here; zero when it is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.nanos.saturating_sub(earlier.nanos))
    }

    /// The point so much later.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Self { nanos: self.nanos.saturating_add(nanos) }
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_people_write_them() {
        let read = |text: &str| text.parse::<Rate>().map(|rate| rate.bytes_per_second).ok();
        assert_eq!(read("100M"), Some(12_500_000));
        assert_eq!(read("12.5MB"), Some(12_500_000));
        assert_eq!(read("2.5G"), Some(312_500_000));
        assert_eq!(read("8"), Some(1));
        for wrong in ["", "0", "M", "1.M", "-1M", "1e9", "10 M", "99999999999G", "1.2.3M", "7é"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn bytes_print_in_iec_units() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1 << 20, "1.0 MiB"),
            (1610612736, "1.5 GiB"),
        ] {
            assert_eq!(ByteCount(bytes).to_string(), text);
        }
        assert_eq!(ByteCount(u64::MAX).to_string(), "15.9 EiB");
    }

    #[test]
    fn rate_and_time_agree() {
        let rate = Rate::of(ByteCount(1_000_000), Duration::from_millis(500));
        assert_eq!(rate.bytes_per_second, 2_000_000);
        assert_eq!(rate.time_for(ByteCount(4_000_000)), Duration::from_secs(2));
        assert_eq!(Rate::default().time_for(ByteCount(1)), Duration::MAX);
    }
}
