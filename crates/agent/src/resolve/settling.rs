//! A person's decision, carried out: journalled first, the VM's record changed last. Cut off in between, the VM is still
//! unknown, and the decision is made again; every step can be taken twice.

use std::sync::Arc;
use std::time::Duration;

use sterna_api::{Decision, Report};
use sterna_host::clock;
use sterna_host::process::Process;
use sterna_migration::destination::{self, Destination};
use sterna_migration::journal::{DestinationRecord, SourceRecord, Subject};
use sterna_migration::outcome::{GuestIs, OutcomeName};
use sterna_migration::source::{self, Source};
use sterna_model::{Epoch, JobId, Uuid, VmName};

use super::dossier::{Dossier, Qemu};
use super::rules::{Outcome, goes_on, outcome_of, word_of};
use crate::agent::Agent;
use crate::jobs::{Job, Role};
use crate::journal::{self, Entry, Journal, Side};
use crate::machines;
use crate::outgoing::{RunStateBefore, give_back};
use crate::place::{Place, monitor_argument};
use crate::recovery;
use crate::registry::{Owner, ProcessId, Record};
use crate::vm::{Live, Vm, fresh_record};

/// A killed process is gone within this.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// QEMU leaves its load within this.
const CONT_DEADLINE: Duration = Duration::from_secs(5);

/// Carries a decision out that nothing forbids.
///
/// # Errors
/// When a step fails: whose the VM is, is then as unknown as before.
pub(super) async fn settle(
    agent: &Arc<Agent>,
    dossier: &Dossier,
    decision: Decision,
) -> Result<(), String> {
    if goes_on(&dossier.known(), decision) {
        return let_go_on(agent, dossier).await;
    }
    let (subject, mut journal) = open_journal(agent, dossier, decision)?;
    let outcome = outcome_of(dossier.role, decision);
    let vm = match outcome {
        Outcome::Here => Some(resume_here(agent, dossier).await?),
        Outcome::There | Outcome::Lost => {
            end_qemu(&dossier.qemu).await?;
            dossier.found.vm.clone()
        }
    };
    let how = format!("settled by a person: the guest is {decision}");
    conclude(&mut journal, dossier, decision, &how)?;
    agent
        .registry
        .put_damage_aside(dossier.found.vm_name())
        .map_err(|error| format!("its damaged record cannot be put aside: {error}"))?;
    if let Some(vm) = &vm {
        remember(agent, dossier, vm, &subject, outcome);
    }
    tracing::info!(job = %subject.job, vm = %subject.vm, %decision, "a person has settled whose the guest is");
    listed(agent, dossier, &subject, decision, how);
    Ok(())
}

/// The guest is the destination's and may lack pages that are here: the job is taken up where it was.
async fn let_go_on(agent: &Arc<Agent>, dossier: &Dossier) -> Result<(), String> {
    let (Some(id), Some(vm)) = (&dossier.found.id, &dossier.found.vm) else {
        return Err("the registry does not know the VM".to_owned());
    };
    let path = crate::journal::path_of(&agent.config.state_dir, id);
    let reopened = Journal::reopen(&path).map_err(|error| error.to_string())?;
    let (mut journal, _) = reopened.ok_or_else(|| "its journal is empty".to_owned())?;
    journal.append(&Entry::Reopened).map_err(|error| error.to_string())?;
    drop(journal);
    // A crash in between leaves it unknown in the registry, and a restart asks the destination all the same.
    agent.change(vm, |record| {
        record.owner = Owner::Here;
        record.leaving = Some(id.clone());
    });
    tracing::info!(job = %id, vm = %dossier.found.vm_name(), "a person lets the job go on: the guest is the destination's, and may lack pages");
    let went_on = recovery::go_on(agent, &path, Arc::clone(vm)).await;
    if let Err(why) = &went_on {
        agent.change(vm, |record| record.lose_track(id, why));
    }
    went_on
}

/// The job's journal with the decision in it: the one that there is, or a new one where it is lost or damaged.
fn open_journal(
    agent: &Agent,
    dossier: &Dossier,
    decision: Decision,
) -> Result<(Subject, Journal), String> {
    let failed = |error: crate::journal::JournalError| error.to_string();
    let decided = Entry::Resolved(decision);
    if let (Some(story), Some(id)) = (dossier.found.story(), &dossier.found.id) {
        let path = crate::journal::path_of(&agent.config.state_dir, id);
        let reopened = Journal::reopen(&path).map_err(failed)?;
        let (mut journal, _) = reopened.ok_or_else(|| "its journal is empty".to_owned())?;
        journal.append(&decided).map_err(failed)?;
        return Ok((story.subject.clone(), journal));
    }
    let fresh = || crate::random::job_id().map_err(|error| format!("no random bytes: {error}"));
    let job = dossier.found.id.clone().map_or_else(fresh, Ok)?;
    let subject = Subject {
        job,
        vm: dossier.found.vm_name().clone(),
        uuid: dossier.uuid,
        epoch: dossier.epoch,
        // Nobody is answered by the journal of a job whose other host is not known.
        peer: dossier.peer.clone().unwrap_or_else(|| agent.config.name.clone()),
    };
    let begun = match dossier.role {
        Role::Source => Entry::SourceOf(subject.clone(), clock::wall_time()),
        Role::Destination => Entry::DestinationOf(subject.clone(), clock::wall_time()),
    };
    let journal = Journal::replace(&agent.config.state_dir, &[begun, decided]).map_err(failed)?;
    Ok((subject, journal))
}

