//! What the journal, the registry, QEMU and the other host say of a VM whose owner is not known.

use std::path::Path;
use std::sync::Arc;

use sterna_api::{ApiError, PeerAnswer};
use sterna_host::process::Process;
use sterna_host::qmp::Status;
use sterna_migration::journal::SourceRecord;
use sterna_model::{Epoch, HostName, JobId, Refusal, Uuid, VmName};
use sterna_wire::message::Inquire;
use sterna_wire::{AnswerState, Sender};

use super::peers::{self, Said};
use super::rules::{Known, QemuIs};
use crate::agent::Agent;
use crate::jobs::{Job, Role};
use crate::journal::{self, Journal, Side, Story};
use crate::machines;
use crate::peer::{self, Destination};
use crate::place::Place;
use crate::registry::{Owner, ProcessId};
use crate::vm::{Live, Vm};

/// What a job's journal tells.
pub(super) enum Told {
    /// This.
    Story(Box<Story>),
    /// Nothing, and why.
    Nothing(String),
}

/// What was asked for: a VM that is unknown, by its job if there is one.
pub(super) struct Found {
    /// The job's name.
    pub id: Option<JobId>,
    /// The job as it is listed, if it is.
    pub job: Option<Arc<Job>>,
    /// The VM, if the registry knows it.
    pub vm: Option<Arc<Vm>>,
    /// What its journal says.
    pub journal: Told,
    name: VmName,
}

/// All that is known.
pub(super) struct Dossier {
    pub found: Found,
    pub role: Role,
    /// What the VM is, and the epoch that the job's destination owns it by.
    pub uuid: Uuid,
    pub epoch: Epoch,
    pub peer: Option<HostName>,
    pub qemu: Qemu,
    pub answers: Vec<PeerAnswer>,
    answer: Option<AnswerState>,
}

/// The QEMU here.
pub(super) enum Qemu {
    None,
    /// It is there, and does not answer; why.
    Silent(Process, String),
    Speaks(Live, Status),
}

impl Dossier {
    /// Finds what is asked for, by a job or by a VM's name.
    ///
    /// # Errors
    /// When there is no such job or VM, or it is not unknown.
    pub(super) fn find(agent: &Agent, asked: &JobId) -> Result<Found, ApiError> {
        let all = agent.registry.all();
        let of_job = |id: &JobId| {
            let is_its = |vm: &&Arc<Vm>| job_of(vm).as_ref() == Some(id);
            all.iter().find(is_its).cloned()
        };
        let by_name = || {
            let vm = agent.registry.get(&asked.as_str().parse().ok()?)?;
            is_unknown(&vm).then_some(vm)
        };
        let (id, job, vm) = match (agent.jobs.get(asked), of_job(asked)) {
            (Some(job), vm) => {
                let named = || agent.registry.get(job.vm()).filter(|vm| job_of(vm).is_none());
                let vm = vm.or_else(|| named().filter(|vm| is_unknown(vm)));
                (Some(asked.clone()), Some(job), vm)
            }
            (None, Some(vm)) => (Some(asked.clone()), None, Some(vm)),
            (None, None) => {
                let Some(vm) = by_name() else { return Err(no_such(asked)) };
                let job = job_of(&vm).or_else(|| unknown_job_of(agent, &vm));
                let listed = job.as_ref().and_then(|job| agent.jobs.get(job));
                (job, listed, Some(vm))
            }
        };
        let name = match (&vm, &job) {
            (Some(vm), _) => vm.record().name,
            (None, Some(job)) => job.vm().clone(),
            (None, None) => return Err(no_such(asked)),
        };
        let journal = read_journal(agent, id.as_ref());
        let found = Found { id, job, vm, journal, name };
        match found.is_settled() {
            Some(why) => Err(ApiError::refused(vec![why])),
            None => Ok(found),
        }
    }

