//! `sterna-fuzz`: runs targets, replays inputs that failed.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use sterna_fuzz::catch::examine;
use sterna_fuzz::corpus::{self, CorpusError};
use sterna_fuzz::engine::{Budget, Places, fuzz};
use sterna_fuzz::{Target, targets};

/// Feeds whatever comes from outside with what nobody honest sends.
#[derive(Debug, Parser)]
#[command(name = "sterna-fuzz")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists the targets
    List,
    /// Fuzzes one target, or all one after the other
    Run {
        /// The target, or `all`
        target: String,
        /// The seed that decides all inputs
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Seconds for each target
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// Inputs for each target, at most
        #[arg(long, default_value_t = u64::MAX)]
        inputs: u64,
        /// Write each input to this file before it is fed
        #[arg(long)]
        trail: Option<PathBuf>,
        /// Print what came of the inputs
        #[arg(long)]
        signatures: bool,
    },
    /// Feeds one input and tells what comes of it
    Replay {
        /// The target
        target: String,
        /// The input
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::List => {
            targets::ALL.iter().for_each(|target| println!("{:11} {}", target.name, target.about));
            Ok(ExitCode::SUCCESS)
        }
        Command::Run { target, seed, seconds, inputs, trail, signatures } => {
            let budget = Budget { inputs, time: Duration::from_secs(seconds), failures: 5 };
            chosen(&target).and_then(|chosen| {
                let run = |target| run(target, seed, budget, trail.as_deref(), signatures);
                let codes = chosen.into_iter().map(run).collect::<Result<Vec<_>, _>>();
                Ok(if codes?.into_iter().all(|good| good) {
                    ExitCode::SUCCESS
                } else {
                    ExitCode::FAILURE
                })
            })
        }
        Command::Replay { target, file } => {
            chosen(&target).and_then(|chosen| Ok(replay(chosen, &corpus::read(&file)?)))
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("sterna-fuzz: {error}");
        ExitCode::from(2)
    })
}

/// Why nothing was run.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("expected a target (`sterna-fuzz list` tells them) or `all`, found {0:?}")]
    Target(String),
    #[error(transparent)]
    Corpus(#[from] CorpusError),
}

fn chosen(name: &str) -> Result<Vec<&'static Target>, Error> {
    let chosen: Vec<&Target> =
        targets::ALL.iter().filter(|target| name == "all" || target.name == name).collect();
    if chosen.is_empty() { Err(Error::Target(name.into())) } else { Ok(chosen) }
}

/// Whether nothing failed.
fn run(
    target: &Target,
    seed: u64,
    budget: Budget,
    trail: Option<&Path>,
    signatures: bool,
) -> Result<bool, Error> {
    let failures = corpus::home().join("failures");
    let places = Places { failures: Some(&failures), trail };
    let tally = fuzz(target, seed, corpus::load(target)?, budget, places)?;
    let (inputs, took) = (tally.inputs, tally.took.as_secs_f64());
    println!(
        "{:11} {inputs} inputs in {took:.1} s, {} accepted, {} signatures, longest {:?}, {} failures",
        target.name,
        tally.accepted,
        tally.signatures.len(),
        tally.longest,
        tally.failures.len()
    );
    if signatures {
        tally.signatures.iter().for_each(|signature| println!("  {signature}"));
    }
    for failure in &tally.failures {
        println!("FAILURE {failure}\n  {}", failure.replay(target));
    }
    Ok(tally.failures.is_empty())
}

fn replay(targets: Vec<&Target>, input: &[u8]) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for target in targets {
        match examine(target, input, None) {
            Ok(outcome) => println!("{}: {outcome:?}", target.name),
            Err(complaint) => {
                println!("{}: FAILURE {complaint}", target.name);
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}
