//! Sterna beside stock QEMU over a shaped link: the same guest, the same wire, in turn.
//!
//! ```text
//! cells (what is measured) --> one run each: sterna | stock --> results/runs/*.json
//!                                                                       |
//!                             results/latest.json, latest.md, README <--+-- summary, aims
//! ```
//!
//! A new load, link or baseline is one entry in a table of [`cells`]. The runs of a cell are
//! interleaved: whatever else the machine does meets all contenders alike. Needs root.

mod cells;
mod events;
mod interrupt;
mod machine;
mod record;
mod render;
mod statistics;
mod sterna;
mod stock;

use std::time::Duration;

use clap::Parser;
use sterna_e2e::{Error, Result, can_run_here};

use cells::{CELLS, Cell, Contender, How};
use record::{Results, Run};

/// Sterna beside stock QEMU, over two network namespaces joined by a shaped wire.
#[derive(Parser)]
struct Options {
    /// One run each and short time limits: to see that it works, not to quote
    #[arg(long)]
    quick: bool,
    /// Only cells and contenders with this in their name (`cell`, or `cell/contender`)
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Runs of each contender, instead of what the cell says
    #[arg(long, value_name = "N")]
    runs: Option<u32>,
    /// Print what would be measured
    #[arg(long)]
    list: bool,
    /// Only write the summaries again, from the runs that exist
    #[arg(long)]
    summary: bool,
    /// Remove what an interrupted benchmark has left
    #[arg(long, hide = true)]
    clean_up: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if options.clean_up {
        return interrupt::clean_up();
    }
    if options.list {
        plan(&options).iter().for_each(|(cell, contender)| println!("{}", title(cell, contender)));
        return Ok(());
    }
    let results = Results::at(options.quick);
    if !options.summary {
        if !can_run_here()? {
            return Err(Error::Unavailable("see above".to_owned()));
        }
        interrupt::watch()?;
        measure(&options, &results)?;
    }
    render::write_all(&results)
}

/// What is to be measured, in order.
fn plan(options: &Options) -> Vec<(&'static Cell, &'static Contender)> {
    let wanted = options.only.as_deref().unwrap_or_default();
    let all = CELLS.iter().flat_map(|cell| cell.contenders.iter().map(move |who| (cell, who)));
    all.filter(|(cell, contender)| title(cell, contender).contains(wanted)).collect()
}

fn title(cell: &Cell, contender: &Contender) -> String {
    format!("{}/{}", cell.name, contender.name)
}

fn measure(options: &Options, results: &Results) -> Result<()> {
    let plan = plan(options);
    for (cell, contender) in &plan {
        results.forget(cell.name, contender.name)?;
    }
    for cell in CELLS {
        let contenders: Vec<_> = plan.iter().filter(|(of, _)| of.name == cell.name).collect();
        let runs = if options.quick { 1 } else { options.runs.unwrap_or(cell.runs) };
        for number in 1..=runs {
            for (_, contender) in &contenders {
                if number <= contender.most_runs {
                    let run = one_run(options, cell, contender, number)?;
                    println!("{} {number}: {}", title(cell, contender), run.in_short());
                    results.save(&run)?;
                }
            }
        }
    }
    Ok(())
}

/// One move of a fresh guest. What fails is a result too; only an interrupt ends the benchmark.
fn one_run(options: &Options, cell: &Cell, who: &Contender, number: u32) -> Result<Run> {
    let patience = if options.quick { Duration::ZERO } else { machine::QUIET_PATIENCE };
    let conditions = machine::wait_until_quiet(patience)?;
    let measured = match &who.how {
        How::Sterna { options } => sterna::run(cell, options),
        How::Stock(mode) => {
            let limit = if options.quick { mode.limit.min(QUICK_LIMIT) } else { mode.limit };
            stock::run(cell, mode, limit)
        }
    };
    let outcome = measured.unwrap_or_else(|error| record::Measured::failed(&error));
    Ok(Run::new(cell, who, number, conditions, outcome))
}

/// How long a stock mode may try in a quick benchmark.
const QUICK_LIMIT: Duration = Duration::from_secs(30);
