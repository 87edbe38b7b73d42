//! What the machine asks for beyond words: the journal, QEMU's start, resume and end, and the job's.

use std::sync::Arc;
use std::time::Duration;

use sterna_host::qmp::{Delivery, Qmp};
use sterna_migration::destination::{End, Entitlement, Fact};
use sterna_migration::journal::DestinationRecord;
use sterna_wire::GuestState;
use tokio::sync::mpsc;
use tracing::Instrument as _;

use super::{Drive, Event};
use crate::incoming::qemu::{Waiting, drop_stream};
use crate::journal::Entry;
use crate::registry::Owner;
use crate::vm::{describe_exit, quote_log};

/// QEMU leaves its load within this.
/// A killed process is gone within this.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
const CONT_DEADLINE: Duration = Duration::from_secs(5);
/// A guest that waits for pages may do so as long as a link is away.
const FAULTING_DEADLINE: Duration = Duration::from_hours(24);
/// See [`resume_faulting`].
const RESUME_TOLD: Duration = Duration::from_millis(300);

impl Drive {
    pub(super) fn journal(&mut self, record: DestinationRecord) {
        let entry = Entry::Destination(record);
        let written = tokio::task::block_in_place(|| self.journal.record(&entry));
        self.fact(match written {
            Ok(()) => Fact::Journaled(record),
            Err(error) => Fact::JournalFailed(error.to_string()),
        });
        if record == DestinationRecord::Faulting && self.complete {
            self.fact(Fact::MemoryComplete);
        }
    }

    pub(super) async fn start_qemu(&mut self) {
        let Some(checked) = self.checked.take() else {
            return self.fact(Fact::Failed("QEMU was to be started twice".into()));
        };
        // A crash while QEMU comes up must not leave it behind: a restarted agent finds it in the journal.
        let journal = &mut self.journal;
        let note = |process| {
            let noted = tokio::task::block_in_place(|| journal.note(&Entry::Process(process)));
            noted.map_err(|error| error.to_string())
        };
        let started = checked.start(&self.agent, &self.prepare, note).await;
        match started {
            Ok(waiting) => {
                self.watch_qemu(&waiting);
                // The guest is whole at its source: better this one than somebody's only copy, or the agent.
                if let Err(error) = waiting.process.set_expendable(true) {
                    tracing::debug!(%error, "the QEMU that waits is as safe as others from the kernel");
                }
                if waiting.post_copy {
                    self.streams.allow_post_copy();
                }
                self.waiting = Some(waiting);
                self.fact(Fact::QemuStarted);
            }
            Err(refusals) => self.fact(Fact::StartRefused(refusals)),
        }
    }

    /// Tells when QEMU has loaded its stream, and when it is gone.
    pub(super) fn watch_qemu(&self, waiting: &Waiting) {
        let (loaded, died) = (self.events.clone(), self.events.clone());
        let qemu_events = waiting.qmp().map(|qmp| qmp.subscribe());
        tokio::spawn(async move {
            let Some(mut qemu_events) = qemu_events else { return };
            // A QEMU can outlive its move by far; nobody hears of it once that is over.
            while let Delivery::Event(event) = tokio::select! {
                delivery = qemu_events.next() => delivery,
                () = loaded.closed() => return,
            } {
                if event.name == "MIGRATION" && event.data["status"] == "completed" {
                    let _ = loaded.send(Event::QemuLoaded);
                }
            }
        });
        let (process, log) = (Arc::clone(&waiting.process), waiting.vm.record().log);
        tokio::spawn(async move {
            // Not to be able to watch is not to see it end.
            let exited = tokio::select! {
                exited = process.exited() => exited,
                () = died.closed() => return,
            };
            if let Ok(exit) = exited {
                let _ = died.send(Event::QemuDied(describe_exit(Some(exit)) + &quote_log(&log)));
            }
        });
    }

