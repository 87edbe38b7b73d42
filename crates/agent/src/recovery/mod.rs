//! What a restarted agent does: finds its QEMUs again, and brings every unfinished job to where its journal says it must go
//! (law 1's table). Nothing is guessed: a VM whose record or journal is missing or damaged is *unknown*, with the reason,
//! and everything else goes on.

mod destination;
mod later;
mod source;
#[cfg(test)]
mod tests;

pub(crate) use destination::journaled_state;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sterna_migration::journal::DestinationRecord;
use sterna_model::{JobId, Uuid, VmName};
use tracing::Instrument as _;

use crate::agent::{Agent, AgentError};
use crate::jobs::{Job, Role};
use crate::journal::{self, Entry, Journal, Side, Story};
use crate::place::Place;
use crate::registry::{Found, Owner, Record};
use crate::vm::{Live, Vm, fresh_record};

/// The monitor of a VM that was arriving is waited for so long at first; then it is tried again.
const ARRIVING_DEADLINE: Duration = Duration::from_millis(300);

/// Finds VMs and finishes jobs. Runs before anybody is listened to.
///
/// # Errors
/// When the journals cannot be listed. What a single VM or job suffers from is logged and leaves it unknown.
pub(crate) async fn recover(agent: &Arc<Agent>, found: Vec<Found>) -> Result<(), AgentError> {
    for found in found {
        match found {
            Found::Vm(record) => {
                let vm = reattach(*record).await;
                agent.registry.insert(Arc::clone(&vm));
                agent.remember(&vm);
                agent.watch(&vm);
                if is_silent(&vm) {
                    tokio::spawn(later::attach(Arc::clone(agent), vm));
                }
            }
            Found::Damaged(name, why) => unreadable_record(agent, name, why),
        }
    }
    agent.prune_journals();
    let mut told = BTreeSet::new();
    for path in journal::files(&agent.config.state_dir)? {
        match open(&path) {
            Ok(Some(Opened::Over(story))) => {
                told.insert(story.subject.job.clone());
                over(agent, &story);
            }
            Ok(Some(Opened::UnderWay(journal, story))) => {
                told.insert(story.subject.job.clone());
                let (job, vm) = (known(agent, &story), vm_of(agent, &story));
                if let Settled::NotYet(why) = under_way(agent, &job, journal, story).await {
                    tracing::error!(job = %job.id(), vm = %job.vm(), %why, "the job cannot be brought to its end yet; it is tried again until it can");
                    later::settle(agent, job, vm, path);
                }
            }
            Ok(None) => {
                tracing::info!(path = %path.display(), "a journal without a subject: nothing was begun")
            }
            Err(error) => {
                tracing::error!(%error, "a job's journal is of no use");
                if let Some(job) = journal::job_of(&path) {
                    without_journal(agent, &job, &error.to_string());
                    told.insert(job);
                }
            }
        }
    }
    let missing =
        agent.registry.all().into_iter().filter_map(|vm| {
            vm.record().job_under_way().filter(|job| !told.contains(*job)).cloned()
        });
    for job in missing.collect::<BTreeSet<_>>() {
        let path = journal::path_of(&agent.config.state_dir, &job);
        without_journal(agent, &job, &format!("the journal {} is lost", path.display()));
    }
    Ok(())
}

/// A job's journal, as a restarted agent takes it up.
enum Opened {
    /// Nothing is to be written any more.
    Over(Story),
    /// The job is to be brought to its end.
    UnderWay(Journal, Story),
}

/// Whether a job was brought to its end, or to where its peer decides.
enum Settled {
    /// It was.
    Yes,
    /// Something stands in the way that may go by itself.
    NotYet(String),
}

fn open(path: &Path) -> Result<Option<Opened>, journal::JournalError> {
    match Journal::read(path)? {
        None => Ok(None),
        Some(story) if story.is_settled() => Ok(Some(Opened::Over(story))),
        Some(_) => {
            let reopened = Journal::reopen(path)?;
            Ok(reopened.map(|(journal, story)| Opened::UnderWay(journal, story)))
        }
    }
}

