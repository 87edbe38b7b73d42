//! Planted bugs: mistakes that the simulated hands make on demand. The oracles have to catch each of them.
//!
//! The first group are mistakes that law 1 and law 2 are there to prevent. The second group are mistakes that the agent
//! itself makes, or made, and that this simulation found: they stay here so that the oracles go on catching them.

use clap::ValueEnum;

/// A mistake to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Plant {
    /// The destination resumes the guest when it has loaded it, without a commit.
    ResumeWithoutCommit,
    /// The destination resumes while *entitled* is still being written.
    ResumeBeforeEntitled,
    /// The source sends the commit while *offered* is still being written.
    CommitBeforeOffered,
    /// A restarted source that finds *offered* resumes the guest instead of asking.
    ReturnWithoutAsking,
    /// The destination answers *discarded* before its QEMU is dead.
    DiscardedBeforeDead,
    /// A destination that was restarted when *entitled* discards.
    EntitledDiscards,
    /// The source's journal is not synced.
    SourceForgetsSync,
    /// The destination's journal is not synced.
    DestinationForgetsSync,
    /// The reader of QEMU's stream loses a page now and then.
    ReaderLosesPage,
    /// A receiver notes a page's version and hash, and does not write the page.
    ReceiverDropsVersion,
    /// A worker reads a page before it takes the page's mark away, not after.
    ReadBeforeClaim,
    /// QEMU is let go without having looked for dirty pages after the stop.
    NoLookAfterStop,
    /// A guest that is given back is not resumed.
    GuestStaysStopped,
    /// A guest that its user had paused is resumed.
    PausedGuestRuns,
    /// The source's inquiry timer is forgotten.
    NeverAsksAgain,
    /// Workers do not wait for the link.
    NoBackPressure,
    /// A failed job reports *done*.
    ReportsDone,
    /// The source ends its QEMU when the guest runs at the destination, whether or not that lacks pages.
    GoneAtRunning,
    /// A page that is asked for is sent at once, and by push as well.
    ServesTwice,
    /// A page that was fed to QEMU is fed to it again now and then.
    PlacesTwice,
    /// When QEMU's stream broke, what was fed is taken for placed.
    FedIsPlaced,
    /// A destination that was restarted when *faulting* discards.
    FaultingDiscards,
    /// The source tries once to rejoin, and no more.
    RejoinsOnce,
    /// The destination does not hear that the source's QEMU died while it served.
    DeathIsNotTold,
    /// A source whose QEMU died while it served gives the guest up, though it has its memory.
    HeldMemoryIsForgotten,
    /// A data connection that breaks while pages are lacking is nobody's matter.
    BrokenPushIsIgnored,
    /// Rounds of a three-stage copy send what has changed again.
    RoundsSendAgain,
    /// A source that rejoins in the rounds does not send again what was under way and not acknowledged.
    RejoinForgetsUnacknowledged,
    /// The destination drops what it has when its source is away in the rounds.
    AwayDiscards,
    /// The destination keeps what it has for ever when its source is away.
    KeepsForEver,
    /// The destination does not take a stream's head again from a source that has rejoined.
    HeadTwiceFails,
    /// A destination that was restarted, and knows of no page any more, lets its source rejoin as though nothing had been.
    RestartedIsRejoined,
    /// Found: a destination that restarts *entitled*, with its VM missing in the registry, takes that for *prepared*.
    FoundEntitledWithoutVm,
    /// Found: a destination that restarts *entitled*, with its QEMU gone, does not journal that it came to an end.
    FoundEntitledStaysSilent,
    /// Found: a source that restarts *offered*, with its QEMU gone, does not ask the destination.
    FoundOfferedDoesNotAsk,
    /// Found: a guest to which nothing was done yet is told to be as before without a look at whether it lives.
    FoundReturnsUnseen,
    /// Found: a destination's job that is over and could not journal *discarded* answers *prepared* for ever.
    FoundPreparedForEver,
    /// Found: a destination that dies between QEMU's start and the registry's entry leaves that QEMU behind.
    FoundOrphan,
    /// Found: a connection of an attempt to rejoin that the source gave up comes late, takes the place of a present one, and that
    /// fails the job at the destination.
    FoundLateConnectionFails,
}
