//! The destination's QEMU: its start, waiting for a stream.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use sterna_host::memory::{BlockMemory, shared_blocks_of};
use sterna_host::process::{Process, inode_of};
use sterna_host::qmp::{Qmp, RunState};
use sterna_model::{BlockName, ByteCount, JobId, PAGE_BYTES, Refusal};
use sterna_qemu_args::Rebuilt;
use sterna_wire::message::Prepare;

use super::acceptance;
use super::memory::DestinationMemory;
use crate::agent::Agent;
use crate::journal::MemoryRecord;
use crate::place::{Place, monitor_argument};
use crate::registry::{Owner, ProcessId, Record};
use crate::vm::{Live, Vm, fresh_record};

const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// A QEMU that loads is looked at so often.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// The name by which QEMU keeps our end of its stream.
const KEPT: &str = "sterna-kept-stream";
/// What the file of a `memory-backend-memfd` is called.
const MEMFD_LABEL: &str = "memory-backend-memfd";

/// A QEMU that waits for a guest.
#[derive(Debug)]
pub(super) struct Waiting {
    /// The VM, in the registry as incoming.
    pub vm: Arc<Vm>,
    /// Its QEMU's process.
    pub process: Arc<Process>,
    /// Its monitor; after a restart only the VM's own, once that answers.
    monitor: Option<Qmp>,
    /// Guest memory that QEMU shares with us.
    pub shared: Vec<BlockMemory>,
    /// How long QEMU took to start.
    pub start_time: Duration,
    /// QEMU's version, for people.
    pub version: String,
    /// It can run the guest before all its memory is there.
    pub post_copy: bool,
}

impl Waiting {
    /// A guest that an agent of before this one had started.
    pub(super) fn found(vm: Arc<Vm>, process: Arc<Process>) -> Self {
        Self {
            vm,
            process,
            monitor: None,
            shared: Vec::new(),
            start_time: Duration::ZERO,
            version: String::new(),
            post_copy: true,
        }
    }

    /// Its monitor. After a restart there may be none for some time: a guest that waits for a page can hold up all of QEMU.
    pub(super) fn qmp(&self) -> Option<Qmp> {
        self.monitor.clone().or_else(|| self.vm.live().map(|live| live.qmp))
    }

    /// As [`Waiting::qmp`], for who cannot go on without.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) fn monitor(&self) -> Result<Qmp, String> {
        self.qmp().ok_or_else(|| "its QEMU's monitor does not answer".to_owned())
    }
}

/// The memory of a guest that runs here and lacks pages.
///
/// # Errors
/// When it is not found.
pub(super) fn memory_of(
    process: &Process,
    stored: &MemoryRecord,
    budget: ByteCount,
) -> Result<DestinationMemory, String> {
    let shared = shared_memory(process, lengths_of(stored)?)?;
    DestinationMemory::open_as_it_is(stored.layout.clone(), shared, budget)
        .map_err(|error| error.to_string())
}

/// What an agent of before has left in the memory of a QEMU that waits for a guest. It outlives that QEMU.
///
/// # Errors
/// When it is not found.
pub(crate) fn memory_left(
    process: &Process,
    stored: &MemoryRecord,
) -> Result<Vec<BlockMemory>, String> {
    shared_memory(process, lengths_of(stored)?)
}

/// The blocks that QEMU shares, with their lengths in bytes.
fn lengths_of(stored: &MemoryRecord) -> Result<Vec<(BlockName, u64)>, String> {
    let wanted = stored.shared_blocks.iter().map(|name| {
        let block = stored.layout.block_named(name);
        let pages = block.ok_or("the journal tells a block without its length")?.pages;
        Ok((name.clone(), u64::from(pages) * PAGE_BYTES as u64))
    });
    wanted.collect()
}

/// The files behind these blocks, of which QEMU made one each, in this order.
fn shared_memory(
    process: &Process,
    wanted: impl IntoIterator<Item = (BlockName, u64)>,
) -> Result<Vec<BlockMemory>, String> {
    let files = shared_blocks_of(process).map_err(|error| error.to_string())?;
    let mut files = files.into_iter().filter(|file| file.label == MEMFD_LABEL);
    let mut shared = Vec::new();
    for (block, length_bytes) in wanted {
        let file = files.next().filter(|file| file.length_bytes == length_bytes);
        let file = file.ok_or_else(|| {
            format!("QEMU has not made the memory of {block} ({})", ByteCount(length_bytes))
        })?;
        shared.push(BlockMemory::File { block, length_bytes, file: file.file, start: 0 });
    }
    Ok(shared)
}

