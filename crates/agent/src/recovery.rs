//! What a restarted agent does: finds its QEMUs again, and brings every unfinished job to where its journal says it must go
//! (law 1's table).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sterna_host::process::Process;
use sterna_host::qmp::RunState;
use sterna_migration::journal::{DestinationRecord, SourceRecord};
use sterna_wire::AnswerState;
use sterna_wire::message::Inquire;

use crate::agent::{Agent, AgentError};
use crate::jobs::{Job, Role};
use crate::journal::{self, Entry, Journal, Side, Story};
use crate::outgoing;
use crate::registry::{Owner, Record};
use crate::vm::{Live, Vm};

/// Finds VMs and finishes jobs. Runs before anybody is listened to.
///
/// # Errors
/// When the journals cannot be listed. What a single VM or job suffers from is logged and leaves it unknown.
pub(crate) async fn recover(agent: &Arc<Agent>, records: Vec<Record>) -> Result<(), AgentError> {
    for record in records {
        let vm = reattach(record).await;
        agent.remember(&vm);
        agent.registry.insert(Arc::clone(&vm));
        agent.watch(&vm);
    }
    for path in journal::files(&agent.config.state_dir)? {
        match Journal::reopen(&path) {
            Ok(Some((journal, story))) => job(agent, journal, story).await,
            Ok(None) => {
                tracing::info!(path = %path.display(), "a journal without a subject: nothing was begun")
            }
            Err(error) => tracing::error!(%error, "a job's state is unknown"),
        }
    }
    Ok(())
}

