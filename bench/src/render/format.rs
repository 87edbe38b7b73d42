//! How numbers are written.

use crate::statistics::Spread;
use crate::tables::Metric;

/// A metric in words.
pub(super) const fn name(metric: Metric) -> &'static str {
    match metric {
        Metric::TotalMs => "median total",
        Metric::DowntimeMs => "median downtime",
        Metric::GapMs => "median gap",
        Metric::Bytes => "median bytes",
        Metric::LostWorkS => "median lost work",
        Metric::AgentCpuS => "median CPU time of the agents",
        Metric::QemuCpuS => "median CPU time of the QEMUs",
        Metric::AgentBytes => "anonymous memory of an agent",
        Metric::Pages => "median of the pages sent",
        Metric::SendsPerPage => "a page is sent",
        Metric::RequestPercent => "pages asked for, of those lacking",
        Metric::FaultMedianMs => "wait for a page, median",
        Metric::FaultP99Ms => "wait for a page, 99th percentile",
        Metric::RecoveryMs => "median time to the old pace",
        Metric::SwitchMs => "median from asking until it runs there",
        Metric::BackgroundRate => "median background",
        Metric::BackgroundPercent => "background by all that was dirtied",
        Metric::SlowdownPercent => "median slowdown",
        Metric::SlowdownMostPercent => "upper end of the slowdown's interval",
        Metric::HoldCpuPercent => "share of a processor to hold it",
    }
}

/// The median, the quartiles, the extremes.
pub(super) fn spread(spread: Spread, metric: Metric) -> String {
    let Spread { least, lower_quartile, median, upper_quartile, most } = spread;
    let bare = |value| without_unit(value, metric);
    format!(
        "{} {}–{} [{}–{}]",
        with_unit(median, metric),
        bare(lower_quartile),
        bare(upper_quartile),
        bare(least),
        bare(most)
    )
}

/// A number with its unit.
pub(super) fn with_unit(value: f64, metric: Metric) -> String {
    let unit = match metric {
        Metric::TotalMs
        | Metric::DowntimeMs
        | Metric::GapMs
        | Metric::FaultMedianMs
        | Metric::FaultP99Ms
        | Metric::RecoveryMs
        | Metric::SwitchMs => "ms",
        Metric::Pages => "pages",
        Metric::SendsPerPage => "times",
        Metric::RequestPercent
        | Metric::BackgroundPercent
        | Metric::SlowdownPercent
        | Metric::SlowdownMostPercent
        | Metric::HoldCpuPercent => "%",
        Metric::BackgroundRate => "kB/s",
        Metric::Bytes => "MB",
        Metric::LostWorkS | Metric::AgentCpuS | Metric::QemuCpuS => "s",
        Metric::AgentBytes => "MiB",
    };
    format!("{} {unit}", without_unit(value, metric))
}

/// A number in its unit.
pub(super) fn without_unit(value: f64, metric: Metric) -> String {
    match metric {
        Metric::TotalMs
        | Metric::GapMs
        | Metric::RecoveryMs
        | Metric::SwitchMs
        | Metric::Pages
        | Metric::SendsPerPage => format!("{value:.0}"),
        Metric::DowntimeMs
        | Metric::FaultMedianMs
        | Metric::FaultP99Ms
        | Metric::RequestPercent
        | Metric::BackgroundPercent
        | Metric::SlowdownPercent
        | Metric::SlowdownMostPercent
        | Metric::HoldCpuPercent => format!("{value:.1}"),
        Metric::BackgroundRate => format!("{:.1}", value / 1e3),
        Metric::LostWorkS | Metric::AgentCpuS | Metric::QemuCpuS => format!("{value:.2}"),
        Metric::Bytes => format!("{:.1}", value / 1e6),
        Metric::AgentBytes => format!("{:.1}", value / 1_048_576.0),
    }
}
