//! One VM: its record, and its QEMU while there is one.
//!
//! QEMU is started so that it survives the agent; after a restart it is found again by pid and start time and spoken to
//! over its own QMP socket. The watcher notices QEMU's end, whoever caused it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sterna_api::{VmState, VmView};
use sterna_host::process::{Exit, Process, spawn_marked, tail_of};
use sterna_host::qmp::{Qmp, QmpError, RunState, Schema};
use sterna_model::{Epoch, JobId, Uuid, VmName};
use tokio::sync::OnceCell;

use crate::following::Following;
use crate::keeper::Waiting;
use crate::place::Place;
use crate::registry::{Owner, ProcessId, Record};

/// QEMU has this long to open its monitor after its start.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// A QEMU that runs already answers within this.
const ATTACH_DEADLINE: Duration = Duration::from_secs(5);
/// From the end of QEMU's monitor to that of its process.
const DEATH_TAKES: Duration = Duration::from_secs(2);
/// A killed process is gone within this.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of QEMU's log that an error quotes.
const LOG_TAIL_BYTES: u32 = 2048;

/// What a QEMU that was started for a job has in its environment: the job. It is looked for where an agent died before it
/// could write the process down.
pub(crate) const JOB_MARK: &str = "STERNA_JOB";

/// A VM that this host knows.
#[derive(Debug)]
pub(crate) struct Vm {
    record: Mutex<Record>,
    live: Mutex<Option<Live>>,
    job: Mutex<Option<JobId>>,
    follow: Mutex<Option<Arc<Following>>>,
    waiting: Mutex<Option<Arc<Waiting>>>,
}

/// A QEMU that runs.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    /// Its monitor.
    pub qmp: Qmp,
    /// Its process.
    pub process: Arc<Process>,
    schema: Arc<OnceCell<Arc<Schema>>>,
}

/// Why a VM is not to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmError {
    /// The file system.
    #[error("cannot prepare {path}: {error}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// QEMU did not start.
    #[error("QEMU did not start: {reason}{log}")]
    Start {
        /// Why.
        reason: String,
        /// What QEMU said.
        log: String,
    },
    /// QEMU runs but does not talk to us.
    #[error(
        "QEMU's monitor {path} does not answer: {reason}; expected one that no other client holds"
    )]
    Monitor {
        /// The socket.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Nobody is behind the socket, or somebody else.
    #[error("no QEMU found: {0}")]
    NoProcess(String),
}

/// Everything that starting a QEMU takes.
#[derive(Clone, Debug)]
pub(crate) struct Launch<'a> {
    /// The program.
    pub program: &'a Path,
    /// Its arguments.
    pub args: Vec<String>,
    /// Where relative paths start.
    pub directory: &'a Path,
    /// Where its messages go.
    pub log: &'a Path,
    /// The agent's monitor in its arguments.
    pub qmp: &'a Path,
    /// The job that it is started for, if it is.
    pub job: Option<&'a JobId>,
}

impl Live {
    /// Starts a QEMU and connects to its monitor. One that does not come up is killed and its log quoted.
    ///
    /// `started` hears of the process before anything is waited for: what it makes durable finds the process again if
    /// the agent dies meanwhile. When it fails, QEMU is killed.
    ///
    /// # Errors
    /// When it ends, its monitor does not answer in time, or `started` fails.
    pub(crate) async fn launch(
        launch: Launch<'_>,
        started: impl FnOnce(ProcessId) -> Result<(), String>,
    ) -> Result<Self, VmError> {
        let args: Vec<OsString> = launch.args.iter().map(OsString::from).collect();
        let failed = |reason: String| VmError::Start { reason, log: quote_log(launch.log) };
        let mark = launch.job.map(|job| (JOB_MARK, job.as_str()));
        let (program, directory) = (launch.program, launch.directory);
        let spawned = spawn_marked(program, &args, directory, launch.log, &[], mark);
        let process = Arc::new(spawned.map_err(|error| failed(error.to_string()))?);
        let reason = match started(ProcessId::of(&process)) {
            Err(error) => error,
            Ok(()) => tokio::select! {
                connected = Qmp::connect(launch.qmp, START_DEADLINE) => match connected {
                    Ok((qmp, _)) => return Ok(Self { qmp, process, schema: Arc::default() }),
                    Err(error) => error.to_string(),
                },
                exit = process.exited() => describe_exit(exit.ok()),
            },
        };
        // It may have ended by itself; whatever is left of it must not stay.
        let _ = process.kill_and_reap(KILL_DEADLINE).await;
        Err(failed(reason))
    }

    /// Connects to a QEMU that runs already.
    ///
    /// # Errors
    /// When it is gone, or its monitor does not answer.
    pub(crate) async fn attach(process: Process, qmp: &Path) -> Result<Self, VmError> {
        Self::attach_within(ATTACH_DEADLINE, process, qmp).await
    }

