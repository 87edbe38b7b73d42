//! The description: what crosses the wire instead of a command line.
//!
//! The source makes it from a running QEMU's arguments and from what the agent asked QEMU over QMP. The destination takes
//! it from a peer, so its limits are checked while it is read, and nothing in it is trusted after that either.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use sterna_model::{BlockName, ByteCount, Refusal};

use crate::argv;
use crate::params::{Params, escape};
use crate::path::CleanPath;

/// Options in one description, at most.
pub const MAX_OPTIONS: usize = 512;
/// Bytes of one option's value, at most.
pub const MAX_VALUE_BYTES: usize = 64 << 10;
/// Bytes of a whole description, at most.
pub const MAX_TOTAL_BYTES: usize = 1 << 20;
/// Bytes of a name: program, machine type, QEMU's version.
const MAX_NAME_BYTES: usize = 256;
/// Bytes of a path.
const MAX_PATH_BYTES: usize = 4096;

/// One option as the source has it: the name without dashes, the value as text.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceOption {
    /// `device`, `m`, `nodefaults`.
    pub name: String,
    /// Absent for a flag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// What the agent knows about a running QEMU beyond its arguments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunningFacts {
    /// The canonical machine type that QEMU answers (`pc-i440fx-7.2`).
    pub machine_type: String,
    /// The main RAM block's name (`pc.ram`, or the memory backend's id).
    pub ram_block: BlockName,
    /// The main RAM block's length.
    pub ram_bytes: ByteCount,
    /// QEMU's version as it tells it.
    pub qemu_version: String,
    /// The program's absolute path, when the arguments name it by its basename only.
    pub program_path: Option<String>,
    /// QEMU's working directory, which its relative paths start from.
    pub working_dir: Option<String>,
    /// The path of the QMP socket that the agent added for itself.
    pub agent_qmp: Option<String>,
    /// Image file as the arguments write it, and the format that QEMU found in it.
    pub image_formats: Vec<(String, String)>,
}

/// What a VM is made of, told by its source.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, try_from = "Unchecked")]
pub struct Description {
    /// Basename of the QEMU program.
    pub program: String,
    /// The program's path at the source; only a mapping of the destination gives it a meaning there.
    pub program_path: Option<String>,
    /// Where the source's relative paths start.
    pub working_dir: Option<String>,
    /// The options in their order.
    pub options: Vec<SourceOption>,
    /// The canonical machine type, a version included where the machine has versions.
    pub machine_type: String,
    /// The main RAM block's name.
    pub ram_block: BlockName,
    /// The main RAM block's length.
    pub ram_bytes: ByteCount,
    /// The source's QEMU version, for people.
    pub qemu_version: String,
}

impl Description {
    /// Describes a running QEMU. `argv` starts with the program.
    ///
    /// What belongs to one run is left out (`-S`, `-incoming`, `-daemonize`, `-pidfile`, the agent's own QMP socket). The
    /// machine's alias becomes its canonical type. `-hda`, `-cdrom`, `-fda`, `-pflash` and an image as a bare argument
    /// become the `-drive` that QEMU makes of them, and a `-drive` gets its format from the facts when it names none, so
    /// that no destination has to probe an image.
    ///
    /// # Errors
    /// Every argument that is no QEMU option, lacks its value or breaks a limit.
    pub fn from_argv(argv: &[String], facts: &RunningFacts) -> Result<Self, Vec<Refusal>> {
        let Some((program, rest)) = argv.split_first() else {
            return Err([Refusal::new(
                "argument-malformed",
                "the argument vector is empty",
                "name a program",
            )]
            .into());
        };
        let options = argv::split(rest)?;
        let options = options.into_iter().filter_map(|option| kept(option, facts)).collect();
        let base = program.rsplit('/').next().unwrap_or_default();
        let own_path = program.starts_with('/').then(|| program.clone());
        let description = Self {
            program: base.to_string(),
            program_path: own_path.or_else(|| facts.program_path.clone()),
            working_dir: facts.working_dir.clone(),
            options,
            machine_type: facts.machine_type.clone(),
            ram_block: facts.ram_block.clone(),
            ram_bytes: facts.ram_bytes,
            qemu_version: facts.qemu_version.clone(),
        };
        description.check_limits().map_err(|refusal| Vec::from([refusal]))?;
        Ok(description)
    }

