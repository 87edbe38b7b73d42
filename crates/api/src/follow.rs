//! A VM that is followed: what `follow` asks for, what `status` tells.

use serde::{Deserialize, Serialize};
use sterna_model::{JobId, VmName};

/// How current the copy of a followed VM is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FollowView {
    /// The VM.
    pub vm: VmName,
    /// The job that follows it.
    pub job: JobId,
    /// The host that has the copy.
    pub destination: String,
    /// Where it is.
    pub state: FollowState,
    /// Since when it is followed, RFC 3339, UTC.
    pub since: String,
    /// What keeps the copy from being kept current, while something does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hindrance: Option<HindranceView>,
    /// Figures; absent until copying has begun.
    pub copy: Option<CopyView>,
}

/// Where following is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FollowState {
    /// The destination gets ready.
    Preparing,
    /// All memory is copied for the first time.
    Copying,
    /// The copy is kept nearly current.
    Following,
    /// The destination cannot be reached: it is tried again, and what it has is kept there.
    Reconnecting,
    /// Following has ended by a fault, and is begun anew: with what the destination has kept, where it has.
    Waiting,
    /// The guest's devices are being changed, which QEMU allows only while nobody follows; then it is begun anew.
    Paused,
    /// The guest is being handed over.
    Switching,
}

/// Why the copy is not kept current.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HindranceView {
    /// For how long by now.
    pub ms: u64,
    /// In words.
    pub why: String,
}

/// A copy's figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CopyView {
    /// The guest's memory.
    pub memory_bytes: u64,
    /// Pages that the copy lacks, as far as QEMU has told.
    pub stale_pages: u64,
    /// The same in bytes of guest memory.
    pub stale_bytes: u64,
    /// What they are expected to cost on the wire.
    pub stale_wire_bytes: u64,
    /// What may be stale for a hand-over within its goal, on the wire; 0 until the link's rate is known.
    pub allowed_wire_bytes: u64,
    /// Bytes put on the wire for the copy so far.
    pub background_bytes: u64,
    /// How long a `switch` would take now, from the command until the guest runs at the destination; absent until all
    /// memory was copied once.
    pub predicted_switch_ms: Option<f64>,
    /// Guest memory that changes per second, lately.
    pub dirty_bytes_per_second: u64,
    /// Epochs so far.
    pub epochs: u64,
    /// The last epoch; absent before the first.
    pub last_epoch: Option<EpochView>,
}

/// One epoch: what was dirtied in it, what was sent at its end.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochView {
    /// How long ago it ended.
    pub ended_ms_ago: u64,
    /// Pages that the guest dirtied in it.
    pub dirtied_pages: u64,
    /// Stale pages that it paid to send.
    pub eligible_pages: u64,
    /// Pages sent of them.
    pub sent_pages: u64,
    /// Of those that were sent an epoch before, the pages that it dirtied again.
    pub dirtied_again: u64,
    /// Pages that may be sent at the end of an epoch.
    pub window_pages: u32,
    /// How long the next epoch is.
    pub next_ms: u64,
    /// A page pays that is dirtied less often than this per second.
    pub hazard_limit_per_second: f64,
    /// For how much more of their time the guest's processors waited for one of the host's while pages were sent, in percent; less
    /// is sent when it is much. 0 where it is not told.
    #[serde(default)]
    pub harm_percent: u32,
}
