//! Jobs of this host as the source, taken up again.

use std::sync::Arc;

use sterna_api::Report;
use sterna_migration::journal::SourceRecord;
use sterna_migration::outcome::{Outcome, OutcomeName};
use sterna_migration::source::{Effect, Fact, MayReturn, Source};

use sterna_wire::message::Inquire;
use sterna_wire::{Message, Role, Sender};
use tokio::sync::mpsc;

use super::{Settled, append, is_silent};
use crate::agent::Agent;
use crate::jobs::Job;
use crate::journal::{Entry, Journal, Side, Story};
use crate::link::{Inbound, Link, MAX_UNREAD};
use crate::outgoing;
use crate::peer;
use crate::registry::Owner;
use crate::vm::Vm;

/// A destination that was told something answers within this.
const TOLD_WITHIN: std::time::Duration = std::time::Duration::from_secs(10);
const TELL_EVERY: std::time::Duration = std::time::Duration::from_secs(2);

/// Brings a job to where its journal says that it must go.
pub(super) async fn settle(
    agent: &Arc<Agent>,
    job: &Arc<Job>,
    mut journal: Journal,
    story: &Story,
    record: SourceRecord,
    vm: Option<Arc<Vm>>,
) -> Settled {
    match (record, vm) {
        (SourceRecord::Gone, vm) => {
            if let Some(vm) = vm {
                finish_leaving(agent, &mut journal, story, &vm).await;
            }
            remember(job, record, story);
        }
        (SourceRecord::Vanished, vm) => {
            if let Some(vm) = vm {
                finish_loss(agent, &mut journal, story, &vm).await;
            }
            remember(job, record, story);
        }
        (SourceRecord::Returned, _) => remember(job, record, story),
        (_, None) => {
            let why = "its VM is not known here any more; look at both hosts".to_owned();
            job.end("unknown", Some(why), None);
        }
        (_, Some(vm)) if is_silent(&vm) => {
            return Settled::NotYet("the guest's QEMU does not answer".to_owned());
        }
        (SourceRecord::Offered | SourceRecord::Serving, Some(vm)) => {
            offered(agent, Arc::clone(job), journal, story, &vm);
        }
        (SourceRecord::Copying | SourceRecord::Stopping, Some(vm)) => {
            return unoffered(agent, job, &mut journal, story, &vm).await;
        }
    }
    Settled::Yes
}

/// How a job that is over is listed.
pub(super) fn remember(job: &Job, record: SourceRecord, story: &Story) {
    let error = story.report.as_ref().and_then(|report| report.error.clone());
    let otherwise = match record {
        SourceRecord::Gone => "done",
        SourceRecord::Vanished => "lost",
        _ if story.is_lost => "lost",
        _ => "failed",
    };
    let outcome = story.report.as_ref().map_or(otherwise, |report| word(report));
    job.end(outcome, error.or(story.ended.clone()), story.report.clone());
}

/// A report's outcome in a word.
pub(super) const fn word(report: &Report) -> &'static str {
    match report.outcome {
        OutcomeName::Done => "done",
        OutcomeName::Failed => "failed",
        OutcomeName::Refused => "refused",
        OutcomeName::Cancelled => "cancelled",
        OutcomeName::Unknown => "unknown",
        OutcomeName::Lost => "lost",
    }
}

/// The guest is the other host's. An agent that died before it had ended its own QEMU does so now. The epoch tells
/// whether it is still that QEMU: a guest that came back since has a later one.
async fn finish_leaving(agent: &Agent, journal: &mut Journal, story: &Story, vm: &Vm) {
    let (subject, record) = (&story.subject, vm.record());
    let owner = Owner::MovedTo { host: subject.peer.clone(), job: subject.job.clone() };
    agent.change(vm, |record| {
        record.epoch = subject.epoch;
        record.owner = owner;
        record.leaving = None;
    });
    if let Some(live) = vm.live()
        && let Err(error) = live.quit().await
    {
        tracing::error!(vm = %record.name, %error, "a QEMU whose guest was moved away does not end");
    }
    vm.ended(Owner::clone);
    agent.remember(vm);
    append(journal, &Entry::Ended(format!("the guest was moved to {}", subject.peer)));
}

/// The guest died at the other host while it lacked pages. An agent that died before it had ended its own QEMU, whose
/// copy is of before, does so now.
async fn finish_loss(agent: &Agent, journal: &mut Journal, story: &Story, vm: &Vm) {
    agent.change(vm, |record| {
        record.owner = Owner::Lost;
        record.leaving = None;
    });
    if let Some(live) = vm.live()
        && let Err(error) = live.quit().await
    {
        tracing::error!(vm = %vm.record().name, %error, "a QEMU whose guest is lost does not end");
    }
    vm.ended(Owner::clone);
    agent.remember(vm);
    append(journal, &Entry::Ended(format!("the guest was lost at {}", story.subject.peer)));
}

