//! What `sterna resolve` tells: all that is known of a VM whose owner is not, and what can be decided.

use core::fmt;

use serde::{Deserialize, Serialize};
use sterna_model::{JobId, Refusal, VmName};

/// What a person has found out, in the report's words for `guest_is`: the hosts are the job's, wherever it is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// The guest is at the job's source.
    Source,
    /// The guest is at the job's destination.
    Destination,
    /// Neither host has it.
    Lost,
}

impl Decision {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Source, Self::Destination, Self::Lost];

    /// As it is typed and printed.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Lost => "lost",
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// All that is known of a VM whose owner is not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResolveView {
    /// The job; none when the VM is unknown without one.
    pub job: Option<JobId>,
    /// The VM.
    pub vm: VmName,
    /// This host.
    pub host: String,
    /// `source` or `destination`: what this host is in the job. Without a job it is the source.
    pub role: String,
    /// The other host, where it is known.
    pub peer: Option<String>,
    /// Why the owner is not known.
    pub why: Option<String>,
    /// What the job's journal here says.
    pub journal: JournalView,
    /// What the VM registry here says.
    pub registry: String,
    /// The QEMU here, if one was found.
    pub qemu: Option<QemuView>,
    /// What other hosts say now.
    pub peers: Vec<PeerAnswer>,
    /// What can be decided; empty once it is.
    pub choices: Vec<Choice>,
    /// What was decided, when this is the answer to a decision.
    pub settled: Option<Decision>,
}

/// A job's journal, as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalView {
    /// The file; none without a job.
    pub path: Option<String>,
    /// Why it cannot be read, if it cannot.
    pub error: Option<String>,
    /// What was written into it, oldest first: the last 50 entries.
    pub states: Vec<StateView>,
}

/// An entry of a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateView {
    /// When it was written, RFC 3339, UTC; earlier builds wrote no times.
    pub at: Option<String>,
    /// What it says.
    pub state: String,
}

/// A QEMU that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuView {
    /// Its process.
    pub pid: u32,
    /// Its run state, in QEMU's words; none when its monitor does not answer.
    pub run_state: Option<String>,
    /// Why its monitor does not answer.
    pub error: Option<String>,
}

/// What another host says of the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAnswer {
    /// The host.
    pub peer: String,
    /// Its state in the job, in the protocol's words; none when it could not be asked.
    pub state: Option<String>,
    /// What that means, or why it could not be asked.
    pub meaning: String,
}

/// A decision, and what it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The decision.
    pub guest_is: Decision,
    /// The command.
    pub command: String,
    /// What it does.
    pub consequence: String,
    /// Why it would be refused now, if it would.
    pub refused: Option<Refusal>,
}
