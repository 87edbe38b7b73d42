//! The summaries: `latest.json`, `latest.md`, and the table in the README.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use sterna_e2e::{Error, Result, repository};

use crate::cells::{Aim, CELLS, Contender, Metric, STERNA, Standing};
use crate::machine::Machine;
use crate::record::{Document, Results, Run, write_json, write_text};
use crate::statistics::{CellRuns, Spread};

const BEGIN: &str = "<!-- bench:begin -->";
const END: &str = "<!-- bench:end -->";

/// What the numbers mean; said once, below the tables.
const MEANING: &str = "\
Medians over the completed runs, with quartiles, and smallest to largest in brackets. The ratio is Sterna's \
median to the best of stock's modes that completed every run (rows in italics do not compete).

- Total: from the command until the source may be destroyed, with the start of the destination's QEMU on both sides. \
Sterna: the report's `total_ms`. Stock: from spawning the destination's QEMU until the source reports `completed`.
- Downtime: Sterna: the report's upper bound (as seen from outside: below). Stock: the source's STOP event to the destination's \
RESUME event, on one clock.
- Bytes: the interface's counters, both directions, headers included.
- Every run boots a fresh guest (262,136 KiB, 1 CPU); the contenders of a cell take turns.
";

/// Writes everything from the runs that exist.
///
/// # Errors
/// The disk, or a file that is no run.
pub(crate) fn write_all(results: &Results) -> Result<()> {
    let machine = Machine::here()?;
    let mut runs = Vec::new();
    let mut tables = String::new();
    let mut details = String::new();
    for cell in CELLS {
        let of_cell = results.load(cell.name)?;
        if of_cell.is_empty() {
            continue;
        }
        let cell_runs = CellRuns { cell, runs: &of_cell };
        tables += &cell_table(&cell_runs);
        details += &sterna_times(&cell_runs);
        runs.extend(of_cell);
    }
    let facts = machine_line(&machine, &runs);
    write_json(&results.summary("json"), &Document { machine: &machine, runs: &runs })?;
    let text = format!(
        "# Sterna beside stock QEMU\n\n{facts}\n{tables}\n{MEANING}\n## Where Sterna's time goes\n{details}"
    );
    write_text(&results.summary("md"), &text)?;
    println!("{text}");
    if results.are_for_quoting() {
        put_into_readme(&repository().join("README.md"), &format!("{facts}\n{tables}"))?;
    }
    Ok(())
}

fn machine_line(machine: &Machine, runs: &[Run]) -> String {
    let dates = runs.iter().map(|run| run.conditions.date.as_str());
    let (first, last) = (dates.clone().min().unwrap_or("-"), dates.max().unwrap_or("-"));
    let busiest = runs.iter().map(|run| run.conditions.busy_percent).fold(0.0, f64::max);
    let completed = runs.iter().filter(|run| run.has_completed()).count();
    let swept = runs.iter().filter(|run| run.measured.guest_swept).count();
    let damaged = runs.iter().filter(|run| run.was_damaged()).count();
    let Machine { cores, kernel, qemu, accelerator } = machine;
    format!(
        "{cores} cores, Linux {kernel}, QEMU {qemu}, `-accel {accelerator}`; measured {first} to {last}. \
         Before each run at most {busiest:.0} % of the cores were busy with something else. Machines like this are \
         small and noisy: read the ratios. After {swept} of {completed} completed moves the guest checked all pages of \
         its working set and found them right (after the others it only went on); {damaged} moves more left a damaged guest, \
         and do not count as completed.\n"
    )
}

/// A cell's table and its aims.
fn cell_table(runs: &CellRuns<'_>) -> String {
    let mut text = format!("\n### {}\n\n", runs.cell.title);
    text += "| | runs | total | of that, destination's start | downtime | on the wire |\n|---|---|---|---|---|---|\n";
    for contender in runs.cell.contenders {
        if runs.of(contender.name).next().is_some() {
            text += &row(runs, contender);
        }
    }
    text += &ratio_row(runs);
    text.push('\n');
    for aim in runs.cell.aims {
        text += &aim_line(runs, aim);
    }
    text
}

