//! What a description's arguments say that a machine has: the ids that its monitor would answer with, had nothing been
//! plugged in or out since the start.

use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::description::Description;
use crate::params::Params;
use crate::path::CleanPath;

/// The parts that arguments name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Declared {
    /// Ids of `-device`.
    pub devices: BTreeSet<String>,
    /// How many devices have no id: those of `-device` without one, and those that QEMU makes of `-drive if=virtio`.
    pub nameless_devices: usize,
    /// Ids of `-object`.
    pub objects: BTreeSet<String>,
    /// Ids of `-chardev`.
    pub chardevs: BTreeSet<String>,
    /// Names of the block nodes of `-blockdev` and `-drive`.
    pub nodes: BTreeSet<String>,
    /// The `-drive`s.
    pub drives: Vec<DeclaredDrive>,
    /// Processors that are there from the start.
    pub cpus: u32,
    /// The CPU model (`EPYC`, `host`), where one is named.
    pub cpu_model: Option<String>,
    /// Features that `-cpu` takes away from its model.
    pub cpu_without: BTreeSet<String>,
}

/// One `-drive`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeclaredDrive {
    /// Its id, where it is given one; QEMU makes one up else.
    pub id: Option<String>,
    /// Its image, as the arguments write it; none for a drive without a medium.
    pub file: Option<String>,
}

impl Declared {
    /// What the description's options name. What cannot be parsed names nothing: whoever rebuilds it refuses it.
    #[must_use]
    pub fn of(description: &Description) -> Self {
        let mut declared = Self { cpus: 1, ..Self::default() };
        for option in &description.options {
            let value = option.value.as_deref().unwrap_or_default();
            let parse = |implied| Params::any(value, implied).ok();
            match option.name.as_str() {
                "device" => declared.device(parse(Some("driver"))),
                "object" => declared.objects.extend(text(parse(Some("qom-type")), "id")),
                "chardev" => declared.chardevs.extend(text(parse(Some("backend")), "id")),
                "blockdev" => declared.nodes_of(&parse(Some("driver"))),
                "drive" => declared.drive(parse(None)),
                "smp" => declared.cpus = parse(Some("cpus")).map_or(1, |params| cpus_of(&params)),
                "cpu" => declared.cpu(value),
                "watchdog" => declared.nameless_devices += 1,
                _ => {}
            }
        }
        declared
    }

    /// The drive with this id.
    #[must_use]
    pub fn drive_of(&self, id: &str) -> Option<&DeclaredDrive> {
        self.drives.iter().find(|drive| drive.id.as_deref() == Some(id))
    }

    fn device(&mut self, params: Option<Params>) {
        match text(params, "id") {
            Some(id) => _ = self.devices.insert(id),
            None => self.nameless_devices += 1,
        }
    }

    fn nodes_of(&mut self, params: &Option<Params>) {
        let named = |(key, _): &&(String, _)| key == "node-name" || key.ends_with(".node-name");
        let pairs = params.iter().flat_map(|params| &params.pairs);
        self.nodes.extend(pairs.filter(named).map(|(_, name)| name.text().to_string()));
    }

    fn drive(&mut self, params: Option<Params>) {
        self.nodes_of(&params);
        let Some(params) = params else { return };
        let file = params.get("file").or_else(|| params.get("file.filename"));
        let file = file.map(|file| file.to_string()).filter(|file| !file.is_empty());
        let id = params.get("id").map(|id| id.to_string());
        self.nameless_devices += usize::from(params.get("if").is_some_and(|bus| bus == "virtio"));
        self.drives.push(DeclaredDrive { id, file });
    }

    fn cpu(&mut self, value: &str) {
        let mut parts = value.split(',');
        self.cpu_model = parts.next().map(ToString::to_string);
        for part in parts {
            let off = part.strip_prefix('-').or_else(|| {
                let (name, setting) = part.split_once('=')?;
                matches!(setting, "off" | "false" | "no" | "n").then_some(name)
            });
            self.cpu_without.extend(off.map(|name| name.replace('_', "-")));
        }
    }
}