/// A VM of which only the name is left.
fn unreadable_record(agent: &Agent, name: VmName, why: String) {
    tracing::error!(vm = %name, %why, "a VM's record cannot be read");
    let place = Place::of(&agent.config.run_dir, &agent.config.state_dir, &name);
    let mut record = fresh_record(name, Uuid([0; 16]), &place, Vec::new());
    record.user_qmp = None;
    record.owner = Owner::Unknown { job: None, why };
    // Not remembered: the file stays as it is, for a person to look at.
    agent.registry.insert(Vm::new(record, None));
}

/// A job's journal tells nothing: the VM that it has here, if it still has one, may be anybody's.
fn without_journal(agent: &Agent, job: &JobId, why: &str) {
    for vm in agent.registry.all() {
        let record = vm.record();
        if record.job_under_way() != Some(job) {
            continue;
        }
        let why = format!(
            "{why}. Its QEMU here was left as it is; `sterna resolve {job}` tells what is known and settles it"
        );
        tracing::error!(vm = %record.name, %job, %why, "whose the guest is is not known");
        agent.change(&vm, |record| record.lose_track(job, &why));
    }
}

async fn reattach(record: Record) -> Arc<Vm> {
    let Some(id) = record.process else { return Vm::new(record, None) };
    let silent = match id.find() {
        Ok(Some(process)) => {
            // It may be somebody's only copy.
            if let Err(error) = process.set_expendable(false) {
                tracing::warn!(vm = %record.name, %error, "its QEMU may be the first that the kernel ends for want of memory");
            }
            let attached = match record.owner {
                // Its guest may wait for pages, and all of QEMU for the guest, until this agent gives them.
                Owner::Incoming { .. } => {
                    Live::attach_within(ARRIVING_DEADLINE, process, &record.agent_qmp).await
                }
                _ => Live::attach(process, &record.agent_qmp).await,
            };
            match attached {
                Ok(live) => return Vm::new(record, Some(live)),
                Err(error) => error.to_string(),
            }
        }
        Ok(None) => {
            tracing::warn!(vm = %record.name, "its QEMU ended while the agent was away");
            let vm = Vm::new(record, None);
            vm.ended(|owner| if *owner == Owner::Here { Owner::Ended } else { owner.clone() });
            return vm;
        }
        Err(error) => error.to_string(),
    };
    // It is there, or may be: nothing that would be wrong then is concluded, and its name stays taken.
    tracing::error!(vm = %record.name, error = %silent, "a QEMU of before does not answer; it is asked again until it does");
    Vm::new(record, None)
}

/// Its process is there, or may be, and its monitor does not answer.
fn is_silent(vm: &Vm) -> bool {
    vm.live().is_none() && vm.record().process.is_some()
}

/// The job as clients see it, known from here on.
fn known(agent: &Agent, story: &Story) -> Arc<Job> {
    let (subject, at) = (&story.subject, story.started_at.clone());
    let role = match story.side {
        Side::Source(_) => Role::Source,
        Side::Destination(_) => Role::Destination,
    };
    let job = Job::new(subject.job.clone(), subject.vm.clone(), subject.peer.clone(), role, at);
    agent.jobs.insert(Arc::clone(&job));
    job
}

/// The VM that a journal is about, as it was then. Journals name VMs; a later VM of the same name is another one, or the
/// same one in a later epoch: the epoch before (at the source) or the job's own (at the destination, and at a source that
/// had begun to forget it).
fn vm_of(agent: &Agent, story: &Story) -> Option<Arc<Vm>> {
    let subject = &story.subject;
    agent.registry.get(&subject.vm).filter(|vm| {
        let record = vm.record();
        let before = record.epoch.next() == subject.epoch;
        let epoch = match story.side {
            Side::Source(_) => before || record.epoch == subject.epoch,
            Side::Destination(_) => record.epoch == subject.epoch,
        };
        record.uuid == subject.uuid && epoch
    })
}

/// Whether the registry still has the VM as arriving by this job: it was not told how that ended.
fn is_arriving(vm: &Vm, story: &Story) -> bool {
    vm.record().owner == Owner::Incoming { job: story.subject.job.clone() }
}

