//! The destination's argument vector, built from a description by allow-list.
//!
//! ```text
//! head     -no-user-config -sandbox ... -machine TYPE,...,memory-backend=... [-object memory-backend-memfd,...] [-m ...]
//! options  each of the description's, in its order: PCI slots and drive numbers follow from it
//! tail     [-display none] -S -incoming defer -qmp unix:DIR/qmp.sock,...
//! ```
//!
//! Rebuilding what was rebuilt gives the same again (a second hop), so everything added here is recognised here.
//! Options are handled one by one; a refusal does not end the walk, so that all are reported together.

mod blocks;
mod chardev;
mod check;
mod device;
mod display;
mod machine;
mod memory;
mod names;
mod net;
mod object;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use sterna_model::{ByteCount, Refusal};

use crate::argv::{MAX_REFUSALS, serial_path, shown};
use crate::description::{Description, MAX_OPTIONS, SourceOption};
use crate::params::{Params, escape};
use crate::path::CleanPath;
use crate::policy::{Place, Policy};
use crate::table::{self, Arity, Kind, Special, Treatment};

use memory::MemoryPlan;
use names::Names;

/// QEMU's system call filter as every VM gets it here.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// Options of the tail that no description has: `-S`, `-incoming` and the agent's own socket.
const TAIL_OPTIONS: usize = 3;

/// What the destination's agent starts, and what it checks before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rebuilt {
    /// Basename of the QEMU program, looked up in the agent's own search path.
    pub program: String,
    /// The program's path, when a mapping names one. The agent starts nothing that others than the administrator can write.
    pub program_path: Option<String>,
    /// The arguments, without the program.
    pub argv: Vec<String>,
    /// RAM blocks in shared files, in the order of their backends in `argv`.
    pub shared_blocks: Vec<SharedBlock>,
    /// Files that QEMU opens here, in the order of `argv`. Images name files of their own, which the agent looks at.
    pub inputs: Vec<FileNeed>,
    /// The file that the guest prints to.
    pub serial: Option<String>,
    /// The agent's own QMP socket.
    pub qmp: String,
    /// The source's sockets and output files, and where they are here.
    pub relocated: Vec<Relocated>,
    /// What the source had and this host leaves out, for people.
    pub notes: Vec<String>,
}

/// A RAM block whose bytes are in a memfd of QEMU's, shared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SharedBlock {
    /// The block's name in the stream.
    pub name: String,
    /// Id of the memory backend object, which the memfd's name carries (`/memfd:memory-backend-memfd`).
    pub backend_id: String,
    /// Its length.
    pub bytes: ByteCount,
}

/// What QEMU does with a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reads it.
    Read,
    /// Reads and writes it.
    ReadWrite,
}

/// What a file is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// Kernel or initial RAM disk.
    Boot,
    /// BIOS, or a blob for the firmware.
    Firmware,
    /// A device's option ROM.
    Rom,
    /// An image: the migration may bring it.
    Disk,
    /// A folder that user networking serves by TFTP.
    Folder,
}

/// A file that QEMU opens: lexically below the roots; the agent checks that it is one, and no link leads out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileNeed {
    /// Its path here.
    pub path: String,
    /// The source's path for it.
    pub source_path: String,
    /// What QEMU does with it.
    pub access: Access,
    /// What it is for.
    pub kind: FileKind,
    /// Whether it must be here already; the migration brings nothing but disks.
    pub must_exist: bool,
    /// The image's format (`raw`, `qcow2`), where it is certain that QEMU reads the file in no other.
    pub format: Option<String>,
}

/// A socket or output file of the source, and ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Relocated {
    /// What the source wrote: a path, `stdio`, or `fd=N`.
    pub source: String,
    /// The path here.
    pub path: String,
}

/// Builds the arguments for a VM that arrives.
///
/// # Errors
/// Everything that the policy does not allow, each by name with what to do about it; at most 64.
pub fn rebuild(
    description: &Description,
    policy: &Policy,
    place: &Place,
) -> Result<Rebuilt, Vec<Refusal>> {
    description.check_limits().map_err(|refusal| Vec::from([refusal]))?;
    let mut builder = Builder::new(description, policy, place);
    let program_path = builder.program();
    builder.head();
    for option in &description.options {
        builder.option_or_extra(option);
    }
    let qmp = builder.tail();
    builder.check_next_hop();
    if !builder.work.refusals.is_empty() {
        return Err(builder.work.refusals);
    }
    let work = builder.work;
    Ok(Rebuilt {
        program: description.program.clone(),
        program_path,
        serial: serial_path(&work.argv),
        argv: work.argv,
        shared_blocks: work.shared_blocks,
        inputs: certain_formats(work.inputs, work.nodes_refer),
        qmp,
        relocated: work.relocated,
        notes: work.notes,
    })
}

/// A file that one node reads as raw bytes can be read by another as an image, when nodes refer to each other.
fn certain_formats(inputs: Vec<FileNeed>, nodes_refer: bool) -> Vec<FileNeed> {
    let certain = |mut need: FileNeed| {
        need.format = need.format.filter(|format| !nodes_refer || format != "raw");
        need
    };
    inputs.into_iter().map(certain).collect()
}

