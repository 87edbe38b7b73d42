//! A followed guest's devices. While its migration is active QEMU refuses `device_add` and `device_del`, but not what comes
//! before them: `netdev_add`, `blockdev-add`, `object-add`, `chardev-add`. So whoever begins to change devices is noticed,
//! and following makes room; it is begun anew when they leave it at that. A device that the guest gives back by itself,
//! which it was asked for before, is noticed the same way.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use sterna_host::qmp::{Qmp, QmpError};
use sterna_migration::source::Fact;

use super::Drive;

/// So often it is looked.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Nodes of our own.
const OURS: &str = "sterna-";

/// What the machine consists of, as it was when following began.
#[derive(Debug, Default)]
pub(super) struct Devices {
    looked: Option<Instant>,
    seen: Option<BTreeSet<String>>,
}

#[derive(Debug, Deserialize)]
struct Property {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Deserialize)]
struct Chardev {
    label: String,
}

#[derive(Debug, Deserialize)]
struct Node {
    #[serde(rename = "node-name")]
    node_name: Option<String>,
}

impl Drive {
    /// Called at each tick: devices may be changed.
    pub(super) async fn look_at_devices(&mut self) {
        let is_due = self.devices.looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY);
        if !is_due || !self.is_following() || self.phase() != "copying" {
            return;
        }
        self.devices.looked = Some(Instant::now());
        let Some(live) = &self.wanted.live else { return };
        // One that does not answer now will be asked again.
        let Ok(found) = parts(&live.qmp).await else { return };
        let Some(seen) = &self.devices.seen else {
            self.devices.seen = Some(found);
            return;
        };
        let plugged = found.difference(seen).map(|name| format!("{name} has come"));
        let unplugged = seen.difference(&found).map(|name| format!("{name} has gone"));
        let changes: Vec<_> = plugged.chain(unplugged).take(4).collect();
        if changes.is_empty() {
            return;
        }
        let why = format!(
            "the machine is being changed ({}), and QEMU plugs nothing in or out while it is followed",
            changes.join(", ")
        );
        tracing::warn!(%why, "following is paused");
        self.job.pause();
        self.fact(Fact::QemuFailed(why));
    }
}

/// What can be plugged in and out, and what that is connected to.
async fn parts(qmp: &Qmp) -> Result<BTreeSet<String>, QmpError> {
    let ask =
        |command: &'static str, arguments: Value| qmp.execute(command, arguments, ANSWER_LIMIT);
    let mut parts = BTreeSet::new();
    for (what, path) in [
        ("device", "/machine/peripheral"),
        ("device", "/machine/peripheral-anon"),
        ("object", "/objects"),
    ] {
        let properties: Vec<Property> = read(ask("qom-list", json!({ "path": path })).await?);
        let children = properties.iter().filter(|one| one.kind.starts_with("child<"));
        parts.extend(children.map(|one| format!("{what} {}", one.name)));
    }
    let chardevs: Vec<Chardev> = read(ask("query-chardev", Value::Null).await?);
    parts.extend(chardevs.iter().map(|one| format!("character device {}", one.label)));
    let nodes: Vec<Node> = read(ask("query-named-block-nodes", Value::Null).await?);
    let nodes = nodes.iter().filter_map(|one| one.node_name.as_deref());
    let nodes = nodes.filter(|name| !name.starts_with(OURS));
    parts.extend(nodes.map(|name| format!("block node {name}")));
    // There is no other way to ask for them.
    let networks = ask("human-monitor-command", json!({"command-line": "info network"})).await?;
    parts.extend(networks_in(networks.as_str().unwrap_or_default()));
    Ok(parts)
}

/// What is not as expected is nothing that can change.
fn read<T: serde::de::DeserializeOwned>(answer: Value) -> Vec<T> {
    serde_json::from_value(answer).unwrap_or_default()
}

/// The networks that `info network` names, one a line, before a colon.
fn networks_in(text: &str) -> impl Iterator<Item = String> + '_ {
    let name = |line: &str| {
        let (name, kind) = line.trim_start_matches([' ', '\\']).split_once(':')?;
        kind.contains("type=").then(|| format!("network {}", name.trim()))
    };
    text.lines().filter_map(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_told_by_their_names() {
        let text = "virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56\r\n \\ net0: index=0,type=tap,ifname=guest0\r\nhub 0\r\nlater: index=0,type=user,net=10.0.2.0\r\n";
        let names: Vec<_> = networks_in(text).collect();
        assert_eq!(names, ["network virtio-net-pci.0", "network net0", "network later"]);
    }
}
