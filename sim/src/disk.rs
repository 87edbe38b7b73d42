//! A host's disk: the job's journal and the VM's record.
//!
//! Appends are durable only after a sync. When the agent's process dies, what it wrote stays in the page cache, but for a
//! write that was under way, which may be torn. When the host loses power, any part of what was not synced is lost, the
//! last of it torn. The VM's record is replaced as a whole: the old one or the new one, never half.

use sterna_migration::journal::{DestinationRecord, SourceRecord};
use sterna_migration::outcome::OutcomeName;
use sterna_model::Instant;

use crate::random::Random;

/// An entry of a job's journal, as in the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// We send; stands for *copying*.
    SourceOf,
    /// We receive; stands for *prepared*.
    DestinationOf,
    /// How the guest was found.
    GuestRan(bool),
    /// Where the source is.
    Source(SourceRecord),
    /// Where the destination is.
    Destination(DestinationRecord),
    /// How it ended, for people.
    Ended,
    /// The source's report.
    Report(OutcomeName),
}

/// Whose a VM is, as in the agent's registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// It runs here, or would.
    Here,
    /// It is being moved here.
    Incoming,
    /// It was moved away.
    MovedTo,
    /// Its only QEMU died in a move.
    Lost,
    /// A job ended without knowing.
    Unknown,
}

/// A VM's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Whose it is.
    pub owner: Owner,
    /// Its QEMU is, or was, known.
    pub process: bool,
}

/// How a journal is opened again: what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Story {
    /// This host's part, and how far it came.
    pub side: Reached,
    /// The guest ran when the job began.
    pub guest_ran: bool,
    /// The job came to an end that was written down.
    pub ended: bool,
    /// The report was written.
    pub report: Option<OutcomeName>,
}

/// The last state of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    /// It sends.
    Source(SourceRecord),
    /// It receives.
    Destination(DestinationRecord),
}

impl Reached {
    /// Whether the job is over.
    pub(crate) const fn is_final(self) -> bool {
        match self {
            Self::Source(record) => record.is_final(),
            Self::Destination(record) => record.is_final(),
        }
    }
}

/// What is wrong with a disk, until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ailment {
    /// Full: nothing can be written.
    Full,
    /// Writing works, the sync fails: what was written may be durable or not.
    SyncFails,
}

/// How an agent ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Its process is killed; the host and its QEMUs live on.
    Process,
    /// The host loses its power.
    Power,
}

#[derive(Clone, Debug)]
struct Line {
    entry: Entry,
    synced: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    lines: Vec<Line>,
    /// The journal takes no more until it is opened again.
    poisoned: bool,
    /// A write is under way.
    writing: bool,
    /// The VM's record, as on the disk.
    pub record: Option<Record>,
    ailing: Option<(Ailment, Instant)>,
}

impl Disk {
    /// Lets the disk ail until a time.
    pub(crate) fn ail(&mut self, how: Ailment, until: Instant) {
        self.ailing = Some((how, until));
    }

    /// What is wrong with it now.
    pub(crate) fn ailment(&self, now: Instant) -> Option<Ailment> {
        self.ailing.filter(|(_, until)| now < *until).map(|(how, _)| how)
    }

    /// Lets a journal be begun that could not be begun before.
    pub(crate) fn begin_again(&mut self) -> Result<(), String> {
        if !self.lines.is_empty() {
            return Err("the job has a journal already".into());
        }
        self.poisoned = false;
        Ok(())
    }

    /// Writes an entry, without the sync.
    pub(crate) fn write(&mut self, entry: Entry, now: Instant) -> Result<(), String> {
        if self.poisoned {
            return Err("the journal takes no more after a failed write".into());
        }
        if self.ailment(now) == Some(Ailment::Full) {
            self.poisoned = true;
            return Err("no space left on the device".into());
        }
        self.lines.push(Line { entry, synced: false });
        self.writing = true;
        Ok(())
    }

    /// The write is through, as far as the page cache.
    pub(crate) const fn written(&mut self) {
        self.writing = false;
    }

    /// Makes everything durable.
    pub(crate) fn sync(&mut self, now: Instant) -> Result<(), String> {
        if self.ailment(now) == Some(Ailment::SyncFails) {
            self.poisoned = true;
            return Err("input/output error".into());
        }
        self.lines.iter_mut().for_each(|line| line.synced = true);
        Ok(())
    }

    /// What an end of the agent's process, or of the host's power, leaves.
    pub(crate) fn crash(&mut self, how: Crash, random: &mut Random) -> usize {
        let synced = self.lines.iter().take_while(|line| line.synced).count();
        let kept = match how {
            Crash::Process if !self.writing => self.lines.len(),
            // Torn: the last one is cut off when the journal is opened again.
            Crash::Process => self.lines.len() - random.index(2),
            Crash::Power => synced + random.index(self.lines.len() - synced + 1),
        };
        let lost = self.lines.len() - kept;
        self.lines.truncate(kept);
        self.writing = false;
        lost
    }

    /// Opens the journal again: what is there is synced, and tells the story.
    pub(crate) fn reopen(&mut self) -> Option<Story> {
        self.poisoned = false;
        self.lines.iter_mut().for_each(|line| line.synced = true);
        self.story()
    }

    /// What the journal says, durable or not.
    pub(crate) fn story(&self) -> Option<Story> {
        story(self.lines.iter())
    }

    /// What the journal would say after a power cut that takes all that is not synced.
    pub(crate) fn durable_story(&self) -> Option<Story> {
        story(self.lines.iter().take_while(|line| line.synced))
    }

    /// Entries.
    pub(crate) const fn entries(&self) -> usize {
        self.lines.len()
    }
}

fn story<'a>(lines: impl Iterator<Item = &'a Line>) -> Option<Story> {
    let mut story: Option<Story> = None;
    for line in lines {
        let side = match line.entry {
            Entry::SourceOf => Reached::Source(SourceRecord::Copying),
            Entry::DestinationOf => Reached::Destination(DestinationRecord::Prepared),
            Entry::Source(record) => Reached::Source(record),
            Entry::Destination(record) => Reached::Destination(record),
            _ => {
                note(story.as_mut(), &line.entry);
                continue;
            }
        };
        match &mut story {
            Some(story) => story.side = side,
            None => story = Some(Story { side, guest_ran: true, ended: false, report: None }),
        }
    }
    story
}

fn note(story: Option<&mut Story>, entry: &Entry) {
    let Some(story) = story else { return };
    match entry {
        Entry::GuestRan(ran) => story.guest_ran = *ran,
        Entry::Ended => story.ended = true,
        Entry::Report(outcome) => story.report = Some(*outcome),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_cut_takes_only_what_was_not_synced() {
        for seed in 0..50 {
            let mut disk = Disk::default();
            let now = Instant::default();
            disk.write(Entry::SourceOf, now).expect("room");
            disk.sync(now).expect("works");
            disk.write(Entry::Source(SourceRecord::Stopping), now).expect("room");
            disk.crash(Crash::Power, &mut Random::new(seed));
            assert!(disk.entries() >= 1);
            assert!(disk.story().is_some());
        }
    }

    #[test]
    fn a_full_disk_poisons_the_journal_until_it_is_opened_again() {
        let mut disk = Disk::default();
        let later = Instant { nanos: 10 };
        disk.ail(Ailment::Full, later);
        assert!(disk.write(Entry::SourceOf, Instant::default()).is_err());
        assert!(disk.write(Entry::SourceOf, later).is_err(), "poisoned");
        assert_eq!(disk.reopen(), None);
        assert!(disk.write(Entry::SourceOf, later).is_ok());
    }
}