/// Lets the guest run in the QEMU here; gives its VM, which the registry knows from here on.
async fn resume_here(agent: &Arc<Agent>, dossier: &Dossier) -> Result<Arc<Vm>, String> {
    let Qemu::Speaks(live, _) = &dossier.qemu else {
        return Err("its QEMU does not answer any more".to_owned());
    };
    let guest_ran = dossier.found.story().is_none_or(|story| story.guest_ran);
    match dossier.role {
        Role::Source => return_guest(live, guest_ran).await?,
        Role::Destination => resume_arrived(live, guest_ran).await?,
    }
    let known = dossier.found.vm.clone();
    match known {
        Some(vm) if vm.live().is_some() => Ok(vm),
        known => {
            let record = match &known {
                Some(vm) if !agent.registry.is_damaged(dossier.found.vm_name()) => vm.record(),
                _ => made_record(agent, dossier, live).await?,
            };
            let record = Record { process: Some(ProcessId::of(&live.process)), ..record };
            let vm = Vm::new(record, Some(live.clone()));
            agent.registry.insert(Arc::clone(&vm));
            Ok(vm)
        }
    }
}

/// The person's word stands for the other host's *discarded*.
async fn return_guest(live: &Live, guest_ran: bool) -> Result<(), String> {
    let mut effects = Vec::new();
    let _ = Source::resume_unoffered(&mut effects);
    for effect in effects {
        if let source::Effect::ReturnGuest(may_return) = effect {
            let before = RunStateBefore { guest_ran, stop_sent: true };
            return give_back(&live.qmp, before, &may_return)
                .await
                .map_err(|error| format!("the guest could not be resumed: {error}"));
        }
    }
    Err("the guest could not be resumed".to_owned())
}

/// The person's word stands for the source's commit.
async fn resume_arrived(live: &Live, guest_ran: bool) -> Result<(), String> {
    let mut effects = Vec::new();
    let _ = Destination::resume_entitled(&mut effects);
    let is_entitled =
        |effect: &destination::Effect| matches!(effect, destination::Effect::Resume(_));
    if guest_ran && effects.iter().any(is_entitled) {
        let resumed = live.qmp.cont_after_migration(CONT_DEADLINE).await;
        resumed.map_err(|error| format!("the guest could not be resumed: {error}"))?;
        let _ = live.qmp.announce_self().await;
    }
    Ok(())
}

/// A record of a VM whose own cannot be read, or that the registry never knew: by what its QEMU says.
async fn made_record(agent: &Agent, dossier: &Dossier, live: &Live) -> Result<Record, String> {
    let name = dossier.found.vm_name().clone();
    let place = Place::of(&agent.config.run_dir, &agent.config.state_dir, &name);
    let argv = sterna_host::process::argv_of(live.process.pid())
        .map_err(|error| format!("the arguments of its QEMU cannot be read: {error}"))?;
    let argv: Vec<String> =
        argv.iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let definition = without_our_monitors(&argv, &place);
    let uuid = match dossier.uuid {
        Uuid([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]) => {
            machines::uuid_of(&live.qmp).await.map_err(|error| error.message)?
        }
        uuid => uuid,
    };
    let mut record = fresh_record(name, uuid, &place, definition);
    record.argv = argv;
    record.epoch = dossier.epoch.max(latest_epoch(agent, &record.name));
    let pid = live.process.pid();
    record.directory = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or("/".into());
    record.serial =
        sterna_qemu_args::serial_path(&record.definition).map(|path| record.directory.join(path));
    Ok(record)
}

/// The latest epoch that a journal here speaks of under a VM's name: none of them must speak of what comes.
fn latest_epoch(agent: &Agent, name: &VmName) -> Epoch {
    let files = journal::files(&agent.config.state_dir).unwrap_or_default();
    let stories = files.iter().filter_map(|file| Journal::read(file).ok().flatten());
    let epochs = stories.map(|story| story.subject).filter(|subject| subject.vm == *name);
    epochs.map(|subject| subject.epoch).max().unwrap_or_default()
}

