//! The summaries: `latest.json`, `latest.md`, plots, and what the README shows of them.

mod cell;
mod format;
mod overview;
mod plot;
mod times;

use std::fs;
use std::path::Path;

use sterna_e2e::{Error, Result, repository};

use crate::machine::Machine;
use crate::record::Run;
use crate::results::{Document, Results, write_json, write_text};
use crate::statistics::CellRuns;
use crate::tables::{MOVES, Suite};

const BEGIN: &str = "<!-- bench:begin -->";
const END: &str = "<!-- bench:end -->";

/// The plot, as the README shows it.
const PLOT: &str = "![Sterna's total time, downtime and bytes by those of stock's best mode](bench/results/latest.svg)";

/// What the numbers mean; said once, below the tables.
const MEANING: &str = "\
Medians over the completed runs, with quartiles, and smallest to largest in brackets. The ratio is Sterna's \
median to the best of stock's modes that completed every run (rows in italics do not compete).

- Total: from the command until the source may be destroyed, with the start of the destination's QEMU on both sides. \
Sterna: the report's `total_ms`. Stock: from spawning the destination's QEMU until the source reports `completed`.
- Downtime: the source's STOP event to the destination's RESUME event, on one clock, for both. What Sterna itself \
reports, an upper bound, is below.
- Gap: the longest silence that a client outside sees which asks the guest for an echo (UDP) every millisecond. The client is a \
load of its own: guests that are to be idle have none.
- Wire: the interface's counters, both directions, headers included.
- CPU: user and system time of both agents, and of both QEMUs; under TCG the guest's own work is in the second, and a guest \
runs longer where the move takes longer.
- Lost work: what the guest did not do from the command until two seconds after the move, in seconds of its work before.
- Agent's memory: anonymous memory of the larger agent at its peak.
- Every run boots a fresh guest with 1 CPU; the contenders of a cell take turns. After a move the guest looks at all its \
pages: a run with a page lost or stale does not count as completed. A stock mode that does not converge in its time is \
tried once.
";

/// Writes everything from the runs that exist.
///
/// # Errors
/// The disk, or a file that is no run.
pub(crate) fn write_all(suite: &'static Suite, results: &Results) -> Result<()> {
    let machine = Machine::here()?;
    let mut loaded = Vec::new();
    for cell in suite.cells {
        loaded.push((cell, results.load(cell)?));
    }
    let cells: Vec<CellRuns<'_>> = (loaded.iter())
        .filter(|(_, runs)| !runs.is_empty())
        .map(|(cell, runs)| CellRuns { cell, runs })
        .collect();
    let runs: Vec<&Run> = cells.iter().flat_map(|cell| cell.runs).collect();
    let facts = machine_line(&machine, &runs);
    let overview = overview::table(&cells, suite.overview);
    let tables: String = cells.iter().map(|cell| cell::table(cell, suite.columns)).collect();
    write_json(&results.summary("json"), &Document { machine: &machine, runs: &runs })?;
    let (title, meaning) = (suite.title, suite.meaning);
    let (aims, details) = if *suite == MOVES {
        (String::new(), details(&cells))
    } else {
        (cell::aims(&cells), String::new())
    };
    let text =
        format!("# {title}\n\n{facts}\n{overview}\n{aims}{MEANING}{meaning}{tables}{details}");
    write_text(&results.summary("md"), &text)?;
    if *suite == MOVES {
        plot::ratios(&cells, &results.summary("svg"))?;
        plot::clients(&cells, &results.summary("redis.svg"))?;
    }
    println!("{text}");
    if results.are_for_quoting() {
        put_into_readme(&repository().join("README.md"), &format!("{facts}\n{overview}\n{PLOT}"))?;
    }
    Ok(())
}

/// What a move costs, and where its time goes.
fn details(cells: &[CellRuns<'_>]) -> String {
    let (overhead, details) = (times::overhead(cells), times::table(cells));
    format!("\n## What it costs\n{overhead}\n## Where Sterna's time goes\n{details}")
}

fn machine_line(machine: &Machine, runs: &[&Run]) -> String {
    let dates = runs.iter().map(|run| run.conditions.date.as_str());
    let (first, last) = (dates.clone().min().unwrap_or("-"), dates.max().unwrap_or("-"));
    let busiest = runs.iter().map(|run| run.conditions.busy_percent).fold(0.0, f64::max);
    let completed = runs.iter().filter(|run| run.has_completed()).count();
    let damaged = runs.iter().filter(|run| run.was_damaged()).count();
    let Machine { cores, kernel, qemu, accelerator } = machine;
    format!(
        "{cores} cores, Linux {kernel}, QEMU {qemu}, `-accel {accelerator}`; measured {first} to {last}. \
         Before each run at most {busiest:.0} % of the cores were busy with something else. Machines like this are \
         small and noisy: read the ratios. {completed} of {} moves completed, and the guest found all its pages right; \
         {damaged} left a damaged guest.\n",
        runs.len()
    )
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
    use crate::tables::{Cell, SUITES};

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
        for suite in SUITES {
            for (number, cell) in suite.cells.iter().enumerate() {
                let name = cell.name();
                assert!(suite.cells[..number].iter().all(|other| other.name() != name), "{name}");
                let all = names(cell);
                let mut unique = all.clone();
                unique.sort_unstable();
                unique.dedup();
                assert_eq!(unique.len(), all.len(), "{name}");
                assert!(all.contains(&cell.subject.name), "{name}");
                assert!(cell.quick.iter().all(|who| all.contains(&who.name)), "{name}");
            }
        }
    }
}
