//! A cell's table: every contender, every figure, the ratios, the aims.

use super::format::{self, name, with_unit};
use crate::statistics::{CellRuns, Spread};
use crate::tables::{Aim, Contender, Metric, Standing};

/// A heading and its figure.
type Column = (&'static str, Metric);

/// The table of a cell, and its aims.
pub(super) fn table(runs: &CellRuns<'_>, columns: &[Column]) -> String {
    let mut text = format!("\n### {}\n\n| | runs |", runs.cell.title());
    for (title, _) in columns {
        text += &format!(" {title} |");
    }
    text += " destination's start | agent's memory |\n|---|---|";
    text += &"---|".repeat(columns.len() + 2);
    text.push('\n');
    for contender in runs.cell.contenders {
        if runs.of(contender.name).next().is_some() {
            text += &row(runs, contender, columns);
        }
    }
    text += &ratio_row(runs, columns);
    text.push('\n');
    for aim in runs.cell.aims {
        text += &aim_line(runs, aim);
    }
    text
}

fn row(runs: &CellRuns<'_>, contender: &Contender, columns: &[Column]) -> String {
    let all = runs.of(contender.name).count();
    let completed = runs.of(contender.name).filter(|run| run.has_completed()).count();
    let mark = if contender.standing == Standing::Extra { "*" } else { "" };
    let mut text = format!("| {mark}{}{mark} | {completed} of {all} |", contender.title);
    for (_, metric) in columns {
        let spread = runs.spread(contender.name, *metric);
        let shown = spread.map_or_else(
            || not_completed(runs, contender, *metric),
            |spread| format::spread(spread, *metric),
        );
        text += &format!(" {shown} |");
    }
    let starts = runs.of(contender.name).filter_map(|run| run.measured.destination_start_ms);
    let start = Spread::of(starts.collect());
    let start = start.map_or_else(|| "-".to_owned(), |start| format!("{:.0} ms", start.median));
    let memory = runs.spread(contender.name, Metric::AgentBytes);
    let memory =
        memory.map_or_else(|| "-".to_owned(), |peak| with_unit(peak.median, Metric::AgentBytes));
    text + &format!(" {start} | {memory} |\n")
}

/// What a mode had reached when it was given up.
fn not_completed(runs: &CellRuns<'_>, contender: &Contender, metric: Metric) -> String {
    let values = runs.of(contender.name).filter_map(|run| run.value(metric)).collect();
    let reached = Spread::of(values).filter(|_| matches!(metric, Metric::TotalMs | Metric::Bytes));
    reached.map_or_else(
        || "-".to_owned(),
        |reached| format!("not after {}", with_unit(reached.median, metric)),
    )
}

fn ratio_row(runs: &CellRuns<'_>, columns: &[Column]) -> String {
    let mut text = "| Sterna / best of stock | |".to_owned();
    for (_, metric) in columns {
        text += &format!(" {} |", ratio(runs, *metric));
    }
    text + " | |\n"
}

/// The ratio to the best, and whom that is.
pub(super) fn ratio(runs: &CellRuns<'_>, metric: Metric) -> String {
    // Stock has no agents and tells of no waits; who loses nothing has no ratio.
    if matches!(
        metric,
        Metric::AgentCpuS | Metric::LostWorkS | Metric::FaultMedianMs | Metric::FaultP99Ms
    ) {
        return String::new();
    }
    let best = runs.ratio(metric).zip(runs.best_stock(metric));
    best.map_or_else(
        || "-".to_owned(),
        |(ratio, (best, _))| format!("**{ratio:.2}** ({})", best.name),
    )
}

/// How many aims are met, and which are not.
pub(super) fn aims(cells: &[CellRuns<'_>]) -> String {
    let all = || cells.iter().flat_map(|runs| runs.cell.aims.iter().map(move |aim| (runs, aim)));
    let count = |verdict| all().filter(|(runs, aim)| runs.meets(aim) == verdict).count();
    let (met, missed, open) = (count(Some(true)), count(Some(false)), count(None));
    let mut text =
        format!("{met} aims are met, {missed} are missed, {open} were not measured.\n\n");
    for (runs, aim) in all().filter(|(runs, aim)| runs.meets(aim) == Some(false)) {
        text +=
            &format!("- {}. {}", runs.cell.title(), aim_line(runs, aim).trim_start_matches("- "));
    }
    text + "\n"
}

fn aim_line(runs: &CellRuns<'_>, aim: &Aim) -> String {
    let verdict = match runs.meets(aim) {
        Some(true) => "met",
        Some(false) => "MISSED",
        None => "not measured",
    };
    let nothing = || "nothing".to_owned();
    let factor_found =
        |ratio: Option<f64>| ratio.map_or_else(nothing, |ratio| format!("{ratio:.2}"));
    let (wanted, found) = match aim {
        Aim::AtMost(metric, limit) => {
            let spread = runs.subject(*metric);
            let found = spread.map_or_else(nothing, |spread| with_unit(spread.median, *metric));
            (format!("{} at most {}", name(*metric), with_unit(*limit, *metric)), found)
        }
        Aim::AtMostTimesBest(metric, factor) => {
            let wanted = format!("{} at most {factor} times stock's best", name(*metric));
            (wanted, factor_found(runs.ratio(*metric)))
        }
        Aim::AtMostTimes(metric, factor, contender) => {
            let wanted = format!("{} at most {factor} times {}", name(*metric), contender.title);
            (wanted, factor_found(runs.ratio_to(contender, *metric)))
        }
        Aim::Completes => ("completes".to_owned(), completed(runs)),
        Aim::CompletesByPrecopy => ("completes by pre-copy".to_owned(), completed(runs)),
    };
    format!("- Aim: {wanted}: **{verdict}** ({found}).\n")
}

/// How many of the subject's runs did.
fn completed(runs: &CellRuns<'_>) -> String {
    let subject = runs.cell.subject.name;
    let completed = runs.of(subject).filter(|run| run.has_completed()).count();
    format!("{completed} of {} runs completed", runs.of(subject).count())
}
