//! The destination's QEMU: whether we take the guest, and its start, waiting for a stream.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use sterna_host::image;
use sterna_host::memory::{BlockMemory, shared_blocks_of};
use sterna_host::paths::{self, open_below};
use sterna_host::qmp::Qmp;
use sterna_model::{BlockName, ByteCount, Refusal};
use sterna_qemu_args::{Access, Description, FileKind, Policy, Rebuilt, rebuild};
use sterna_wire::message::Prepare;

use crate::agent::Agent;
use crate::place::{Place, monitor_argument};
use crate::registry::{Owner, ProcessId, Record};
use crate::vm::{Live, Vm, fresh_record, id_of};

/// Memory that has to stay free beside a guest that arrives.
const SPARE_MEMORY: ByteCount = ByteCount(64 << 20);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// What the file of a `memory-backend-memfd` is called.
const MEMFD_LABEL: &str = "memory-backend-memfd";

/// A QEMU that waits for a guest.
#[derive(Debug)]
pub(super) struct Waiting {
    /// The VM, in the registry as incoming.
    pub vm: Arc<Vm>,
    /// Its QEMU.
    pub live: Live,
    /// Guest memory that QEMU shares with us.
    pub shared: Vec<BlockMemory>,
    /// How long QEMU took to start.
    pub start_time: Duration,
    /// QEMU's version, for people.
    pub version: String,
}

/// Everything that can be checked before anything is touched.
///
/// # Errors
/// All reasons not to take the guest.
pub(super) fn check(agent: &Agent, prepare: &Prepare) -> Result<Checked, Vec<Refusal>> {
    let description = read_description(&prepare.description).map_err(|refusal| vec![refusal])?;
    let mut refusals = Vec::new();
    let previous = agent.registry.get(&prepare.vm);
    if let Some(vm) = &previous {
        refusals.extend(taken(vm));
    }
    refusals.extend(too_large(agent, description.ram_bytes));
    let place = Place::of(&agent.config.run_dir, &agent.config.state_dir, &prepare.vm);
    let (stay, roots) = (place.next_stay(), agent.roots());
    let rebuilt = rebuilt(agent, &description, &place, &stay, &roots);
    match rebuilt {
        Ok(rebuilt) => {
            refusals.extend(files_refused(&rebuilt, &roots));
            match find_program(&rebuilt) {
                Ok(program) if refusals.is_empty() => {
                    let previous = previous.map(|vm| vm.record());
                    return Ok(Checked { rebuilt, program, place, stay, previous });
                }
                Ok(_) => {}
                Err(refusal) => refusals.push(refusal),
            }
        }
        Err(more) => refusals.extend(more),
    }
    Err(refusals)
}

/// A guest that can be taken.
#[derive(Debug)]
pub(crate) struct Checked {
    rebuilt: Rebuilt,
    program: PathBuf,
    place: Place,
    stay: PathBuf,
    previous: Option<Record>,
}

impl Checked {
    /// Starts QEMU, puts the VM into the registry as incoming, and opens its memory. `started` hears of QEMU's process
    /// at once ([`Live::launch`]).
    ///
    /// # Errors
    /// What kept QEMU from starting; nothing is left over then.
    pub(super) async fn start(
        self,
        agent: &Agent,
        prepare: &Prepare,
        started: impl FnOnce(ProcessId) -> Result<(), String>,
    ) -> Result<Waiting, Vec<Refusal>> {
        let begun = Instant::now();
        let Some(_reserved) = agent.registry.reserve(&prepare.vm) else {
            let reason = format!("a VM named {} is being started here", prepare.vm);
            return Err(vec![Refusal::new("name-taken", reason, "try again when that has ended")]);
        };
        // Looked at once more: since the check another may have taken the name.
        if let Some(refusal) = agent.registry.get(&prepare.vm).and_then(|vm| taken(&vm)) {
            return Err(vec![refusal]);
        }
        let made = self.place.make(Some(&self.stay));
        made.map_err(|error| vec![internal(&error.to_string())])?;
        let live = self.launch(started).await.map_err(|error| vec![start_failed(&error)])?;
        let opened = match ready(&live.qmp).await {
            Ok(version) => self.open_memory(&live).map(|shared| (shared, version)),
            Err(error) => Err(error),
        };
        match opened {
            Ok((shared, version)) => {
                let vm = self.register(agent, prepare, live.clone());
                Ok(Waiting { vm, live, shared, start_time: begun.elapsed(), version })
            }
            Err(error) => {
                let _ = live.kill().await;
                Err(vec![start_failed(&error)])
            }
        }
    }

