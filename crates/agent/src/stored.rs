//! What an agent reads back from its disk when it starts: job journals and VM records, as bytes that may be damaged.
//!
//! The agent itself goes through [`crate::journal`] and [`crate::registry`]; these are the same parsers without the disk,
//! for what looks at an agent from outside (fuzzing).

use std::path::Path;

use sterna_model::{JobId, VmName};

pub use crate::journal::JournalError;
use crate::journal::{Journal, Side};
pub use crate::registry::RegistryError;

/// What a journal says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalView {
    /// The job, if not even its subject is torn.
    pub job: Option<JobId>,
    /// What this host is in the job, and the last durable state; empty without a job.
    pub state: String,
    /// Nothing of the job is left to do or to look at.
    pub is_settled: bool,
    /// Bytes of a torn tail: an append that was never acknowledged.
    pub torn_bytes: u64,
}

/// Reads the bytes of a journal, as the agent does when it starts; `path` is for messages only.
///
/// # Errors
/// When they are damaged anywhere but in a torn tail, or a record is no journal's entry.
pub fn read_journal(path: &Path, bytes: &[u8]) -> Result<JournalView, JournalError> {
    let (story, torn_bytes) = Journal::parse(path, bytes)?;
    let state = story.as_ref().map(|story| match story.side {
        Side::Source(record) => format!("source {record:?}"),
        Side::Destination(record) => format!("destination {record:?}"),
    });
    Ok(JournalView {
        state: state.unwrap_or_default(),
        is_settled: story.as_ref().is_some_and(crate::journal::Story::is_settled),
        job: story.map(|story| story.subject.job),
        torn_bytes,
    })
}

/// Reads the bytes of the VM registry's file of the VM `name`, and gives them as the agent would write them again; `path`
/// is for messages only.
///
/// # Errors
/// When they are no record, or another VM's.
pub fn read_record(path: &Path, name: &VmName, bytes: &[u8]) -> Result<Vec<u8>, RegistryError> {
    let record = crate::registry::parse(path, name, bytes)?;
    serde_json::to_vec_pretty(&record)
        .map_err(|error| RegistryError::Damaged { path: path.into(), error })
}
