//! What a journal says: its entries, read from the first to the last.

use serde::Deserialize;
use sterna_api::{Decision, Report, StateView};
use sterna_migration::journal::{DestinationRecord, SourceRecord, Subject};

use super::{Entry, MemoryRecord};
use crate::registry::ProcessId;

/// What a journal says.
#[derive(Clone, Debug)]
pub(crate) struct Story {
    /// What the job is about.
    pub subject: Subject,
    /// When it began.
    pub started_at: String,
    /// What this host is in it, and how far it came.
    pub side: Side,
    /// Where the destination was reached; journals of earlier builds do not tell.
    pub peer_address: Option<String>,
    /// The QEMU that was started for the guest here.
    pub process: Option<ProcessId>,
    /// The guest ran when the job began.
    pub guest_ran: bool,
    /// What its memory consists of, where post-copy was possible.
    pub memory: Option<MemoryRecord>,
    /// How it ended, for people.
    pub ended: Option<String>,
    /// The guest ended with its only QEMU. Whoever reported it says so in the report.
    pub is_lost: bool,
    /// The source's report.
    pub report: Option<Box<Report>>,
    /// What a person has decided.
    pub resolved: Option<Decision>,
    /// The last entries with their times, for people.
    pub told: Vec<StateView>,
}

/// Entries of a journal that are told to people, at most; a job writes about ten.
const MAX_TOLD: usize = 50;

/// The time of an entry.
#[derive(Deserialize)]
struct Time {
    #[serde(default)]
    at: Option<String>,
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

impl Story {
    /// Reads a journal's records; `None` when its subject is not among them.
    ///
    /// # Errors
    /// When one of them is no entry.
    pub(super) fn read(records: &[Vec<u8>]) -> Result<Option<Self>, serde_json::Error> {
        let mut story: Option<Self> = None;
        for record in records {
            let entry: Entry = serde_json::from_slice(record)?;
            let Time { at } = serde_json::from_slice(record)?;
            let state = in_words(&entry);
            match &mut story {
                Some(story) => story.take(entry),
                None => story = Self::begin(entry),
            }
            if let Some(story) = &mut story {
                let excess = (story.told.len() + 1).saturating_sub(MAX_TOLD);
                story.told.drain(..excess);
                story.told.push(StateView { at, state });
            }
        }
        Ok(story)
    }

    /// Whether this host has what a guest may lack that was moved by post-copy, and the job can go on to give it.
    #[must_use]
    pub(crate) const fn can_serve(&self) -> bool {
        let handed_over =
            matches!(self.side, Side::Source(SourceRecord::Offered | SourceRecord::Serving));
        handed_over && self.memory.is_some()
    }

    /// Whether nothing of the job is left to do or to look at.
    #[must_use]
    pub(crate) const fn is_settled(&self) -> bool {
        match self.side {
            // The source's QEMU may still have to be ended; the report, or how it ended, is written after that.
            Side::Source(SourceRecord::Gone | SourceRecord::Vanished) => {
                self.report.is_some() || self.ended.is_some()
            }
            // A guest that is lost by decision is in no final state of either side.
            side => side.is_final() || (self.resolved.is_some() && self.ended.is_some()),
        }
    }

    fn begin(first: Entry) -> Option<Self> {
        let (subject, started_at, side) = match first {
            Entry::SourceOf(subject, at) => (subject, at, Side::Source(SourceRecord::Copying)),
            Entry::DestinationOf(subject, at) => {
                (subject, at, Side::Destination(DestinationRecord::Prepared))
            }
            _ => return None,
        };
        Some(Self {
            subject,
            started_at,
            side,
            peer_address: None,
            process: None,
            guest_ran: true,
            memory: None,
            ended: None,
            is_lost: false,
            report: None,
            resolved: None,
            told: Vec::new(),
        })
    }

    fn take(&mut self, entry: Entry) {
        match entry {
            Entry::PeerAddress(address) => self.peer_address = Some(address),
            Entry::Process(process) => self.process = Some(process),
            Entry::GuestRan(ran) => self.guest_ran = ran,
            Entry::Memory(memory) => self.memory = Some(memory),
            Entry::Source(record) => self.side = Side::Source(record),
            Entry::Destination(record) => self.side = Side::Destination(record),
            Entry::Ended(how) => self.ended = Some(how),
            Entry::Lost(how) => {
                self.ended = Some(how);
                self.is_lost = true;
            }
            Entry::Report(report) => self.report = Some(report),
            Entry::Resolved(decision) => {
                self.resolved = Some(decision);
                // How it ended before was not an end.
                self.ended = None;
            }
            Entry::Reopened => {
                (self.ended, self.report, self.resolved, self.is_lost) = (None, None, None, false);
            }
            Entry::SourceOf(..) | Entry::DestinationOf(..) => {}
        }
    }
}

/// An entry, as `sterna resolve` tells it.
fn in_words(entry: &Entry) -> String {
    let source = |record: &SourceRecord| match record {
        SourceRecord::Copying => "copying: the guest runs at the source",
        SourceRecord::Stopping => "stopping: the guest may have been stopped, and is the source's",
        SourceRecord::Offered => "offered: the commit may have been sent",
        SourceRecord::Serving => {
            "serving: the guest runs at the destination, its last pages are here"
        }
        SourceRecord::Vanished => {
            "vanished: the guest died at the destination while it lacked pages"
        }
        SourceRecord::Gone => "gone: the guest is the destination's",
        SourceRecord::Returned => "returned: the guest is the source's again",
    };
    let destination = |record: &DestinationRecord| match record {
        DestinationRecord::Prepared => "prepared: a QEMU waits for the guest",
        DestinationRecord::Entitled => "entitled: the guest is the destination's",
        DestinationRecord::Faulting => "faulting: the guest runs here and lacks pages",
        DestinationRecord::Vanished => {
            "vanished: the destination's QEMU died while pages were lacking"
        }
        DestinationRecord::Running => "running: the guest runs at the destination",
        DestinationRecord::Discarded => "discarded: the destination's QEMU is dead",
    };
    match entry {
        Entry::SourceOf(subject, _) => format!("begun: {} to {}", subject.vm, subject.peer),
        Entry::DestinationOf(subject, _) => format!("begun: {} from {}", subject.vm, subject.peer),
        Entry::PeerAddress(address) => format!("the destination's address: {address}"),
        Entry::Process(process) => format!("QEMU started, pid {}", process.pid),
        Entry::GuestRan(true) => "the guest ran before".to_owned(),
        Entry::GuestRan(false) => "the guest was paused by its user before".to_owned(),
        Entry::Memory(_) => "the guest's memory is known".to_owned(),
        Entry::Source(record) => source(record).to_owned(),
        Entry::Destination(record) => destination(record).to_owned(),
        Entry::Ended(how) => format!("ended: {how}"),
        Entry::Lost(how) => format!("ended: the guest is lost: {how}"),
        Entry::Report(report) => {
            let error = report.error.as_deref().unwrap_or("without an error");
            format!("reported: {error}")
        }
        Entry::Resolved(decision) => format!("resolved by a person: the guest is {decision}"),
        Entry::Reopened => "resolved by a person: the job goes on".to_owned(),
    }
}