/// The arguments that define a VM, without the monitors that an agent has added.
fn without_our_monitors(argv: &[String], place: &Place) -> Vec<String> {
    let ours = [&place.agent_qmp, &place.user_qmp].map(|socket| monitor_argument(socket));
    let mut definition = Vec::new();
    let mut words = argv.iter().peekable();
    while let Some(word) = words.next() {
        if word == "-qmp" && words.peek().is_some_and(|next| ours.contains(*next)) {
            words.next();
        } else {
            definition.push(word.clone());
        }
    }
    definition
}

async fn end_qemu(qemu: &Qemu) -> Result<(), String> {
    let ended = match qemu {
        Qemu::None => return Ok(()),
        Qemu::Silent(process, _) => kill(process).await,
        Qemu::Speaks(live, _) => live.quit().await.map_err(|error| error.to_string()),
    };
    ended.map_err(|error| format!("its QEMU does not end: {error}"))
}

async fn kill(process: &Process) -> Result<(), String> {
    let killed = process.kill_and_reap(KILL_DEADLINE).await;
    killed.map(drop).map_err(|error| error.to_string())
}

/// The last entries: what answers the other host from here on. A guest that is lost is in no final state, so that no host
/// takes its copy for the right one.
fn conclude(
    journal: &mut Journal,
    dossier: &Dossier,
    decision: Decision,
    how: &str,
) -> Result<(), String> {
    let last = match (dossier.role, outcome_of(dossier.role, decision)) {
        (_, Outcome::Lost) => None,
        (Role::Source, Outcome::Here) => Some(Entry::Source(SourceRecord::Returned)),
        (Role::Source, Outcome::There) => Some(Entry::Source(SourceRecord::Gone)),
        (Role::Destination, Outcome::Here) => Some(Entry::Destination(DestinationRecord::Running)),
        (Role::Destination, Outcome::There) => {
            Some(Entry::Destination(DestinationRecord::Discarded))
        }
    };
    let report = settled_report(dossier, decision, how).map(Entry::Report);
    let all = last.into_iter().chain(report).chain([Entry::Ended(how.to_owned())]);
    for entry in all {
        journal.append(&entry).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// The source's report, with how it ended after all.
fn settled_report(dossier: &Dossier, decision: Decision, how: &str) -> Option<Box<Report>> {
    let mut report = dossier.found.story()?.report.clone()?;
    (report.outcome, report.guest_is) = match decision {
        Decision::Source => (OutcomeName::Failed, GuestIs::Source),
        Decision::Destination => (OutcomeName::Done, GuestIs::Destination),
        Decision::Lost => (OutcomeName::Lost, GuestIs::Lost),
    };
    report.error = Some(match report.error.take() {
        Some(before) => format!("{how} (before: {before})"),
        None => how.to_owned(),
    });
    Some(report)
}

/// The registry follows.
fn remember(
    agent: &Arc<Agent>,
    dossier: &Dossier,
    vm: &Arc<Vm>,
    subject: &Subject,
    outcome: Outcome,
) {
    match (outcome, dossier.role) {
        (Outcome::Here, _) => {
            agent.change(vm, |record| {
                // Later than what the other host may own it by: no journal of before speaks of this QEMU.
                record.epoch = record.epoch.max(subject.epoch).next();
                record.leaving = None;
                record.arrive();
            });
            agent.watch(vm);
        }
        (Outcome::There, Role::Source) => {
            let (host, job) = (subject.peer.clone(), subject.job.clone());
            vm.ended(|_| Owner::MovedTo { host, job });
            agent.change(vm, |record| {
                record.epoch = subject.epoch;
                record.leaving = None;
            });
        }
        (Outcome::There, Role::Destination) => agent.put_back(vm),
        (Outcome::Lost, _) => {
            vm.ended(|_| Owner::Lost);
            agent.change(vm, |record| record.leaving = None);
        }
    }
}

/// The job as it is listed from here on.
fn listed(agent: &Agent, dossier: &Dossier, subject: &Subject, decision: Decision, how: String) {
    let side = match dossier.role {
        Role::Source => Side::Source(SourceRecord::Copying),
        Role::Destination => Side::Destination(DestinationRecord::Prepared),
    };
    let job = dossier.found.job.clone().unwrap_or_else(|| {
        let (id, vm, peer): (JobId, _, _) =
            (subject.job.clone(), subject.vm.clone(), subject.peer.clone());
        let job = Job::new(id, vm, peer, dossier.role, clock::wall_time());
        agent.jobs.insert(Arc::clone(&job));
        job
    });
    let report = settled_report(dossier, decision, &how);
    job.end(word_of(side, decision), Some(how), report);
}
