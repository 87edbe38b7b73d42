//! What users do with VMs on this host: start, adopt, list, stop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sterna_api::{ApiError, VmView};
use sterna_host::process::{Process, argv_of};
use sterna_host::qmp::Qmp;
use sterna_model::{Uuid, VmName};
use sterna_qemu_args::serial_path;

use crate::agent::Agent;
use crate::place::{Place, monitor_argument};
use crate::registry::{Owner, ProcessId, Record, Reservation};
use crate::vm::{Launch, Live, Vm, VmError, fresh_record};

/// Starts QEMU under the agent. The argument vector is the definition; the agent adds only its monitors.
///
/// # Errors
/// When the name is taken, or QEMU does not come up.
pub(crate) async fn start(
    agent: &Arc<Agent>,
    name: VmName,
    argv: Vec<String>,
    directory: &Path,
) -> Result<VmView, ApiError> {
    let Some((program, arguments)) = argv.split_first() else {
        return Err(ApiError::usage("expected a QEMU program after --, found none"));
    };
    let _reserved = reserve(agent, &name)?;
    free_name(agent, &name)?;
    let place = place_of(agent, &name)?;
    let mut args = arguments.to_vec();
    for socket in [&place.agent_qmp, &place.user_qmp] {
        args.extend(["-qmp".to_owned(), monitor_argument(socket)]);
    }
    let program = find_program(program, directory)?;
    let launch = Launch {
        program: &program,
        args: args.clone(),
        directory,
        log: &place.log,
        qmp: &place.agent_qmp,
        job: None,
    };
    let live = Live::launch(launch, |_| Ok(())).await.map_err(|error| failed(&error))?;
    let mut definition = argv.clone();
    definition[0] = program.to_string_lossy().into_owned();
    let uuid = match uuid_of(&live.qmp).await {
        Ok(uuid) => uuid,
        Err(error) => {
            let _ = live.kill().await;
            return Err(error);
        }
    };
    let mut record = fresh_record(name, uuid, &place, definition);
    record.argv = std::iter::once(record.definition[0].clone()).chain(args).collect();
    record.directory = directory.to_path_buf();
    Ok(register(agent, record, live).await)
}

/// Takes a QEMU that runs already.
///
/// # Errors
/// When the name is taken, or nobody, or another client's QEMU, is behind the socket.
pub(crate) async fn adopt(
    agent: &Arc<Agent>,
    name: VmName,
    qmp: &Path,
    pid: Option<u32>,
) -> Result<VmView, ApiError> {
    let _reserved = reserve(agent, &name)?;
    free_name(agent, &name)?;
    let pid = match pid {
        Some(pid) => i32::try_from(pid)
            .map_err(|_| ApiError::usage("expected a process id, found a larger number"))?,
        None => peer_of(qmp)?,
    };
    let process = Process::attach(pid).map_err(|error| ApiError::failed(error.to_string()))?;
    let process = process.ok_or_else(|| ApiError::failed(format!("there is no process {pid}")))?;
    not_had(agent, &process)?;
    let argv = argv_of(pid).map_err(|error| {
        ApiError::failed(format!("cannot read the arguments of {pid}: {error}"))
    })?;
    let argv: Vec<String> =
        argv.iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let directory =
        std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_else(|_| PathBuf::from("/"));
    let live = Live::attach(process, qmp).await.map_err(|error| failed(&error))?;
    runs_in(&live, qmp).await?;
    let uuid = uuid_of(&live.qmp).await?;
    let place = place_of(agent, &name)?;
    let mut record = fresh_record(name, uuid, &place, argv);
    record.agent_qmp = qmp.to_path_buf();
    record.user_qmp = None;
    record.directory = directory;
    Ok(register(agent, record, live).await)
}

async fn register(agent: &Arc<Agent>, mut record: Record, live: Live) -> VmView {
    // Journals of before must not speak of this QEMU: epochs of a name only grow.
    if let Some(previous) = agent.registry.get(&record.name) {
        record.epoch = previous.record().epoch.next();
    }
    record.process = Some(ProcessId::of(&live.process));
    record.serial = serial_path(&record.definition).map(|path| record.directory.join(path));
    let vm = Vm::new(record, Some(live));
    agent.registry.insert(Arc::clone(&vm));
    agent.remember(&vm);
    agent.watch(&vm);
    vm.view().await
}

/// All VMs that this host knows.
pub(crate) async fn list(agent: &Agent) -> Vec<VmView> {
    let mut views = Vec::new();
    for vm in agent.registry.all() {
        views.push(vm.view().await);
    }
    views
}