    /// Whether the CPU model takes over what the host has (`host`, `max`), so that the destination's CPU matters.
    #[must_use]
    pub fn cpu_host(&self) -> bool {
        self.values("cpu").any(|value| {
            let model = value.split(',').next().unwrap_or_default();
            matches!(model, "host" | "max")
        })
    }

    /// The accelerators that the source asked for, first choice first; QEMU's default is TCG when it asked for none.
    #[must_use]
    pub fn accelerators(&self) -> Vec<String> {
        let mut names = Vec::new();
        for option in &self.options {
            let value = option.value.as_deref().unwrap_or_default();
            let (implied, key) = match option.name.as_str() {
                "machine" => ("type", "accel"),
                "accel" => ("accel", "accel"),
                "enable-kvm" => {
                    names.push("kvm".to_string());
                    continue;
                }
                _ => continue,
            };
            let params = Params::commas(value, Some(implied)).ok();
            let accel = params.and_then(|params| params.get(key).map(|value| value.to_string()));
            names.extend(accel.iter().flat_map(|list| list.split(':')).map(ToString::to_string));
        }
        if names.is_empty() {
            names.push("tcg".to_string());
        }
        names
    }

    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = self.options.iter().filter(move |option| option.name == name);
        named.filter_map(|option| option.value.as_deref())
    }

    /// Lengths and characters. Done when a description is made, read, and once more before it is rebuilt.
    pub(crate) fn check_limits(&self) -> Result<(), Refusal> {
        let paths = [&self.program_path, &self.working_dir];
        let paths = paths.into_iter().flatten().map(|path| ("path", path.as_str(), MAX_PATH_BYTES));
        let names = [&self.program, &self.machine_type, &self.qemu_version];
        let names = names.into_iter().map(|name| ("name", name.as_str(), MAX_NAME_BYTES));
        let options = self.options.iter().flat_map(|option| {
            let value = option.value.as_deref().unwrap_or_default();
            [
                ("option name", option.name.as_str(), MAX_NAME_BYTES),
                ("value", value, MAX_VALUE_BYTES),
            ]
        });
        if self.options.len() > MAX_OPTIONS {
            let found = self.options.len();
            return Err(too_large(format!(
                "expected at most {MAX_OPTIONS} options, found {found}"
            )));
        }
        let mut total_bytes = 0;
        for (what, text, limit) in names.chain(paths).chain(options) {
            if text.len() > limit {
                let found = text.len();
                return Err(too_large(format!(
                    "expected a {what} of at most {limit} bytes, found {found}"
                )));
            }
            if let Some(char) = text.chars().find(|char| char.is_control()) {
                let reason = format!("expected no control characters, found {char:?} in a {what}");
                return Err(Refusal::new(
                    "argument-malformed",
                    reason,
                    "take it out of the VM's arguments",
                ));
            }
            total_bytes += text.len();
        }
        if total_bytes > MAX_TOTAL_BYTES {
            return Err(too_large(format!(
                "expected at most {MAX_TOTAL_BYTES} bytes, found {total_bytes}"
            )));
        }
        Ok(())
    }
}

fn too_large(reason: String) -> Refusal {
    Refusal::new("description-too-large", reason, "start the VM with fewer or shorter options")
}

/// The option as it is described, or nothing when it belongs to this run only.
fn kept(mut option: SourceOption, facts: &RunningFacts) -> Option<SourceOption> {
    let value = option.value.as_deref().unwrap_or_default();
    match option.name.as_str() {
        "S" | "incoming" | "daemonize" | "pidfile" => return None,
        "qmp" if is_agents(value, facts) => return None,
        "machine" | "M" => {
            option.value = Some(with_type(value, &facts.machine_type));
            option.name = "machine".into();
        }
        "hda" => option = drive(value, "index=0,media=disk", facts),
        "hdb" => option = drive(value, "index=1,media=disk", facts),
        "hdc" => option = drive(value, "index=2,media=disk", facts),
        "hdd" => option = drive(value, "index=3,media=disk", facts),
        "cdrom" => option = drive(value, "index=2,media=cdrom", facts),
        "fda" => option = drive(value, "index=0,if=floppy", facts),
        "fdb" => option = drive(value, "index=1,if=floppy", facts),
        "pflash" => option = drive(value, "if=pflash", facts),
        "drive" => option.value = Some(with_format(value, facts)),
        _ => {}
    }
    Some(option)
}

