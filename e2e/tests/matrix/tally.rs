//! How often what struck when, and how that ended: `e2e/results/faults.json`, where the next run goes on.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use sterna_e2e::{Blow, Error, Phase, Result, expect_that, repository};

use crate::strike::Ended;

/// By cell, by end.
type Counts = BTreeMap<String, BTreeMap<String, u64>>;

/// The results: read once, and written whole after each run by whoever has it.
#[derive(Debug)]
pub(crate) struct Tally {
    counts: Mutex<Counts>,
    /// The folder of the results, which nobody else tallies in: two that wrote would undo each other's work.
    _folder: File,
}

impl Tally {
    /// What earlier runs have left.
    pub(crate) fn open() -> Result<Self> {
        let folder = file().parent().map(File::open).transpose();
        let folder = folder.map_err(Error::io("opening the folder of the results"))?;
        let folder = folder.ok_or_else(|| Error::unexpected("the results", "a folder", "none"))?;
        expect_that(folder.try_lock().is_ok(), "the tally", "that it is ours", "another soak")?;
        let counts = match fs::read(file()) {
            Ok(bytes) => parse(&bytes)?,
            Err(_) => Counts::new(),
        };
        Ok(Self { counts: Mutex::new(counts), _folder: folder })
    }

    /// How often something struck at a moment, and the law held.
    pub(crate) fn runs(&self, phase: Phase, blow: Blow) -> u64 {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(&cell(phase, blow)).map_or(0, |ends| ends.values().sum())
    }

    /// One more run in which the law held.
    pub(crate) fn add(&self, phase: Phase, blow: Blow, ended: Ended) -> Result<()> {
        let end = if ended.struck { format!("{:?}", ended.end) } else { "TooLate".to_owned() };
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(cell(phase, blow)).or_default().entry(end).or_default() += 1;
        write(&counts)
    }
}

/// A moment and a blow in words.
pub(crate) fn cell(phase: Phase, blow: Blow) -> String {
    format!("{phase:?}: {blow:?}")
}

fn file() -> PathBuf {
    repository().join("e2e/results/faults.json")
}

fn parse(bytes: &[u8]) -> Result<Counts> {
    let tally: Value = serde_json::from_slice(bytes)
        .map_err(|error| Error::unexpected("faults.json", "a tally", error))?;
    let cells = tally["ends"].as_object().cloned().unwrap_or_default();
    let counts = |cell: &Value| {
        let ends = cell.as_object().cloned().unwrap_or_default();
        ends.into_iter().filter_map(|(end, runs)| Some((end, runs.as_u64()?))).collect()
    };
    Ok(cells.iter().map(|(cell, ends)| (cell.clone(), counts(ends))).collect())
}

/// Replaces the file at once: a soak that is killed leaves a whole one.
fn write(counts: &Counts) -> Result<()> {
    let runs: u64 = counts.values().flat_map(BTreeMap::values).sum();
    let result = json!({"runs_that_held": runs, "ends": counts});
    let draft = file().with_extension("json.new");
    fs::write(&draft, format!("{result:#}\n")).map_err(Error::io("writing the tally"))?;
    fs::rename(&draft, file()).map_err(Error::io("writing the tally"))
}
