//! What the tests share: a source's facts, a destination's policy, a line of arguments to its words.

use sterna_model::{BlockName, ByteCount, Refusal};
use sterna_qemu_args::{Description, Place, Policy, Rebuilt, RunningFacts, rebuild};

/// A 256 MiB pc of QEMU 7.2.
pub(crate) fn facts() -> RunningFacts {
    RunningFacts {
        machine_type: "pc-i440fx-7.2".into(),
        ram_block: BlockName::new(b"pc.ram").unwrap(),
        ram_bytes: ByteCount(256 << 20),
        qemu_version: "7.2.22".into(),
        program_path: None,
        working_dir: None,
        agent_qmp: None,
        image_formats: Vec::new(),
    }
}

/// Words of a line, single quotes kept together.
pub(crate) fn words(line: &str) -> Vec<String> {
    let mut out = Vec::new();
    for (index, part) in line.split('\'').enumerate() {
        if index % 2 == 1 {
            out.push(part.to_string());
        } else {
            out.extend(part.split_whitespace().map(String::from));
        }
    }
    out
}

pub(crate) fn place() -> Place {
    Place::new("/run/sterna/vms/web", "/var/log/sterna/web").unwrap()
}

/// A destination with the usual roots, one mapping, and these extra options.
pub(crate) fn policy(extra: &[&str]) -> Policy {
    let roots = ["/srv", "/usr/share", "/boot", "/x", "/data"].map(String::from);
    let mappings = [("/srv/vm/disks".to_string(), "/data/disks".to_string())];
    let extra: Vec<String> = extra.iter().map(ToString::to_string).collect();
    Policy::new(&roots, &mappings, &extra).unwrap()
}

pub(crate) fn described(line: &str, facts: &RunningFacts) -> Description {
    let mut argv = vec!["/usr/bin/qemu-system-x86_64".to_string()];
    argv.extend(words(line));
    Description::from_argv(&argv, facts).unwrap()
}

/// A line's way to a destination.
pub(crate) fn arrive(
    line: &str,
    facts: &RunningFacts,
    extra: &[&str],
) -> Result<Rebuilt, Vec<Refusal>> {
    rebuild(&described(line, facts), &policy(extra), &place())
}
