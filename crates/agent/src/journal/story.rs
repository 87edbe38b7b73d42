//! What a journal says: its entries, read from the first to the last.

use sterna_api::Report;
use sterna_migration::journal::{DestinationRecord, SourceRecord, Subject};

use super::Entry;
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

impl Story {
    /// Reads a journal's records; `None` when its subject is not among them.
    ///
    /// # Errors
    /// When one of them is no entry.
    pub(super) fn read(records: &[Vec<u8>]) -> Result<Option<Self>, serde_json::Error> {
        let mut story: Option<Self> = None;
        for record in records {
            let entry = serde_json::from_slice(record)?;
            match &mut story {
                Some(story) => story.take(entry),
                None => story = Self::begin(entry),
            }
        }
        Ok(story)
    }

    /// Whether nothing of the job is left to do or to look at.
    #[must_use]
    pub(crate) const fn is_settled(&self) -> bool {
        match self.side {
            // The source's QEMU may still have to be ended; the report, or how it ended, is written after that.
            Side::Source(SourceRecord::Gone) => self.report.is_some() || self.ended.is_some(),
            side => side.is_final(),
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
            ended: None,
            report: None,
        })
    }

    fn take(&mut self, entry: Entry) {
        match entry {
            Entry::PeerAddress(address) => self.peer_address = Some(address),
            Entry::Process(process) => self.process = Some(process),
            Entry::GuestRan(ran) => self.guest_ran = ran,
            Entry::Source(record) => self.side = Side::Source(record),
            Entry::Destination(record) => self.side = Side::Destination(record),
            Entry::Ended(how) => self.ended = Some(how),
            Entry::Report(report) => self.report = Some(report),
            Entry::SourceOf(..) | Entry::DestinationOf(..) => {}
        }
    }
}
