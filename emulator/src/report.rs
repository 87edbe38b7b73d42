//! What a run has counted, as it is printed: one line of JSON.

use std::time::Duration;

use serde::Serialize;

use crate::direction::Counters;

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// How long it took.
    pub elapsed_seconds: f64,
    /// What it has cost: time of one core, in the program and in the kernel on its behalf. The latter
    /// includes what the receivers' kernel does with a packet until it waits for its program.
    pub cpu_seconds: f64,
    /// From the first namespace to the second, and back.
    pub directions: [DirectionReport; 2],
}

/// One direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct DirectionReport {
    /// What has become of the packets.
    #[serde(flatten)]
    pub counters: Counters,
    /// Of those forwarded, how many the far device did not take, as when it was down.
    pub refused_packets: u64,
    /// Packets that were still under way at the end.
    pub under_way_packets: u64,
    /// By how much packets came later than they should, on average.
    pub late_mean_micros: f64,
    /// By how much at most.
    pub late_max_micros: f64,
}

/// How late packets were.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lateness {
    packets: u32,
    sum: Duration,
    max: Duration,
}

impl Lateness {
    pub(crate) fn add(&mut self, late: Duration) {
        self.packets = self.packets.saturating_add(1);
        self.sum = self.sum.saturating_add(late);
        self.max = self.max.max(late);
    }

    pub(crate) fn mean_micros(&self) -> f64 {
        self.sum.as_secs_f64() * 1e6 / f64::from(self.packets.max(1))
    }

    pub(crate) fn max_micros(&self) -> f64 {
        self.max.as_secs_f64() * 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_flat_line_for_each_direction() {
        let mut lateness = Lateness::default();
        for micros in [10, 30] {
            lateness.add(Duration::from_micros(micros));
        }
        let direction = DirectionReport {
            counters: Counters { lost_packets: 3, ..Counters::default() },
            late_mean_micros: lateness.mean_micros(),
            late_max_micros: lateness.max_micros(),
            ..DirectionReport::default()
        };
        let directions = [direction, DirectionReport::default()];
        let report = Report { elapsed_seconds: 2.0, cpu_seconds: 0.5, directions };
        let text = serde_json::to_string(&report).unwrap();
        assert!(!text.contains('\n'));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["directions"][0]["lost_packets"], 3);
        assert_eq!(value["directions"][0]["late_max_micros"], 30.0);
        assert_eq!(value["directions"][0]["late_mean_micros"], 20.0);
        assert_eq!(value["directions"][1]["late_mean_micros"], 0.0);
    }
}