fn row(runs: &CellRuns<'_>, contender: &Contender) -> String {
    let all = runs.of(contender.name).count();
    let completed = runs.of(contender.name).filter(|run| run.has_completed()).count();
    let mark = if contender.standing == Standing::Extra { "*" } else { "" };
    let cells: Vec<String> = [Metric::TotalMs, Metric::DowntimeMs, Metric::Bytes]
        .map(|metric| {
            let spread = runs.spread(contender.name, metric);
            spread.map_or_else(|| not_completed(runs, contender, metric), |s| shown(s, metric))
        })
        .to_vec();
    let starts = runs.of(contender.name).filter_map(|run| run.measured.destination_start_ms);
    let start = Spread::of(starts.collect());
    let start = start.map_or_else(|| "-".to_owned(), |start| format!("{:.0} ms", start.median));
    let title = contender.title;
    format!(
        "| {mark}{title}{mark} | {completed} of {all} | {} | {start} | {} | {} |\n",
        cells[0], cells[1], cells[2]
    )
}

/// What a mode had reached when it was given up.
fn not_completed(runs: &CellRuns<'_>, contender: &Contender, metric: Metric) -> String {
    let values = runs.of(contender.name).filter_map(|run| run.value(metric)).collect();
    Spread::of(values).map_or_else(
        || "-".to_owned(),
        |reached| format!("not after {}", with_unit(reached.median, metric)),
    )
}

fn ratio_row(runs: &CellRuns<'_>) -> String {
    let ratio = |metric| {
        let best = runs.ratio(metric).zip(runs.best_stock(metric));
        best.map_or_else(
            || "-".to_owned(),
            |(ratio, (best, _))| format!("**{ratio:.2}** ({})", best.name),
        )
    };
    format!(
        "| Sterna / best of stock | | {} | | {} | {} |\n",
        ratio(Metric::TotalMs),
        ratio(Metric::DowntimeMs),
        ratio(Metric::Bytes)
    )
}

fn aim_line(runs: &CellRuns<'_>, aim: &Aim) -> String {
    let verdict = match runs.meets(aim) {
        Some(true) => "met",
        Some(false) => "MISSED",
        None => "not measured",
    };
    let found = |metric| {
        let spread = runs.spread(STERNA, metric);
        spread.map_or_else(|| "nothing".to_owned(), |spread| with_unit(spread.median, metric))
    };
    let (wanted, found) = match aim {
        Aim::AtMost(metric, limit) => {
            (format!("{} at most {}", name(*metric), with_unit(*limit, *metric)), found(*metric))
        }
        Aim::AtMostTimesBest(metric, factor) => {
            let ratio = runs.ratio(*metric);
            let ratio = ratio.map_or_else(|| "nothing".to_owned(), |ratio| format!("{ratio:.2}"));
            (format!("{} at most {factor} times stock's best", name(*metric)), ratio)
        }
        Aim::CompletesByPrecopy => {
            let completed = runs.of(STERNA).filter(|run| run.has_completed()).count();
            let all = runs.of(STERNA).count();
            ("completes by pre-copy".to_owned(), format!("{completed} of {all} runs completed"))
        }
    };
    format!("- Aim: {wanted}: **{verdict}** ({found}).\n")
}

