//! What a restarted agent does: finds its QEMUs again, and brings every unfinished job to where its journal says it must go
//! (law 1's table).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sterna_host::process::Process;
use sterna_host::qmp::RunState;
use sterna_migration::journal::{DestinationRecord, SourceRecord};
use sterna_model::HostName;
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
    let silent = match Process::reattach(id.pid, id.start_time) {
        Ok(Some(process)) => match Live::attach(process, &record.agent_qmp).await {
            Ok(live) => return Vm::new(record, Some(live)),
            Err(error) => error.to_string(),
        },
        Ok(None) => {
            tracing::warn!(vm = %record.name, "its QEMU ended while the agent was away");
            let vm = Vm::new(record, None);
            vm.ended(|owner| if *owner == Owner::Here { Owner::Ended } else { owner.clone() });
            return vm;
        }
        Err(error) => error.to_string(),
    };
    // It is there, or may be: nothing that would be wrong then is concluded, and its name stays taken.
    tracing::error!(vm = %record.name, error = %silent, "a QEMU of before does not answer; restart the agent when it does");
    Vm::new(record, None)
}

/// One job of before.
async fn job(agent: &Arc<Agent>, mut journal: Journal, story: Story) {
    let (subject, role) = (&story.subject, role_of(story.side));
    let peer = subject.peer.clone();
    let job =
        Job::new(subject.job.clone(), subject.vm.clone(), peer, role, story.started_at.clone());
    agent.jobs.insert(Arc::clone(&job));
    // Journals name VMs; a later VM of the same name is another one, or the same one in a later epoch.
    let vm = agent.registry.get(&subject.vm).filter(|vm| is_of(vm, &story));
    if !story.side.is_final() && (story.report.is_some() || story.ended.is_some()) {
        // It was brought to an end that is no owner's (lost, unknown): that is for a person to settle.
        let error = story.ended.clone().or(story.report.and_then(|report| report.error));
        return job.end("unknown", error, None);
    }
    match (story.side, vm) {
        (Side::Source(record), vm) if record.is_final() => {
            // A report is a job's last entry: with it nothing was left to do.
            if let (SourceRecord::Gone, Some(vm), None) = (record, vm, &story.report) {
                finish_leaving(agent, &mut journal, &story, &vm).await;
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
async fn finish_leaving(agent: &Agent, journal: &mut Journal, story: &Story, vm: &Vm) {
    if story.ended.is_some() {
        return;
    }
    let (subject, record) = (&story.subject, vm.record());
    let owner = Owner::MovedTo { host: subject.peer.clone(), job: subject.job.clone() };
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
    let done = Entry::Ended(format!("the guest was moved to {}", subject.peer));
    if let Err(error) = journal.append(&done) {
        tracing::error!(%error, "a journal could not be closed; the next start does it again");
    }
}

/// Whether the VM is the one that the journal is about, as it was then: the same guest, in the epoch before (at the
/// source) or in the job's own (at the destination, and at a source that had begun to forget it).
fn is_of(vm: &Vm, story: &Story) -> bool {
    let (record, subject) = (vm.record(), &story.subject);
    let before = record.epoch.next() == subject.epoch;
    let epoch = match story.side {
        Side::Source(_) => before || record.epoch == subject.epoch,
        Side::Destination(_) => record.epoch == subject.epoch,
    };
    record.uuid == subject.uuid && epoch
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
        if vm.record().process.is_some() {
            return job.end("unknown", Some("the guest's QEMU does not answer".into()), None);
        }
        let why =
            "the guest's QEMU ended while the agent was away; it was not handed over".to_owned();
        close(journal, &Entry::Source(SourceRecord::Returned), &why);
        return job.end("lost", Some(why), None);
    };
    let stop_sent = story.side != Side::Source(SourceRecord::Copying);
    let before = outgoing::RunStateBefore { guest_ran: story.guest_ran, stop_sent };
    match outgoing::give_back(&live.qmp, before).await {
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
        if let Err(error) = kill(&vm.record()).await {
            tracing::error!(job = %job.id(), %error, "an orphaned QEMU does not end");
            return job.end("unknown", Some(error), None);
        }
        agent.put_back(&vm, None);
    }
    let why = "the destination's agent was restarted before the commit".to_owned();
    close(journal, &Entry::Destination(DestinationRecord::Discarded), &why);
    job.end("discarded", Some(why), None);
}

/// Kills a VM's QEMU, whether or not its monitor answers.
async fn kill(record: &Record) -> Result<(), String> {
    let Some(id) = record.process else { return Ok(()) };
    match Process::reattach(id.pid, id.start_time) {
        Ok(Some(process)) => {
            let killed = process.kill_and_reap(Duration::from_secs(10)).await;
            killed.map(drop).map_err(|error| error.to_string())
        }
        Ok(None) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
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

/// What a journal answers to a peer that asks about its job.
#[must_use]
pub(crate) fn journaled_state(agent: &Agent, peer: &HostName, inquire: &Inquire) -> AnswerState {
    let path = Path::new("jobs").join(format!("{}.journal", inquire.job));
    let path = agent.config.state_dir.join(path);
    if !path.exists() {
        return AnswerState::Unknown;
    }
    let story = match Journal::reopen(&path) {
        Ok(Some((_, story))) => story,
        Ok(None) | Err(_) => return AnswerState::Unknown,
    };
    let subject = &story.subject;
    if (&subject.peer, subject.uuid, subject.epoch) != (peer, inquire.uuid, inquire.epoch) {
        return AnswerState::Unknown;
    }
    match story.side {
        // It came to an end that is no owner's.
        side if !side.is_final() && story.ended.is_some() => AnswerState::Unknown,
        Side::Destination(DestinationRecord::Prepared) => AnswerState::Prepared,
        Side::Destination(DestinationRecord::Entitled) => AnswerState::Entitled,
        Side::Destination(DestinationRecord::Running) => AnswerState::Running,
        Side::Destination(DestinationRecord::Discarded) => AnswerState::Discarded,
        Side::Source(_) => AnswerState::Unknown,
    }
}
