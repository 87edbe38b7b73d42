//! Where a job is, in one line.

use sterna_api::Progress;
use sterna_model::{ByteCount, Rate};

use super::units::time;

/// A line for a log: `copying, round 2: 45.1 %, RAM 1.2 GiB of 2.0 GiB, ...`.
#[must_use]
pub(crate) fn progress_line(progress: &Progress, percent: f64) -> String {
    let round = match progress.round {
        0 => String::new(),
        round => format!(", round {round}"),
    };
    let rest = match progress.remaining_bytes {
        0 => String::new(),
        bytes => format!(", {} left", ByteCount(bytes)),
    };
    format!(
        "{}{round}: {percent:.1} %{}{rest}, {} sent, {}",
        progress.phase,
        memory(progress, ", RAM "),
        ByteCount(progress.wire_bytes),
        speed(progress),
    )
}

/// What stands beside a bar, the most important first: a narrow terminal cuts it off.
#[must_use]
pub(crate) fn bar_message(progress: &Progress, percent: f64) -> String {
    let round = match progress.round {
        0 => String::new(),
        round => format!(" {round}"),
    };
    format!(
        "{percent:.1} %, {}, {}{round}{}",
        speed(progress),
        progress.phase,
        memory(progress, ", "),
    )
}

/// How much of the memory the destination has had; nothing before its size is known.
fn memory(progress: &Progress, label: &str) -> String {
    match progress.memory_total_bytes {
        0 => String::new(),
        total => {
            format!("{label}{} of {}", ByteCount(progress.memory_done_bytes), ByteCount(total))
        }
    }
}

fn speed(progress: &Progress) -> String {
    let rate = |bytes_per_second| Rate { bytes_per_second };
    let eta = match progress.eta_ms {
        Some(0..1000) => "ETA under 1 s".to_owned(),
        // Milliseconds of a job fit a double exactly.
        Some(ms) => format!("ETA {}", time(ms as f64)),
        None => "no ETA yet".to_owned(),
    };
    format!(
        "{eta}, {}, dirty {}",
        rate(progress.rate_bytes_per_second),
        rate(progress.dirty_bytes_per_second)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress() -> Progress {
        Progress {
            job: "j1".parse().unwrap(),
            phase: "copying".to_owned(),
            elapsed_ms: 12_000,
            round: 2,
            percent: 45.12,
            memory_done_bytes: 1_288_490_189,
            memory_total_bytes: 2 << 30,
            remaining_bytes: 300 << 20,
            wire_bytes: 312 << 20,
            rate_bytes_per_second: 112 << 20,
            dirty_bytes_per_second: 3 << 20,
            eta_ms: Some(12_400),
        }
    }

    #[test]
    fn a_line_tells_everything() {
        assert_eq!(
            progress_line(&progress(), 45.12),
            "copying, round 2: 45.1 %, RAM 1.2 GiB of 2.0 GiB, 300.0 MiB left, 312.0 MiB sent, \
             ETA 12.4 s, 112.0 MiB/s, dirty 3.0 MiB/s"
        );
    }

    #[test]
    fn what_is_beside_a_bar_begins_with_what_matters() {
        assert_eq!(
            bar_message(&progress(), 45.12),
            "45.1 %, ETA 12.4 s, 112.0 MiB/s, dirty 3.0 MiB/s, copying 2, 1.2 GiB of 2.0 GiB"
        );
    }

    #[test]
    fn what_is_not_known_is_not_told() {
        let progress = Progress {
            phase: "preparing".to_owned(),
            round: 0,
            memory_total_bytes: 0,
            remaining_bytes: 0,
            eta_ms: None,
            ..progress()
        };
        assert_eq!(
            bar_message(&progress, 0.0),
            "0.0 %, no ETA yet, 112.0 MiB/s, dirty 3.0 MiB/s, preparing"
        );
        assert_eq!(
            progress_line(&progress, 0.0),
            "preparing: 0.0 %, 312.0 MiB sent, no ETA yet, 112.0 MiB/s, dirty 3.0 MiB/s"
        );
    }
}