    /// As [`Live::attach`], with less patience.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn attach_within(
        deadline: Duration,
        process: Process,
        qmp: &Path,
    ) -> Result<Self, VmError> {
        match Qmp::connect(qmp, deadline).await {
            Ok((qmp, _)) => Ok(Self { qmp, process: Arc::new(process), schema: Arc::default() }),
            Err(error) => Err(VmError::Monitor { path: qmp.into(), reason: error.to_string() }),
        }
    }

    /// What this QEMU can do; asked once.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn schema(&self) -> Result<Arc<Schema>, QmpError> {
        let ask = || async { self.qmp.query_schema().await.map(Arc::new) };
        self.schema.get_or_try_init(ask).await.cloned()
    }

    /// Kills the QEMU and waits until it is gone.
    ///
    /// # Errors
    /// When it does not go.
    pub(crate) async fn kill(&self) -> Result<(), VmError> {
        let killed = self.process.kill_and_reap(KILL_DEADLINE).await;
        killed.map(drop).map_err(|error| VmError::NoProcess(error.to_string()))
    }

    /// Asks the QEMU to quit, and kills it if it does not.
    ///
    /// # Errors
    /// When it does not go even so.
    pub(crate) async fn quit(&self) -> Result<(), VmError> {
        let qmp = self.qmp.with_timeout(Duration::from_secs(2));
        if qmp.quit().await.is_ok() {
            let gone = tokio::time::timeout(Duration::from_secs(2), self.process.exited()).await;
            if gone.is_ok() {
                return Ok(());
            }
        }
        self.kill().await
    }
}

impl Vm {
    /// A VM with or without a QEMU.
    #[must_use]
    pub(crate) fn new(record: Record, live: Option<Live>) -> Arc<Self> {
        let (record, live) = (Mutex::new(record), Mutex::new(live));
        let (job, follow, waiting) = (Mutex::default(), Mutex::default(), Mutex::default());
        Arc::new(Self { record, live, job, follow, waiting })
    }

    /// Its durable part.
    #[must_use]
    pub(crate) fn record(&self) -> Record {
        lock(&self.record).clone()
    }

    /// Its QEMU, while there is one.
    #[must_use]
    pub(crate) fn live(&self) -> Option<Live> {
        lock(&self.live).clone()
    }

    /// Its QEMU answers again.
    pub(crate) fn attach(&self, live: Live) {
        *lock(&self.live) = Some(live);
    }

    /// Changes its durable part in memory; gives the new one, to be stored.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Record)) -> Record {
        let mut record = lock(&self.record);
        change(&mut record);
        record.clone()
    }

    /// Its QEMU is gone. Gives the record to store.
    pub(crate) fn ended(&self, owner: impl FnOnce(&Owner) -> Owner) -> Record {
        *lock(&self.live) = None;
        self.change(|record| {
            record.process = None;
            record.owner = owner(&record.owner);
        })
    }

    /// Takes the VM for a job; tells which job has it, if one has.
    ///
    /// # Errors
    /// The job that has it.
    pub(crate) fn begin_job(&self, job: &JobId) -> Result<(), JobId> {
        let mut current = lock(&self.job);
        match &*current {
            Some(other) if other != job => Err(other.clone()),
            _ => {
                *current = Some(job.clone());
                Ok(())
            }
        }
    }

    /// The job that has it is over.
    pub(crate) fn end_job(&self) {
        *lock(&self.follow) = None;
        *lock(&self.job) = None;
    }

    /// The job that has it follows it.
    pub(crate) fn follow(&self, follow: Arc<Following>) {
        *lock(&self.follow) = Some(follow);
    }

    /// The job that follows it, if one does.
    #[must_use]
    pub(crate) fn followed(&self) -> Option<Arc<Following>> {
        lock(&self.follow).clone()
    }

    /// Following has ended by a fault, and is to be begun anew; or that is over.
    pub(crate) fn wait_to_follow(&self, waiting: Option<Arc<Waiting>>) {
        *lock(&self.waiting) = waiting;
    }

    /// What keeps it from being followed, while that is begun anew.
    #[must_use]
    pub(crate) fn waiting(&self) -> Option<Arc<Waiting>> {
        lock(&self.waiting).clone()
    }

    /// The job that has it.
    #[must_use]
    pub(crate) fn job(&self) -> Option<JobId> {
        lock(&self.job).clone()
    }

    /// How users see it.
    pub(crate) async fn view(&self) -> VmView {
        let (record, live) = (self.record(), self.live());
        let state = match (&record.owner, &live, record.process) {
            // Its process may be there, but does not answer.
            (Owner::Here, None, Some(_)) => VmState::Unknown,
            (owner, live, _) => state_of(owner, live.as_ref()).await,
        };
        let is_followed = self
            .followed()
            .map_or_else(|| self.waiting().is_some(), |follow| !follow.is_switching());
        let state = match state {
            VmState::Running | VmState::Paused if is_followed => VmState::Following,
            other => other,
        };
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let unknown_because = (state == VmState::Unknown).then(|| why_unknown(&record));
        let resolve = (state == VmState::Unknown).then(|| match &record.owner {
            Owner::Unknown { job: Some(job), .. } => job.to_string(),
            _ => record.job_under_way().map_or(record.name.to_string(), ToString::to_string),
        });
        VmView {
            name: record.name,
            uuid: record.uuid.to_string(),
            state,
            pid: live.and_then(|live| u32::try_from(live.process.pid()).ok()),
            qmp: record.user_qmp.map(text),
            serial: record.serial.map(text),
            argv: record.argv,
            moved_to: match record.owner {
                Owner::MovedTo { host, .. } => Some(host.to_string()),
                _ => None,
            },
            unknown_because,
            resolve,
        }
    }
}