/// Powers a VM down, and quits its QEMU when that takes too long.
///
/// # Errors
/// When a job has the VM, or its QEMU does not end.
pub(crate) async fn stop(
    agent: &Arc<Agent>,
    vm: &Arc<Vm>,
    grace: Duration,
) -> Result<VmView, ApiError> {
    if let Some(job) = vm.job() {
        let name = vm.record().name;
        if vm.followed().is_some() {
            let why = format!("{name} is followed by {job}; `sterna unfollow {name}` first");
            return Err(ApiError::failed(why));
        }
        return Err(ApiError::failed(format!("{name} is being moved by {job}; cancel that first")));
    }
    if vm.waiting().is_some() {
        let name = vm.record().name;
        let why = format!("{name} is followed; `sterna unfollow {name}` first");
        return Err(ApiError::failed(why));
    }
    if let Some(why) = vm.record().owner.unknown_because() {
        return Err(ApiError { exit_code: 4, ..ApiError::failed(why) });
    }
    let Some(live) = vm.live() else { return Ok(vm.view().await) };
    if !grace.is_zero() && live.qmp.system_powerdown().await.is_ok() {
        let _ = tokio::time::timeout(grace, live.process.exited()).await;
    }
    if !live.process.has_exited().unwrap_or(false) {
        live.quit().await.map_err(|error| failed(&error))?;
    }
    vm.ended(|_| Owner::Ended);
    agent.remember(vm);
    Ok(vm.view().await)
}

fn reserve<'a>(agent: &'a Agent, name: &VmName) -> Result<Reservation<'a>, ApiError> {
    let taken =
        || ApiError::failed(format!("a VM named {name} is being started here; wait for it"));
    agent.registry.reserve(name).ok_or_else(taken)
}

fn free_name(agent: &Agent, name: &VmName) -> Result<(), ApiError> {
    let Some(vm) = agent.registry.get(name) else { return Ok(()) };
    let record = vm.record();
    if let Some(why) = record.owner.unknown_because() {
        return Err(ApiError { exit_code: 4, ..ApiError::failed(format!("{name}: {why}")) });
    }
    if vm.live().is_some() || record.process.is_some() {
        let why = format!("a VM named {name} runs here already; choose another name or stop it");
        return Err(ApiError::failed(why));
    }
    // Its QEMU may be dead, and the guest about to run at the other host.
    if let Some(job) = vm.job() {
        return Err(ApiError::failed(format!("{name} is being moved by {job}; wait for that")));
    }
    Ok(())
}

/// One QEMU under two names could be moved twice.
fn not_had(agent: &Agent, process: &Process) -> Result<(), ApiError> {
    let all = agent.registry.all();
    let had =
        all.iter().map(|vm| vm.record()).find(|it| it.process.is_some_and(|id| id.is(process)));
    match had {
        Some(record) => Err(ApiError::failed(format!(
            "the process {} is the VM {} here already",
            process.pid(),
            record.name
        ))),
        None => Ok(()),
    }
}

/// That the monitor is this process's: after a move it is ended, and must be the one that was moved.
async fn runs_in(live: &Live, qmp: &Path) -> Result<(), ApiError> {
    let cpus = live.qmp.query_cpus_fast().await;
    let cpus = cpus.map_err(|error| ApiError::failed(error.to_string()))?;
    let pid = live.process.pid();
    let is_its = |thread: i64| Path::new(&format!("/proc/{pid}/task/{thread}")).exists();
    match cpus.iter().map(|cpu| cpu.thread_id).find(|thread| !is_its(*thread)) {
        None if !cpus.is_empty() => Ok(()),
        stranger => Err(ApiError::failed(format!(
            "the process {pid} is not the QEMU behind {}: expected the guest's processors among its threads, found {}",
            qmp.display(),
            stranger.map_or("none".into(), |thread| format!("thread {thread} elsewhere"))
        ))),
    }
}

fn place_of(agent: &Agent, name: &VmName) -> Result<Place, ApiError> {
    let place = Place::of(&agent.config.run_dir, &agent.config.state_dir, name);
    place.make(None).map_err(|error| failed(&error))?;
    Ok(place)
}

/// The program that a shell in `directory` would run.
fn find_program(program: &str, directory: &Path) -> Result<PathBuf, ApiError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = if program.contains('/') {
        Some(directory.join(program))
    } else {
        std::env::split_paths(&path)
            .map(|folder| folder.join(program))
            .find(|candidate| candidate.is_file())
    };
    let found = found.filter(|program| program.is_file());
    found.ok_or_else(|| {
        ApiError::failed(format!("there is no program {program}; install QEMU or give its path"))
    })
}

pub(crate) async fn uuid_of(qmp: &Qmp) -> Result<Uuid, ApiError> {
    let uuid = qmp.query_uuid().await.map_err(|error| ApiError::failed(error.to_string()))?;
    if uuid.0 != [0; 16] {
        return Ok(uuid);
    }
    crate::random::uuid().map_err(|error| ApiError::failed(format!("no random bytes: {error}")))
}

/// The process that listens on a unix socket.
pub(crate) fn peer_of(socket: &Path) -> Result<i32, ApiError> {
    let failed = |error: std::io::Error| {
        ApiError::failed(format!("cannot connect to {}: {error}", socket.display()))
    };
    let stream = std::os::unix::net::UnixStream::connect(socket).map_err(failed)?;
    let peer =
        rustix::net::sockopt::socket_peercred(&stream).map_err(|error| failed(error.into()))?;
    Ok(peer.pid.as_raw_nonzero().get())
}

fn failed(error: &VmError) -> ApiError {
    ApiError::failed(error.to_string())
}
