//! The destination's machine: from a request to a guest that runs here, or to nothing left.
//!
//! It resumes the guest only with an [`Entitlement`], which exists only once *entitled* is durable, after a commit,
//! after everything was loaded and the roots agreed. It says *discarded* only after its QEMU is dead and reaped.

mod faulting;
mod states;
#[cfg(test)]
mod tests;

pub use faulting::{Faulting, Vanishing};
pub use states::{Discarding, Entitling, Loaded, Loading, Receiving, Resuming, Running, Starting};

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use sterna_model::{Refusal, Root};

use crate::journal::DestinationRecord;

/// What happened.
#[derive(Clone, Debug)]
pub enum Fact {
    /// Our QEMU waits for a stream.
    QemuStarted,
    /// The guest cannot be taken, and nothing is left over.
    StartRefused(Vec<Refusal>),
    /// The record is durable.
    Journaled(DestinationRecord),
    /// The record could not be made durable.
    JournalFailed(String),
    /// The source has sent everything; this is the root of what it sent.
    FinalReceived(Root),
    /// All pages are written, but for those that are marked absent, and QEMU has loaded the devices; this is the root of what
    /// we have.
    MemoryLoaded(Root),
    /// Something here failed: decoding, writing, loading.
    Failed(String),
    /// Our QEMU is gone by itself.
    QemuDied(String),
    /// The source commits.
    Commit,
    /// The source gives up; once the guest runs here and lacks pages: the source's QEMU died, and they with it.
    Abort(String),
    /// The connection to the source is gone.
    PeerLost(String),
    /// The same, of a source that may come back within this time.
    PeerAway(String, Duration),
    /// The source asks who owns the guest.
    Asked,
    /// The guest runs here.
    Resumed {
        /// Pages that it lacks are still at the source.
        lacks_pages: bool,
    },
    /// The guest could not be resumed.
    ResumeFailed(String),
    /// QEMU has placed every page that was absent.
    MemoryComplete,
    /// The stream that QEMU is fed absent pages by broke; QEMU itself lives.
    StreamBroken(String),
    /// Our QEMU is dead and reaped.
    Killed,
}

/// What the source is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Our QEMU waits for the guest.
    Prepared,
    /// The guest cannot be taken.
    Refused(Vec<Refusal>),
    /// Everything is loaded.
    Loaded(Root),
    /// It failed here; *discarded* follows.
    Failed(String),
    /// The guest runs here.
    Running {
        /// Pages that it lacks are still at the source.
        lacks_pages: bool,
    },
    /// The guest, which ran here already, lacks nothing any more.
    Complete,
    /// The guest died here while it lacked pages.
    Vanished(String),
    /// Our QEMU is dead; no commit will be accepted.
    Discarded,
    /// We may have run the guest, and our QEMU is gone.
    Unknown(String),
}

/// What to do. Performed in order.
#[derive(Debug)]
pub enum Effect {
    /// Check what was asked for and start QEMU.
    StartQemu,
    /// Make a record durable; report [`Fact::Journaled`].
    Journal(DestinationRecord),
    /// Tell the source.
    Answer(Answer),
    /// Resume the guest and announce it (or leave it paused, if it was); report [`Fact::Resumed`].
    Resume(Entitlement),
    /// Let QEMU take absent pages by a stream again (its post-copy recovery), until that works or QEMU is gone.
    RecoverStream,
    /// Kill our QEMU and reap it; report [`Fact::Killed`].
    KillQemu,
    /// With the source silent for so long, report [`Fact::PeerLost`]. Set again, it moves.
    WatchSource(Duration),
    /// The job is over here.
    End(End),
}

/// How the job ended here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest runs here.
    Running,
    /// Nothing is left over; why.
    Discarded(String),
    /// It may have run here, and its QEMU is gone.
    Unknown(String),
    /// It ran here and lacked pages, and is dead.
    Lost(String),
}

/// The right to resume the guest at the destination: committed, and durably so.
#[derive(Debug)]
pub struct Entitlement(());

/// The destination's machine.
#[derive(Debug)]
pub enum Destination {
    /// QEMU is being started.
    Starting(Starting),
    /// Pages come in.
    Receiving(Receiving),
    /// Everything is here; QEMU loads.
    Loading(Loading),
    /// Everything is loaded; nothing runs.
    Loaded(Loaded),
    /// The commit came; *entitled* is being made durable.
    Entitling(Entitling),
    /// The guest is being resumed.
    Resuming(Resuming),
    /// The guest runs here.
    Running(Running),
    /// The guest runs here and lacks pages.
    Faulting(Faulting),
    /// The guest, which lacked pages, is dead.
    Vanishing(Vanishing),
    /// Our QEMU is being killed.
    Discarding(Discarding),
    /// The job is over.
    Ended(End),
}

impl Destination {
    /// Begins a job.
    pub fn begin(effects: &mut Vec<Effect>) -> Self {
        Starting::begin(effects)
    }

    /// Takes a job up again whose journal ends in *prepared*: what is here is discarded.
    pub fn resume_prepared(effects: &mut Vec<Effect>) -> Self {
        states::discard(String::from("the agent was restarted before the commit"), effects)
    }

    /// Takes a job up again whose journal ends in *entitled* and whose QEMU is there.
    pub fn resume_entitled(effects: &mut Vec<Effect>) -> Self {
        Entitling::after_restart(effects)
    }

    /// Takes a job up again whose journal ends in *faulting*. A QEMU that is not there any more is told as
    /// [`Fact::QemuDied`].
    pub fn resume_faulting(effects: &mut Vec<Effect>) -> Self {
        Faulting::after_restart(effects)
    }

    /// Takes a fact in.
    #[must_use]
    pub fn handle(self, fact: Fact, effects: &mut Vec<Effect>) -> Self {
        match self {
            Self::Starting(state) => state.handle(fact, effects),
            Self::Receiving(state) => state.handle(fact, effects),
            Self::Loading(state) => state.handle(fact, effects),
            Self::Loaded(state) => state.handle(fact, effects),
            Self::Entitling(state) => state.handle(fact, effects),
            Self::Resuming(state) => state.handle(fact, effects),
            Self::Running(state) => state.handle(fact, effects),
            Self::Faulting(state) => state.handle(fact, effects),
            Self::Vanishing(state) => state.handle(fact, effects),
            Self::Discarding(state) => state.handle(fact, effects),
            Self::Ended(end) => states::ended(end, &fact, effects),
        }
    }

    /// How the job ended, if it did.
    #[must_use]
    pub const fn end(&self) -> Option<&End> {
        match self {
            Self::Ended(end) => Some(end),
            _ => None,
        }
    }

    /// The state's name, for logs.
    #[must_use]
    pub const fn phase(&self) -> &'static str {
        match self {
            Self::Starting(_) => "starting",
            Self::Receiving(_) => "receiving",
            Self::Loading(_) => "loading",
            Self::Loaded(_) => "loaded",
            Self::Entitling(_) => "entitling",
            Self::Resuming(_) => "resuming",
            Self::Running(_) => "running",
            Self::Faulting(_) => "faulting",
            Self::Vanishing(_) => "vanishing",
            Self::Discarding(_) => "discarding",
            Self::Ended(_) => "ended",
        }
    }
}
