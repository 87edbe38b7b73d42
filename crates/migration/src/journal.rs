//! What is made durable before the step that it announces (law 1).
//!
//! A job's journal is a list of these records; the last one says where the job stands after a crash.

use serde::{Deserialize, Serialize};
use sterna_model::{Epoch, HostName, JobId, Uuid, VmName};

/// What a job is about. The first record of every journal carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// The job.
    pub job: JobId,
    /// The VM's name on this host.
    pub vm: VmName,
    /// The VM.
    pub uuid: Uuid,
    /// The epoch that the destination will own it by.
    pub epoch: Epoch,
    /// The other host.
    pub peer: HostName,
}

/// The source's states that survive a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceRecord {
    /// The guest runs here; copying may have begun.
    Copying,
    /// The guest may have been stopped here, and is ours.
    Stopping,
    /// The commit may have been sent: the guest may be theirs.
    Offered,
    /// The guest is theirs and runs there; pages that it lacks are still here.
    Serving,
    /// The guest is theirs.
    Gone,
    /// The guest is ours again.
    Returned,
    /// It was theirs, and died while pages that it lacked were still here: it is nobody's.
    Vanished,
}

/// The destination's states that survive a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DestinationRecord {
    /// A QEMU waits here for the guest; it may be discarded.
    Prepared,
    /// The guest is ours; it may not have been resumed yet.
    Entitled,
    /// The guest is ours and runs here; pages that it lacks are still at the source.
    Faulting,
    /// The guest runs here, and all of it is here.
    Running,
    /// The QEMU is dead, and no commit will be accepted.
    Discarded,
    /// The guest was ours, and died while it lacked pages: it is nobody's.
    Vanished,
}

impl SourceRecord {
    /// Whether the job is over.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Gone | Self::Returned | Self::Vanished)
    }
}

impl DestinationRecord {
    /// Whether the job is over.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Running | Self::Discarded | Self::Vanished)
    }
}