/// The phases of Sterna's runs, medians in milliseconds.
fn sterna_times(runs: &CellRuns<'_>) -> String {
    let reports: Vec<_> = runs.of(STERNA).filter_map(|run| run.measured.report.as_ref()).collect();
    if reports.is_empty() {
        return String::new();
    }
    let mut text = format!("\n### {}\n\n| | median ms |\n|---|---|\n", runs.cell.title);
    let mut line = |title: &str, value: &dyn Fn(&sterna_api::Report) -> f64| {
        let spread = Spread::of(reports.iter().map(|report| value(report)).collect());
        let median = spread.map_or(0.0, |spread| spread.median);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {title} | {median:.1} |");
    };
    line("total", &|report| report.total_ms);
    line("prepare", &|report| report.phases_ms.prepare);
    line("– of that, the destination's QEMU", &|report| report.phases_ms.destination_qemu_start);
    line("copy", &|report| report.phases_ms.copy);
    line("switch-over", &|report| report.phases_ms.switchover);
    line("clean-up", &|report| report.phases_ms.cleanup);
    line("downtime", &|report| report.downtime_ms);
    line("– stop", &|report| report.downtime_parts_ms.stop);
    line("– drain", &|report| report.downtime_parts_ms.drain);
    line("– flush", &|report| report.downtime_parts_ms.flush);
    line("– load", &|report| report.downtime_parts_ms.load);
    line("– commit", &|report| report.downtime_parts_ms.commit);
    line("– resume", &|report| report.downtime_parts_ms.resume);
    let observed = runs.of(STERNA).filter_map(|run| run.measured.observed_downtime_ms).collect();
    if let Some(observed) = Spread::of(observed) {
        let _ = writeln!(text, "| downtime, STOP to RESUME event | {:.1} |", observed.median);
    }
    text
}

fn name(metric: Metric) -> &'static str {
    match metric {
        Metric::TotalMs => "median total",
        Metric::DowntimeMs => "median downtime",
        Metric::Bytes => "median bytes",
        Metric::AgentBytes => "anonymous memory of an agent",
    }
}

fn shown(spread: Spread, metric: Metric) -> String {
    let Spread { least, lower_quartile, median, upper_quartile, most } = spread;
    let plain = |value| with_unit(value, metric);
    let bare = |value| without_unit(value, metric);
    format!(
        "{} {}–{} [{}–{}]",
        plain(median),
        bare(lower_quartile),
        bare(upper_quartile),
        bare(least),
        bare(most)
    )
}

fn with_unit(value: f64, metric: Metric) -> String {
    let unit = match metric {
        Metric::TotalMs | Metric::DowntimeMs => "ms",
        Metric::Bytes => "MB",
        Metric::AgentBytes => "MiB",
    };
    format!("{} {unit}", without_unit(value, metric))
}

fn without_unit(value: f64, metric: Metric) -> String {
    match metric {
        Metric::TotalMs => format!("{value:.0}"),
        Metric::DowntimeMs => format!("{value:.1}"),
        Metric::Bytes => format!("{:.1}", value / 1e6),
        Metric::AgentBytes => format!("{:.1}", value / 1_048_576.0),
    }
}

/// Puts the tables between the marks of a README that has them.
fn put_into_readme(path: &Path, tables: &str) -> Result<()> {
    let Ok(readme) = fs::read_to_string(path) else { return Ok(()) };
    let Some(new) = between_marks(&readme, tables) else { return Ok(()) };
    fs::write(path, new).map_err(Error::io(format!("writing {}", path.display())))
}

/// None when a mark is missing.
fn between_marks(text: &str, tables: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{}\n{END}{after}", tables.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cells::Cell;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let readme = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let new = between_marks(&readme, "\n| new |\n").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}\n| new |\n{END}\nb\n"));
        assert_eq!(between_marks(&new, "| new |"), Some(new.clone()));
        assert_eq!(between_marks("no marks", "x"), None);
    }

    #[test]
    fn cells_and_contenders_have_names_of_their_own() {
        let names = |cell: &Cell| cell.contenders.iter().map(|who| who.name).collect::<Vec<_>>();
        for (number, cell) in CELLS.iter().enumerate() {
            assert!(CELLS[..number].iter().all(|other| other.name != cell.name), "{}", cell.name);
            let mut unique = names(cell);
            unique.sort_unstable();
            unique.dedup();
            assert_eq!(unique.len(), cell.contenders.len(), "{}", cell.name);
            assert!(names(cell).contains(&STERNA), "{}", cell.name);
        }
    }
}
