//! A run: what was measured, under which conditions, and of what.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sterna_api::{FaultLatency, Report};
use sterna_e2e::Error;

use crate::machine::Conditions;
use crate::pages;
use crate::tables::{Cell, Contender, Metric};
use crate::watch::followed::Followed;
use crate::watch::prober::Probed;
use crate::watch::processes::Usage;
use crate::watch::redis::RedisRecord;
use crate::watch::work::Recovery;

/// How a run ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ending {
    /// The guest runs at the destination, and has found every page of its working set as it should be.
    Completed,
    /// It was given up.
    NotInTime,
    /// Nothing is known.
    #[default]
    Unmeasured,
    /// It went wrong, in words.
    Failed(String),
}

/// What one move gave. Times in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// How it ended.
    pub(crate) ending: Ending,
    /// When the command was given: milliseconds since 1970.
    #[serde(default)]
    pub(crate) start_unix_ms: Option<f64>,
    /// From the command, with the start of the destination's QEMU, until the source may be destroyed.
    pub(crate) total_ms: Option<f64>,
    /// The source's STOP event to the destination's RESUME event, on one clock.
    pub(crate) downtime_ms: Option<f64>,
    /// What a client that talks to the guest every millisecond has seen, where there is one.
    pub(crate) probed: Option<Probed>,
    /// What the clients of redis have seen, where there are some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) redis: Option<RedisRecord>,
    /// Bytes from the source on the wire by the interface's counters: headers included.
    pub(crate) sent_bytes: Option<u64>,
    /// Bytes to the source.
    pub(crate) received_bytes: Option<u64>,
    /// Of the total: from spawning the destination's QEMU until it answered.
    pub(crate) destination_start_ms: Option<f64>,
    /// The whole command `sterna migrate`, as a shell sees it.
    pub(crate) command_ms: Option<f64>,
    /// What the guest did not do for the move, in seconds of its work before.
    pub(crate) lost_work_s: Option<f64>,
    /// How the guest was followed, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) followed: Option<Followed>,
    /// How the guest came back to its work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) recovery: Option<Recovery>,
    /// What agents and QEMUs used.
    pub(crate) usage: Option<Usage>,
    /// After the move the guest has found every page of its working set as it should be.
    pub(crate) guest_swept: bool,
    /// Sterna's report.
    pub(crate) report: Option<Report>,
    /// Stock's `query-migrate` at the end.
    pub(crate) stock_info: Option<Value>,
}

impl Measured {
    /// A run that went wrong.
    pub(crate) fn failed(error: &Error) -> Self {
        Self { ending: Ending::Failed(error.to_string()), ..Self::default() }
    }
}

/// A run with all that is needed to read it later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// The cell's name.
    pub(crate) cell: String,
    /// The contender's name.
    pub(crate) contender: String,
    /// Counted from 1.
    pub(crate) number: u32,
    /// What the tables said: a run of another definition is no run of this cell.
    pub(crate) definition: String,
    /// The commit that was measured.
    pub(crate) commit: String,
    /// What else the machine did.
    pub(crate) conditions: Conditions,
    /// What was measured.
    pub(crate) measured: Measured,
}

impl Run {
    /// What the tables say of a contender in a cell.
    pub(crate) fn definition(cell: &Cell, contender: &Contender) -> String {
        let Cell { load, link, qemu, .. } = cell;
        format!("{load:?} {link:?} {qemu:?} {:?}", contender.how)
    }

    /// Whether the guest runs at the destination.
    pub(crate) fn has_completed(&self) -> bool {
        self.measured.ending == Ending::Completed
    }

    /// Whether the guest itself said that something of it was lost.
    pub(crate) fn was_damaged(&self) -> bool {
        matches!(&self.measured.ending, Ending::Failed(words) if words.contains("the guest is damaged"))
    }

    /// A number of it, if it was measured.
    pub(crate) fn value(&self, metric: Metric) -> Option<f64> {
        let measured = &self.measured;
        let usage = measured.usage.as_ref();
        let followed = measured.followed.as_ref();
        let slowdown = followed.and_then(|followed| followed.slowdown);
        match metric {
            Metric::TotalMs => measured.total_ms,
            Metric::DowntimeMs => measured.downtime_ms,
            Metric::GapMs => {
                let probed = measured.probed.map(|probed| probed.longest_gap_ms);
                probed.or_else(|| measured.redis.as_ref().map(|redis| redis.longest_silence_ms))
            }
            Metric::Bytes => Some(float(measured.sent_bytes? + measured.received_bytes?)),
            Metric::LostWorkS => measured.lost_work_s,
            Metric::AgentCpuS => {
                usage.map(|usage| usage.agents.iter().map(|used| used.cpu_s).sum())
            }
            Metric::QemuCpuS => usage.map(|usage| usage.qemus.iter().map(|used| used.cpu_s).sum()),
            Metric::AgentBytes => measured.report.as_ref().map(|report| {
                let memory = report.memory;
                let (source, destination) =
                    (memory.agent_peak_anon_bytes_source, memory.agent_peak_anon_bytes_destination);
                float(source.max(destination))
            }),
            Metric::Pages => pages::sent(measured),
            Metric::SendsPerPage => {
                measured.report.as_ref().map(|report| f64::from(report.max_sends_per_page))
            }
            Metric::RequestPercent => pages::asked_for_percent(measured),
            Metric::FaultMedianMs => fault_ms(measured, |latency| latency.p50),
            Metric::FaultP99Ms => fault_ms(measured, |latency| latency.p99),
            Metric::RecoveryMs => measured.recovery.and_then(|recovery| recovery.recovered_ms),
            Metric::SwitchMs => {
                let switched = measured.report.as_ref().and_then(|report| report.switch_ms);
                switched.or(measured.total_ms)
            }
            Metric::BackgroundRate => followed.map(Followed::background_per_s),
            Metric::BackgroundPercent => followed.and_then(Followed::background_percent),
            Metric::SlowdownPercent => slowdown.map(|slowdown| slowdown.percent),
            Metric::SlowdownMostPercent => slowdown.map(|slowdown| slowdown.most_percent),
            Metric::HoldCpuPercent => followed.map(|followed| followed.hold_cpu_percent),
        }
    }

    /// One line for whoever watches.
    pub(crate) fn in_short(&self) -> String {
        let shown =
            |metric| self.value(metric).map_or_else(|| "-".to_owned(), |n| format!("{n:.1}"));
        format!(
            "{:?}, total {} ms, downtime {} ms, gap {} ms, {} bytes, lost {} s, CPU {} + {} s, busy before {:.1} %",
            self.measured.ending,
            shown(Metric::TotalMs),
            shown(Metric::DowntimeMs),
            shown(Metric::GapMs),
            shown(Metric::Bytes).trim_end_matches(".0"),
            shown(Metric::LostWorkS),
            shown(Metric::AgentCpuS),
            shown(Metric::QemuCpuS),
            self.conditions.busy_percent,
        )
    }
}

fn fault_ms(measured: &Measured, which: impl Fn(FaultLatency) -> u64) -> Option<f64> {
    let latency = measured.report.as_ref()?.fault_latency_us?;
    Some(float(which(latency)) / 1e3)
}

#[expect(clippy::cast_precision_loss, reason = "byte counts are far below 2^52")]
pub(crate) fn float(bytes: u64) -> f64 {
    bytes as f64
}
