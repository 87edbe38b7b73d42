//! The two ends of the wire: TUN devices that exist already, each in its namespace.
//!
//! A process sees the devices of the namespace that it is in; a device that it has opened stays its
//! own when it goes elsewhere. So it enters one namespace after the other and stays in the second:
//! whoever ends all processes of that namespace ends this one too.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use tun_rs::{DeviceBuilder, SyncDevice};

/// Both devices, open.
pub struct Wires {
    pub(crate) ends: [SyncDevice; 2],
}

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its namespace cannot be entered.
    #[error("entering the network namespace {}: {source}", path.display())]
    Enter {
        /// The namespace's file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The device is not there: the kernel would make a new one, gone with this process.
    #[error("{}: expected a TUN device {name:?}, found none (ip tuntap add dev {name} mode tun)",
        path.display())]
    Missing {
        /// The namespace's file.
        path: PathBuf,
        /// The device's name.
        name: String,
    },
    /// It is there and cannot be opened, as when it is another's or no TUN device.
    #[error("opening the TUN device {name:?} in {}: {source}", path.display())]
    Open {
        /// The namespace's file.
        path: PathBuf,
        /// The device's name.
        name: String,
        /// What the system answered.
        source: io::Error,
    },
}

impl Wires {
    /// Opens the device `name` in both namespaces, which are named by their files (as
    /// `/run/netns/NAME`). The calling thread is in the second one afterwards. Needs root.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(namespaces: [&Path; 2], name: &str) -> Result<Self, OpenError> {
        let [first, second] = namespaces;
        Ok(Self { ends: [open(first, name)?, open(second, name)?] })
    }
}

fn open(namespace: &Path, name: &str) -> Result<SyncDevice, OpenError> {
    enter(namespace).map_err(|source| OpenError::Enter { path: namespace.into(), source })?;
    if !exists(name) {
        return Err(OpenError::Missing { path: namespace.into(), name: name.to_owned() });
    }
    let builder = DeviceBuilder::new().name(name).inherit_enable_state();
    let opened = builder.build_sync().and_then(|device| {
        device.set_nonblocking(true)?;
        Ok(device)
    });
    opened.map_err(|source| OpenError::Open {
        path: namespace.into(),
        name: name.to_owned(),
        source,
    })
}

fn enter(namespace: &Path) -> io::Result<()> {
    let file = File::open(namespace)?;
    Ok(setns(file, CloneFlags::CLONE_NEWNET)?)
}

/// Asked of `/proc`, not of `/sys`: that shows the namespace in which it was mounted.
fn exists(name: &str) -> bool {
    let list = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    list.lines().any(|line| line.split_once(':').is_some_and(|(found, _)| found.trim() == name))
}