    /// Asks everybody. Nothing is changed.
    pub(super) async fn gather(agent: &Arc<Agent>, found: Found) -> Self {
        let record = found.vm.as_ref().map(|vm| vm.record());
        let story = found.story();
        let role = match (story, &record) {
            (Some(Story { side: Side::Destination(_), .. }), _) => Role::Destination,
            (Some(_), _) | (None, None) => Role::Source,
            // Only a job that moves a VM away leaves its name there.
            (None, Some(record)) => match (&record.owner, &record.leaving) {
                (Owner::Unknown { job: Some(_), .. }, None) => Role::Destination,
                _ => Role::Source,
            },
        };
        let of_record = record.as_ref().map(|record| match role {
            Role::Source => (record.uuid, record.epoch.next()),
            Role::Destination => (record.uuid, record.epoch),
        });
        let (uuid, epoch) = story
            .map(|story| (story.subject.uuid, story.subject.epoch))
            .or(of_record)
            .unwrap_or((Uuid([0; 16]), Epoch::default()));
        let qemu = Qemu::find(agent, &found).await;
        let said = match &found.id {
            Some(job) => {
                let inquire = Inquire { job: job.clone(), uuid, epoch };
                peers::ask(agent, hosts_to_ask(agent, story), &inquire).await
            }
            None => Vec::new(),
        };
        let peer = peer_of(agent, story, &said);
        let answer =
            said.iter().filter_map(|said| said.state).max_by_key(|state| is_definite(*state));
        let role = match (story, answer) {
            (None, Some(theirs))
                if theirs.may_be_of(Sender::Destination) && is_definite(theirs) =>
            {
                Role::Source
            }
            (None, Some(theirs)) if is_definite(theirs) => Role::Destination,
            _ => role,
        };
        let answers = said.into_iter().map(|said| said.view).collect();
        Self { found, role, uuid, epoch, peer, qemu, answers, answer }
    }

    /// What decides about decisions.
    pub(super) fn known(&self) -> Known {
        let qemu = match &self.qemu {
            Qemu::None => QemuIs::Absent,
            Qemu::Silent(..) => QemuIs::Silent,
            Qemu::Speaks(_, status) => QemuIs::by(status.running, &status.status),
        };
        let peer_is_known = self.peer.is_some();
        let can_serve = self.found.story().is_some_and(Story::can_serve);
        let serving = Side::Source(SourceRecord::Serving);
        let served = self.found.story().is_some_and(|story| story.side == serving);
        Known { role: self.role, answer: self.answer, peer_is_known, qemu, can_serve, served }
    }

    /// What this host is in the job.
    pub(super) const fn role_word(&self) -> &'static str {
        match self.role {
            Role::Source => "source",
            Role::Destination => "destination",
        }
    }
}

impl Found {
    /// The VM's name.
    pub(super) const fn vm_name(&self) -> &VmName {
        &self.name
    }

    /// What the journal says, if it says anything.
    pub(super) const fn story(&self) -> Option<&Story> {
        match &self.journal {
            Told::Story(story) => Some(story),
            Told::Nothing(_) => None,
        }
    }

    /// What `sterna resolve` is to be given.
    pub(super) fn resolve_word(&self) -> &str {
        self.id.as_ref().map_or(self.name.as_str(), JobId::as_str)
    }

    /// Why the owner is not known.
    pub(super) fn why(&self) -> Option<String> {
        let of_vm = self.vm.as_ref().and_then(|vm| match vm.record().owner {
            Owner::Unknown { why, .. } if !why.is_empty() => Some(why),
            _ => None,
        });
        let of_job = || self.job.as_ref().and_then(|job| job.watch().borrow().ended.clone()?.error);
        of_vm.or_else(of_job)
    }

    /// What the registry says, for people.
    pub(super) fn registry_in_words(&self, agent: &Agent) -> String {
        let Some(vm) = &self.vm else { return "it does not know the VM".to_owned() };
        let record = vm.record();
        let owner = match &record.owner {
            Owner::Here => "it is this host's".to_owned(),
            Owner::Incoming { job } => format!("it is being moved here by {job}"),
            Owner::MovedTo { host, job } => format!("it was moved to {host} by {job}"),
            Owner::Ended => "it has ended here".to_owned(),
            Owner::Lost => "it is lost".to_owned(),
            Owner::Unknown { .. } => "its owner is not known".to_owned(),
        };
        if agent.registry.is_damaged(&self.name) {
            return format!("{owner}; its record cannot be read");
        }
        format!("{owner}; epoch {}, uuid {}", record.epoch.0, record.uuid)
    }

    /// Why there is nothing to settle, if there is not.
    fn is_settled(&self) -> Option<Refusal> {
        let status = self.job.as_ref().map(|job| job.watch().borrow().clone());
        let is_open = match &status {
            // Both hosts ask each other for ever; a person may know that the other one never will answer.
            Some(status) if status.ended.is_none() => {
                matches!(status.phase, "offered" | "serving")
            }
            Some(status) => status.ended.as_ref().is_some_and(|ended| ended.state == "unknown"),
            None => false,
        };
        if is_open || self.vm.as_ref().is_some_and(|vm| is_unknown(vm)) {
            return None;
        }
        let state =
            status.map(|status| status.ended.map_or(status.phase.to_owned(), |it| it.state));
        let reason = format!(
            "expected a job whose outcome is unknown, found {} ({})",
            self.resolve_word(),
            state.unwrap_or_else(|| "known".to_owned())
        );
        Some(Refusal::new(
            "job-not-unknown",
            reason,
            "look with `sterna jobs` and `sterna vm list`",
        ))
    }
}

