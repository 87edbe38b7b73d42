//! Numbers with their units.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sterna_api::Range;

/// A time that may be long: `850.0 ms`, `12.4 s`, `3 min 12 s`, `1 h 02 min`.
pub(super) fn time(ms: f64) -> String {
    if ms < 1000.0 {
        return millis(ms);
    }
    let Ok(whole) = Duration::try_from_secs_f64(ms / 1000.0) else { return "for ever".to_owned() };
    match whole.as_secs() {
        0..60 => format!("{:.1} s", ms / 1000.0),
        seconds @ 60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        seconds => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// A time in milliseconds, however long.
pub(super) fn millis(ms: f64) -> String {
    format!("{ms:.1} ms")
}

/// A prediction: one value, or from low to high.
pub(super) fn range(range: Range, unit: impl Fn(f64) -> String) -> String {
    let (low, high) = (unit(range.low), unit(range.high));
    if low == high { low } else { format!("{low} to {high}") }
}

/// A predicted number of bytes, in IEC units.
pub(super) fn predicted_bytes(bytes: f64) -> String {
    let mut value = bytes;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            return format!("{value:.1} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} PiB")
}

/// A point in time as RFC 3339 in UTC, in whole seconds: `2026-01-04T00:34:30Z`.
#[must_use]
pub(crate) fn timestamp(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a number of days since 1970. Counted in years that begin in March, so that a leap day is a
/// year's last, and in the 400 years after which the calendar repeats.
const fn date(days_since_1970: u64) -> (u64, u64, u64) {
    const DAYS_IN_400_YEARS: u64 = 146_097;
    const DAYS_FROM_MARCH_OF_YEAR_0_TO_1970: u64 = 719_468;
    let days = days_since_1970 + DAYS_FROM_MARCH_OF_YEAR_0_TO_1970;
    let in_cycle = days % DAYS_IN_400_YEARS;
    let year_in_cycle =
        (in_cycle - in_cycle / 1460 + in_cycle / 36_524 - in_cycle / (DAYS_IN_400_YEARS - 1)) / 365;
    let in_year = in_cycle - (365 * year_in_cycle + year_in_cycle / 4 - year_in_cycle / 100);
    let months_since_march = (5 * in_year + 2) / 153;
    let day = in_year - (153 * months_since_march + 2) / 5 + 1;
    let month =
        if months_since_march < 10 { months_since_march + 3 } else { months_since_march - 9 };
    let year = days / DAYS_IN_400_YEARS * 400 + year_in_cycle;
    (if month <= 2 { year + 1 } else { year }, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fit_their_size() {
        for (ms, text) in [
            (0.0, "0.0 ms"),
            (999.94, "999.9 ms"),
            (12_400.0, "12.4 s"),
            (192_000.0, "3 min 12 s"),
            (3_720_000.0, "1 h 02 min"),
            (f64::MAX, "for ever"),
        ] {
            assert_eq!(time(ms), text);
        }
        assert_eq!(millis(45_200.04), "45200.0 ms");
    }

    #[test]
    fn predictions_are_one_value_or_two() {
        assert_eq!(range(Range { low: 20.0, high: 20.01 }, millis), "20.0 ms");
        assert_eq!(range(Range { low: 20.0, high: 1500.0 }, time), "20.0 ms to 1.5 s");
        assert_eq!(predicted_bytes(512.0), "512.0 B");
        assert_eq!(predicted_bytes(1_610_612_736.0), "1.5 GiB");
        assert_eq!(predicted_bytes(1e18), "888.2 PiB");
    }

    #[test]
    fn timestamps_know_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_767_486_870, "2026-01-04T00:34:30Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
