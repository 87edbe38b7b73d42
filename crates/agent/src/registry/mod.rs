//! The VM registry: which VMs this host knows, whose they are, and what survives a restart of the agent.
//!
//! A [`Record`] is one VM's durable part, a file of its own below the state directory, replaced as a whole. Whose a VM is
//! is not decided here: job journals do that; the registry follows them. A file that cannot be read leaves its VM unknown
//! and everything else as it is; the file stays for a person to look at.

mod record;
#[cfg(test)]
mod tests;

pub(crate) use record::{FollowOrder, Owner, ProcessId, Record};

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sterna_host::durable;
use sterna_model::{JobId, VmName};

use crate::vm::Vm;

/// How a record's file ends.
const EXTENSION: &str = "json";

/// All VMs that this host knows.
#[derive(Debug)]
pub(crate) struct Registry {
    folder: PathBuf,
    vms: Mutex<BTreeMap<VmName, Arc<Vm>>>,
    /// Names of VMs whose QEMU is being started: two under one name would share their sockets.
    starting: Mutex<BTreeSet<VmName>>,
    /// Files are replaced one at a time: whoever asks last writes last.
    writing: Mutex<()>,
    /// VMs whose files could not be read: nothing is written over them.
    damaged: Mutex<BTreeSet<VmName>>,
}

/// What a file of the registry was found to be.
#[derive(Debug)]
pub(crate) enum Found {
    /// A VM.
    Vm(Box<Record>),
    /// The file of this VM, which cannot be read; why, and what to do.
    Damaged(VmName, String),
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
    #[error("the VM registry's file {path} is damaged: {error}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        error: serde_json::Error,
    },
    /// A file that speaks of another VM than its name says.
    #[error("the VM registry's file {path} is of another VM: expected {expected}, found {found}")]
    OfAnother {
        /// The file.
        path: PathBuf,
        /// By its name.
        expected: VmName,
        /// By its content.
        found: VmName,
    },
}

impl Registry {
    /// Opens the registry below a state directory, and reads what is there.
    ///
    /// # Errors
    /// When the folder cannot be made or listed.
    pub(crate) fn open(state_dir: &Path) -> Result<(Self, Vec<Found>), RegistryError> {
        let folder = state_dir.join("vms");
        let io = |error| RegistryError::Io { path: folder.clone(), error };
        std::fs::create_dir_all(&folder).map_err(io)?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                found.extend(look_at(&path));
            }
        }
        let damaged = found.iter().filter_map(|found| match found {
            Found::Damaged(name, _) => Some(name.clone()),
            Found::Vm(_) => None,
        });
        let registry = Self {
            damaged: Mutex::new(damaged.collect()),
            folder,
            vms: Mutex::default(),
            starting: Mutex::default(),
            writing: Mutex::default(),
        };
        Ok((registry, found))
    }

    /// Makes a VM's record durable, as it is at this moment. Nothing is written of a VM that another one of its name has
    /// replaced: whoever still holds the old one must not write over the new one.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn store(&self, vm: &Vm) -> Result<(), RegistryError> {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let record = vm.record();
        if !self.has(vm, &record.name) || self.is_damaged(&record.name) {
            return Ok(());
        }
        let path = self.path_of(&record.name);
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

    /// Puts a VM in the place of this very one, if it is there still.
    #[must_use]
    pub(crate) fn replace(&self, vm: &Vm, by: Arc<Vm>) -> bool {
        let mut vms = self.lock();
        let place = vms.get_mut(&vm.record().name).filter(|known| is_same(known, vm));
        place.map(|place| *place = by).is_some()
    }

    /// Forgets this very VM, also on disk; not another one that has its name by now.
    pub(crate) fn remove(&self, vm: &Vm) {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let name = vm.record().name;
        if !self.has(vm, &name) || self.is_damaged(&name) {
            return;
        }
        self.lock().remove(&name);
        let path = self.path_of(&name);
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "a record could not be removed");
        }
    }

    /// Whether a VM's file could not be read.
    #[must_use]
    pub(crate) fn is_damaged(&self, name: &VmName) -> bool {
        self.lock_damaged().contains(name)
    }

    /// Puts a VM's damaged file aside, as `NAME.json.damaged`: a person has said what the VM is, and it may be written
    /// again.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub(crate) fn put_damage_aside(&self, name: &VmName) -> std::io::Result<()> {
        let mut damaged = self.lock_damaged();
        if damaged.contains(name) {
            let path = self.path_of(name);
            std::fs::rename(&path, path.with_extension(format!("{EXTENSION}.damaged")))?;
            damaged.remove(name);
        }
        Ok(())
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

    /// Jobs whose journals are of use: some VM's record speaks of them.
    #[must_use]
    pub(crate) fn jobs_of_interest(&self) -> BTreeSet<JobId> {
        let jobs = self.all().into_iter().filter_map(|vm| vm.record().job_of_interest().cloned());
        jobs.collect()
    }

    fn has(&self, vm: &Vm, name: &VmName) -> bool {
        self.lock().get(name).is_some_and(|known| is_same(known, vm))
    }

    fn path_of(&self, name: &VmName) -> PathBuf {
        self.folder.join(format!("{name}.{EXTENSION}"))
    }

    fn lock_damaged(&self) -> std::sync::MutexGuard<'_, BTreeSet<VmName>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<VmName, Arc<Vm>>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_same(known: &Arc<Vm>, vm: &Vm) -> bool {
    std::ptr::eq(Arc::as_ptr(known), vm)
}

/// What a file is; nothing for one that is not named like a VM's.
fn look_at(path: &Path) -> Option<Found> {
    let name: Option<VmName> = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
    let Some(name) = name else {
        tracing::warn!(path = %path.display(), "this file of the VM registry is named like no VM");
        return None;
    };
    match read(path, &name) {
        Ok(record) => Some(Found::Vm(Box::new(record))),
        Err(error) => {
            let remedy = format!(
                "put a copy of the file back and restart the agent, or settle it with `sterna resolve {name}`"
            );
            Some(Found::Damaged(name, format!("{error}; {remedy}")))
        }
    }
}

fn read(path: &Path, name: &VmName) -> Result<Record, RegistryError> {
    let io = |error| RegistryError::Io { path: path.into(), error };
    let bytes = std::fs::read(path).map_err(io)?;
    parse(path, name, &bytes)
}

/// The record in a file's bytes, which has to be of the VM that the file is named after.
///
/// # Errors
/// When it is none, or another VM's.
pub(crate) fn parse(path: &Path, name: &VmName, bytes: &[u8]) -> Result<Record, RegistryError> {
    let record: Record = serde_json::from_slice(bytes)
        .map_err(|error| RegistryError::Damaged { path: path.into(), error })?;
    if record.name != *name {
        let (expected, found) = (name.clone(), record.name);
        return Err(RegistryError::OfAnother { path: path.into(), expected, found });
    }
    Ok(record)
}
