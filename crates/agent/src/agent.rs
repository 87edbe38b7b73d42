//! The agent's whole: what all its parts share, and how it starts and runs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sterna_host::dirs::Dirs;
use sterna_host::durable::{DurableError, FolderLock};
use sterna_host::tls::{IdentityError, LinkOptions, TlsFiles, TlsIdentity};
use sterna_host::usage::AnonPeak;
use sterna_model::{HostName, JobId, Uuid};
use tokio::net::TcpListener;

use crate::admission::{Admission, Complaint};
use crate::config::{Config, ConfigError};
use crate::incoming;
use crate::jobs::Jobs;
use crate::journal::{self, JournalError};
use crate::registry::{Found, Owner, Record, Registry, RegistryError};
use crate::vm::Vm;
use crate::{certificates, control, keeper, leaving, recovery, service, visitors};

/// Days before their end that certificates and lists are complained about.
const WARN_DAYS: i64 = 30;

/// What all parts of the agent share.
#[derive(Debug)]
pub(crate) struct Agent {
    /// The configuration.
    pub config: Config,
    /// Who we are.
    pub identity: TlsIdentity,
    /// The VMs.
    pub registry: Registry,
    /// The jobs.
    pub jobs: Jobs,
    /// Who of the peers has a place.
    pub admission: Arc<Admission>,
    /// Our own anonymous memory.
    pub anonymous: AnonPeak,
    /// What this host's QEMUs can be.
    pub programs: incoming::Programs,
    /// Memory of guests whose jobs came to nothing here.
    pub kept: incoming::KeptMemories,
    incoming: Mutex<HashMap<JobId, incoming::Handle>>,
    /// Nobody else uses our state directory.
    _lock: FolderLock,
}

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The certificates.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] DurableError),
    /// The VM registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The job journals.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A socket or folder.
    #[error("cannot use {what}: {error}")]
    Io {
        /// What.
        what: String,
        /// Why.
        error: std::io::Error,
    },
}

/// Runs the agent until it is told to end (SIGTERM, SIGINT). Guests run on without it.
///
/// # Errors
/// When it cannot start.
pub fn run(config: Option<&Path>) -> Result<(), AgentError> {
    let path = config.map_or_else(|| Dirs::of_this_user().config_file(), Path::to_path_buf);
    let config = Config::load(&path)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| io("the runtime", error))?;
    let served = runtime.block_on(serve(config));
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

async fn serve(config: Config) -> Result<(), AgentError> {
    let (listen, control_path) = (config.listen, config.control.clone());
    let (agent, found) = Agent::open(config)?;
    recovery::recover(&agent, found).await?;
    let peers = TcpListener::bind(listen).await.map_err(|error| io(&format!("{listen}"), error))?;
    let clients =
        control::bind(&control_path).map_err(|error| io(&control_path.to_string_lossy(), error))?;
    tracing::info!(host = %agent.config.name, %listen, control = %control_path.display(), "the agent is ready");
    warn_of_ends(&agent);
    tokio::spawn(greet_peers(Arc::clone(&agent), peers));
    tokio::spawn(control::serve(Arc::clone(&agent), clients));
    tokio::spawn(sample_memory(Arc::clone(&agent)));
    tokio::spawn(certificates::tell(Arc::clone(&agent)));
    let asking = Arc::clone(&agent);
    tokio::spawn(async move { asking.programs.ask_ahead().await });
    keeper::resume(&agent);
    service::ready(&service::status(&agent).await);
    tokio::spawn(service::keep_alive());
    tokio::spawn(service::keep_status(Arc::clone(&agent)));
    ended().await.map_err(|error| io("signals", error))?;
    service::stopping();
    tokio::select! {
        () = leaving::wind_down(&agent) => {}
        // Told twice, it does not wait.
        told = ended() => told.map_err(|error| io("signals", error))?,
    }
    tracing::info!("the agent ends; guests run on");
    Ok(())
}

