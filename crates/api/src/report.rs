//! The report: what every job ends in (law 6). Its keys are a contract: they are only ever added.

use serde::{Deserialize, Serialize};
use sterna_migration::outcome::{GuestIs, OutcomeName};
use sterna_migration::policy::DecisionName;
use sterna_model::{JobId, Refusal, VmName};

/// What a job did. All times in milliseconds on the source's clock, all sizes in bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The job.
    pub job: JobId,
    /// The VM.
    pub vm: VmName,
    /// The strategy that was used.
    pub strategy: String,
    /// The host that the VM was on.
    pub source: String,
    /// The host that it was to go to.
    pub destination: String,
    /// When the command was accepted, RFC 3339, UTC.
    pub started_at: String,
    /// How it ended.
    pub outcome: OutcomeName,
    /// Where the guest is.
    pub guest_is: GuestIs,
    /// Why it did not go well.
    pub error: Option<String>,
    /// The reasons, when it was refused.
    pub refusals: Vec<Refusal>,
    /// From accepting the command until the source may be destroyed.
    pub total_ms: f64,
    /// The guest stopped at the source until running at the destination: an upper bound.
    pub downtime_ms: f64,
    /// What the downtime consists of.
    pub downtime_parts_ms: DowntimeParts,
    /// The rounds.
    pub rounds: Vec<RoundReport>,
    /// Bytes on the wire, TLS included, TCP and IP not.
    pub wire_bytes: WireBytes,
    /// Pages by what became of them.
    pub pages: PageCounts,
    /// The most often that one page was sent.
    pub max_sends_per_page: u32,
    /// How many pages were sent so many times: index 0 is never.
    pub resend_histogram: Vec<u64>,
    /// Disks.
    pub disk: DiskReport,
    /// Memory of the agents.
    pub memory: MemoryReport,
    /// Time-line of the whole job, for whoever wants to know where the time went.
    pub phases_ms: PhaseTimes,
    /// What was compared.
    pub verify: VerifyReport,
    /// Pages that the guest had to wait for in post-copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// How long it waited for one, from QEMU's request to the page in its stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault_latency_us: Option<FaultLatency>,
    /// After a `switch`: from accepting it until the guest ran at the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch_ms: Option<f64>,
}

/// How long the guest waited for pages, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultLatency {
    /// Half of the waits were no longer.
    pub p50: u64,
    /// All but one in a hundred were no longer.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

/// Parts of the downtime, one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DowntimeParts {
    /// QEMU stops the guest.
    pub stop: f64,
    /// QEMU's last pass and its device state.
    pub drain: f64,
    /// The last pages and the device state go to the connections.
    pub flush: f64,
    /// The destination receives and loads them.
    pub load: f64,
    /// The offer is made durable.
    pub commit: f64,
    /// The destination makes its right durable and resumes.
    pub resume: f64,
}

/// Where the whole time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PhaseTimes {
    /// Connecting, checking, starting the destination's QEMU.
    pub prepare: f64,
    /// Of that: starting the destination's QEMU.
    pub destination_qemu_start: f64,
    /// Rounds.
    pub copy: f64,
    /// From the decision to stop until the guest runs at the destination.
    pub switchover: f64,
    /// Ending the source's QEMU.
    pub cleanup: f64,
}

/// One round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundReport {
    /// Pages sent.
    pub pages: u64,
    /// Bytes put on the wire.
    pub bytes_wire: u64,
    /// How long it took.
    pub duration_ms: f64,
    /// Pages to be sent at its end.
    pub dirty_pages: u64,
    /// What the policy made of it.
    pub decision: DecisionName,
}

/// Bytes on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireBytes {
    /// All that was sent and received.
    pub total: u64,
    /// Pages sent while the guest ran here.
    pub precopy: u64,
    /// Pages and device state sent while it stood.
    pub downtime: u64,
    /// Pages sent after it ran there.
    pub postcopy: u64,
    /// Pages sent before the move was asked for.
    pub background: u64,
    /// Disk contents.
    pub disk: u64,
    /// Messages sent.
    pub control: u64,
    /// All that was received.
    pub received: u64,
}

/// Pages by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageCounts {
    /// Page transfers and pages found unchanged, all kinds together.
    pub total: u64,
    /// Sent as zero.
    pub zero: u64,
    /// Reported dirty, but the destination has that content already.
    pub same: u64,
    /// Sent as a reference to another page.
    pub r#ref: u64,
    /// Sent as a difference to what the destination has.
    pub delta: u64,
    /// Sent compressed.
    pub compressed: u64,
    /// Sent as they are.
    pub raw: u64,
    /// Times that a page was left for a later round because it changed while it waited.
    pub held_back: u64,
    /// Asked for again by the destination.
    pub requested: u64,
}

/// Disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// The disks' sizes.
    pub bytes_total: u64,
    /// Used by their file systems.
    pub bytes_used: u64,
    /// Sent.
    pub bytes_sent: u64,
    /// Free, and not sent.
    pub skipped_free_bytes: u64,
    /// Free, and sent last.
    pub deferred_free_bytes: u64,
}

/// Memory of the agents: anonymous memory, without the guest's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// At the source, at most.
    pub agent_peak_anon_bytes_source: u64,
    /// At the destination, at most.
    pub agent_peak_anon_bytes_destination: u64,
}

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Pages whose content the destination hashed: all that it wrote and all that it read to build on. Zero pages are
    /// known without hashing.
    pub pages_hashed: u64,
    /// Both memories had the same root before the guest was resumed.
    pub roots_match: bool,
}

impl Report {
    /// The exit code of the command that waited for this job.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self.outcome {
            OutcomeName::Done => 0,
            OutcomeName::Failed | OutcomeName::Lost => 1,
            OutcomeName::Refused => 3,
            OutcomeName::Unknown => 4,
            OutcomeName::Cancelled => 130,
        }
    }
}