/// Whether two texts name one file of this VM: relative ones start from its working directory.
#[must_use]
pub fn is_same_path(description: &Description, one: &str, other: &str) -> bool {
    let base = description.working_dir.as_deref();
    let clean =
        |text: &str| CleanPath::parse_from(base, text.strip_prefix("file:").unwrap_or(text)).ok();
    one == other || clean(one).is_some_and(|path| Some(path) == clean(other))
}

fn text(params: Option<Params>, key: &str) -> Option<String> {
    params?.get(key).map(|value| value.to_string()).filter(|value| !value.is_empty())
}

/// As QEMU reckons them: the number that is given, else the most that there can be, else what the topology comes to.
fn cpus_of(params: &Params) -> u32 {
    let number = |key: &str| params.get(key).and_then(|text| text.parse::<u32>().ok());
    let levels = ["drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads"];
    let product =
        || levels.iter().filter_map(|level| number(level)).fold(1_u32, u32::saturating_mul);
    number("cpus").or_else(|| number("maxcpus")).unwrap_or_else(product)
}

#[cfg(test)]
mod tests {
    use sterna_model::{BlockName, ByteCount};

    use super::*;
    use crate::description::RunningFacts;

    fn declared(line: &str) -> Declared {
        Declared::of(&described(line))
    }

    fn described(line: &str) -> Description {
        let argv: Vec<String> = line.split_whitespace().map(ToString::to_string).collect();
        let facts = RunningFacts {
            machine_type: "pc-i440fx-7.2".into(),
            ram_block: BlockName::new(b"pc.ram").unwrap(),
            ram_bytes: ByteCount(1 << 28),
            qemu_version: "7.2.22".into(),
            program_path: None,
            working_dir: Some("/srv".into()),
            agent_qmp: None,
            image_formats: Vec::new(),
        };
        Description::from_argv(&argv, &facts).unwrap()
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_string()).collect()
    }

    #[test]
    fn ids_in_either_form() {
        let found = declared(
            r#"qemu -device e1000,id=n0 -device {"driver":"virtio-rng-pci","id":"r"} -device usb-tablet
               -object iothread,id=io0 -object {"qom-type":"rng-random","id":"rng0"} -chardev null,id=c0"#,
        );
        assert_eq!(found.devices, set(&["n0", "r"]));
        assert_eq!(found.nameless_devices, 1);
        assert_eq!(found.objects, set(&["io0", "rng0"]));
        assert_eq!(found.chardevs, set(&["c0"]));
    }

    #[test]
    fn drives_and_nodes() {
        let found = declared(
            "qemu -hda a.img -drive file=b.img,if=virtio,format=raw -drive if=none,id=cd,media=cdrom
             -blockdev driver=qcow2,node-name=top,file.driver=file,file.node-name=below,file.filename=/c",
        );
        let files: Vec<_> = found.drives.iter().map(|drive| drive.file.as_deref()).collect();
        assert_eq!(files, [Some("a.img"), Some("b.img"), None]);
        assert_eq!(found.drive_of("cd").unwrap().file, None);
        assert_eq!(found.nodes, set(&["below", "top"]));
        assert_eq!(found.nameless_devices, 1, "a virtio drive makes its device");
        assert!(is_same_path(&described("qemu"), "a.img", "/srv/./a.img"));
        assert!(!is_same_path(&described("qemu"), "a.img", "/a.img"));
    }

    #[test]
    fn processors_as_qemu_reckons() {
        for (line, cpus) in [
            ("qemu", 1),
            ("qemu -smp 4", 4),
            ("qemu -smp 1,maxcpus=8", 1),
            ("qemu -smp maxcpus=8", 8),
            ("qemu -smp sockets=2,cores=3,threads=2", 12),
            ("qemu -smp cpus=x", 1),
        ] {
            assert_eq!(declared(line).cpus, cpus, "{line}");
        }
        let found = declared("qemu -cpu max,-avx2,sse4_2=off,+aes");
        assert_eq!(found.cpu_model.as_deref(), Some("max"));
        assert_eq!(found.cpu_without, set(&["avx2", "sse4-2"]));
    }
}