/// The program of a VM: its basename, and its path here where a mapping says it.
///
/// # Errors
/// When it is no QEMU.
pub fn program_of(
    description: &Description,
    policy: &Policy,
    place: &Place,
) -> Result<(String, Option<String>), Vec<Refusal>> {
    let mut builder = Builder::new(description, policy, place);
    let path = builder.program();
    match builder.work.refusals.is_empty() {
        true => Ok((description.program.clone(), path)),
        false => Err(builder.work.refusals),
    }
}

/// The files that a VM's options name, as far as the policy lets them be opened: also where other options are refused.
#[must_use]
pub fn inputs_here(description: &Description, policy: &Policy, place: &Place) -> Vec<FileNeed> {
    let mut builder = Builder::new(description, policy, place);
    for option in &description.options {
        builder.option_or_extra(option);
    }
    builder.work.inputs
}

/// The files that a VM's options name at its source: what a destination that allowed everything would open.
#[must_use]
pub fn inputs_of(description: &Description) -> Vec<FileNeed> {
    let everywhere = ["/".to_string()];
    match (Policy::new(&everywhere, &[], &[]), Place::new("/", "/")) {
        (Ok(policy), Ok(place)) => inputs_here(description, &policy, &place),
        _ => Vec::new(),
    }
}

/// What has been built so far; kept apart so that a refused option can be taken back whole.
#[derive(Clone, Default)]
struct Work {
    argv: Vec<String>,
    /// Options in `argv`.
    options: usize,
    refusals: Vec<Refusal>,
    shared_blocks: Vec<SharedBlock>,
    inputs: Vec<FileNeed>,
    relocated: Vec<Relocated>,
    notes: Vec<String>,
    names: Names,
    /// A block node refers to another one by its name.
    nodes_refer: bool,
}

struct Builder<'a> {
    description: &'a Description,
    policy: &'a Policy,
    place: &'a Place,
    memory: MemoryPlan,
    work: Work,
}

impl<'a> Builder<'a> {
    fn new(description: &'a Description, policy: &'a Policy, place: &'a Place) -> Self {
        let memory = MemoryPlan::of(description);
        Self { description, policy, place, memory, work: Work::default() }
    }

    /// The program's path here. A mapping says it; below a mapped folder only a QEMU is a program.
    fn program(&mut self) -> Option<String> {
        let name = &self.description.program;
        let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let arch = name.strip_prefix("qemu-system-").unwrap_or_default();
        let qemu = !arch.is_empty() || matches!(name.as_str(), "qemu-kvm" | "kvm");
        if !qemu || !name.bytes().all(word) {
            let reason = format!(
                "expected a program named qemu-system-ARCH, qemu-kvm or kvm, found {}",
                shown(name)
            );
            self.refuse("program-not-allowed", reason, "start the VM with a stock QEMU");
            return None;
        }
        let path = CleanPath::parse(self.description.program_path.as_deref()?).ok()?;
        if path.file_name() != name {
            return None;
        }
        let ours = self.policy.mappings.apply(&path)?.ok()?;
        Some(ours.as_str().to_string())
    }

    fn head(&mut self) {
        self.push("no-user-config", None);
        self.push("sandbox", Some(SANDBOX.to_string()));
        self.machine();
        self.main_memory();
    }

    /// What makes the VM wait for its state, and the agent's way in.
    fn tail(&mut self) -> String {
        let has_display =
            |option: &SourceOption| matches!(option.name.as_str(), "display" | "vnc" | "nographic");
        if !self.description.options.iter().any(has_display) {
            self.push("display", Some("none".to_string()));
        }
        self.push("S", None);
        self.push("incoming", Some("defer".to_string()));
        let qmp = format!("{}/{}", self.place.dir.as_str(), names::AGENT_QMP);
        self.push("qmp", Some(format!("unix:{},server=on,wait=off", escape(&qmp))));
        qmp
    }

    /// A VM that is described here in its turn, with what was added, has to fit its description: else it could not leave.
    fn check_next_hop(&mut self) {
        let found = self.work.options - TAIL_OPTIONS;
        if found > MAX_OPTIONS {
            let reason = format!(
                "expected at most {MAX_OPTIONS} options with those of this host, found {found}"
            );
            self.refuse("description-too-large", reason, "start the VM with fewer options");
        }
    }

    /// The option by the built-in rules, or, when they refuse it and the configuration allows it, as the source wrote it.
    fn option_or_extra(&mut self, option: &SourceOption) {
        if !self.allowed_extra(option) {
            self.option(option);
            return;
        }
        let before = self.work.clone();
        self.option(option);
        if self.work.refusals.len() > before.refusals.len() {
            self.work = before;
            self.push(&option.name, option.value.clone());
        }
    }

