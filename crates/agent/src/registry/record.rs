//! A VM as it is remembered: one file of JSON, replaced as a whole.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sterna_api::MigrateOptions;
use sterna_host::process::{Process, ProcessError, boot_id};
use sterna_model::{Epoch, HostName, JobId, Uuid, VmName};

/// A VM, as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// Its name here.
    pub name: VmName,
    /// What it is, wherever it runs.
    pub uuid: Uuid,
    /// How often it was handed over.
    pub epoch: Epoch,
    /// Program and arguments that define it, without what the agent adds for itself.
    pub definition: Vec<String>,
    /// Where relative paths in the definition start.
    pub directory: PathBuf,
    /// Program and arguments as they were run.
    pub argv: Vec<String>,
    /// QEMU's process.
    pub process: Option<ProcessId>,
    /// The agent's own QMP socket.
    pub agent_qmp: PathBuf,
    /// A QMP socket for others.
    pub user_qmp: Option<PathBuf>,
    /// What the guest prints.
    pub serial: Option<PathBuf>,
    /// QEMU's own messages.
    pub log: PathBuf,
    /// Whose it is.
    pub owner: Owner,
    /// The job that moves it away, while one does: without that job's journal nobody knows whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving: Option<JobId>,
    /// Its user wants it followed: until that is taken back, or it is handed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<FollowOrder>,
    /// What was known by this name before the VM began to arrive: known again if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Box<Self>>,
}

/// A wish to have a VM followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FollowOrder {
    /// Where to: a peer's name, or `name=host:port`.
    pub destination: String,
    /// How.
    pub options: MigrateOptions,
}

/// A process that is found again after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// Its start, in clock ticks since boot: the number alone may be another's by now.
    pub start_time: u64,
    /// The host's boot that it was started after: the same number may start at the same tick after another one. Earlier
    /// builds did not remember it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Uuid>,
}

impl ProcessId {
    /// What is to be remembered of a process.
    #[must_use]
    pub(crate) fn of(process: &Process) -> Self {
        // Where the kernel does not tell, it is as before it was remembered.
        let boot = boot_id().ok();
        Self { pid: process.pid(), start_time: process.start_time(), boot }
    }

    /// Whether it is this process.
    #[must_use]
    pub(crate) fn is(self, process: &Process) -> bool {
        let now = Self::of(process);
        (self.pid, self.start_time) == (now.pid, now.start_time)
            && (self.boot.is_none() || self.boot == now.boot)
    }

    /// The process, or `None` when it is gone.
    ///
    /// # Errors
    /// When the kernel refuses to say.
    pub(crate) fn find(self) -> Result<Option<Process>, ProcessError> {
        match self.boot {
            Some(boot) => Process::reattach_since(boot, self.pid, self.start_time),
            None => Process::reattach(self.pid, self.start_time),
        }
    }
}

/// Whose a VM is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub(crate) enum Owner {
    /// It runs here, or would.
    Here,
    /// It is being moved here.
    Incoming {
        /// By this job.
        job: JobId,
    },
    /// It was moved away.
    MovedTo {
        /// There.
        host: HostName,
        /// By this job.
        job: JobId,
    },
    /// It ended here.
    Ended,
    /// Its only QEMU died in a move.
    Lost,
    /// Nobody can tell from what is here.
    Unknown {
        /// The job that ended without knowing, if it was one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job: Option<JobId>,
        /// Why, and what to do.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        why: String,
    },
}

impl Record {
    /// The VM is this host's from here on.
    pub(crate) fn arrive(&mut self) {
        self.owner = Owner::Here;
        self.previous = None;
    }

    /// Whose it is, is not known any more.
    pub(crate) fn lose_track(&mut self, job: &JobId, why: &str) {
        self.owner = Owner::Unknown { job: Some(job.clone()), why: why.to_owned() };
    }

    /// The job under way, by what is remembered of the VM: its journal must be there.
    #[must_use]
    pub(crate) fn job_under_way(&self) -> Option<&JobId> {
        match &self.owner {
            Owner::Incoming { job } => Some(job),
            Owner::Here | Owner::Ended => self.leaving.as_ref(),
            Owner::MovedTo { .. } | Owner::Lost | Owner::Unknown { .. } => None,
        }
    }

    /// The job whose journal is still of use for this VM.
    #[must_use]
    pub(crate) fn job_of_interest(&self) -> Option<&JobId> {
        match &self.owner {
            Owner::Unknown { job, .. } => job.as_ref(),
            _ => self.job_under_way(),
        }
    }
}

impl Owner {
    /// What to tell a user who wants something of a VM whose owner is not known, if that is so.
    #[must_use]
    pub(crate) fn unknown_because(&self) -> Option<String> {
        let Self::Unknown { job, why } = self else { return None };
        let job = job.as_ref().map(|job| format!(" after {job}")).unwrap_or_default();
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        Some(format!(
            "whose the guest is is not known{job}{why}; look at both hosts before ending either QEMU, and at what `sterna resolve` tells"
        ))
    }
}
