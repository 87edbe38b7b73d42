//! Sterna beside stock QEMU over a shaped link: the same guest, the same wire, in turn.
//!
//! ```text
//! tables (what is measured) --> one run each: sterna | stock --> results/runs/*.json
//!                                  under the same watch                   |
//!                    results/latest.json, latest.md, *.svg, README <------+-- summary, aims, plots
//! ```
//!
//! A new load, link or baseline is one entry in a table of [`tables`]. The runs of a cell are
//! interleaved: whatever else the machine does meets all contenders alike. What was measured before is
//! not measured again: an interrupted benchmark goes on where it was. Needs root.

mod follow;
mod interrupt;
mod machine;
mod pages;
mod record;
mod render;
mod results;
mod stage;
mod statistics;
mod sterna;
mod stock;
mod tables;
mod watch;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use sterna_e2e::{Error, Result, can_run_here};

use record::{Ending, Measured, Run};
use results::Results;
use tables::{Cell, Contender, How, MOVES, SUITES, Suite};

/// Sterna beside stock QEMU, over two network namespaces joined by a shaped wire.
#[derive(Parser)]
struct Options {
    /// What to measure: moves, three-stage or follow
    #[arg(long, value_name = "NAME", default_value = MOVES.name, value_parser = suite_named)]
    suite: &'static Suite,
    /// A few cells, one run each: to see that it works, not to quote
    #[arg(long)]
    quick: bool,
    /// Only cells and contenders with this in their name (`cell`, or `cell/contender`)
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Runs of each contender, instead of what the cell says
    #[arg(long, value_name = "N")]
    runs: Option<u32>,
    /// Measure again what was measured before
    #[arg(long)]
    again: bool,
    /// Begin no run after so many minutes; the next benchmark goes on there
    #[arg(long, value_name = "MINUTES", default_value_t = 150)]
    minutes: u64,
    /// Hold this file's lock in each run: whoever else takes it (a build: `flock FILE cargo …`) keeps out of the way
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// Print what would be measured
    #[arg(long)]
    list: bool,
    /// Only write the summaries again, from the runs that exist
    #[arg(long)]
    summary: bool,
    /// Remove what an interrupted benchmark has left
    #[arg(long, hide = true)]
    clean_up: bool,
    /// Be the client that probes a guest
    #[arg(long, hide = true)]
    probe: bool,
    /// Be the clients of a guest's redis: address, connections, keys
    #[arg(long, hide = true, num_args = 3)]
    redis_client: Vec<String>,
}

/// A contender in a cell.
type Row = (&'static Cell, &'static Contender);

fn main() -> Result<()> {
    let options = Options::parse();
    if options.clean_up {
        return interrupt::clean_up();
    }
    if options.probe {
        return watch::prober::probe();
    }
    if !options.redis_client.is_empty() {
        return watch::redis::run(&options.redis_client);
    }
    if options.list {
        let mut out = std::io::stdout().lock();
        // Whoever reads may have enough.
        let _ = plan(&options).iter().try_for_each(|row| writeln!(out, "{}", title(*row)));
        return Ok(());
    }
    let results = Results::at(options.suite, options.quick);
    if !options.summary {
        if !can_run_here()? {
            return Err(Error::Unavailable("see above".to_owned()));
        }
        interrupt::watch()?;
        measure(&options, &results)?;
    }
    render::write_all(options.suite, &results)
}

fn suite_named(name: &str) -> std::result::Result<&'static Suite, String> {
    let names = || SUITES.map(|suite| suite.name).join(" or ");
    SUITES
        .into_iter()
        .find(|suite| suite.name == name)
        .ok_or_else(|| format!("expected {}", names()))
}

/// What is to be measured, in order.
fn plan(options: &Options) -> Vec<Row> {
    let wanted = options.only.as_deref().unwrap_or_default();
    let contenders = |cell: &'static Cell| if options.quick { cell.quick } else { cell.contenders };
    let all = options
        .suite
        .cells
        .iter()
        .flat_map(|cell| contenders(cell).iter().map(move |who| (cell, *who)));
    all.filter(|row| title(*row).contains(wanted)).collect()
}

fn title((cell, contender): Row) -> String {
    format!("{}/{}", cell.name(), contender.name)
}

fn measure(options: &Options, results: &Results) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60 * options.minutes);
    let plan = plan(options);
    if options.again || options.quick {
        for (cell, contender) in &plan {
            results.forget(&cell.name(), contender.name)?;
        }
    }
    for cell in options.suite.cells {
        let rows: Vec<Row> =
            plan.iter().copied().filter(|(of, _)| std::ptr::eq(*of, cell)).collect();
        let runs = if options.quick { 1 } else { options.runs.unwrap_or(cell.runs) };
        for number in 1..=runs {
            for row in &rows {
                if is_to_be_run(results, *row, number)? {
                    if Instant::now() >= deadline {
                        println!("the time is over; the next benchmark goes on at {}", title(*row));
                        return Ok(());
                    }
                    let run = one_run(options, *row, number)?;
                    println!("{} {number}: {}", title(*row), run.in_short());
                    results.save(&run)?;
                }
            }
        }
    }
    Ok(())
}

/// Not what was measured before by the same definition, nor what did not converge: it is not going to.
fn is_to_be_run(results: &Results, (cell, contender): Row, number: u32) -> Result<bool> {
    let definition = Run::definition(cell, contender);
    let made = |number| {
        let found = results.find(&cell.name(), contender.name, number)?;
        Ok(found.filter(|run| run.definition == definition))
    };
    let has_diverged = made(1)?.is_some_and(|run| run.measured.ending == Ending::NotInTime);
    Ok(!has_diverged && made(number)?.is_none())
}

/// One move of a fresh guest. What fails is a result too; only an interrupt ends the benchmark.
fn one_run(options: &Options, (cell, contender): Row, number: u32) -> Result<Run> {
    let _turn = options.lock.as_deref().map(machine::take_turn).transpose()?;
    let patience = if options.quick { Duration::ZERO } else { machine::QUIET_PATIENCE };
    let conditions = machine::wait_until_quiet(patience)?;
    let measured = match &contender.how {
        How::Sterna { options } => sterna::run(cell, options),
        How::Follow { without } => follow::run(cell, without),
        How::Stock(mode) => stock::run(cell, mode, cell.link.patience),
    };
    Ok(Run {
        cell: cell.name(),
        contender: contender.name.to_owned(),
        number,
        definition: Run::definition(cell, contender),
        commit: machine::commit()?,
        conditions,
        measured: measured.unwrap_or_else(|error| Measured::failed(&error)),
    })
}
