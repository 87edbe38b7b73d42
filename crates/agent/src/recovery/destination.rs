//! Jobs of this host as the destination, taken up again, and what their journals answer.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::SendFlags;
use sterna_host::process::{Process, find_marked};
use sterna_host::qmp::{MigrationStatus, RunState};
use sterna_migration::destination::{Destination, Effect, End, Entitlement, Fact};
use sterna_migration::journal::{DestinationRecord, SourceRecord};
use sterna_model::HostName;
use sterna_wire::AnswerState;
use sterna_wire::message::Inquire;

use super::{Settled, append, is_arriving, is_silent};
use crate::agent::Agent;
use crate::incoming;
use crate::jobs::{Job, Role};
use crate::journal::{self, Entry, Journal, Side, Story};
use crate::registry::{Owner, ProcessId, Record};
use crate::vm::{JOB_MARK, Live, Vm};

/// A killed process is gone within this.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// QEMU leaves its load within this.
const CONT_DEADLINE: Duration = Duration::from_secs(5);

/// A job, and what is left of it here.
struct Left<'a> {
    agent: &'a Arc<Agent>,
    job: &'a Job,
    journal: Journal,
    story: &'a Story,
    vm: Option<Arc<Vm>>,
}

/// The QEMU of a guest that is this host's and lacks pages, if it is there, and the stream that it is fed by, if it has
/// kept it. Its monitor may not answer: a guest that waits for a page can hold up all of QEMU.
async fn lacking(
    record: DestinationRecord,
    story: &Story,
    vm: &Vm,
) -> Option<(Arc<Process>, Option<UnixStream>)> {
    let memory = story.memory.as_ref()?;
    if !matches!(record, DestinationRecord::Entitled | DestinationRecord::Faulting) {
        return None;
    }
    let process = Arc::new(vm.record().process?.find().ok()??);
    let kept = memory.stream_inode.and_then(|inode| match process.socket(inode) {
        Ok(kept) => kept.map(UnixStream::from),
        Err(error) => {
            tracing::warn!(%error, "QEMU's stream cannot be taken from where it is kept");
            None
        }
    });
    if let Some(kept) = kept.filter(goes_on) {
        return Some((process, Some(kept)));
    }
    let live = vm.live()?;
    let status = live.qmp.query_migrate().await.ok()?.status;
    let post_copy = matches!(
        status,
        MigrationStatus::PostcopyActive
            | MigrationStatus::PostcopyPaused
            | MigrationStatus::PostcopyRecover
    );
    // What had lacked pages when it was journalled lacks none any more: that is still to be journalled and told.
    (post_copy || record == DestinationRecord::Faulting).then_some((process, None))
}

/// Whether the stream was not brought to its end: then its writing end is shut.
fn goes_on(stream: &UnixStream) -> bool {
    rustix::net::send(stream, &[], SendFlags::NOSIGNAL).is_ok()
}

/// Brings a job to where its journal says that it must go.
pub(super) async fn settle(
    agent: &Arc<Agent>,
    job: &Arc<Job>,
    journal: Journal,
    story: &Story,
    record: DestinationRecord,
    vm: Option<Arc<Vm>>,
) -> Settled {
    if let Some(vm) = &vm
        && let Some((process, kept)) = lacking(record, story, vm).await
    {
        let (job, vm) = (Arc::clone(job), Arc::clone(vm));
        let left = incoming::Left { job, journal, story: story.clone(), vm, process, kept };
        return incoming::resume(agent, left).map_or_else(Settled::NotYet, |()| Settled::Yes);
    }
    let mut effects = Vec::new();
    let machine = match (record, &vm) {
        // Nothing was committed: what is here is discarded.
        (DestinationRecord::Prepared, _) => Destination::resume_prepared(&mut effects),
        (DestinationRecord::Entitled, Some(vm)) if !is_silent(vm) => {
            Destination::resume_entitled(&mut effects)
        }
        (DestinationRecord::Entitled, Some(_)) => {
            return Settled::NotYet(
                "the guest is this host's, and its QEMU does not answer".to_owned(),
            );
        }
        (DestinationRecord::Entitled, None) => {
            let why = "the guest is this host's, and the registry does not know it any more";
            tracing::error!(job = %job.id(), vm = %job.vm(), %why, "whose the guest is is not known");
            job.end("unknown", Some(why.to_owned()), None);
            return Settled::Yes;
        }
        // It ran here without all its memory, and its QEMU is gone: there is nothing left to go on from.
        (DestinationRecord::Faulting, Some(vm)) if !is_silent(vm) => {
            Destination::resume_faulting(&mut effects)
        }
        (DestinationRecord::Faulting, _) => {
            return Settled::NotYet(
                "the guest runs here and lacks pages, and its QEMU does not answer".to_owned(),
            );
        }
        (
            DestinationRecord::Running | DestinationRecord::Discarded | DestinationRecord::Vanished,
            _,
        ) => return Settled::Yes,
    };
    // What was arriving here is this job's; another VM of the name is none of its business.
    let vm = vm.filter(|vm| record != DestinationRecord::Prepared || is_arriving(vm, story));
    Left { agent, job, journal, story, vm }.run(machine, effects).await
}

