//! Where Sterna's time goes, and what it costs beside stock.

use std::fmt::Write;

use sterna_api::Report;

use crate::record::Run;
use crate::statistics::{CellRuns, Spread};
use crate::tables::{Contender, How, Metric};

const PAGE_BYTES: f64 = 4096.0;
const GIB: f64 = 1_073_741_824.0;

/// A line of a table of times.
type Line = (&'static str, fn(&Report) -> f64);

const LINES: [Line; 12] = [
    ("total", |report| report.total_ms),
    ("prepare", |report| report.phases_ms.prepare),
    ("– of that, the destination's QEMU", |report| report.phases_ms.destination_qemu_start),
    ("copy", |report| report.phases_ms.copy),
    ("switch-over", |report| report.phases_ms.switchover),
    ("downtime, as reported", |report| report.downtime_ms),
    ("– stop", |report| report.downtime_parts_ms.stop),
    ("– drain", |report| report.downtime_parts_ms.drain),
    ("– flush", |report| report.downtime_parts_ms.flush),
    ("– load", |report| report.downtime_parts_ms.load),
    ("– commit", |report| report.downtime_parts_ms.commit),
    ("– resume", |report| report.downtime_parts_ms.resume),
];

/// The phases of all cells' Sterna runs, medians in milliseconds: a cell a line.
pub(super) fn table(cells: &[CellRuns<'_>]) -> String {
    let mut text = "\n| median ms |".to_owned();
    for (title, _) in LINES {
        text += &format!(" {title} |");
    }
    text += &format!("\n|---|{}\n", "---|".repeat(LINES.len()));
    for runs in cells {
        let reports: Vec<_> = runs
            .of(runs.cell.subject.name)
            .filter_map(|run| run.measured.report.as_ref())
            .collect();
        if reports.is_empty() {
            continue;
        }
        text += &format!("| {} |", runs.cell.title());
        for (_, value) in LINES {
            let spread = Spread::of(reports.iter().map(|report| value(report)).collect());
            // Writing to a string cannot fail.
            let _ = write!(text, " {:.1} |", spread.map_or(0.0, |spread| spread.median));
        }
        text.push('\n');
    }
    text
}

/// CPU seconds for a GiB of pages that are not zero, where the network is no limit.
pub(super) fn overhead(cells: &[CellRuns<'_>]) -> String {
    let mut text = "\nCPU seconds for each GiB of pages that were sent (those of zeros aside), where the network is no limit. \
         Stock's are its QEMUs'; Sterna's are its agents' and its QEMUs'. Under TCG the guest's own work is in all of them.\n\n\
         | | agents | QEMUs | together | GiB/s |\n|---|---|---|---|---|\n"
        .to_owned();
    for runs in cells.iter().filter(|runs| runs.cell.link.rate().is_none()) {
        for contender in runs.cell.contenders {
            text += &overhead_line(runs, contender);
        }
    }
    text
}

fn overhead_line(runs: &CellRuns<'_>, contender: &Contender) -> String {
    let completed: Vec<&Run> = runs.of(contender.name).filter(|run| run.has_completed()).collect();
    let median = |value: &dyn Fn(&Run, f64) -> Option<f64>| {
        let values = completed.iter().filter_map(|run| value(run, sent_gib(run, contender)?));
        Spread::of(values.collect()).map(|spread| spread.median)
    };
    let agents = median(&|run, gib| Some(run.value(Metric::AgentCpuS)? / gib));
    let qemus = median(&|run, gib| Some(run.value(Metric::QemuCpuS)? / gib));
    let rate = median(&|run, gib| Some(gib / (run.value(Metric::TotalMs)? / 1e3)));
    let (Some(agents), Some(qemus), Some(rate)) = (agents, qemus, rate) else {
        return String::new();
    };
    let (cell, who) = (runs.cell.load.title, contender.title);
    format!(
        "| {cell}: {who} | {agents:.2} s | {qemus:.2} s | {:.2} s | {rate:.2} |\n",
        agents + qemus
    )
}

/// Pages that were not zero, each time they were sent.
#[expect(clippy::cast_precision_loss, reason = "page counts are far below 2^52")]
fn sent_gib(run: &Run, contender: &Contender) -> Option<f64> {
    let pages = match contender.how {
        How::Sterna { .. } | How::Follow { .. } => {
            let pages = run.measured.report.as_ref()?.pages;
            pages.total.saturating_sub(pages.zero) as f64
        }
        How::Stock(_) => run.measured.stock_info.as_ref()?.pointer("/ram/normal")?.as_f64()?,
    };
    (pages > 0.0).then_some(pages * PAGE_BYTES / GIB)
}
