//! What a client and the agent say to each other over the control socket.
//!
//! One connection carries one [`Request`], a line of JSON, and then [`Response`]s, a line each, until one that
//! [ends it](Response::is_last). A `migrate` answers `Started`, any number of `Progress`, then `Report`; a client that goes
//! away does not end the job ([`Request::Cancel`] does).

use serde::{Deserialize, Serialize};
use sterna_model::{JobId, Rate, Refusal, VmName};

use crate::{Decision, FollowView, Report, ResolveView};

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Start QEMU under the agent. Answered by `Vm`.
    VmStart {
        /// The VM's name.
        name: VmName,
        /// The program and its arguments; relative paths are taken from `directory`.
        argv: Vec<String>,
        /// The client's working directory: QEMU is started there.
        directory: String,
    },
    /// Take a QEMU that runs already. Answered by `Vm`.
    VmAdopt {
        /// The VM's name.
        name: VmName,
        /// Its QMP socket.
        qmp: String,
        /// Its process; found through the socket's peer when absent.
        pid: Option<u32>,
    },
    /// Answered by `Vms`.
    VmList,
    /// Answered by `Vm`.
    VmShow {
        /// The VM's name.
        name: VmName,
    },
    /// Power the VM down, then quit it. Answered by `Vm`.
    VmStop {
        /// The VM's name.
        name: VmName,
        /// Seconds for the guest to power down; 0 quits at once.
        grace_seconds: u64,
    },
    /// Move a VM. Answered by `Started`, `Progress`..., `Report`.
    Migrate(MigrateRequest),
    /// Keep a copy of a VM nearly current at another host. Answered by `Follow` when copying has begun.
    Follow(MigrateRequest),
    /// How current the copy of a followed VM is. Answered by `Follow`.
    Status {
        /// The VM's name.
        name: VmName,
    },
    /// Hand a followed VM over. Answered like `Migrate`.
    Switch {
        /// The VM's name.
        name: VmName,
        /// Where to, if it is to be checked: the host that it is followed to.
        destination: Option<String>,
    },
    /// Follow a VM no more. Answered by `Text` when the copy is given up.
    Unfollow {
        /// The VM's name.
        name: VmName,
        /// The destination keeps its copy for a while, for `follow` to go on from.
        #[serde(default)]
        keep: bool,
    },
    /// Predict and check; change nothing. Answered by `Plan`.
    Plan {
        /// The VM's name.
        name: VmName,
        /// A peer's name, or `name=host:port`.
        destination: String,
        /// Disks too.
        with_disks: bool,
    },
    /// Can a peer be reached and trusted. Answered by `Check`.
    Check {
        /// A peer's name, or `name=host:port`.
        peer: String,
    },
    /// Answered by `Jobs`.
    Jobs,
    /// Follow a job. Answered like `Migrate`.
    Watch {
        /// The job.
        job: JobId,
    },
    /// End a job and roll it back. Answered by `Text`.
    Cancel {
        /// The job.
        job: JobId,
    },
    /// The report of a job that has ended. Answered by `Report`.
    Report {
        /// The job.
        job: JobId,
    },
    /// Tell all that is known of a VM whose owner is not, or settle whose it is. Answered by `Resolve`.
    Resolve {
        /// The job, or the name of a VM that is unknown without one.
        job: JobId,
        /// What a person has found out; nothing is changed without it.
        guest_is: Option<Decision>,
    },
}

/// What `migrate` asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// The VM's name.
    pub name: VmName,
    /// A peer's name, or `name=host:port`.
    pub destination: String,
    /// How.
    pub options: MigrateOptions,
}

/// The options of `migrate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateOptions {
    /// The strategy.
    pub strategy: Strategy,
    /// Disks too.
    pub with_disks: bool,
    /// The longest that the guest may stand, as far as can be foreseen, in milliseconds.
    pub max_downtime_ms: u64,
    /// The whole job's time-out in seconds; 0 is none.
    pub timeout_seconds: u64,
    /// At most this rate on the wire.
    pub bandwidth: Option<Rate>,
    /// Data connections.
    pub connections: u16,
    /// Compression.
    pub compress: Compress,
    /// Verification beyond the hashes of every page.
    pub verify_full: bool,
    /// Answer `Started` and nothing more.
    pub detach: bool,
    /// Only plan. Answered by `Plan`.
    pub dry_run: bool,
}

impl Default for MigrateOptions {
    fn default() -> Self {
        Self {
            strategy: Strategy::Auto,
            with_disks: false,
            max_downtime_ms: 300,
            timeout_seconds: 0,
            bandwidth: None,
            connections: 4,
            compress: Compress::Auto,
            verify_full: false,
            detach: false,
            dry_run: false,
        }
    }
}

/// `--strategy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The agent chooses.
    Auto,
    /// Rounds until the rest fits the downtime limit.
    Precopy,
    /// Pre-copy that stops by the service's activity.
    Liveness,
    /// Full copy, stop, the rest by push and on demand.
    ThreeStage,
}

/// `--compress`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compress {
    /// As the link and the measured gain say.
    Auto,
    /// Never.
    None,
    /// Always, at this zstd level (1 to 19).
    Level(i32),
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "value", rename_all = "kebab-case")]
pub enum Response {
    /// One VM.
    Vm(VmView),
    /// All VMs.
    Vms(Vec<VmView>),
    /// A job has begun.
    Started {
        /// The job.
        job: JobId,
    },
    /// Where a job is.
    Progress(Progress),
    /// How a job ended.
    Report(Box<Report>),
    /// What would happen.
    Plan(Plan),
    /// A peer, looked at.
    Check(CheckView),
    /// A VM that is followed.
    Follow(Box<FollowView>),
    /// All jobs that the agent remembers, oldest first.
    Jobs(Vec<JobView>),
    /// All that is known of a VM whose owner is not, or was not until now.
    Resolve(Box<ResolveView>),
    /// A sentence.
    Text(String),
    /// It did not work.
    Error(ApiError),
}