impl Left<'_> {
    async fn run(mut self, mut machine: Destination, effects: Vec<Effect>) -> Settled {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            let fact = match effect {
                Effect::KillQemu => match self.kill().await {
                    Ok(()) => Fact::Killed,
                    // Not dead, so not discarded.
                    Err(why) => {
                        return Settled::NotYet(format!("an orphaned QEMU does not end: {why}"));
                    }
                },
                Effect::Journal(record) => match self.journal.append(&Entry::Destination(record)) {
                    Ok(()) => Fact::Journaled(record),
                    Err(error) => Fact::JournalFailed(error.to_string()),
                },
                Effect::Resume(entitlement) => match self.resume(&entitlement).await {
                    Ok(()) => Fact::Resumed { lacks_pages: false },
                    Err(why) if self.is_alive() => {
                        return Settled::NotYet(format!("the guest cannot be resumed: {why}"));
                    }
                    Err(why) => Fact::ResumeFailed(why),
                },
                Effect::End(end) => {
                    self.end(&end);
                    continue;
                }
                // Only a QEMU that is gone is left to this.
                Effect::RecoverStream => {
                    Fact::QemuDied("it ended while the agent was away".to_owned())
                }
                // Whoever asks later is answered by the journal.
                Effect::Answer(_) | Effect::WatchSource(_) | Effect::StartQemu => continue,
            };
            let mut more = Vec::new();
            machine = machine.handle(fact, &mut more);
            effects.extend(more);
        }
        Settled::Yes
    }

    /// Its QEMU is there: a guest that is this host's can still be resumed.
    fn is_alive(&self) -> bool {
        let live = self.vm.as_ref().and_then(|vm| vm.live());
        live.is_some_and(|live| live.process.has_exited().is_ok_and(|exited| !exited))
    }

    /// Kills the job's QEMU, as the registry knows it or only the journal, whether or not its monitor answers.
    async fn kill(&self) -> Result<(), String> {
        let registered = self.vm.as_ref().and_then(|vm| vm.record().process);
        self.keep_memory(registered.or(self.story.process));
        for process in [registered, self.story.process].into_iter().flatten() {
            kill(process).await?;
        }
        self.kill_unrecorded().await;
        if let Some(vm) = &self.vm {
            self.agent.put_back(vm);
        }
        Ok(())
    }

    /// An agent that died between the start of a QEMU and the record of its process has left it to be found by its mark.
    async fn kill_unrecorded(&self) {
        let found = find_marked(JOB_MARK, self.job.id().as_str());
        for process in found.unwrap_or_default() {
            tracing::warn!(job = %self.job.id(), pid = process.pid(), "a QEMU that no record tells of is ended");
            if let Err(error) = process.kill_and_reap(KILL_DEADLINE).await {
                tracing::error!(%error, "it does not end");
            }
        }
    }

    /// What has arrived of a followed guest is kept for the job that follows, while its QEMU still has it.
    fn keep_memory(&self, process: Option<ProcessId>) {
        let Some(memory) = &self.story.memory else { return };
        let Some(keep) = memory.keep_ms.map(Duration::from_millis) else { return };
        let Some(Ok(Some(process))) = process.map(ProcessId::find) else { return };
        let keep = keep.min(self.agent.config.limits.keep_copy);
        let owner = (self.story.subject.peer.clone(), self.story.subject.uuid);
        match incoming::memory_left(&process, memory) {
            Ok(blocks) => self.agent.kept.keep(owner, blocks, keep),
            Err(why) => tracing::info!(%why, "nothing of the followed guest is kept"),
        }
    }

    /// The guest is ours. If its QEMU is there, it runs or is resumed; if not, it may have run.
    async fn resume(&self, _entitlement: &Entitlement) -> Result<(), String> {
        match self.vm.as_ref().and_then(|vm| vm.live()) {
            Some(live) => resume(&live, self.story.guest_ran).await,
            None => Err("its QEMU is gone; it may have run".to_owned()),
        }
    }

    fn end(&mut self, end: &End) {
        match (end, &self.vm) {
            (End::Running, Some(vm)) => self.agent.change(vm, Record::arrive),
            (End::Lost(_), Some(vm)) => {
                self.agent.change(vm, |record| record.owner = Owner::Lost);
            }
            (End::Unknown(why), Some(vm)) => {
                self.agent.change(vm, |record| record.lose_track(self.job.id(), why));
            }
            _ => {}
        }
        let (state, why) = match end {
            End::Running => return self.job.end("running", None, None),
            End::Discarded(why) => ("discarded", why),
            End::Unknown(why) => ("unknown", why),
            End::Lost(why) => ("lost", why),
        };
        tracing::info!(job = %self.job.id(), vm = %self.job.vm(), state, "{why}");
        append(&mut self.journal, &Entry::Ended(why.clone()));
        self.job.end(state, Some(why.clone()), None);
    }
}