    async fn launch(
        &self,
        started: impl FnOnce(ProcessId) -> Result<(), String>,
    ) -> Result<Live, String> {
        let mut args = self.rebuilt.argv.clone();
        args.extend(["-qmp".into(), monitor_argument(&self.place.user_qmp)]);
        let launch = crate::vm::Launch {
            program: &self.program,
            args,
            directory: Path::new("/"),
            log: &self.place.log,
            qmp: Path::new(&self.rebuilt.qmp),
        };
        Live::launch(launch, started).await.map_err(|error| error.to_string())
    }

    fn open_memory(&self, live: &Live) -> Result<Vec<BlockMemory>, String> {
        let files = shared_blocks_of(&live.process).map_err(|error| error.to_string())?;
        let mut files = files.into_iter().filter(|file| file.label == MEMFD_LABEL);
        let mut shared = Vec::new();
        for block in &self.rebuilt.shared_blocks {
            let name = BlockName::new(block.name.as_bytes()).map_err(|error| error.to_string())?;
            let file = files.next().filter(|file| file.length_bytes == block.bytes.0);
            let file = file.ok_or_else(|| {
                format!("QEMU has not made the memory of {name} ({})", block.bytes)
            })?;
            shared.push(BlockMemory::File {
                block: name,
                length_bytes: block.bytes.0,
                file: file.file,
                start: 0,
            });
        }
        Ok(shared)
    }

    fn register(self, agent: &Agent, prepare: &Prepare, live: Live) -> Arc<Vm> {
        let mut argv = vec![self.program.to_string_lossy().into_owned()];
        argv.extend(self.rebuilt.argv);
        let mut record = fresh_record(prepare.vm.clone(), prepare.uuid, &self.place, argv);
        record.epoch = prepare.epoch;
        record.agent_qmp = PathBuf::from(self.rebuilt.qmp);
        record.serial = self.rebuilt.serial.map(PathBuf::from);
        record.process = Some(id_of(&live.process));
        record.owner = Owner::Incoming { job: prepare.job.clone() };
        // Only the last stay: one that did not become one is nothing to go back to.
        record.previous = self.previous.map(|record| Box::new(Record { previous: None, ..record }));
        let vm = Vm::new(record, Some(live));
        // The job's journal knows of this QEMU too: a registry that cannot be written only loses the VM's name.
        agent.registry.insert(Arc::clone(&vm));
        agent.remember(&vm);
        vm
    }
}

fn read_description(text: &str) -> Result<Description, Refusal> {
    serde_json::from_str(text).map_err(|error| {
        let reason = format!("the source's description of the VM cannot be read: {error}");
        Refusal::new("description-malformed", reason, "upgrade the older of both agents")
    })
}

/// Why a VM of the same name that is known here is in the way, if it is.
fn taken(vm: &Vm) -> Option<Refusal> {
    let owner = vm.record().owner;
    if vm.live().is_none()
        && vm.record().process.is_none()
        && vm.job().is_none()
        && matches!(owner, Owner::MovedTo { .. } | Owner::Ended | Owner::Here | Owner::Lost)
    {
        return None;
    }
    let reason = format!("a VM named {} is here already ({owner:?})", vm.record().name);
    Some(Refusal::new(
        "name-taken",
        reason,
        "stop the VM of that name at the destination, or rename one",
    ))
}

fn too_large(agent: &Agent, ram: ByteCount) -> Option<Refusal> {
    let largest = agent.config.limits.largest_vm;
    if ram > largest {
        let reason = format!("expected a VM of at most {largest} of memory, found {ram}");
        return Some(Refusal::new(
            "vm-too-large",
            reason,
            "raise limits.largest_vm at the destination",
        ));
    }
    let available = available_memory()?;
    if available.0 < ram.0.saturating_add(SPARE_MEMORY.0) {
        let reason =
            format!("expected {ram} of free memory and {SPARE_MEMORY} to spare, found {available}");
        return Some(Refusal::new("memory-short", reason, "free memory at the destination"));
    }
    None
}

