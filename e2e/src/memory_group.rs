//! A control group around an agent and its QEMUs, whose memory a test can make run out.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, Result};

/// Where the memory controller's groups are, with its files for the limit and for what is used: version 1, and 2.
const KINDS: [(&str, &str, &str); 2] = [
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
];

/// A group; it goes with its world.
#[derive(Debug)]
pub(crate) struct MemoryGroup {
    folder: PathBuf,
    limit: &'static str,
    usage: &'static str,
}

impl MemoryGroup {
    /// Makes a group without a limit.
    ///
    /// # Errors
    /// This machine lets nobody make one.
    pub(crate) fn make(name: &str) -> Result<Self> {
        let of_kind = |(root, limit, usage): (&str, &'static str, &'static str)| {
            // For version 2; where it is switched on already, or not to be had, the files tell.
            let _ = fs::write(Path::new(root).join("cgroup.subtree_control"), "+memory");
            let folder = Path::new(root).join(name);
            fs::create_dir(&folder).ok()?;
            if folder.join(limit).exists() {
                return Some(Self { folder, limit, usage });
            }
            let _ = fs::remove_dir(&folder);
            None
        };
        let missing = || Error::Unavailable("no control group with a memory limit".to_owned());
        KINDS.into_iter().find_map(of_kind).ok_or_else(missing)
    }

    /// A command that runs `command` in the group.
    pub(crate) fn command(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        inside
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.folder.join("cgroup.procs"));
        inside.arg(command.get_program()).args(command.get_args());
        inside
    }

    /// Lets the group have so much more than it has now, as if others had taken the rest.
    ///
    /// # Errors
    /// The kernel does not let it.
    pub(crate) fn leave(&self, bytes: u64) -> Result<()> {
        let text = fs::read_to_string(self.folder.join(self.usage));
        let text = text.map_err(Error::io("reading what a group uses"))?;
        let used: u64 = text.trim().parse().unwrap_or(0);
        self.set_limit(&(used + bytes).to_string())
    }

    /// Takes the limit off again.
    ///
    /// # Errors
    /// As [`Self::leave`].
    pub(crate) fn set_free(&self) -> Result<()> {
        self.set_limit(if self.limit == "memory.max" { "max" } else { "-1" })
    }

    fn set_limit(&self, text: &str) -> Result<()> {
        fs::write(self.folder.join(self.limit), text)
            .map_err(Error::io("limiting a group's memory"))
    }
}

/// Removes a world's groups. Nobody may be in them any more.
pub(crate) fn remove_groups(world: &str) {
    let prefix = format!("{world}-");
    for (root, ..) in KINDS {
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                // What stays is removed by the next run.
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}