async fn kill(process: ProcessId) -> Result<(), String> {
    match process.find() {
        Ok(Some(process)) => {
            let killed = process.kill_and_reap(KILL_DEADLINE).await;
            killed.map(drop).map_err(|error| error.to_string())
        }
        Ok(None) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

async fn resume(live: &Live, guest_ran: bool) -> Result<(), String> {
    let status = live.qmp.query_status().await.map_err(|error| error.to_string())?;
    let waits =
        matches!(status.status, RunState::Paused | RunState::Prelaunch | RunState::PostMigrate);
    if !guest_ran || !waits {
        return Ok(());
    }
    live.qmp.cont_after_migration(CONT_DEADLINE).await.map_err(|error| error.to_string())?;
    let _ = live.qmp.announce_self().await;
    Ok(())
}

/// What is answered to a peer that asks about a job that nobody here is at any more: how it ended in this life of the
/// agent, which a full disk may have kept out of the journal, else what the journal says. Nothing is touched.
#[must_use]
pub(crate) fn journaled_state(agent: &Agent, peer: &HostName, inquire: &Inquire) -> AnswerState {
    let path = journal::path_of(&agent.config.state_dir, &inquire.job);
    let Ok(Some(story)) = Journal::read(&path) else { return AnswerState::Unknown };
    let subject = &story.subject;
    if (&subject.peer, subject.uuid, subject.epoch) != (peer, inquire.uuid, inquire.epoch) {
        return AnswerState::Unknown;
    }
    let ours = agent.jobs.get(&inquire.job).filter(|job| job.role() == Role::Destination);
    match ours.and_then(|job| job.ended_in()).as_deref() {
        Some("running") => return AnswerState::Running,
        Some("discarded") => return AnswerState::Discarded,
        Some("unknown") => return AnswerState::Unknown,
        // A person's decision here is no reason for the source to end what it has.
        Some("lost") if story.resolved.is_none() => return AnswerState::Lost,
        _ => {}
    }
    match story.side {
        // It came to an end that is no owner's.
        side if !side.is_final() && story.ended.is_some() => AnswerState::Unknown,
        Side::Destination(DestinationRecord::Prepared) => AnswerState::Prepared,
        Side::Destination(DestinationRecord::Entitled) => AnswerState::Entitled,
        Side::Destination(DestinationRecord::Running) => AnswerState::Running,
        Side::Destination(DestinationRecord::Faulting) => AnswerState::Faulting,
        Side::Destination(DestinationRecord::Vanished) => AnswerState::Lost,
        Side::Source(SourceRecord::Serving) => AnswerState::Serving,
        Side::Destination(DestinationRecord::Discarded) => AnswerState::Discarded,
        // For a destination whose own journal does not tell: what `sterna resolve` shows there.
        Side::Source(SourceRecord::Copying) => AnswerState::Copying,
        Side::Source(SourceRecord::Stopping) => AnswerState::Stopping,
        Side::Source(SourceRecord::Offered) => AnswerState::Offered,
        Side::Source(SourceRecord::Vanished) => AnswerState::Lost,
        Side::Source(SourceRecord::Gone) => AnswerState::Gone,
        Side::Source(SourceRecord::Returned) => AnswerState::Returned,
    }
}
