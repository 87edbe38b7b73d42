//! Job journals: what is durable before the step that it announces (law 1), and what a restarted agent goes by.
//!
//! Each job has a file below the state directory, an append-only log of [`Entry`]s: the subject first, then states, then
//! at most one report. A state is on disk when [`Journal::append`] returns.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sterna_api::Report;
use sterna_host::durable::DurableLog;
use sterna_migration::journal::{DestinationRecord, SourceRecord, Subject};
use sterna_model::JobId;

/// One line of a journal.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "entry", content = "value", rename_all = "kebab-case")]
pub(crate) enum Entry {
    /// We send; what about, and since when (RFC 3339).
    SourceOf(Subject, String),
    /// We receive; what about, and since when.
    DestinationOf(Subject, String),
    /// The guest was running (or paused by its user) when the job began.
    GuestRan(bool),
    /// Where the source is.
    Source(SourceRecord),
    /// Where the destination is.
    Destination(DestinationRecord),
    /// How it ended, for people.
    Ended(String),
    /// The source's report.
    Report(Box<Report>),
}

/// A job's journal, open for more.
#[derive(Debug)]
pub(crate) struct Journal {
    log: DurableLog,
    path: PathBuf,
}

/// What a journal says.
#[derive(Clone, Debug)]
pub(crate) struct Story {
    /// What the job is about.
    pub subject: Subject,
    /// When it began.
    pub started_at: String,
    /// What this host is in it, and how far it came.
    pub side: Side,
    /// The guest ran when the job began.
    pub guest_ran: bool,
    /// How it ended, for people.
    pub ended: Option<String>,
    /// The source's report.
    pub report: Option<Box<Report>>,
}

/// What this host is in a job, and the last durable state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// It sends.
    Source(SourceRecord),
    /// It receives.
    Destination(DestinationRecord),
}

impl Side {
    /// Whether the job is over.
    pub(crate) const fn is_final(self) -> bool {
        match self {
            Self::Source(record) => record.is_final(),
            Self::Destination(record) => record.is_final(),
        }
    }
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
    /// Begins a job's journal.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn begin(
        state_dir: &Path,
        job: &JobId,
        first: &Entry,
    ) -> Result<Self, JournalError> {
        let folder = state_dir.join("jobs");
        let path = folder.join(format!("{job}.journal"));
        let failed = |error: String| JournalError::Write { path: path.clone(), error };
        std::fs::create_dir_all(&folder).map_err(|error| failed(error.to_string()))?;
        let (log, _) = DurableLog::open(&path).map_err(|error| failed(error.to_string()))?;
        let mut journal = Self { log, path };
        journal.append(first)?;
        Ok(journal)
    }

    /// Opens a job's journal again and tells what it says; `None` when not even its subject became durable.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged in its middle.
    pub(crate) fn reopen(path: &Path) -> Result<Option<(Self, Story)>, JournalError> {
        let failed = |error: String| JournalError::Read { path: path.into(), error };
        let (log, records) = DurableLog::open(path).map_err(|error| failed(error.to_string()))?;
        let mut story: Option<Story> = None;
        for record in records.records {
            let entry =
                serde_json::from_slice(&record).map_err(|error| failed(error.to_string()))?;
            match &mut story {
                Some(story) => story.take(entry),
                None => story = Story::begin(entry),
            }
        }
        Ok(story.map(|story| (Self { log, path: path.into() }, story)))
    }

    /// Appends an entry; it is durable when this returns.
    ///
    /// # Errors
    /// When the disk does not take it. Whether it is durable is then not known.
    pub(crate) fn append(&mut self, entry: &Entry) -> Result<(), JournalError> {
        let failed = |error: String| JournalError::Write { path: self.path.clone(), error };
        let bytes = serde_json::to_vec(entry).map_err(|error| failed(error.to_string()))?;
        self.log.append(&bytes).map_err(|error| failed(error.to_string()))
    }
}

impl Story {
    fn begin(first: Entry) -> Option<Self> {
        let (subject, started_at, side) = match first {
            Entry::SourceOf(subject, at) => (subject, at, Side::Source(SourceRecord::Copying)),
            Entry::DestinationOf(subject, at) => {
                (subject, at, Side::Destination(DestinationRecord::Prepared))
            }
            _ => return None,
        };
        Some(Self { subject, started_at, side, guest_ran: true, ended: None, report: None })
    }

    fn take(&mut self, entry: Entry) {
        match entry {
            Entry::GuestRan(ran) => self.guest_ran = ran,
            Entry::Source(record) => self.side = Side::Source(record),
            Entry::Destination(record) => self.side = Side::Destination(record),
            Entry::Ended(how) => self.ended = Some(how),
            Entry::Report(report) => self.report = Some(report),
            Entry::SourceOf(..) | Entry::DestinationOf(..) => {}
        }
    }
}

/// The journals below a state directory, oldest name first.
///
/// # Errors
/// When the folder cannot be read.
pub(crate) fn files(state_dir: &Path) -> Result<Vec<PathBuf>, JournalError> {
    let folder = state_dir.join("jobs");
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(JournalError::Read { path: folder, error: error.to_string() }),
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "journal"));
    files.sort();
    Ok(files)
}
