//! The loop: make an input, feed it, keep it when its outcome is new, stop when the budget is used up.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use arbitrary::Unstructured;
use sterna_sim::random::Random;

use crate::catch::{Complaint, GROWTH, examine};
use crate::corpus::{self, CorpusError};
use crate::mutate::{Material, mutate};
use crate::shrink::shrink;
use crate::{Made, Target, Verdict};

/// Inputs that are kept for their outcomes, at most.
const MAX_KEPT: usize = 4096;
/// Calls of a target to make one failing input small.
const MAX_SHRINK_RUNS: u32 = 4000;
/// Bytes of noise that a grammar makes an input from, at most.
const MAX_NOISE_BYTES: usize = 2048;

/// How long a campaign goes on: until either is used up.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Inputs, the corpus included.
    pub inputs: u64,
    /// Time.
    pub time: Duration,
    /// Distinct failures.
    pub failures: usize,
}

/// Where a campaign leaves what it finds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Places<'a> {
    /// The folder for inputs that failed; without one they are not kept.
    pub failures: Option<&'a Path>,
    /// A file that has each input before it is fed: what is left of an input that ends the process.
    pub trail: Option<&'a Path>,
}

/// An input that failed, as small as it became.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What is wrong.
    pub complaint: Complaint,
    /// The input.
    pub input: Vec<u8>,
    /// Where it is kept.
    pub path: Option<PathBuf>,
}

/// What a campaign came to.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Inputs fed.
    pub inputs: u64,
    /// Those that were accepted.
    pub accepted: u64,
    /// What came of them: each kind once.
    pub signatures: BTreeSet<String>,
    /// The longest time that one input took.
    pub longest: Duration,
    /// All together.
    pub took: Duration,
    /// What is wrong.
    pub failures: Vec<Failure>,
}

/// Fuzzes a target. The seed and the corpus decide every input; the budget's time decides only how many there are.
///
/// # Errors
/// When a failing input or the trail cannot be written.
pub fn fuzz(
    target: &Target,
    seed: u64,
    corpus: Vec<Vec<u8>>,
    budget: Budget,
    places: Places<'_>,
) -> Result<Tally, CorpusError> {
    let mut campaign = Campaign {
        target,
        random: Random::new(seed),
        pool: Vec::new(),
        tally: Tally::default(),
        places,
    };
    let begun = Instant::now();
    let is_over = |tally: &Tally| {
        let spent = tally.inputs >= budget.inputs || begun.elapsed() >= budget.time;
        spent || tally.failures.len() >= budget.failures
    };
    for input in corpus {
        if campaign.tally.failures.len() < budget.failures {
            campaign.feed(Made::anything(input), Keep::Always)?;
        }
    }
    while !is_over(&campaign.tally) {
        let made = campaign.next();
        campaign.feed(made, Keep::IfNew)?;
    }
    campaign.tally.took = begun.elapsed();
    Ok(campaign.tally)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Always,
    IfNew,
}

struct Campaign<'a> {
    target: &'a Target,
    random: Random,
    /// Inputs worth changing: the corpus, and one for each outcome.
    pool: Vec<Vec<u8>>,
    tally: Tally,
    places: Places<'a>,
}

impl Campaign<'_> {
    /// The next input: by the grammar, by the grammar and then broken, or a known one broken.
    fn next(&mut self) -> Made {
        let fresh = self.pool.is_empty() || self.random.chance(400);
        let made = if fresh { self.by_grammar() } else { Made::anything(self.known().to_vec()) };
        if fresh && self.random.chance(400) {
            return made;
        }
        let mut bytes = made.bytes;
        let other = self.known().to_vec();
        let target = self.target;
        let material =
            Material { other: &other, tokens: target.tokens, max_bytes: target.max_bytes };
        mutate(&mut bytes, target.mutators, material, &mut self.random);
        Made::anything(bytes)
    }

    fn by_grammar(&mut self) -> Made {
        let length = self.random.index(MAX_NOISE_BYTES);
        let words = (0..length.div_ceil(8)).flat_map(|_| self.random.any().to_le_bytes());
        let noise: Vec<u8> = words.collect();
        let made = (self.target.make)(&mut Unstructured::new(&noise));
        let made = made.unwrap_or_else(|_| Made::anything(noise));
        let fits = made.bytes.len() <= self.target.max_bytes;
        if fits { made } else { Made::anything(made.bytes[..self.target.max_bytes].to_vec()) }
    }

    /// An input of the pool. Of three, the shortest: where most bytes mean something, most changes do.
    fn known(&mut self) -> &[u8] {
        let drawn = [(); 3].map(|()| self.random.index(self.pool.len()));
        let length = |at: &usize| self.pool.get(*at).map_or(0, Vec::len);
        let shortest = drawn.into_iter().min_by_key(length).unwrap_or(0);
        self.pool.get(shortest).map_or(&[], Vec::as_slice)
    }

    fn feed(&mut self, made: Made, keep: Keep) -> Result<(), CorpusError> {
        if let Some(trail) = self.places.trail {
            let written = std::fs::write(trail, &made.bytes);
            written.map_err(|error| CorpusError { path: trail.into(), error })?;
        }
        self.tally.inputs += 1;
        let begun = Instant::now();
        let result = examine(self.target, &made.bytes, made.expected);
        self.tally.longest = self.tally.longest.max(begun.elapsed());
        match result {
            Ok(outcome) => {
                self.tally.accepted += u64::from(outcome.verdict == Verdict::Accepted);
                let is_new =
                    self.pool.len() < MAX_KEPT && self.tally.signatures.insert(outcome.signature);
                if is_new || keep == Keep::Always {
                    self.pool.push(made.bytes);
                }
                Ok(())
            }
            Err(complaint) => self.complain(made, complaint),
        }
    }

    fn complain(&mut self, made: Made, complaint: Complaint) -> Result<(), CorpusError> {
        let known = |failure: &Failure| failure.complaint.place == complaint.place;
        if self.tally.failures.iter().any(known) {
            return Ok(());
        }
        // A peak does not rise twice, and what the grammar promises holds for the whole input only.
        let is_repeatable = complaint.place != GROWTH && complaint.place != "grammar";
        let fails = |input: &[u8]| {
            let again = examine(self.target, input, None);
            again.is_err_and(|again| again.place == complaint.place)
        };
        let input =
            if is_repeatable { shrink(made.bytes, MAX_SHRINK_RUNS, fails) } else { made.bytes };
        let kept = self.places.failures;
        let kept = kept.map(|folder| corpus::keep_failure(folder, self.target, &input));
        self.tally.failures.push(Failure { complaint, input, path: kept.transpose()? });
        Ok(())
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let start = &self.input[..self.input.len().min(80)];
        write!(f, "{}\n  {} bytes: {}", self.complaint, self.input.len(), start.escape_ascii())
    }
}

impl Failure {
    /// How to see it again.
    #[must_use]
    pub fn replay(&self, target: &Target) -> String {
        let path = self.path.as_deref().unwrap_or(Path::new("FILE")).display();
        format!("cargo run -p sterna-fuzz --release -- replay {} {path}", target.name)
    }
}