async fn reattach(record: Record) -> Arc<Vm> {
    let Some(id) = record.process else { return Vm::new(record, None) };
    let found = match Process::reattach(id.pid, id.start_time) {
        Ok(Some(process)) => {
            Live::attach(process, &record.agent_qmp).await.map_err(|error| error.to_string())
        }
        Ok(None) => Err("its process is gone".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    match found {
        Ok(live) => Vm::new(record, Some(live)),
        Err(error) => {
            tracing::warn!(vm = %record.name, %error, "a VM of before is not there");
            let vm = Vm::new(record, None);
            vm.ended(|owner| if *owner == Owner::Here { Owner::Ended } else { owner.clone() });
            vm
        }
    }
}

/// One job of before.
async fn job(agent: &Arc<Agent>, mut journal: Journal, story: Story) {
    let (subject, role) = (&story.subject, role_of(story.side));
    let peer = subject.peer.clone();
    let job =
        Job::new(subject.job.clone(), subject.vm.clone(), peer, role, story.started_at.clone());
    agent.jobs.insert(Arc::clone(&job));
    let vm = agent.registry.get(&subject.vm);
    match (story.side, vm) {
        (Side::Source(record), vm) if record.is_final() => {
            if let (SourceRecord::Gone, Some(vm)) = (record, vm) {
                finish_leaving(agent, &story, &vm).await;
            }
            remember_source(&job, record, &story);
        }
        (Side::Destination(DestinationRecord::Running), vm) => {
            if let Some(vm) = vm.filter(|vm| is_arriving(vm, &story)) {
                agent.change(&vm, |record| record.owner = Owner::Here);
            }
            job.end("running", None, None);
        }
        (Side::Destination(DestinationRecord::Discarded), vm)
            if !vm.as_ref().is_some_and(|vm| is_arriving(vm, &story)) =>
        {
            job.end("discarded", story.ended.clone(), None);
        }
        (Side::Source(SourceRecord::Offered), Some(vm)) => {
            offered(agent, job, journal, &story, &vm).await
        }
        (Side::Source(_), Some(vm)) => unfinished_source(&job, &mut journal, &story, &vm).await,
        (Side::Destination(DestinationRecord::Entitled), Some(vm)) => {
            entitled(agent, &job, &mut journal, &story, &vm).await;
        }
        (Side::Destination(_), vm) => {
            unfinished_destination(agent, &job, &mut journal, &story, vm).await
        }
        (Side::Source(_), None) => {
            job.end("unknown", Some("its VM is not known here any more".into()), None)
        }
    }
}

const fn role_of(side: Side) -> Role {
    match side {
        Side::Source(_) => Role::Source,
        Side::Destination(_) => Role::Destination,
    }
}

/// The guest is the other host's. An agent that died before it had ended its own QEMU does so now. The epoch tells
/// whether it is still that QEMU: a guest that came back since has a later one.
async fn finish_leaving(agent: &Agent, story: &Story, vm: &Vm) {
    let (subject, record) = (&story.subject, vm.record());
    let owner = Owner::MovedTo { host: subject.peer.clone(), job: subject.job.clone() };
    let unfinished = record.epoch < subject.epoch || record.owner == owner;
    if record.uuid != subject.uuid || !unfinished {
        return;
    }
    agent.change(vm, |record| {
        record.epoch = subject.epoch;
        record.owner = owner;
    });
    if let Some(live) = vm.live()
        && let Err(error) = live.quit().await
    {
        tracing::error!(vm = %record.name, %error, "a QEMU whose guest was moved away does not end");
    }
    vm.ended(Owner::clone);
    agent.remember(vm);
}

fn remember_source(job: &Job, record: SourceRecord, story: &Story) {
    let state = if record == SourceRecord::Gone { "done" } else { "failed" };
    let error =
        story.report.as_ref().and_then(|report| report.error.clone()).or(story.ended.clone());
    let outcome =
        story.report.as_ref().and_then(|report| serde_json::to_value(report.outcome).ok());
    let outcome = outcome.as_ref().and_then(serde_json::Value::as_str).unwrap_or(state);
    job.end(outcome, error, story.report.clone());
}

/// Nothing was offered: the guest is ours, and runs on.
async fn unfinished_source(job: &Job, journal: &mut Journal, story: &Story, vm: &Vm) {
    let Some(live) = vm.live() else {
        let why =
            "the guest's QEMU ended while the agent was away; it was not handed over".to_owned();
        close(journal, &Entry::Source(SourceRecord::Returned), &why);
        return job.end("lost", Some(why), None);
    };
    match outgoing::give_back(&live.qmp, story.guest_ran).await {
        Ok(()) => {
            let why =
                "the source's agent was restarted; the guest runs on at the source".to_owned();
            tracing::info!(job = %job.id(), vm = %job.vm(), "{why}");
            close(journal, &Entry::Source(SourceRecord::Returned), &why);
            job.end("failed", Some(why), None);
        }
        Err(error) => {
            let why = format!("the guest could not be resumed at the source: {error}");
            tracing::error!(job = %job.id(), vm = %job.vm(), "{why}");
            job.end("unknown", Some(why), None);
        }
    }
}

/// The commit may have been sent: only the destination knows.
async fn offered(agent: &Arc<Agent>, job: Arc<Job>, journal: Journal, story: &Story, vm: &Arc<Vm>) {
    if vm.live().is_none() {
        let why = format!(
            "the guest was offered to {} and its QEMU here is gone; look there",
            story.subject.peer
        );
        let id = job.id().clone();
        agent.change(vm, |record| record.owner = Owner::Unknown { job: id });
        return job.end("unknown", Some(why), None);
    }
    outgoing::resume_offered(agent, job, journal, story, vm);
}

/// Whether the registry still has the VM as arriving by this job: it was not told how that ended.
fn is_arriving(vm: &Vm, story: &Story) -> bool {
    vm.record().owner == Owner::Incoming { job: story.subject.job.clone() }
}

/// Nothing was committed: what is here is discarded.
async fn unfinished_destination(
    agent: &Agent,
    job: &Job,
    journal: &mut Journal,
    story: &Story,
    vm: Option<Arc<Vm>>,
) {
    if let Some(vm) = vm.filter(|vm| is_arriving(vm, story)) {
        if let Some(live) = vm.live()
            && let Err(error) = live.kill().await
        {
            tracing::error!(job = %job.id(), %error, "an orphaned QEMU does not end");
            return job.end("unknown", Some(error.to_string()), None);
        }
        agent.put_back(&vm, None);
    }
    let why = "the destination's agent was restarted before the commit".to_owned();
    close(journal, &Entry::Destination(DestinationRecord::Discarded), &why);
    job.end("discarded", Some(why), None);
}

/// The guest is ours. If its QEMU is there, it runs or is resumed; if not, it may have run.
async fn entitled(
    agent: &Arc<Agent>,
    job: &Job,
    journal: &mut Journal,
    story: &Story,
    vm: &Arc<Vm>,
) {
    let resumed = match vm.live() {
        Some(live) => resume(&live, story.guest_ran).await,
        None => Err("its QEMU is gone; it may have run".to_owned()),
    };
    match resumed {
        Ok(()) => {
            agent.change(vm, |record| record.owner = Owner::Here);
            close(journal, &Entry::Destination(DestinationRecord::Running), "");
            job.end("running", None, None);
        }
        Err(why) => {
            let id = story.subject.job.clone();
            agent.change(vm, |record| record.owner = Owner::Unknown { job: id });
            tracing::error!(job = %job.id(), vm = %job.vm(), %why, "whose the guest is is not known");
            job.end("unknown", Some(why), None);
        }
    }
}

async fn resume(live: &Live, guest_ran: bool) -> Result<(), String> {
    let status = live.qmp.query_status().await.map_err(|error| error.to_string())?;
    let waits =
        matches!(status.status, RunState::Paused | RunState::Prelaunch | RunState::PostMigrate);
    if !guest_ran || !waits {
        return Ok(());
    }
    live.qmp
        .cont_after_migration(Duration::from_secs(5))
        .await
        .map_err(|error| error.to_string())?;
    let _ = live.qmp.announce_self().await;
    Ok(())
}

fn close(journal: &mut Journal, state: &Entry, why: &str) {
    let written =
        journal.append(state).and_then(|()| journal.append(&Entry::Ended(why.to_owned())));
    if let Err(error) = written {
        tracing::error!(%error, "a journal could not be closed; the next start does it again");
    }
}

/// What a journal answers to a peer that asks.
#[must_use]
pub(crate) fn journaled_state(agent: &Agent, inquire: &Inquire) -> AnswerState {
    let path = Path::new("jobs").join(format!("{}.journal", inquire.job));
    match Journal::reopen(&agent.config.state_dir.join(path)) {
        Ok(Some((_, story)))
            if story.subject.uuid == inquire.uuid && story.subject.epoch == inquire.epoch =>
        {
            match story.side {
                Side::Destination(DestinationRecord::Prepared) => AnswerState::Prepared,
                Side::Destination(DestinationRecord::Entitled) => AnswerState::Entitled,
                Side::Destination(DestinationRecord::Running) => AnswerState::Running,
                Side::Destination(DestinationRecord::Discarded) => AnswerState::Discarded,
                Side::Source(_) => AnswerState::Unknown,
            }
        }
        _ => AnswerState::Unknown,
    }
}
