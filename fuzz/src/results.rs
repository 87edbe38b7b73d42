//! What a long run came to, as it is committed.

use std::path::Path;

use serde::Serialize;

use crate::Target;
use crate::corpus::CorpusError;
use crate::engine::Tally;

/// One target's part of the result.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    /// The target.
    pub target: &'static str,
    /// Inputs fed.
    pub inputs: u64,
    /// Those that were accepted.
    pub accepted: u64,
    /// How long, in seconds.
    pub seconds: u64,
    /// Kinds of outcomes.
    pub signatures: usize,
    /// The longest time that one input took, in milliseconds.
    pub longest_input_ms: u64,
    /// What went wrong, and where.
    pub failures: Vec<String>,
}

impl Part {
    /// A campaign's.
    #[must_use]
    pub fn of(target: &Target, tally: &Tally) -> Self {
        Self {
            target: target.name,
            inputs: tally.inputs,
            accepted: tally.accepted,
            seconds: tally.took.as_secs(),
            signatures: tally.signatures.len(),
            longest_input_ms: u64::try_from(tally.longest.as_millis()).unwrap_or(u64::MAX),
            failures: tally.failures.iter().map(|one| one.complaint.to_string()).collect(),
        }
    }
}

/// Writes the parts of a run from one seed; the file is replaced at once, so that who is killed here leaves a whole one.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, seed: u64, parts: &[Part]) -> Result<(), CorpusError> {
    let failed = |error| CorpusError { path: path.into(), error };
    let text = serde_json::to_string_pretty(&serde_json::json!({ "seed": seed, "targets": parts }));
    let text = text.map_err(|error| failed(std::io::Error::other(error)))?;
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder).map_err(failed)?;
    let draft = path.with_extension("json.new");
    std::fs::write(&draft, text + "\n").map_err(failed)?;
    std::fs::rename(&draft, path).map_err(failed)
}
