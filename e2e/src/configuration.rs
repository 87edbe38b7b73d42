//! A host's configuration: what all hosts of the tests have in common, and what a test may choose.

use std::path::{Path, PathBuf};

use crate::artifacts::cache;
use crate::world::{Side, World};

/// The agent's control socket, in the host's folder.
pub(crate) const SOCKET: &str = "sterna.sock";

/// The state directory, in the host's folder.
pub(crate) const STATE: &str = "state";

/// Whether a host takes VMs from the other one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Peer {
    /// It does.
    #[default]
    Accepted,
    /// It knows the other one, and takes none.
    NotAccepted,
    /// It does not know the other one.
    Unknown,
}

/// Who has signed a host's certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Authority {
    /// The same CA as the other host's.
    #[default]
    Common,
    /// Another one.
    Foreign,
}

/// Where a host's state directory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StateDisk {
    /// Beside the rest.
    #[default]
    Common,
    /// On a small disk of its own (tmpfs), which a test can fill.
    Small,
}

/// Whether a host's memory can run out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryLimit {
    /// It has what the machine has.
    #[default]
    Machine,
    /// Its agent and its QEMUs are in a group whose memory a test can limit.
    Group,
}

/// Where a host's agent logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogTo {
    /// Standard error, a file.
    #[default]
    File,
    /// A journald of its own.
    Journal,
}

/// What a host's configuration says beyond names and addresses.
#[derive(Clone, Debug, Default)]
pub struct HostSetup {
    /// See [`Peer`].
    pub peer: Peer,
    /// See [`Authority`].
    pub authority: Authority,
    /// `[paths]`: the source's path, ours.
    pub paths: Vec<(PathBuf, PathBuf)>,
    /// Lines below `[limits]`.
    pub limits: Vec<String>,
    /// Lines below `[lab]`.
    pub lab: Vec<String>,
    /// See [`StateDisk`].
    pub state_disk: StateDisk,
    /// See [`MemoryLimit`].
    pub memory: MemoryLimit,
    /// See [`LogTo`].
    pub log: LogTo,
}

impl HostSetup {
    /// The text of a host's configuration; `pki` is the folder of its certificate, relative to the file.
    pub(crate) fn configuration(&self, world: &World, side: Side, pki: &str) -> String {
        let folder = world.folder().join(side.name());
        let other = side.other();
        let (name, address) = (side.name(), side.address());
        let accept = self.peer == Peer::Accepted;
        let peer = match self.peer {
            Peer::Unknown => String::new(),
            Peer::Accepted | Peer::NotAccepted => format!(
                "[peers.{}]\naddress = \"{}:7837\"\naccept = {accept}",
                other.name(),
                other.address()
            ),
        };
        let quoted = |path: &Path| format!("{:?}", path.display().to_string());
        let paths: Vec<String> = (self.paths.iter())
            .map(|(from, to)| format!("{} = {}", quoted(from), quoted(to)))
            .collect();
        let roots =
            [quoted(&cache()), quoted(&shared_folder(world)), quoted(Path::new("/usr/share"))];
        format!(
            r#"[host]
name = "{name}"
listen = "{address}:7837"
control = {control}
state_dir = {state}

[tls]
ca = "{pki}/ca-cert.pem"
cert = "{pki}/server-cert.pem"
key = "{pki}/server-key.pem"

{peer}

[paths]
{paths}

[accept]
roots = [{roots}]

[limits]
{limits}

[lab]
{lab}
"#,
            control = quoted(&folder.join(SOCKET)),
            state = quoted(&folder.join(STATE)),
            paths = paths.join("\n"),
            roots = roots.join(", "),
            limits = self.limits.join("\n"),
            lab = self.lab.join("\n"),
        )
    }
}

/// A folder that both hosts see under the same path, like shared storage.
#[must_use]
pub(crate) fn shared_folder(world: &World) -> PathBuf {
    world.folder().join("shared")
}
