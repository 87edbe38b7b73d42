//! The VM registry: which VMs this host knows, whose they are, and what survives a restart of the agent.
//!
//! A [`Record`] is one VM's durable part, a file of its own below the state directory, replaced as a whole. Whose a VM is
//! is not decided here: job journals do that; the registry follows them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sterna_host::durable;
use sterna_model::{Epoch, HostName, JobId, Uuid, VmName};

use crate::vm::Vm;

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
}

/// A process that is found again after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// Its start, in clock ticks since boot: the number alone may be another's by now.
    pub start_time: u64,
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
    /// A job ended without knowing.
    Unknown {
        /// This one.
        job: JobId,
    },
}

/// All VMs that this host knows.
#[derive(Debug)]
pub(crate) struct Registry {
    folder: PathBuf,
    vms: Mutex<BTreeMap<VmName, Arc<Vm>>>,
    /// Names of VMs whose QEMU is being started: two under one name would share their sockets.
    starting: Mutex<BTreeSet<VmName>>,
    /// Files are replaced one at a time: whoever asks last writes last.
    writing: Mutex<()>,
}

/// A name that nobody else can start a VM under, until this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation<'a> {
    registry: &'a Registry,
    name: VmName,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.registry.lock_starting().remove(&self.name);
    }
}

/// Why the registry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The disk.
    #[error("cannot use the VM registry {path}: {error}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A file that is not what was written.
    #[error(
        "the VM registry's file {path} is damaged: {error}; move it away and adopt the VM again"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        error: serde_json::Error,
    },
}

impl Registry {
    /// Opens the registry below a state directory, and reads what is there.
    ///
    /// # Errors
    /// When a file cannot be read or is damaged.
    pub(crate) fn open(state_dir: &Path) -> Result<(Self, Vec<Record>), RegistryError> {
        let folder = state_dir.join("vms");
        let io = |error| RegistryError::Io { path: folder.clone(), error };
        std::fs::create_dir_all(&folder).map_err(io)?;
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                records.push(read(&path)?);
            }
        }
        Ok((
            Self {
                folder,
                vms: Mutex::default(),
                starting: Mutex::default(),
                writing: Mutex::default(),
            },
            records,
        ))
    }

    /// Makes a VM's record durable, as it is at this moment.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn store(&self, vm: &Vm) -> Result<(), RegistryError> {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let record = vm.record();
        let path = self.folder.join(format!("{}.json", record.name));
        let io = |error| RegistryError::Io { path: path.clone(), error };
        let bytes = serde_json::to_vec_pretty(&record);
        let bytes = bytes.map_err(|error| io(std::io::Error::other(error)))?;
        durable::replace_file(&path, &bytes).map_err(|error| io(std::io::Error::other(error)))
    }

    /// Takes a name for a VM that is about to be started; `None` when one of that name is being started.
    pub(crate) fn reserve(&self, name: &VmName) -> Option<Reservation<'_>> {
        let free = self.lock_starting().insert(name.clone());
        free.then(|| Reservation { registry: self, name: name.clone() })
    }

    fn lock_starting(&self) -> std::sync::MutexGuard<'_, BTreeSet<VmName>> {
        self.starting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a VM in, over one of the same name.
    pub(crate) fn insert(&self, vm: Arc<Vm>) {
        let name = vm.record().name;
        self.lock().insert(name, vm);
    }

    /// Forgets a VM, also on disk.
    pub(crate) fn remove(&self, name: &VmName) {
        self.lock().remove(name);
        let path = self.folder.join(format!("{name}.json"));
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "a record could not be removed");
        }
    }

    /// The VM of this name.
    #[must_use]
    pub(crate) fn get(&self, name: &VmName) -> Option<Arc<Vm>> {
        self.lock().get(name).cloned()
    }

    /// All VMs, by name.
    #[must_use]
    pub(crate) fn all(&self) -> Vec<Arc<Vm>> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<VmName, Arc<Vm>>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Path) -> Result<Record, RegistryError> {
    let io = |error| RegistryError::Io { path: path.into(), error };
    let bytes = std::fs::read(path).map_err(io)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| RegistryError::Damaged { path: path.into(), error })
}
