//! A VM's own files on this host: sockets, and what it writes.

use std::path::{Path, PathBuf};

use sterna_model::VmName;

use crate::vm::VmError;

/// A VM's own files on this host.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Sockets, gone after a reboot.
    pub sockets: PathBuf,
    /// What the guest and QEMU write.
    pub output: PathBuf,
    /// The agent's monitor.
    pub agent_qmp: PathBuf,
    /// The users' monitor.
    pub user_qmp: PathBuf,
    /// QEMU's messages.
    pub log: PathBuf,
}

impl Place {
    /// The place of the VM `name`; nothing is made yet.
    #[must_use]
    pub(crate) fn of(run_dir: &Path, state_dir: &Path, name: &VmName) -> Self {
        let sockets = run_dir.join("vms").join(name.as_str());
        let output = state_dir.join("output").join(name.as_str());
        Self {
            // As the rebuilt arguments of a VM that arrives name it.
            agent_qmp: sockets.join("qmp.sock"),
            user_qmp: sockets.join("sterna-users.sock"),
            log: output.join("qemu.log"),
            sockets,
            output,
        }
    }

    /// Makes the place's folders, and one in them for this stay if one is named.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub(crate) fn make(&self, stay: Option<&Path>) -> Result<(), VmError> {
        for folder in [Some(&*self.sockets), Some(&*self.output), stay].into_iter().flatten() {
            let failed = |error| VmError::Folder { path: folder.to_path_buf(), error };
            make_private(folder).map_err(failed)?;
        }
        Ok(())
    }

    /// A folder of its own for the next stay of the VM on this host: a VM that comes back must not write over what it
    /// wrote before.
    #[must_use]
    pub(crate) fn next_stay(&self) -> PathBuf {
        let number = |entry: std::fs::DirEntry| {
            entry.file_name().to_str()?.strip_prefix("stay-")?.parse().ok()
        };
        let entries = std::fs::read_dir(&self.output).into_iter().flatten().flatten();
        let last: u32 = entries.filter_map(number).max().unwrap_or(0);
        self.output.join(format!("stay-{}", last.saturating_add(1)))
    }
}

/// Makes a folder that only we can enter. A QEMU that runs as another user would need more: that is set up by hand.
fn make_private(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// A monitor's argument.
#[must_use]
pub(crate) fn monitor_argument(socket: &Path) -> String {
    // A comma in a path is doubled in QEMU's option syntax.
    format!("unix:{},server=on,wait=off", socket.to_string_lossy().replace(',', ",,"))
}
