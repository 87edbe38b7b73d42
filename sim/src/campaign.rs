//! Many seeds: the first that fails, shrunk, with how to replay it.

use std::fmt;
use std::ops::Range;

use clap::ValueEnum;

use crate::faults::Scenario;
use crate::oracle::Violation;
use crate::run::{Options, Rounds, ThirdStage, run};
use crate::shrink::{Shrunk, shrink};
use crate::trace::Recording;

/// Lines of a trace that are printed with a failure.
const LINES: usize = 60;

/// A seed that fails.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What it violates.
    pub violation: Violation,
    /// The same without what it does not need.
    pub shrunk: Option<Shrunk>,
    options: Options,
}

/// What many runs came to.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Runs.
    pub runs: u64,
    /// Events of all runs.
    pub events: u64,
    /// The longest that a guest stood and was rolled back with nothing offered, and the seed.
    pub longest_stood: (std::time::Duration, u64),
    /// How often links broke in the rounds, the source rejoined, and the move was done.
    pub joined_again: u64,
    /// How often the destination was not reached again within the limit, and the guest ran on at the source.
    pub given_up: u64,
    /// How often a guest ran at the destination lacking pages, and became whole.
    pub whole: u64,
    /// How often the source had to rejoin for that.
    pub rejoined: u64,
    /// How often a guest that lacked pages did not become whole.
    pub lacking: u64,
    /// How often a job ended how (as in the report; none when the source knew of no job any more).
    pub outcomes: std::collections::BTreeMap<String, u64>,
}

impl Tally {
    /// Takes in what other runs came to.
    pub fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.events += other.events;
        self.longest_stood = self.longest_stood.max(other.longest_stood);
        self.joined_again += other.joined_again;
        self.given_up += other.given_up;
        self.whole += other.whole;
        self.rejoined += other.rejoined;
        self.lacking += other.lacking;
        for (outcome, often) in &other.outcomes {
            *self.outcomes.entry(outcome.clone()).or_default() += often;
        }
    }
}

/// Runs seeds until one fails; notes what they came to.
pub fn first_failure(
    seeds: Range<u64>,
    options: Options,
    tally: &mut Tally,
) -> Option<Box<Failure>> {
    let options = Options { recording: Recording::Off, ..options };
    seeds.into_iter().find_map(|seed| {
        let scenario = Scenario::from_seed(seed);
        let run = run(&scenario, options);
        tally.runs += 1;
        tally.events += run.events;
        tally.longest_stood = tally.longest_stood.max((run.stood, seed));
        match run.rounds {
            Some(Rounds::Rejoined) => tally.joined_again += 1,
            Some(Rounds::GivenUp) => tally.given_up += 1,
            Some(Rounds::EndedOtherwise) | None => {}
        }
        match run.third_stage {
            Some(ThirdStage::Whole) => tally.whole += 1,
            Some(ThirdStage::Rejoined) => tally.rejoined += 1,
            Some(ThirdStage::Lacking) => tally.lacking += 1,
            None => {}
        }
        let outcome = run.outcome.map_or_else(|| "none".into(), |name| format!("{name:?}"));
        *tally.outcomes.entry(outcome.to_lowercase()).or_default() += 1;
        let violation = run.violation?;
        let shrunk = shrink(&scenario, options);
        Some(Box::new(Failure { seed, violation, shrunk, options }))
    })
}

impl Failure {
    /// The command that shows it again.
    #[must_use]
    pub fn replay(&self) -> String {
        let mut command = format!("sterna-sim --seed {}", self.seed);
        if let Some(shrunk) = &self.shrunk {
            let kept: Vec<String> = shrunk.kept.iter().map(ToString::to_string).collect();
            command += &format!(" --keep '{}'", kept.join(","));
        }
        if let Some(plant) = self.options.plant.and_then(|plant| plant.to_possible_value()) {
            command += &format!(" --plant {}", plant.get_name());
        }
        if let Some(only) = self.options.only.and_then(|only| only.to_possible_value()) {
            command += &format!(" --only {}", only.get_name());
        }
        command
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {}", self.seed, self.violation)?;
        if let Some(shrunk) = &self.shrunk {
            for fault in &shrunk.scenario.faults {
                writeln!(f, "  needs {fault:?}")?;
            }
            let traced =
                run(&shrunk.scenario, Options { recording: Recording::On, ..self.options });
            let trace = traced.trace.to_string();
            let lines: Vec<&str> = trace.lines().collect();
            for line in &lines[lines.len().saturating_sub(LINES)..] {
                writeln!(f, "  {line}")?;
            }
        }
        writeln!(f, "  replay: {}", self.replay())
    }
}