/// Why the state of a VM is unknown.
fn why_unknown(record: &Record) -> String {
    match (&record.owner, record.process) {
        (Owner::Unknown { why, .. }, _) if !why.is_empty() => why.clone(),
        (Owner::Unknown { .. }, _) => "an earlier build left it so, and did not say why".to_owned(),
        (_, Some(process)) => format!(
            "its QEMU, pid {}, does not answer at {}",
            process.pid,
            record.agent_qmp.display()
        ),
        (_, None) => "its QEMU does not answer".to_owned(),
    }
}

async fn state_of(owner: &Owner, live: Option<&Live>) -> VmState {
    match (owner, live) {
        (Owner::MovedTo { .. }, _) => VmState::Migrated,
        (Owner::Incoming { .. }, _) => VmState::Incoming,
        (Owner::Unknown { .. }, _) => VmState::Unknown,
        (Owner::Lost, _) => VmState::Lost,
        (Owner::Ended, _) | (Owner::Here, None) => VmState::Stopped,
        (Owner::Here, Some(live)) => match live.qmp.query_status().await {
            Ok(status) if status.running => VmState::Running,
            Ok(status) if status.status == RunState::Shutdown => VmState::Stopped,
            Ok(_) => VmState::Paused,
            // A monitor that closes is that of a QEMU that dies, most likely.
            Err(error) if error.is_closed() && is_dying(live).await => VmState::Stopped,
            Err(_) => VmState::Unknown,
        },
    }
}

/// Whether the process ends now.
async fn is_dying(live: &Live) -> bool {
    tokio::time::timeout(DEATH_TAKES, live.process.exited()).await.is_ok_and(|exit| exit.is_ok())
}

/// A fresh record of a VM that is started or taken here.
#[must_use]
pub(crate) fn fresh_record(
    name: VmName,
    uuid: Uuid,
    place: &Place,
    definition: Vec<String>,
) -> Record {
    Record {
        name,
        uuid,
        epoch: Epoch::default(),
        argv: definition.clone(),
        definition,
        directory: PathBuf::from("/"),
        process: None,
        agent_qmp: place.agent_qmp.clone(),
        user_qmp: Some(place.user_qmp.clone()),
        serial: None,
        log: place.log.clone(),
        owner: Owner::Here,
        leaving: None,
        follow: None,
        previous: None,
    }
}

/// What QEMU's log ends with, for an error.
#[must_use]
pub(crate) fn quote_log(log: &Path) -> String {
    let tail = tail_of(log, LOG_TAIL_BYTES);
    if tail.is_empty() { String::new() } else { format!("; QEMU said: {tail}") }
}

/// How a process ended, in words.
#[must_use]
pub(crate) fn describe_exit(exit: Option<Exit>) -> String {
    match exit {
        Some(Exit::Code(code)) => format!("it ended with exit code {code}"),
        Some(Exit::Signal(signal)) => format!("it was ended by signal {signal}"),
        Some(Exit::ShortOfMemory) => {
            "it was killed, and the kernel has killed for want of memory on this host meanwhile"
                .into()
        }
        Some(Exit::Unknown) | None => "it ended".into(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_qemu_that_nothing_remembers_is_not_left_behind() {
        let folder = std::env::temp_dir().join(format!("sterna-launch-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let launch = Launch {
            program: Path::new("/bin/sleep"),
            args: vec!["600".into()],
            directory: Path::new("/"),
            log: &folder.join("log"),
            qmp: &folder.join("qmp"),
            job: None,
        };
        let mut started = None;
        let launched = Live::launch(launch, |id| {
            let process = id.find().unwrap();
            started = process.map(|_| id);
            Err("the disk is full".to_owned())
        });
        let error = launched.await.unwrap_err();
        assert!(error.to_string().contains("the disk is full"), "{error}");
        let id = started.expect("it should have been told of while it ran");
        assert!(id.find().unwrap().is_none());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
