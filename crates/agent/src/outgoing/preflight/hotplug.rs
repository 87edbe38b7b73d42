//! What was plugged in or out since the start. The destination is started by the VM's arguments, so what the machine has
//! must be what they say: a device more, and QEMU's stream has a state that nobody waits for; a device less, and the guest
//! would find one that it gave back.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;
use sterna_host::qmp::{BlockDevice, Cpu};
use sterna_model::Refusal;
use sterna_qemu_args::{Declared, Description, is_same_path};

use super::listed;
use super::snapshot::Snapshot;

/// Character devices that QEMU makes by itself, of options that name none.
const OWN_CHARDEVS: [&str; 8] =
    ["compat_monitor", "serial", "parallel", "virtcon", "sclpcon", "usbserial", "debugcon", "gdb"];

/// A property of an object, as `qom-list` tells it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Property {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

impl Property {
    /// The kind of object that it is, if it is one below this.
    fn child(&self) -> Option<&str> {
        self.kind.strip_prefix("child<")?.strip_suffix('>')
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Chardev {
    label: String,
}

/// What differs between the machine and its arguments.
///
/// # Errors
/// When QEMU's answers are none.
pub(super) fn refusals(
    snapshot: &Snapshot,
    description: &Description,
) -> Result<Vec<Refusal>, String> {
    let declared = Declared::of(description);
    let mut differences = Differences::default();
    differences.devices(
        &snapshot.get::<Vec<Property>>("peripheral")?,
        &snapshot.get::<Vec<Property>>("peripheral-anon")?,
        &declared,
    );
    let main_memory = description.ram_block.as_str();
    differences.objects(&snapshot.get::<Vec<Property>>("objects")?, &declared, main_memory);
    differences.chardevs(&snapshot.get::<Vec<Chardev>>("chardev")?, &declared);
    differences.cpus(&snapshot.get::<Vec<Cpu>>("cpus")?, &declared);
    for device in &snapshot.get::<Vec<BlockDevice>>("block")? {
        differences.medium(device, description, &declared);
    }
    Ok(differences.refusals())
}

#[derive(Debug, Default)]
struct Differences {
    plugged: Vec<String>,
    unplugged: Vec<String>,
    media: Vec<String>,
}

impl Differences {
    fn devices(&mut self, named: &[Property], nameless: &[Property], declared: &Declared) {
        let named: Vec<_> =
            named.iter().filter_map(|one| Some((&one.name, one.child()?))).collect();
        let more = named.iter().filter(|(id, _)| !declared.devices.contains(*id));
        self.plugged.extend(more.map(|(id, kind)| format!("device {id} ({kind})")));
        let there: BTreeSet<&String> = named.iter().map(|(id, _)| *id).collect();
        let gone = declared.devices.iter().filter(|id| !there.contains(id));
        self.unplugged.extend(gone.map(|id| format!("device {id}")));
        self.nameless(nameless, declared.nameless_devices);
    }

    /// Devices without an id are numbered as they come: the last are those that came since.
    fn nameless(&mut self, found: &[Property], expected: usize) {
        let number = |one: &Property| {
            let number = one.name.strip_prefix("device[")?.strip_suffix(']')?;
            number.parse::<u64>().ok()
        };
        let mut there: Vec<_> =
            found.iter().filter_map(|one| Some((number(one), one.child()?))).collect();
        there.sort_unstable();
        let more = there.iter().skip(expected);
        self.plugged.extend(more.map(|(_, kind)| format!("device without an id ({kind})")));
        if there.len() < expected {
            self.unplugged.push(format!("{} of the devices without an id", expected - there.len()));
        }
    }

    /// Main memory is an object too, which no argument has to name.
    fn objects(&mut self, found: &[Property], declared: &Declared, main_memory: &str) {
        let found: Vec<_> =
            found.iter().filter_map(|one| Some((&one.name, one.child()?))).collect();
        let more = found.iter().filter(|(id, _)| !declared.objects.contains(*id));
        let more = more.filter(|(id, _)| *id != main_memory);
        self.plugged.extend(more.map(|(id, kind)| format!("object {id} ({kind})")));
        let there: BTreeSet<&String> = found.iter().map(|(id, _)| *id).collect();
        let gone = declared.objects.iter().filter(|id| !there.contains(id));
        self.unplugged.extend(gone.map(|id| format!("object {id}")));
    }

    fn chardevs(&mut self, found: &[Chardev], declared: &Declared) {
        // What multiplexes a device keeps it under its own name.
        let base = |label: &str| label.strip_suffix("-base").unwrap_or(label).to_owned();
        let is_known = |label: &str| declared.chardevs.contains(label) || is_own_chardev(label);
        let more = found.iter().map(|one| &one.label);
        let more = more.filter(|label| !is_known(label) && !is_known(&base(label)));
        self.plugged.extend(more.map(|id| format!("character device {id}")));
        let gone = declared.chardevs.iter();
        let gone = gone.filter(|id| found.iter().all(|one| one.label != **id));
        self.unplugged.extend(gone.map(|id| format!("character device {id}")));
    }

    /// More processors are devices more, and told as such.
    fn cpus(&mut self, found: &[Cpu], declared: &Declared) {
        let found = u32::try_from(found.len()).unwrap_or(u32::MAX);
        if (1..declared.cpus).contains(&found) {
            self.unplugged.push(format!(
                "{} of {} processors",
                declared.cpus - found,
                declared.cpus
            ));
        }
    }

    /// The image that a drive has must be the one that its arguments say.
    fn medium(&mut self, device: &BlockDevice, description: &Description, declared: &Declared) {
        let image = device.inserted.as_ref();
        if device.device.is_empty() {
            let node = image.and_then(|image| image.node_name.as_deref());
            if let Some(node) = node.filter(|node| !declared.nodes.contains(*node)) {
                let of = device.qdev.as_deref().unwrap_or("a drive");
                self.media.push(format!("{of} has the block node {node}"));
            }
            return;
        }
        let found = image.map(|image| image.file.as_str());
        let is = |file: Option<&str>| match (file, found) {
            (None, None) => true,
            (Some(file), Some(found)) => names(description, found, file),
            _ => false,
        };
        let as_declared = match declared.drive_of(&device.device) {
            Some(drive) => is(drive.file.as_deref()),
            // QEMU has made up its name: any drive without one can be meant. Those that every machine has are empty.
            None => {
                let nameless = declared.drives.iter().filter(|drive| drive.id.is_none());
                found.is_none() || nameless.into_iter().any(|drive| is(drive.file.as_deref()))
            }
        };
        if !as_declared {
            let found = found.unwrap_or("no medium");
            self.media.push(format!("{} has {found}", device.device));
        }
    }

    fn refusals(&self) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        let mut refuse = |code, what: &str, all: &[String], remedy| {
            if !all.is_empty() {
                let reason = format!("{what}: {}", listed(all.iter().map(String::as_str)));
                refusals.push(Refusal::new(code, reason, remedy));
            }
        };
        refuse(
            "hot-plugged",
            "the machine has what the VM's arguments lack",
            &self.plugged,
            "unplug it for the move (device_del, object-del), or start the VM anew with it among its arguments",
        );
        refuse(
            "hot-unplugged",
            "the machine lacks what the VM's arguments have",
            &self.unplugged,
            "plug it in again (device_add, object-add), or start the VM anew without it",
        );
        refuse(
            "medium-changed",
            "a drive has another image than the VM's arguments say",
            &self.media,
            "put the former medium in again, merge the snapshot, or start the VM anew with this image",
        );
        refusals
    }
}

/// Whether QEMU's name of an image, which can be a JSON description of how it is opened, is this file.
fn names(description: &Description, found: &str, file: &str) -> bool {
    match found.strip_prefix("json:") {
        None => is_same_path(description, found, file),
        Some(json) => {
            let opened: Value = serde_json::from_str(json).unwrap_or_default();
            let mut layers = std::iter::successors(Some(&opened), |layer| layer.get("file"));
            let is_it = |name: &str| is_same_path(description, name, file);
            layers.any(|layer| layer["filename"].as_str().is_some_and(is_it))
        }
    }
}

/// `serial0`, `compat_monitor1`, `gdb`.
fn is_own_chardev(label: &str) -> bool {
    OWN_CHARDEVS.contains(&label.trim_end_matches(|char: char| char.is_ascii_digit()))
}