/// Says what will keep this host from talking to others before long.
fn warn_of_ends(agent: &Agent) {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now_unix = i64::try_from(since.unwrap_or_default().as_secs()).unwrap_or(i64::MAX);
    let certificate = agent.identity.validity().days_left(now_unix);
    if certificate < WARN_DAYS {
        tracing::warn!(days = certificate, "this host's certificate ends soon; issue another one");
    }
    let list = agent.identity.crl_until_unix().map(|until| (until - now_unix).div_euclid(86_400));
    if let Some(days) = list.filter(|days| *days < WARN_DAYS) {
        tracing::warn!(
            days,
            "the list of revoked certificates ends soon, and nobody gets in then; renew it (sterna pki revoke DIR)"
        );
    }
}

/// Takes connections of peers for as long as the agent runs.
pub(crate) async fn greet_peers(agent: Arc<Agent>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((socket, address)) => {
                let stranger = agent.admission.stranger(address.ip());
                let agent = Arc::clone(&agent);
                tokio::spawn(async move {
                    if let Err(error) = visitors::receive(&agent, socket, stranger).await {
                        agent.complain(|| {
                            tracing::warn!(%address, %error, "a peer's connection was turned away");
                        });
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: without a pause this would spin.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn sample_memory(agent: Arc<Agent>) {
    let mut tick = tokio::time::interval(sterna_host::usage::SAMPLE_EVERY);
    loop {
        tick.tick().await;
        agent.anonymous.sample();
    }
}

async fn ended() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

impl Agent {
    /// Takes the state directory and reads who we are and which VMs there are; nobody is listened to yet.
    ///
    /// # Errors
    /// When another agent has the directory, or the certificates cannot be used.
    pub(crate) fn open(config: Config) -> Result<(Arc<Self>, Vec<Found>), AgentError> {
        for folder in [&config.state_dir, &config.run_dir] {
            std::fs::create_dir_all(folder)
                .map_err(|error| io(&folder.to_string_lossy(), error))?;
        }
        let lock = FolderLock::take(&config.state_dir)?;
        let files = TlsFiles {
            ca: config.tls.ca.clone(),
            certificate: config.tls.cert.clone(),
            key: config.tls.key.clone(),
            crl: config.tls.crl.clone(),
        };
        let identity = TlsIdentity::load_for(&config.name, &files)?;
        let (registry, found) = Registry::open(&config.state_dir)?;
        let agent = Self {
            config,
            identity,
            registry,
            jobs: Jobs::default(),
            admission: Arc::default(),
            anonymous: AnonPeak::default(),
            programs: incoming::Programs::default(),
            kept: incoming::KeptMemories::default(),
            incoming: Mutex::default(),
            _lock: lock,
        };
        Ok((Arc::new(agent), found))
    }

    /// How connections to peers are made and watched.
    #[must_use]
    pub(crate) fn link_options(&self) -> LinkOptions {
        LinkOptions { silence_limit: self.config.limits.link_timeout, ..LinkOptions::default() }
    }

    /// Logs a complaint about a peer, unless there are very many.
    pub(crate) fn complain(&self, log: impl FnOnce()) {
        match self.admission.complain(Instant::now()) {
            Complaint::Told => log(),
            Complaint::Counted => {}
            Complaint::AfterSome(count) => {
                tracing::warn!(
                    count,
                    "so many more complaints about peers' connections were not logged one by one"
                );
                log();
            }
        }
    }

    /// After so much silence a source counts as gone: as either host has it, whichever is less.
    #[must_use]
    pub(crate) fn silence_limit(&self, link_timeout_ms: u64) -> Duration {
        self.config.limits.link_timeout.min(Duration::from_millis(link_timeout_ms))
    }

    /// Folders that a VM that arrives may use: as configured, else what this host's own VMs use, the state directory and
    /// the mapped paths.
    #[must_use]
    pub(crate) fn roots(&self) -> Vec<PathBuf> {
        if let Some(roots) = &self.config.accept.roots {
            return roots.clone();
        }
        let mut roots = vec![self.config.state_dir.clone()];
        roots.extend(self.config.paths.iter().map(|(_, ours)| PathBuf::from(ours)));
        for vm in self.registry.all() {
            let record = vm.record();
            if record.owner == Owner::Here {
                roots.extend(record.definition.iter().flat_map(|argument| folders_in(argument)));
            }
        }
        roots.sort();
        roots.dedup();
        roots
    }

    /// Makes a VM's record durable. A disk that does not take it is logged: journals, not the registry, decide whose a
    /// guest is.
    pub(crate) fn remember(&self, vm: &Vm) {
        if let Err(error) = tokio::task::block_in_place(|| self.registry.store(vm)) {
            tracing::error!(vm = %vm.record().name, %error, "the VM registry is out of date");
        }
    }

    /// Changes a VM's record and makes it durable.
    pub(crate) fn change(&self, vm: &Vm, change: impl FnOnce(&mut Record)) {
        vm.change(change);
        self.remember(vm);
    }

    /// A VM that was to arrive did not: what was known by its name before is known again.
    pub(crate) fn put_back(&self, vm: &Vm) {
        match vm.ended(|_| Owner::Ended).previous {
            Some(record) => {
                let previous = Vm::new(*record, None);
                if self.registry.replace(vm, Arc::clone(&previous)) {
                    self.remember(&previous);
                }
            }
            None => self.registry.remove(vm),
        }
    }

    /// Removes journals of long ago. To be called when a job has ended.
    pub(crate) fn prune_journals(&self) {
        let in_use = self.registry.jobs_of_interest();
        let now = std::time::SystemTime::now();
        let pruned =
            tokio::task::block_in_place(|| journal::prune(&self.config.state_dir, &in_use, now));
        match pruned {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "journals of long ago were removed"),
            Err(error) => tracing::warn!(%error, "old journals could not be removed"),
        }
    }

    /// Follows a VM's QEMU to its end.
    pub(crate) fn watch(self: &Arc<Self>, vm: &Arc<Vm>) {
        let Some(live) = vm.live() else { return };
        let (agent, vm) = (Arc::clone(self), Arc::clone(vm));
        tokio::spawn(async move {
            // Asked now, it does not have to be asked when the VM is to be moved.
            let _ = live.schema().await;
            if live.process.exited().await.is_ok() {
                vm.ended(|owner| if *owner == Owner::Here { Owner::Ended } else { owner.clone() });
                agent.remember(&vm);
                tracing::info!(vm = %vm.record().name, "its QEMU has ended");
            }
        });
    }

    /// A job that arrives.
    #[must_use]
    pub(crate) fn incoming(&self, job: &JobId) -> Option<incoming::Handle> {
        self.lock_incoming().get(job).cloned()
    }

    /// The job by which a VM of this peer arrives, if it still may be discarded or go on.
    #[must_use]
    pub(crate) fn incoming_of(
        &self,
        peer: &HostName,
        uuid: Uuid,
    ) -> Option<(JobId, incoming::Handle)> {
        let all = self.lock_incoming();
        let mut of_it = all.iter().filter(|(job, handle)| {
            let is_under_way = self.jobs.get(job).is_some_and(|job| job.ended_in().is_none());
            handle.peer == *peer && handle.uuid == uuid && is_under_way
        });
        of_it.next().map(|(job, handle)| (job.clone(), handle.clone()))
    }

    /// A job has begun to arrive.
    pub(crate) fn remember_incoming(&self, job: JobId, handle: incoming::Handle) {
        self.lock_incoming().insert(job, handle);
    }

    /// A job that arrived is over, and its connection gone.
    pub(crate) fn forget_incoming(&self, job: &JobId) {
        self.lock_incoming().remove(job);
    }

    fn lock_incoming(&self) -> MutexGuard<'_, HashMap<JobId, incoming::Handle>> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Folders of the files that an argument of QEMU names: `/a/b` in `-kernel /a/b` or `file=/a/b,if=virtio`.
fn folders_in(argument: &str) -> Vec<PathBuf> {
    let values =
        argument.split(',').map(|part| part.split_once('=').map_or(part, |(_, value)| value));
    let absolute = values.filter(|value| value.starts_with('/'));
    let folders = absolute.filter_map(|path| Path::new(path).parent());
    folders.filter(|folder| folder.components().count() > 1).map(Path::to_path_buf).collect()
}

fn io(what: &str, error: std::io::Error) -> AgentError {
    AgentError::Io { what: what.to_owned(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_own_files_are_found() {
        let folders = |argument| {
            folders_in(argument).iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(folders("/boot/vmlinuz"), ["/boot"]);
        assert_eq!(folders("file=/srv/vm/a.raw,if=virtio,id=x"), ["/srv/vm"]);
        assert!(folders("/vmlinuz").is_empty(), "the root folder would allow everything");
        assert!(folders("console=ttyS0").is_empty());
    }
}
