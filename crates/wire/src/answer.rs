//! The small words inside messages.

use core::fmt;

use serde::{Deserialize, Serialize};

/// One side of a job.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Sender {
    /// The host that has the VM when the job begins.
    Source,
    /// The host that it goes to.
    Destination,
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "the source",
            Self::Destination => "the destination",
        })
    }
}

/// How much the destination hashes before it says *loaded*.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verify {
    /// Every page as it arrives, and the roots.
    Roots,
    /// All guest memory again, at the end.
    Full,
}

/// Whether a guest executes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestState {
    /// It runs.
    Running,
    /// Its user paused it, and it stays so.
    Paused,
}

/// What an agent's journal says about a job, when the other one asks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnswerState {
    /// Source: the guest runs here, pages are being copied.
    Copying,
    /// Source: the guest is being stopped here; nothing is offered.
    Stopping,
    /// Source: the commit was sent, or may have been. The guest is paused here.
    Offered,
    /// Source: the guest runs at the destination, which still needs pages from here.
    Serving,
    /// Source: the destination has the guest.
    Gone,
    /// Source: the guest was resumed here; the destination must not.
    Returned,
    /// Destination: everything may be here, nothing is committed.
    Prepared,
    /// Destination: the commit was accepted; the guest is ours, not running yet.
    Entitled,
    /// Destination: the guest runs here, pages of it are lacking.
    Faulting,
    /// Destination: the guest runs here, or is paused here as its user left it.
    Running,
    /// Destination: its QEMU is dead and reaped; a late commit is refused.
    Discarded,
    /// Either: a QEMU died while pages were lacking; the guest is nowhere.
    Lost,
    /// Either: the journal does not know the job.
    Unknown,
}

impl AnswerState {
    /// Whether this is a state that `sender` can be in.
    #[must_use]
    pub const fn may_be_of(self, sender: Sender) -> bool {
        match self {
            Self::Copying | Self::Stopping | Self::Offered => matches!(sender, Sender::Source),
            Self::Serving | Self::Gone | Self::Returned => matches!(sender, Sender::Source),
            Self::Prepared | Self::Entitled => matches!(sender, Sender::Destination),
            Self::Faulting | Self::Running | Self::Discarded => {
                matches!(sender, Sender::Destination)
            }
            Self::Lost | Self::Unknown => true,
        }
    }
}