    /// Resumes the guest. Only whoever holds the entitlement may.
    pub(super) async fn resume(&mut self, _entitlement: Entitlement) {
        let Some(waiting) = &self.waiting else {
            return self.fact(Fact::ResumeFailed("its QEMU is gone".into()));
        };
        let qmp = match waiting.monitor() {
            Ok(qmp) => qmp,
            Err(why) => return self.fact(Fact::ResumeFailed(why)),
        };
        if let Err(error) = waiting.process.set_expendable(false) {
            tracing::warn!(%error, "the guest's QEMU stays the first that the kernel ends for want of memory");
        }
        let lacks_pages = self.streams.faulting().is_some();
        let resume = self.guest == GuestState::Running;
        if lacks_pages {
            // QEMU itself may need pages for it, which this loop has to ask for meanwhile.
            let resumed = self.events.clone();
            tokio::spawn(resume_faulting(qmp, resume, resumed).in_current_span());
            return;
        }
        if resume && let Err(error) = qmp.cont_after_migration(CONT_DEADLINE).await {
            return self.fact(Fact::ResumeFailed(error.to_string()));
        }
        self.fact(Fact::Resumed { lacks_pages });
        // Not in the downtime: the announcement repeats itself and QEMU does it in the background.
        tokio::spawn(announce(qmp).in_current_span());
    }

    pub(super) async fn kill(&mut self) {
        self.keep_memory();
        self.streams.close();
        if let Some(waiting) = self.waiting.take() {
            // It must be known dead before anyone says so: the guest stays paused at the source until then.
            while let Err(error) = waiting.process.kill_and_reap(KILL_DEADLINE).await {
                tracing::error!(%error, "the QEMU to be discarded does not end");
            }
            if self.runs_here() {
                // It was this host's guest, and is nobody's any more.
                waiting.vm.ended(|_| Owner::Lost);
                self.agent.remember(&waiting.vm);
            } else {
                self.agent.put_back(&waiting.vm);
            }
        }
        self.fact(Fact::Killed);
    }

    pub(super) fn end(&mut self, end: &End) {
        let (state, error) = match end {
            End::Running => ("running", None),
            End::Discarded(why) => ("discarded", Some(why.clone())),
            End::Unknown(why) => ("unknown", Some(why.clone())),
            End::Lost(why) => ("lost", Some(why.clone())),
        };
        if let (End::Lost(_), Some(waiting)) = (end, &self.waiting) {
            waiting.vm.ended(|_| Owner::Lost);
            self.agent.remember(&waiting.vm);
        } else if let Some(waiting) = &self.waiting {
            let job = &self.prepare.job;
            self.agent.change(&waiting.vm, |record| match &error {
                None => record.arrive(),
                Some(why) => record.lose_track(job, why),
            });
            if *end == End::Running {
                if let Some(qmp) = waiting.qmp().filter(|_| waiting.post_copy || self.prepare.reuse)
                {
                    tokio::spawn(async move { drop_stream(&qmp).await });
                }
                self.agent.watch(&waiting.vm);
            }
        }
        if let Some(why) = &error
            && let Err(error) = self.journal.note(&Entry::Ended(why.clone()))
        {
            tracing::warn!(%error, "the journal lacks its last line");
        }
        tracing::info!(state, error, "the job has ended here");
        self.job.end(state, error, None);
        self.agent.prune_journals();
    }
}

/// Resumes a guest that lacks pages. QEMU answers when it has got those that its devices touch, which takes as long as the
/// link takes; the guest is this host's by then, and that it is being resumed is told at the latest after [`RESUME_TOLD`]:
/// a source whose connections broke makes new ones only for a guest that it knows to be here.
async fn resume_faulting(qmp: Qmp, resume: bool, events: mpsc::UnboundedSender<Event>) {
    let told = events.clone();
    let telling = async move {
        tokio::time::sleep(RESUME_TOLD).await;
        let _ = told.send(Event::Resumed(Ok(())));
    };
    let telling = tokio::spawn(telling);
    if resume {
        let resumed =
            qmp.with_timeout(FAULTING_DEADLINE).cont_after_migration(FAULTING_DEADLINE).await;
        telling.abort();
        let _ = events.send(Event::Resumed(resumed.map_err(|error| error.to_string())));
    } else {
        let _ = events.send(Event::Resumed(Ok(())));
    }
    announce(qmp).await;
}

async fn announce(qmp: Qmp) {
    if let Err(error) = qmp.announce_self().await {
        tracing::warn!(%error, "the guest could not be announced on its network");
    }
}