    fn allowed_extra(&self, option: &SourceOption) -> bool {
        let name = option.name.as_str();
        let implied = match name {
            "device" => "driver",
            "object" => "qom-type",
            "netdev" => "type",
            "chardev" => "backend",
            _ => return self.policy.allows(name, None),
        };
        let value = option.value.as_deref().unwrap_or_default();
        let kind = Params::any(value, Some(implied)).ok();
        let kind = kind.and_then(|params| params.get(implied).map(|kind| kind.to_string()));
        self.policy.allows(name, kind.as_deref())
    }

    fn option(&mut self, option: &SourceOption) {
        let Some(row) = table::find(&option.name) else {
            let reason = format!("{} is no QEMU option that we know", shown(&option.name));
            return self.refuse("option-unknown", reason, "start the VM without it");
        };
        let name = row.name;
        let value = match (row.arity, option.value.as_deref()) {
            (Arity::Flag, None) => "",
            (Arity::Value, Some(value)) => value,
            (Arity::Flag, Some(_)) => {
                return self.malformed(name, "this option takes no value");
            }
            (Arity::Value, None) => return self.malformed(name, "this option needs a value"),
        };
        match row.treatment {
            Treatment::RunOnly => {}
            Treatment::LeftOut(_) if name == "sandbox" && value == SANDBOX => {}
            Treatment::LeftOut(why) => self.note(format!("-{name} is left out: {why}")),
            Treatment::Refused(remedy) => {
                self.refuse("option-not-allowed", format!("-{name} is not taken over"), remedy);
            }
            Treatment::Keep(_) if row.arity == Arity::Flag => self.push(name, None),
            Treatment::Keep(kind) => self.keep(name, value, kind),
            Treatment::Keyed(keyed) => {
                if let Some(params) = self.parse(name, value, keyed.implied) {
                    self.keyed(name, params, keyed.rules);
                }
            }
            Treatment::Special(special) => self.special(special, name, value),
        }
    }

    fn special(&mut self, special: Special, name: &'static str, value: &str) {
        match special {
            Special::Machine | Special::Memory => self.in_head(special, value),
            Special::Accel => self.accel(value),
            Special::Append => self.push(name, Some(value.to_string())),
            Special::Audio => self.audio(value),
            Special::Blockdev => self.blockdev(value),
            Special::Chardev => self.chardev(value),
            Special::Cpu => self.cpu(value),
            Special::DebugLog => self.debug_log(value),
            Special::Device => self.device(value),
            Special::Display => self.display(value),
            Special::Drive => self.drive(value),
            Special::Global => self.global(value),
            Special::Initrd => self.initrd(value),
            Special::LogFile => self.log_file(value),
            Special::Monitor => self.monitor(name, value),
            Special::Net => self.net(value),
            Special::Netdev => self.netdev(value),
            Special::Nic => self.nic(value),
            Special::Nographic => self.nographic(),
            Special::Numa => self.numa(value),
            Special::Object => self.object(value),
            Special::Parallel | Special::Serial => self.serial(name, value),
            Special::Uuid => self.uuid(value),
            Special::Vnc => self.vnc(value),
        }
    }

    fn keep(&mut self, name: &'static str, value: &str, kind: Kind) {
        let what = format!("-{name}");
        if let check::Checked::Value(value) = self.scalar(&what, value, kind, Access::Read) {
            self.push(name, Some(value));
        }
    }

    /// The initial RAM disk. A comma separates modules for a multiboot kernel, each with a path of its own.
    fn initrd(&mut self, value: &str) {
        let several = |name: &str| name.contains(',');
        if !several(value) {
            let kind = Kind::File(FileKind::Boot);
            match self.scalar("-initrd", value, kind, Access::Read) {
                // The folder that it is in counts too.
                check::Checked::Value(path) if several(&path) => {}
                check::Checked::Value(path) => return self.push("initrd", Some(path)),
                check::Checked::LeftOut | check::Checked::Refused => return,
            }
        }
        let reason = format!("-initrd {} names several files", shown(value));
        self.refuse("value-not-allowed", reason, "use one file, without a comma in its path");
    }

    fn uuid(&mut self, value: &str) {
        match value.parse::<sterna_model::Uuid>() {
            Ok(uuid) => self.push("uuid", Some(uuid.to_string())),
            Err(error) => self.malformed("uuid", &error.to_string()),
        }
    }

    fn push(&mut self, name: &str, value: Option<String>) {
        self.work.options += 1;
        self.work.argv.push(format!("-{name}"));
        self.work.argv.extend(value);
    }

    fn note(&mut self, note: String) {
        if self.work.notes.len() < MAX_REFUSALS && !self.work.notes.contains(&note) {
            self.work.notes.push(note);
        }
    }

    fn malformed(&mut self, name: &str, problem: &str) {
        self.refuse(
            "argument-malformed",
            format!("-{name}: {problem}"),
            "start the VM with a value that QEMU takes",
        );
    }

    fn refuse(&mut self, code: &str, reason: impl Into<String>, remedy: &str) {
        let refusal = Refusal::new(code, reason, remedy);
        if self.work.refusals.len() < MAX_REFUSALS && !self.work.refusals.contains(&refusal) {
            self.work.refusals.push(refusal);
        }
    }
}