fn is_agents(qmp: &str, facts: &RunningFacts) -> bool {
    let path = qmp.strip_prefix("unix:").and_then(|spec| Params::commas(spec, Some("path")).ok());
    let path = path.as_ref().and_then(|params| params.get("path"));
    path.is_some() && path.as_deref() == facts.agent_qmp.as_deref()
}

/// What cannot be parsed stays as it is: the destination refuses it by name.
fn with_type(machine: &str, canonical: &str) -> String {
    let Ok(mut params) = Params::commas(machine, Some("type")) else {
        return machine.to_string();
    };
    if params.has("type") {
        params.set("type", canonical);
    }
    params.to_text()
}

fn drive(file: &str, settings: &str, facts: &RunningFacts) -> SourceOption {
    let value = format!("file={},{settings}", escape(file));
    SourceOption { name: "drive".into(), value: Some(with_format(&value, facts)) }
}

fn with_format(drive: &str, facts: &RunningFacts) -> String {
    let Ok(mut params) = Params::commas(drive, None) else {
        return drive.to_string();
    };
    let file =
        params.get("file").or_else(|| params.get("file.filename")).map(|file| file.to_string());
    let named = params.has("format") || params.has("driver");
    let Some(file) = file.filter(|file| !named && !file.is_empty()) else {
        return drive.to_string();
    };
    let base = facts.working_dir.as_deref();
    let same = |known: &str| {
        known == file
            || CleanPath::parse_from(base, known)
                .is_ok_and(|path| Ok(path) == CleanPath::parse_from(base, &file))
    };
    let found = facts.image_formats.iter().find(|(known, _)| same(known));
    // Firmware, discs and floppies are raw images unless QEMU says otherwise.
    let interface = params.get("if").unwrap_or_default().to_string();
    let plain = params.get("media").is_some_and(|media| media == "cdrom");
    let plain = plain || matches!(interface.as_str(), "pflash" | "floppy");
    match found {
        Some((_, format)) => params.set("format", format.as_str()),
        None if plain => params.set("format", "raw"),
        None => {}
    }
    params.to_text()
}

/// A description as it arrives, before its limits are checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    program: String,
    program_path: Option<String>,
    working_dir: Option<String>,
    #[serde(deserialize_with = "bounded")]
    options: Vec<SourceOption>,
    machine_type: String,
    ram_block: BlockName,
    ram_bytes: ByteCount,
    qemu_version: String,
}

impl TryFrom<Unchecked> for Description {
    type Error = String;

    fn try_from(read: Unchecked) -> Result<Self, String> {
        let description = Self {
            program: read.program,
            program_path: read.program_path,
            working_dir: read.working_dir,
            options: read.options,
            machine_type: read.machine_type,
            ram_block: read.ram_block,
            ram_bytes: read.ram_bytes,
            qemu_version: read.qemu_version,
        };
        description.check_limits().map_err(|refusal| refusal.reason)?;
        Ok(description)
    }
}

/// Stops reading at the limit instead of after it.
fn bounded<'de, D: Deserializer<'de>>(reader: D) -> Result<Vec<SourceOption>, D::Error> {
    struct Bounded;
    impl<'de> Visitor<'de> for Bounded {
        type Value = Vec<SourceOption>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MAX_OPTIONS} options")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut options = Vec::new();
            let mut total_bytes = 0;
            while let Some(option) = list.next_element::<SourceOption>()? {
                total_bytes += option.name.len() + option.value.as_deref().map_or(0, str::len);
                if options.len() == MAX_OPTIONS || total_bytes > MAX_TOTAL_BYTES {
                    return Err(A::Error::custom(format!(
                        "expected at most {MAX_OPTIONS} options in {MAX_TOTAL_BYTES} bytes"
                    )));
                }
                options.push(option);
            }
            Ok(options)
        }
    }
    reader.deserialize_seq(Bounded)
}