impl Response {
    /// Whether nothing follows.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        !matches!(self, Self::Started { .. } | Self::Progress(_))
    }
}

/// An error, and the exit code that it means for a script.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// 1 failed, 2 usage, 3 refused, 4 unknown.
    pub exit_code: u8,
    /// What was expected, what was found, where the guest runs, what to do.
    pub message: String,
    /// The reasons, when it was refused.
    #[serde(default)]
    pub refusals: Vec<Refusal>,
}

impl ApiError {
    /// It was tried and failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { exit_code: 1, message: message.into(), refusals: Vec::new() }
    }

    /// It was asked for wrongly.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit_code: 2, message: message.into(), refusals: Vec::new() }
    }

    /// It is refused before anything is touched.
    #[must_use]
    pub fn refused(refusals: Vec<Refusal>) -> Self {
        let reasons: Vec<String> = refusals.iter().map(ToString::to_string).collect();
        Self { exit_code: 3, message: format!("refused: {}", reasons.join("; ")), refusals }
    }
}

/// A VM, as `vm show` tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmView {
    /// Its name on this host.
    pub name: VmName,
    /// What it is, wherever it runs.
    pub uuid: String,
    /// How it is.
    pub state: VmState,
    /// QEMU's process, while there is one.
    pub pid: Option<u32>,
    /// QEMU's QMP socket, for others to use (the agent has its own).
    pub qmp: Option<String>,
    /// What the guest prints, if it goes to a file.
    pub serial: Option<String>,
    /// QEMU's program and arguments.
    pub argv: Vec<String>,
    /// The host that it was moved to, when it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_to: Option<String>,
    /// Why its state is unknown, when it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown_because: Option<String>,
    /// What `sterna resolve` is to be given when its state is unknown: the job, or the VM's name where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolve: Option<String>,
}

/// A VM's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// It runs.
    Running,
    /// Its user paused it.
    Paused,
    /// It is being moved here.
    Incoming,
    /// A copy is kept nearly current elsewhere.
    Following,
    /// It was moved away.
    Migrated,
    /// It ended.
    Stopped,
    /// Who owns it is not known here.
    Unknown,
    /// Its only QEMU died in a move.
    Lost,
}

/// Where a job is. All figures only grow within a job, but for the rates and the ETA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The job.
    pub job: JobId,
    /// The source machine's state: preparing, copying, stopping, flushing, offering, offered, returning.
    pub phase: String,
    /// Since the command was accepted, in milliseconds.
    pub elapsed_ms: u64,
    /// The round, from 1; 0 before the first.
    pub round: u32,
    /// How much of the work is done, 0 to 100, monotone; 100 only when the move is done.
    pub percent: f64,
    /// Guest memory whose content the destination has had at least once.
    pub memory_done_bytes: u64,
    /// The guest's memory.
    pub memory_total_bytes: u64,
    /// Guest memory that has to be sent at this moment.
    pub remaining_bytes: u64,
    /// Put on the wire so far.
    pub wire_bytes: u64,
    /// Put on the wire per second, lately.
    pub rate_bytes_per_second: u64,
    /// Guest memory that changes per second, lately.
    pub dirty_bytes_per_second: u64,
    /// Expected until the end; absent when the guest changes faster than it can be sent.
    pub eta_ms: Option<u64>,
}

/// What `plan` tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Predictions for each strategy that can be used.
    pub strategies: Vec<StrategyForecast>,
    /// The strategy that `auto` would take.
    pub recommended: Option<String>,
    /// Why the move would be refused; empty when it would not.
    pub refusals: Vec<Refusal>,
}

/// A strategy's prediction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StrategyForecast {
    /// The strategy.
    pub name: String,
    /// From the command to the end, in milliseconds.
    pub total_ms: Range,
    /// The guest stands, in milliseconds.
    pub downtime_ms: Range,
    /// Bytes on the wire.
    pub wire_bytes: Range,
}

/// A prediction's bounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Range {
    /// At best.
    pub low: f64,
    /// At worst, as far as can be foreseen.
    pub high: f64,
}

/// What `check` tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckView {
    /// The peer's name, as its certificate says it.
    pub peer: String,
    /// Where it was reached.
    pub address: String,
    /// Its software.
    pub software: String,
    /// The protocol that both speak.
    pub protocol: u16,
    /// The peer takes VMs from us.
    pub accepts: bool,
    /// A message there and its answer, in milliseconds.
    pub round_trip_ms: f64,
    /// What one connection carried in a short trial.
    pub link_bytes_per_second: u64,
    /// Days until our certificate expires.
    pub our_certificate_days: i64,
    /// Days until the peer's certificate expires.
    pub peer_certificate_days: i64,
    /// What does not keep a VM from being moved there, and soon will: certificates that expire.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Anything that would keep a VM from being moved there.
    pub refusals: Vec<Refusal>,
}

/// A job, as `jobs` lists it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    /// The job.
    pub job: JobId,
    /// The VM.
    pub vm: VmName,
    /// The other host.
    pub peer: String,
    /// `source` or `destination`: what this host is in it.
    pub role: String,
    /// A phase while it runs, an outcome when it has ended.
    pub state: String,
    /// When it began.
    pub started_at: String,
    /// Why it ended, if it did not go well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