impl Qemu {
    async fn find(agent: &Agent, found: &Found) -> Self {
        let record = found.vm.as_ref().map(|vm| vm.record());
        let place = Place::of(&agent.config.run_dir, &agent.config.state_dir, found.vm_name());
        if let Some(live) = found.vm.as_ref().and_then(|vm| vm.live()) {
            return Self::look_at(live).await;
        }
        let process = record.as_ref().and_then(|record| record.process);
        let process = process.or_else(|| found.story().and_then(|story| story.process));
        let process = match process {
            Some(process) => reattach(process),
            // Only its own monitor's socket tells.
            None if agent.registry.is_damaged(found.vm_name()) => listener_of(&place.agent_qmp),
            None => None,
        };
        let Some(process) = process else { return Self::None };
        let monitor = record.map_or(place.agent_qmp.clone(), |record| record.agent_qmp);
        let id = ProcessId::of(&process);
        match Live::attach(process, &monitor).await {
            Ok(live) => Self::look_at(live).await,
            Err(error) => {
                reattach(id).map_or(Self::None, |process| Self::Silent(process, error.to_string()))
            }
        }
    }

    async fn look_at(live: Live) -> Self {
        match live.qmp.query_status().await {
            Ok(status) => Self::Speaks(live, status),
            Err(error) => {
                let id = ProcessId::of(&live.process);
                reattach(id).map_or(Self::None, |process| Self::Silent(process, error.to_string()))
            }
        }
    }
}

fn reattach(id: ProcessId) -> Option<Process> {
    id.find().ok().flatten()
}

fn listener_of(socket: &Path) -> Option<Process> {
    let pid = machines::peer_of(socket).ok()?;
    Process::attach(pid).ok().flatten()
}

/// Whether nobody knows whose a VM is, or its QEMU does not answer.
fn is_unknown(vm: &Vm) -> bool {
    let record = vm.record();
    let is_silent = record.process.is_some() && vm.live().is_none();
    matches!(record.owner, Owner::Unknown { .. }) || is_silent
}

/// The job that a VM's record speaks of.
fn job_of(vm: &Vm) -> Option<JobId> {
    vm.record().job_of_interest().cloned()
}

/// A job of this VM that ended unknown, though the VM's record does not say so: it could not be read.
fn unknown_job_of(agent: &Agent, vm: &Vm) -> Option<JobId> {
    let name = vm.record().name;
    let is_its = |job: &&Arc<Job>| {
        let is_unknown = |job: &Job| job.view().state == "unknown";
        *job.vm() == name && is_unknown(job)
    };
    agent.jobs.all().iter().rev().find(is_its).map(|job| job.id().clone())
}

fn no_such(id: &JobId) -> ApiError {
    ApiError::usage(format!(
        "there is no job {id} on this host, nor a VM of that name that is unknown; `sterna jobs` and `sterna vm list` list them"
    ))
}

fn read_journal(agent: &Agent, id: Option<&JobId>) -> Told {
    let Some(id) = id else { return Told::Nothing("there is no job".to_owned()) };
    let path = journal::path_of(&agent.config.state_dir, id);
    match tokio::task::block_in_place(|| Journal::read(&path)) {
        Ok(Some(story)) => Told::Story(Box::new(story)),
        Ok(None) => Told::Nothing("it does not say what about".to_owned()),
        Err(error) => Told::Nothing(error.to_string()),
    }
}

/// The other host, where it was reached and where it is configured; all hosts when it is not known which it is.
fn hosts_to_ask(agent: &Agent, story: Option<&Story>) -> Vec<Destination> {
    let configured = |name: &HostName| peer::configured(agent, name);
    match story {
        Some(story) => {
            let name = story.subject.peer.clone();
            let journaled = story.peer_address.clone();
            let journaled = journaled.map(|address| Destination { name: name.clone(), address });
            let mut hosts: Vec<_> = journaled.into_iter().chain(configured(&name)).collect();
            hosts.dedup();
            hosts
        }
        None => agent.config.peers.keys().filter_map(configured).collect(),
    }
}

/// Which host the other one is: by the journal, by what hosts say, or because there is only one.
fn peer_of(agent: &Agent, story: Option<&Story>, said: &[Said]) -> Option<HostName> {
    if let Some(story) = story {
        return Some(story.subject.peer.clone());
    }
    let says = said.iter().find(|said| said.state.is_some_and(is_definite));
    let only = || agent.config.peers.keys().next().filter(|_| agent.config.peers.len() == 1);
    says.map(|said| said.host.clone()).or_else(|| only().cloned())
}

fn is_definite(state: AnswerState) -> bool {
    state != AnswerState::Unknown
}
