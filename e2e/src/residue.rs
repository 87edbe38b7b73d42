//! What a test leaves on the machine, and how it goes away again: also after a panic, and, at the
//! next start, after a kill.
//!
//! Every world has a folder `sterna-e2e-PID-N` with a locked file in it, and namespaces of the same
//! name with a suffix. The kernel drops the lock with its holder; a folder whose lock can be had,
//! or a namespace without folder, is what a killed run has left.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::command::{signal, tool, tool_line, wait_for};
use crate::memory_group::remove_groups;
use crate::{Error, Result};

const PREFIX: &str = "sterna-e2e-";
/// Worlds at a time on this machine, whatever the test runner thinks: each has two QEMUs, and the
/// machines that this runs on have two cores.
const SLOTS: u32 = 2;
const SLOT_LIMIT: Duration = Duration::from_secs(1800);

/// When a world may be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Turn {
    /// When one of the places on this machine is free.
    #[default]
    Awaited,
    /// At once: for worlds that mostly wait, of which somebody else limits the number.
    AtOnce,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A folder, a name and a place among the worlds that may run now; all gone when dropped.
#[derive(Debug)]
pub(crate) struct Residue {
    name: String,
    folder: PathBuf,
    _lock: File,
    _slot: Option<File>,
}

impl Residue {
    /// Waits for its turn, removes what killed runs have left, makes the folder.
    pub(crate) fn claim(turn: Turn) -> Result<Self> {
        let take = || (0..SLOTS).find_map(try_slot).transpose();
        let slot = match turn {
            Turn::Awaited => Some(wait_for("a free slot", SLOT_LIMIT, take)?),
            Turn::AtOnce => None,
        };
        // Nobody may look for leftovers while a folder exists whose lock is not held yet.
        let _making = locked(&shared_file("making"))?;
        remove_leftovers()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", process::id());
        let folder = std::env::temp_dir().join(&name);
        fs::create_dir(&folder).map_err(Error::io(format!("making {}", folder.display())))?;
        let lock = locked(&folder.join("lock"))?;
        Ok(Self { name, folder, _lock: lock, _slot: slot })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The name of one of its namespaces.
    pub(crate) fn namespace(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.name)
    }
}

impl Drop for Residue {
    fn drop(&mut self) {
        // A drop cannot fail; what stays is removed by the next run.
        let _ = remove_namespaces(&self.name);
        remove_groups(&self.name);
        if std::env::var_os("STERNA_KEEP").is_some() {
            eprintln!("kept: {}", self.folder.display());
        } else {
            remove_folder(&self.folder);
        }
    }
}

/// Removes a folder with all that is mounted below it. What stays is removed by the next run.
fn remove_folder(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let below = mounts.lines().filter_map(|line| line.split(' ').nth(1).map(Path::new));
    for mount in below.filter(|mount| mount.starts_with(folder)) {
        let _ = tool("umount", ["--lazy", &mount.to_string_lossy()]);
    }
    let _ = fs::remove_dir_all(folder);
}

/// All processes in a namespace.
pub(crate) fn processes_in(namespace: &str) -> Result<Vec<u32>> {
    let list = tool("ip", ["netns", "pids", namespace])?;
    Ok(list.lines().filter_map(|line| line.trim().parse().ok()).collect())
}

fn try_slot(number: u32) -> Option<Result<File>> {
    let path = shared_file(&format!("slot{number}"));
    let file = match File::create(&path).map_err(Error::io(format!("opening {}", path.display()))) {
        Ok(file) => file,
        Err(error) => return Some(Err(error)),
    };
    file.try_lock().is_ok().then_some(Ok(file))
}

fn shared_file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("sterna-e2e.{name}"))
}

fn locked(path: &Path) -> Result<File> {
    let doing = || format!("locking {}", path.display());
    let file = File::create(path).map_err(Error::io(doing()))?;
    file.lock().map_err(Error::io(doing()))?;
    Ok(file)
}

fn remove_leftovers() -> Result<()> {
    let mut alive = BTreeSet::new();
    let temp = std::env::temp_dir();
    let entries = fs::read_dir(&temp).map_err(Error::io(format!("reading {}", temp.display())))?;
    for entry in entries.flatten() {
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        if !name.starts_with(PREFIX) {
            continue;
        }
        if is_held(&entry.path()) {
            alive.insert(name);
        } else {
            remove_namespaces(&name)?;
            remove_groups(&name);
            // Kept on purpose (STERNA_KEEP) or left by a kill: in both cases its time is over.
            remove_folder(&entry.path());
        }
    }
    for name in namespaces()? {
        let world = name.rsplit_once('-').map_or(name.as_str(), |(world, _)| world);
        if !alive.contains(world) {
            remove_namespaces(world)?;
        }
    }
    Ok(())
}

fn is_held(folder: &Path) -> bool {
    File::open(folder.join("lock")).is_ok_and(|file| file.try_lock().is_err())
}

fn namespaces() -> Result<Vec<String>> {
    let list = tool_line("ip", "netns list")?;
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    Ok(names.filter(|name| name.starts_with(PREFIX)).map(str::to_owned).collect())
}

/// Removes a world's namespaces with all that runs in them.
fn remove_namespaces(world: &str) -> Result<()> {
    let prefix = format!("{world}-");
    for name in namespaces()?.iter().filter(|name| name.starts_with(&prefix)) {
        wait_for("the end of a namespace's processes", Duration::from_secs(5), || {
            let pids = processes_in(name)?;
            // A process that has ended in the meantime is as good.
            pids.iter().for_each(|pid| drop(signal(*pid, "KILL")));
            Ok(pids.is_empty().then_some(()))
        })?;
        tool("ip", ["netns", "delete", name])?;
    }
    Ok(())
}