/// A guest that can be taken.
#[derive(Debug)]
pub(crate) struct Checked {
    /// What its QEMU is started with.
    pub(super) rebuilt: Rebuilt,
    /// Its QEMU.
    pub(super) program: PathBuf,
    /// Its folders.
    pub(super) place: Place,
    /// The folder of this stay's output.
    pub(super) stay: PathBuf,
    /// What was here under its name.
    pub(super) previous: Option<Record>,
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
        if let Some(refusal) = agent.registry.get(&prepare.vm).and_then(|vm| acceptance::taken(&vm))
        {
            return Err(vec![refusal]);
        }
        let made = self.place.make(Some(&self.stay));
        made.map_err(|error| vec![internal(&error.to_string())])?;
        let live =
            self.launch(&prepare.job, started).await.map_err(|error| vec![start_failed(&error)])?;
        let opened = match ready(&live.qmp).await {
            Ok(version) => self.open_memory(&live).map(|shared| (shared, version)),
            Err(error) => Err(error),
        };
        match opened {
            Ok((shared, version)) => {
                // Where QEMU asks for pages of several blocks, a restarted agent cannot tell which one is meant.
                let post_copy =
                    prepare.post_copy && shared.len() == 1 && can_wait_for_pages(&live.qmp).await;
                let vm = self.register(agent, prepare, live.clone());
                let (process, monitor) = (live.process, Some(live.qmp));
                Ok(Waiting {
                    vm,
                    process,
                    monitor,
                    shared,
                    start_time: begun.elapsed(),
                    version,
                    post_copy,
                })
            }
            Err(error) => {
                let _ = live.kill().await;
                Err(vec![start_failed(&error)])
            }
        }
    }

    async fn launch(
        &self,
        job: &JobId,
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
            job: Some(job),
        };
        Live::launch(launch, started).await.map_err(|error| error.to_string())
    }

    fn open_memory(&self, live: &Live) -> Result<Vec<BlockMemory>, String> {
        let wanted = self.rebuilt.shared_blocks.iter().map(|block| {
            let name = BlockName::new(block.name.as_bytes()).map_err(|error| error.to_string())?;
            Ok((name, block.bytes.0))
        });
        shared_memory(&live.process, wanted.collect::<Result<Vec<_>, String>>()?)
    }

    fn register(self, agent: &Agent, prepare: &Prepare, live: Live) -> Arc<Vm> {
        let mut argv = vec![self.program.to_string_lossy().into_owned()];
        argv.extend(self.rebuilt.argv);
        let mut record = fresh_record(prepare.vm.clone(), prepare.uuid, &self.place, argv);
        record.epoch = prepare.epoch;
        record.agent_qmp = PathBuf::from(self.rebuilt.qmp);
        record.serial = self.rebuilt.serial.map(PathBuf::from);
        record.process = Some(ProcessId::of(&live.process));
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

/// Switches on what a guest needs that runs before all its memory is there.
async fn can_wait_for_pages(qmp: &Qmp) -> bool {
    match qmp.set_migration_capabilities(&[("postcopy-ram", true)]).await {
        Ok(()) => true,
        Err(error) => {
            tracing::info!(%error, "QEMU cannot run this guest before all its memory is there");
            false
        }
    }
}

/// Waits until QEMU has left its load: the images are its own then, and the guest can be resumed.
///
/// # Errors
/// When it does not, or does not answer.
pub(super) async fn left_load(qmp: &Qmp) -> Result<(), String> {
    let until = tokio::time::Instant::now() + COMMAND_TIMEOUT;
    loop {
        let status = qmp.query_status().await.map_err(|error| error.to_string())?.status;
        if status != RunState::InMigrate {
            return Ok(());
        }
        if tokio::time::Instant::now() > until {
            let seconds = COMMAND_TIMEOUT.as_secs();
            return Err(format!(
                "expected QEMU to leave its load within {seconds} s, found it there"
            ));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Has QEMU keep our end of its stream: it is then not closed when this agent dies, and the next one takes it from there.
/// Gives the socket's inode.
///
/// # Errors
/// When QEMU does not take it.
pub(super) async fn keep_stream(qmp: &Qmp, stream: &UnixStream) -> Result<u64, String> {
    let inode = inode_of(stream).map_err(|error| error.to_string())?;
    let ours = stream.try_clone().map_err(|error| error.to_string())?;
    let name = json!({"fdname": KEPT});
    let given = qmp.execute_with_fd("getfd", name, ours.into(), COMMAND_TIMEOUT).await;
    given.map(|_| inode).map_err(|error| error.to_string())
}

/// QEMU need not keep its stream any more.
pub(super) async fn drop_stream(qmp: &Qmp) {
    if let Err(error) = qmp.execute("closefd", json!({"fdname": KEPT}), COMMAND_TIMEOUT).await {
        tracing::debug!(%error, "QEMU kept no stream");
    }
}

/// Hands QEMU our end of a stream to load.
///
/// # Errors
/// When QEMU refuses.
pub(super) async fn begin_load(qmp: &Qmp) -> Result<UnixStream, String> {
    let (ours, theirs) = UnixStream::pair().map_err(|error| error.to_string())?;
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
