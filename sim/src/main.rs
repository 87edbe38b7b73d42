//! `sterna-sim`: runs seeds, prints what failed and how to replay it.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use sterna_sim::campaign::{Tally, first_failure};
use sterna_sim::faults::Scenario;
use sterna_sim::oracle::Oracle;
use sterna_sim::plant::Plant;
use sterna_sim::run::{Options, run};
use sterna_sim::shrink::shrink;
use sterna_sim::trace::Recording;

/// Runs simulated moves from seeds, and tells which break a law.
#[derive(Debug, Parser)]
#[command(name = "sterna-sim")]
struct Arguments {
    /// Run this seed, and print what happens
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Run these seeds: FROM..TO
    #[arg(long, value_parser = parse_range, default_value = "0..10000")]
    seeds: (u64, u64),
    /// Keep only these of the seed's faults, by their place: 0,2
    #[arg(long, value_delimiter = ',', requires = "seed")]
    keep: Option<Vec<String>>,
    /// Make this mistake
    #[arg(long)]
    plant: Option<Plant>,
    /// Let only this oracle complain
    #[arg(long)]
    only: Option<Oracle>,
    /// Leave out what the failure of the seed does not need
    #[arg(long, requires = "seed")]
    shrink: bool,
    /// Go on until so many seeds have failed
    #[arg(long, default_value_t = 1)]
    failures: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let failed = match arguments.seed {
        Some(seed) => one(seed, &arguments),
        None => many(&arguments),
    };
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn options(arguments: &Arguments, recording: Recording) -> Options {
    Options { plant: arguments.plant, recording, only: arguments.only }
}

/// One seed, told in full.
fn one(seed: u64, arguments: &Arguments) -> bool {
    let mut scenario = Scenario::from_seed(seed);
    if let Some(kept) = &arguments.keep {
        let kept: Vec<usize> = kept.iter().filter_map(|place| place.parse().ok()).collect();
        scenario = scenario.keeping(&kept);
    }
    if arguments.shrink
        && let Some(shrunk) = shrink(&scenario, options(arguments, Recording::Off))
    {
        println!("kept faults: {:?}", shrunk.kept);
        scenario = shrunk.scenario;
    }
    println!("{:#?}", scenario.setting);
    for fault in &scenario.faults {
        println!("{fault:?}");
    }
    let run = run(&scenario, options(arguments, Recording::On));
    print!("{}", run.trace);
    println!("outcome {:?}, {} events, {:?} of virtual time", run.outcome, run.events, run.took);
    match &run.violation {
        Some(violation) => println!("VIOLATION {violation}"),
        None => println!("no violation"),
    }
    run.violation.is_some()
}

/// Many seeds; only failures are told.
fn many(arguments: &Arguments) -> bool {
    let (mut from, to) = arguments.seeds;
    let (begun, mut tally, mut failures) = (Instant::now(), Tally::default(), 0);
    while failures < arguments.failures
        && let Some(failure) =
            first_failure(from..to, options(arguments, Recording::Off), &mut tally)
    {
        println!("{failure}");
        failures += 1;
        from = failure.seed + 1;
    }
    let took = begun.elapsed().as_secs_f64();
    println!("{} seeds, {} events, {took:.1} s, {failures} failures", tally.runs, tally.events);
    println!("{:?}", tally.outcomes);
    let Tally { joined_again, given_up, .. } = tally;
    println!(
        "links that broke in the rounds: {joined_again} joined again and done, {given_up} given up"
    );
    let Tally { whole, rejoined, lacking, .. } = tally;
    println!(
        "lacking pages at the destination: {whole} became whole, {rejoined} by rejoining, {lacking} did not"
    );
    let (stood, seed) = tally.longest_stood;
    println!("the longest stop that was rolled back with nothing offered: {stood:?} (seed {seed})");
    failures > 0
}

fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let expected = || format!("expected FROM..TO, found {text:?}");
    let (from, to) = text.split_once("..").ok_or_else(expected)?;
    match (from.parse(), to.parse()) {
        (Ok(from), Ok(to)) => Ok((from, to)),
        _ => Err(expected()),
    }
}
