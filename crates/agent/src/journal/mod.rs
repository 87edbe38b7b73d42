//! Job journals: what is durable before the step that it announces (law 1), and what a restarted agent goes by.
//!
//! Each job has a file below the state directory, an append-only log of [`Entry`]s: the subject first, then states, then
//! at most one report. A state is on disk when [`Journal::append`] returns. Files of jobs that are over are removed in the
//! end ([`prune`]).

mod prune;
mod story;
#[cfg(test)]
mod tests;

pub(crate) use prune::{MAX_JOURNALS, prune};
pub(crate) use story::{Side, Story};

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sterna_api::{Decision, Report};
use sterna_host::clock;
use sterna_host::durable::{DurableLog, sync_folder_of};
use sterna_migration::journal::{DestinationRecord, SourceRecord, Subject};
use sterna_model::{BlockName, JobId, Layout};
use sterna_wire::message::RamSection;

use crate::registry::ProcessId;

/// How a journal's file ends.
const EXTENSION: &str = "journal";

/// One line of a journal.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "entry", content = "value", rename_all = "kebab-case")]
pub(crate) enum Entry {
    /// We send; what about, and since when (RFC 3339). Stands for *copying*.
    SourceOf(Subject, String),
    /// We receive; what about, and since when. Stands for *prepared*.
    DestinationOf(Subject, String),
    /// Where the destination was reached (`host:port`), which may stand in no configuration.
    PeerAddress(String),
    /// The QEMU that was started for the guest at the destination.
    Process(ProcessId),
    /// The guest was running (or paused by its user) when the job began.
    GuestRan(bool),
    /// What the guest's memory consists of, where it may be moved by post-copy.
    Memory(MemoryRecord),
    /// Where the source is.
    Source(SourceRecord),
    /// Where the destination is.
    Destination(DestinationRecord),
    /// How it ended, for people.
    Ended(String),
    /// The guest ended with its only QEMU; how, for people.
    Lost(String),
    /// The source's report.
    Report(Box<Report>),
    /// A person has decided where the guest is; what follows from it comes after.
    Resolved(Decision),
    /// A person lets the job go on: how it ended before was not an end.
    Reopened,
}

/// A guest's memory, as either side needs it to go on with post-copy after a restart.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemoryRecord {
    /// Its blocks.
    pub layout: Layout,
    /// Those that the destination's QEMU shares with its agent: their pages may follow in post-copy.
    pub shared_blocks: Vec<BlockName>,
    /// The RAM section of QEMU's stream; only the destination needs it.
    pub ram_section: Option<RamSection>,
    /// The socket by which the destination's QEMU is fed: QEMU keeps it, so that it outlives the agent.
    #[serde(default)]
    pub stream_inode: Option<u64>,
    /// What has arrived at the destination is worth keeping for so long, in milliseconds, if the job comes to nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_ms: Option<u64>,
}

/// An entry with the time at which it was written, beside it: earlier builds wrote none, and pass over it.
#[derive(Serialize)]
struct Timed<'a> {
    #[serde(flatten)]
    entry: &'a Entry,
    at: String,
}

impl Entry {
    /// The job whose journal this begins, if it begins one.
    const fn job(&self) -> Option<&JobId> {
        match self {
            Self::SourceOf(subject, _) | Self::DestinationOf(subject, _) => Some(&subject.job),
            _ => None,
        }
    }

    /// Whether a journal's first entry says so already.
    const fn is_first_state(&self) -> bool {
        matches!(
            self,
            Self::Source(SourceRecord::Copying) | Self::Destination(DestinationRecord::Prepared)
        )
    }
}

/// A job's journal, open for more.
#[derive(Debug)]
pub(crate) struct Journal {
    log: DurableLog,
    path: PathBuf,
}

/// The journal of a job that is under way: begun by the first state that is to be durable.
#[derive(Debug)]
pub(crate) struct JobJournal {
    state_dir: PathBuf,
    opening: Vec<Entry>,
    journal: Option<Journal>,
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk.
    #[error("cannot write the journal {path}: {error}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        error: String,
    },
    /// The disk, or damage.
    #[error("cannot read the journal {path}: {error}; the job's state is unknown")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: String,
    },
}

impl Journal {
    /// Begins a job's journal with its opening entries, of which the first names the job.
    ///
    /// # Errors
    /// When the disk does not take it, or the job has a journal already.
    pub(crate) fn begin(state_dir: &Path, opening: &[Entry]) -> Result<Self, JournalError> {
        let folder = folder_of(state_dir);
        let failed = |error: String| JournalError::Write { path: folder.clone(), error };
        let job = opening.first().and_then(Entry::job);
        let job = job.ok_or_else(|| failed("expected a job's subject first".to_owned()))?;
        std::fs::create_dir_all(&folder).map_err(|error| failed(error.to_string()))?;
        let path = path_of(state_dir, job);
        let log = DurableLog::create(&path);
        let log = log.map_err(|error| JournalError::Write {
            path: path.clone(),
            error: error.to_string(),
        })?;
        let mut journal = Self { log, path };
        opening.iter().try_for_each(|entry| journal.append(entry))?;
        Ok(journal)
    }