/// Nothing was offered: the guest is ours, and runs on.
async fn unoffered(
    agent: &Arc<Agent>,
    job: &Job,
    journal: &mut Journal,
    story: &Story,
    vm: &Vm,
) -> Settled {
    let mut first = Vec::new();
    let mut machine = Source::resume_unoffered(&mut first);
    let mut effects = std::collections::VecDeque::from(first);
    while let Some(effect) = effects.pop_front() {
        let fact = match effect {
            Effect::ReturnGuest(may_return) => return_guest(vm, story, &may_return).await,
            Effect::Journal(record) => match journal.append(&Entry::Source(record)) {
                Ok(()) => Fact::Journaled(record),
                Err(error) => Fact::JournalFailed(error.to_string()),
            },
            // It was not offered, so it is ours; and its QEMU is there.
            Effect::End(Outcome::Unknown(why)) => return Settled::NotYet(why),
            Effect::End(outcome) => {
                ended(agent, job, journal, story, vm, &outcome);
                continue;
            }
            // Nobody is connected, and nothing is under way.
            _ => continue,
        };
        let mut more = Vec::new();
        machine = machine.handle(fact, &mut more);
        effects.extend(more);
    }
    Settled::Yes
}

async fn return_guest(vm: &Vm, story: &Story, may_return: &MayReturn) -> Fact {
    let Some(live) = vm.live() else {
        let why = "the guest's QEMU ended while the agent was away; it was not handed over";
        return Fact::QemuDied(why.into());
    };
    let stop_sent = story.side != Side::Source(SourceRecord::Copying);
    let before = outgoing::RunStateBefore { guest_ran: story.guest_ran, stop_sent };
    match outgoing::give_back(&live.qmp, before, may_return).await {
        Ok(()) => Fact::GuestReturned,
        Err(error) => {
            Fact::ReturnFailed(format!("the guest could not be resumed at the source: {error}"))
        }
    }
}

fn ended(
    agent: &Arc<Agent>,
    job: &Job,
    journal: &mut Journal,
    story: &Story,
    vm: &Vm,
    outcome: &Outcome,
) {
    let (state, why) = match outcome {
        Outcome::Failed(why) => ("failed", why.clone()),
        Outcome::Lost(why) => ("lost", why.clone()),
        _ => return,
    };
    tracing::info!(job = %job.id(), vm = %job.vm(), state, "{why}");
    if state == "lost" {
        // No state says that; of the owners it is the one that the guest never left. The loss first: a crash between the
        // two must not leave a guest that seems to be well.
        append(journal, &Entry::Lost(why.clone()));
        append(journal, &Entry::Source(SourceRecord::Returned));
    } else {
        append(journal, &Entry::Ended(why.clone()));
        // The job that follows it from now on takes over what the destination has.
        if vm.record().follow.is_none() {
            tokio::spawn(tell_destination(Arc::clone(agent), story.clone()));
        }
    }
    agent.change(vm, |record| {
        record.leaving = None;
        if state == "lost" {
            record.owner = Owner::Lost;
        }
    });
    job.end(state, Some(why), None);
}

/// A destination keeps what it has for a source that comes back. This one does not: asked before anything was offered, the
/// destination discards it at once, and not only when it has waited long enough.
async fn tell_destination(agent: Arc<Agent>, story: Story) {
    let Some(to) = outgoing::destination_of(&agent, &story) else { return };
    let subject = &story.subject;
    let (job, uuid, epoch) = (subject.job.clone(), subject.uuid, subject.epoch);
    let until = tokio::time::Instant::now() + agent.config.limits.link_timeout;
    while tokio::time::Instant::now() < until {
        let (sender, mut answers) = mpsc::channel(MAX_UNREAD);
        let connected =
            peer::connect(&agent.identity, &to, Role::Control, agent.link_options()).await;
        if let Ok((greeted, _)) = connected {
            let link = Link::start(greeted, Sender::Destination, sender);
            let inquire = Inquire { job: job.clone(), uuid, epoch };
            if link.send(&Message::Inquire(inquire)).await.is_ok() {
                let answered = tokio::time::timeout(TOLD_WITHIN, answers.recv()).await;
                if matches!(answered, Ok(Some(Inbound::Message(_)))) {
                    return;
                }
            }
        }
        tokio::time::sleep(TELL_EVERY).await;
    }
}

/// The commit may have been sent: only the destination knows. It is asked, also when our QEMU is gone: then it is either
/// the destination's or lost.
fn offered(agent: &Arc<Agent>, job: Arc<Job>, journal: Journal, story: &Story, vm: &Arc<Vm>) {
    let peer = &story.subject.peer;
    if vm.live().is_none() {
        let why = format!("the guest was offered to {peer} and its QEMU here is gone; look there");
        agent.change(vm, |record| record.lose_track(&story.subject.job, &why));
    }
    outgoing::resume_offered(agent, job, journal, story, vm);
}
