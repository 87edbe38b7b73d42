//! What the source's machine is told, and what it asks for.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use sterna_model::{Refusal, Root};

use crate::journal::SourceRecord;
use crate::outcome::Outcome;
use crate::policy::RoundFacts;

/// What happened.
#[derive(Clone, Debug)]
pub enum Fact {
    /// The destination's QEMU waits for the guest.
    PeerPrepared,
    /// The destination will not take the guest.
    PeerRefused(Vec<Refusal>),
    /// The destination reports a failure of its own, or broke the protocol.
    PeerFailed(String),
    /// The connection to the destination is gone, or one of those for pages.
    PeerLost(String),
    /// The same, of a destination that keeps what it has for a while: new connections are worth trying.
    PeerAway(String),
    /// All workers are through with the round.
    RoundEnded(RoundFacts),
    /// The record is durable.
    Journaled(SourceRecord),
    /// The record could not be made durable.
    JournalFailed(String),
    /// The guest stands by our stop, and QEMU had not completed before: what the stream still brings is of this moment.
    GuestStopped,
    /// QEMU's stream came to its proper end. Before [`Fact::GuestStopped`] that is a completion of QEMU's own.
    StreamCompleted,
    /// QEMU's stream broke, or a command to QEMU failed; QEMU itself lives.
    QemuFailed(String),
    /// QEMU is gone, or was found gone after a restart.
    QemuDied(Death),
    /// The last pages (or the marks of absent ones), the tail and this root were handed to the connections.
    Flushed(Root),
    /// The destination has loaded everything; the root is of what it has.
    PeerLoaded(Root),
    /// The destination runs the guest.
    PeerRunning {
        /// Pages that it lacks are still to be sent from here.
        lacks_pages: bool,
    },
    /// The guest runs at the destination and lacks nothing any more.
    PeerComplete,
    /// The destination's QEMU died while the guest ran there and lacked pages; why.
    PeerVanished(String),
    /// Connections to the destination were made anew, and which pages it lacks is known.
    Rejoined,
    /// The destination's QEMU is dead, and it will accept no commit.
    PeerDiscarded,
    /// The destination cannot tell whether it ever ran the guest.
    PeerUnknown(String),
    /// The guest is as it was before the job.
    GuestReturned,
    /// The guest could not be resumed.
    ReturnFailed(String),
    /// The user ends the job.
    CancelRequested,
    /// A timer fired.
    TimerFired(Timer),
}

/// How our QEMU came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// In words.
    pub why: String,
    /// Its guest's memory outlives it, as long as whoever drives the machine: what the destination lacks can still be served.
    pub memory_is_held: bool,
}

impl From<String> for Death {
    /// Its guest's memory went with it.
    fn from(why: String) -> Self {
        Self { why, memory_is_held: false }
    }
}

impl From<&str> for Death {
    fn from(why: &str) -> Self {
        Self::from(String::from(why))
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// The machine's deadlines. Setting one again moves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// The whole job's time-out.
    Job,
    /// The stopped guest waits for its last pages to be drained, sent and loaded.
    Stop,
    /// The guest stands, and nothing was heard of the peer.
    Silence,
    /// Time to ask the peer again, or to rejoin it.
    Inquiry,
    /// While the guest runs here, the destination was not reached again for too long.
    Away,
}

/// How what is left goes over once the guest is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// All of it before the guest is handed over.
    PreCopy,
    /// Pages that the destination lacks are only marked absent; they follow when the guest runs there.
    PostCopy,
}

/// What to do. Performed in order.
#[derive(Debug)]
pub enum Effect {
    /// Ask the destination to get ready.
    Prepare,
    /// Make a record durable; report [`Fact::Journaled`].
    Journal(SourceRecord),
    /// Let QEMU's stream begin, and the first round.
    BeginCopy,
    /// Begin the next round.
    BeginRound,
    /// QEMU completed by itself, with the guest stopped by it: resume the guest, and begin a new stream. What the
    /// destination has stays valid, since contents are compared.
    RestartStream,
    /// Stop the guest, and only then let QEMU finish its stream. How what is left goes over is known by then.
    StopGuest(Finish),
    /// Send all that is left, the tail and the root; report [`Fact::Flushed`]. After a time-out a round may still be under
    /// way: it is cut short, and what it has not sent is part of what is left.
    Flush(Finish),
    /// Send the commit.
    Commit(DurableOffer),
    /// Tell the destination to discard what it has, if it can be reached. While pages are served: that our QEMU died, and
    /// the guest with it; what can be known only there is reported as [`Fact::PeerVanished`] or [`Fact::PeerComplete`].
    Abort(String),
    /// Ask the destination who owns the guest, over a new connection if need be.
    Inquire,
    /// Send the pages that the destination lacks, by push, and those that it asks for first. Performed again after
    /// [`Fact::Rejoined`], over the new connections.
    Serve,
    /// Try once to make new connections to the destination, and learn which pages it lacks: in post-copy it tells, before
    /// that they are those that it has not acknowledged. Report [`Fact::Rejoined`], or
    /// what it answers instead.
    Rejoin,
    /// Resume the guest here as it was before the job, end QEMU's migration, announce the guest; report
    /// [`Fact::GuestReturned`].
    ReturnGuest(MayReturn),
    /// End our QEMU: the guest is the destination's, or nobody's any more.
    DestroyGuest,
    /// Set a timer.
    SetTimer(Timer, Duration),
    /// Unset a timer.
    ClearTimer(Timer),
    /// The job is over.
    End(Outcome),
}

/// The right to send the commit: the roots agree and *offered* is durable.
#[derive(Debug)]
pub struct DurableOffer(pub(super) ());

/// The right to resume the guest at the source: it was never offered, or the destination discarded it.
#[derive(Debug)]
pub struct MayReturn(pub(super) ());