    /// Puts a new journal in the place of one that is lost or damaged, all of its entries at once: none of them says by
    /// itself what the first ones seem to say. A damaged file is kept beside it, as `JOB.journal.damaged`.
    ///
    /// # Errors
    /// When the disk does not take it; the old file is then as it was.
    pub(crate) fn replace(state_dir: &Path, entries: &[Entry]) -> Result<Self, JournalError> {
        let folder = folder_of(state_dir);
        let failed = |error: String| JournalError::Write { path: folder.clone(), error };
        let job = entries.first().and_then(Entry::job);
        let job = job.ok_or_else(|| failed("expected a job's subject first".to_owned()))?;
        std::fs::create_dir_all(&folder).map_err(|error| failed(error.to_string()))?;
        let path = path_of(state_dir, job);
        let draft = path.with_extension("journal.new");
        let _ = std::fs::remove_file(&draft);
        let log = DurableLog::create(&draft).map_err(|error| failed(error.to_string()))?;
        let mut journal = Self { log, path: draft.clone() };
        entries.iter().try_for_each(|entry| journal.append(entry))?;
        let kept = path.with_extension("journal.damaged");
        if path.exists() {
            std::fs::hard_link(&path, &kept)
                .or_else(|_| std::fs::copy(&path, &kept).map(drop))
                .map_err(|error| failed(error.to_string()))?;
        }
        std::fs::rename(&draft, &path).map_err(|error| failed(error.to_string()))?;
        sync_folder_of(&path).map_err(|error| failed(error.to_string()))?;
        Self::reopen(&path)?.map(|(journal, _)| journal).ok_or_else(|| failed("it is empty".into()))
    }

    /// Opens a job's journal again and tells what it says; `None` when not even its subject became durable.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged in its middle.
    pub(crate) fn reopen(path: &Path) -> Result<Option<(Self, Story)>, JournalError> {
        let (log, found) = DurableLog::open(path).map_err(|error| unreadable(path, &error))?;
        let story = Story::read(&found.records).map_err(|error| unreadable(path, &error))?;
        Ok(story.map(|story| (Self { log, path: path.into() }, story)))
    }

    /// What a journal says, which somebody else may be writing; `None` when not even its subject became durable.
    ///
    /// # Errors
    /// As [`Journal::reopen`], and when there is none.
    pub(crate) fn read(path: &Path) -> Result<Option<Story>, JournalError> {
        let found = DurableLog::read(path).map_err(|error| unreadable(path, &error))?;
        Story::read(&found.records).map_err(|error| unreadable(path, &error))
    }

    /// What the bytes of a journal say, and how many of them are a torn tail; its path is for messages only.
    ///
    /// # Errors
    /// As [`Journal::reopen`].
    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<(Option<Story>, u64), JournalError> {
        let found = DurableLog::parse(path, bytes).map_err(|error| unreadable(path, &error))?;
        let story = Story::read(&found.records).map_err(|error| unreadable(path, &error))?;
        Ok((story, found.torn_bytes))
    }

    /// Appends an entry; it is durable when this returns.
    ///
    /// # Errors
    /// When the disk does not take it. Whether it is durable is then not known.
    pub(crate) fn append(&mut self, entry: &Entry) -> Result<(), JournalError> {
        let failed = |error: String| JournalError::Write { path: self.path.clone(), error };
        let timed = Timed { entry, at: clock::wall_time() };
        let bytes = serde_json::to_vec(&timed).map_err(|error| failed(error.to_string()))?;
        self.log.append(&bytes).map_err(|error| failed(error.to_string()))
    }
}

impl JobJournal {
    /// A journal that is still to be begun, with these entries.
    #[must_use]
    pub(crate) const fn to_begin(state_dir: PathBuf, opening: Vec<Entry>) -> Self {
        Self { state_dir, opening, journal: None }
    }

    /// A journal that goes on.
    #[must_use]
    pub(crate) const fn going_on(journal: Journal) -> Self {
        Self { state_dir: PathBuf::new(), opening: Vec::new(), journal: Some(journal) }
    }

    /// Makes a state durable, and the journal before it if there is none.
    ///
    /// # Errors
    /// As [`Journal::begin`] and [`Journal::append`].
    pub(crate) fn record(&mut self, state: &Entry) -> Result<(), JournalError> {
        match &mut self.journal {
            Some(journal) => journal.append(state),
            None => {
                let mut journal = Journal::begin(&self.state_dir, &self.opening)?;
                if !state.is_first_state() {
                    journal.append(state)?;
                }
                self.journal = Some(journal);
                Ok(())
            }
        }
    }

    /// Adds what belongs to the states that were recorded; nothing where none was.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub(crate) fn note(&mut self, entry: &Entry) -> Result<(), JournalError> {
        self.journal.as_mut().map_or(Ok(()), |journal| journal.append(entry))
    }
}

/// The journals below a state directory, by name.
///
/// # Errors
/// When the folder cannot be read.
pub(crate) fn files(state_dir: &Path) -> Result<Vec<PathBuf>, JournalError> {
    let folder = folder_of(state_dir);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(JournalError::Read { path: folder, error: error.to_string() }),
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == EXTENSION));
    files.sort();
    Ok(files)
}

/// Where a job's journal is, or would be.
#[must_use]
pub(crate) fn path_of(state_dir: &Path, job: &JobId) -> PathBuf {
    folder_of(state_dir).join(format!("{job}.{EXTENSION}"))
}

/// The job whose journal a file is, by its name.
#[must_use]
pub(crate) fn job_of(path: &Path) -> Option<JobId> {
    path.file_stem()?.to_str()?.parse().ok()
}

fn folder_of(state_dir: &Path) -> PathBuf {
    state_dir.join("jobs")
}

fn unreadable(path: &Path, error: &dyn std::error::Error) -> JournalError {
    JournalError::Read { path: path.into(), error: error.to_string() }
}