/// What the kernel says could be used without swapping.
fn available_memory() -> Option<ByteCount> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(ByteCount(kib << 10))
}

fn rebuilt(
    agent: &Agent,
    description: &Description,
    place: &Place,
    stay: &Path,
    roots: &[PathBuf],
) -> Result<Rebuilt, Vec<Refusal>> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let roots: Vec<String> = roots.iter().map(|root| text(root)).collect();
    let one = |error: sterna_qemu_args::PolicyError| vec![internal(&error.to_string())];
    let policy =
        Policy::new(&roots, &agent.config.paths, &agent.config.accept.options).map_err(one)?;
    let place = sterna_qemu_args::Place::new(&text(&place.sockets), &text(stay)).map_err(one)?;
    rebuild(description, &policy, &place)
}

fn files_refused(rebuilt: &Rebuilt, roots: &[PathBuf]) -> Vec<Refusal> {
    let check = |need: &sterna_qemu_args::FileNeed| {
        let access = match need.access {
            Access::Read => paths::Access::Read,
            Access::ReadWrite => paths::Access::ReadWrite,
        };
        let path = Path::new(&need.path);
        let error = match open_below(roots, path, access) {
            Ok(file) if need.kind == FileKind::Disk => {
                let chain = image::check_chain(roots, path, &file, need.format.as_deref());
                return chain.err().map(|error| image_refused(&error));
            }
            Ok(_) => return None,
            Err(error) => error,
        };
        let remedy =
            "put the file there, map its path in [paths], or add its folder to accept.roots";
        Some(Refusal::new(
            "file-missing",
            format!("{error} (at the source: {})", need.source_path),
            remedy,
        ))
    };
    rebuilt.inputs.iter().filter_map(check).collect()
}

fn image_refused(error: &image::ImageError) -> Refusal {
    let remedy =
        "let all images of the chain lie below accept.roots, each naming its backing file's format";
    Refusal::new("image-not-allowed", error.to_string(), remedy)
}

fn find_program(rebuilt: &Rebuilt) -> Result<PathBuf, Refusal> {
    let mapped = rebuilt.program_path.as_ref().map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = match mapped {
        Some(program) => program.is_file().then_some(program),
        None => std::env::split_paths(&path)
            .chain(["/usr/bin".into(), "/usr/libexec".into()])
            .map(|folder| folder.join(&rebuilt.program))
            .find(|candidate| candidate.is_file()),
    };
    found.ok_or_else(|| {
        let reason =
            format!("expected the program {} at the destination, found none", rebuilt.program);
        Refusal::new(
            "qemu-missing",
            reason,
            "install QEMU at the destination, or map its path in [paths]",
        )
    })
}

/// Switches on what an incoming migration of ours needs; gives QEMU's version.
async fn ready(qmp: &Qmp) -> Result<String, String> {
    let capabilities = [("late-block-activate", true), ("events", true)];
    qmp.set_migration_capabilities(&capabilities).await.map_err(|error| {
        format!(
            "expected a QEMU with late-block-activate and migration events (3.0 or later): {error}"
        )
    })?;
    let version = qmp.query_version().await.map_err(|error| error.to_string())?;
    Ok(version.to_string())
}

/// Hands QEMU our end of a stream to load.
///
/// # Errors
/// When QEMU refuses.
pub(super) async fn begin_load(qmp: &Qmp) -> Result<std::os::unix::net::UnixStream, String> {
    let (ours, theirs) =
        std::os::unix::net::UnixStream::pair().map_err(|error| error.to_string())?;
    let name = json!({"fdname": "sterna-incoming"});
    let given = qmp.execute_with_fd("getfd", name, theirs.into(), COMMAND_TIMEOUT).await;
    given.map_err(|error| error.to_string())?;
    qmp.migrate_incoming("fd:sterna-incoming").await.map_err(|error| error.to_string())?;
    Ok(ours)
}

fn start_failed(error: &str) -> Refusal {
    let remedy = "check that the destination's QEMU knows the machine type, CPU model and devices";
    Refusal::new("qemu-start-failed", error, remedy)
}

fn internal(error: &str) -> Refusal {
    Refusal::new("destination-not-ready", error, "look at the destination's log")
}