/// A job whose journal says that nothing is left to do. The registry may have missed its last step.
fn over(agent: &Agent, story: &Story) {
    let job = known(agent, story);
    if let Some(decision) = story.resolved {
        let word = crate::resolve::word_of(story.side, decision);
        return job.end(word, story.ended.clone(), story.report.clone());
    }
    let vm = vm_of(agent, story);
    match story.side {
        Side::Source(record) => {
            let id = &story.subject.job;
            if let Some(vm) = vm.filter(|vm| vm.record().leaving.as_ref() == Some(id)) {
                agent.change(&vm, |record| record.leaving = None);
            }
            source::remember(&job, record, story);
        }
        Side::Destination(DestinationRecord::Running) => {
            if let Some(vm) = vm.filter(|vm| is_arriving(vm, story)) {
                agent.change(&vm, Record::arrive);
            }
            job.end("running", None, None);
        }
        Side::Destination(_) => {
            // Its QEMU was dead before it was journalled.
            if let Some(vm) = vm.filter(|vm| is_arriving(vm, story)) {
                agent.put_back(&vm);
            }
            job.end("discarded", story.ended.clone(), None);
        }
    }
}

/// One unfinished job of before.
async fn under_way(agent: &Arc<Agent>, job: &Arc<Job>, journal: Journal, story: Story) -> Settled {
    let concluded = story.report.is_some() || story.ended.is_some() || story.resolved.is_some();
    if !story.side.is_final() && concluded {
        // It was brought to an end that is no owner's (lost, unknown): that is for a person to settle.
        ended_otherwise(agent, job, &story);
        return Settled::Yes;
    }
    let vm = vm_of(agent, &story);
    match story.side {
        Side::Source(record) => {
            let settled = source::settle(agent, job, journal, &story, record, vm);
            settled.instrument(job.span()).await
        }
        Side::Destination(record) => {
            let settled = destination::settle(agent, job, journal, &story, record, vm);
            settled.instrument(job.span()).await
        }
    }
}

/// The registry may have missed how it ended.
fn ended_otherwise(agent: &Agent, job: &Job, story: &Story) {
    let otherwise = if story.is_lost { "lost" } else { "unknown" };
    let outcome = story.report.as_ref().map_or(otherwise, |report| source::word(report));
    let error = story.report.as_ref().and_then(|report| report.error.clone());
    let error = story.ended.clone().or(error);
    let vm = vm_of(agent, story).filter(|vm| vm.record().job_under_way() == Some(job.id()));
    if let Some(vm) = vm {
        agent.change(&vm, |record| {
            record.leaving = None;
            match outcome {
                "lost" => record.owner = Owner::Lost,
                _ => record.lose_track(job.id(), error.as_deref().unwrap_or_default()),
            }
        });
    }
    job.end(outcome, error, story.report.clone());
}

/// Takes a job of this host as the source up again that had ended unknown, by a person's decision.
///
/// # Errors
/// In words, when its journal does not say so, or its QEMU does not answer.
pub(crate) async fn go_on(agent: &Arc<Agent>, path: &Path, vm: Arc<Vm>) -> Result<(), String> {
    let opened = open(path).map_err(|error| error.to_string())?;
    let Some(Opened::UnderWay(journal, story)) = opened else {
        return Err("expected a journal of a job that goes on, found one that is over".to_owned());
    };
    let Side::Source(record) = story.side else {
        return Err("expected a journal of a source, found one of a destination".to_owned());
    };
    let job = known(agent, &story);
    let settled = source::settle(agent, &job, journal, &story, record, Some(vm));
    match settled.instrument(job.span()).await {
        Settled::Yes => Ok(()),
        Settled::NotYet(why) => {
            job.end("unknown", Some(why.clone()), None);
            Err(why)
        }
    }
}

fn append(journal: &mut Journal, entry: &Entry) {
    if let Err(error) = journal.append(entry) {
        tracing::error!(%error, "a journal could not be closed; the next start does it again");
    }
}
