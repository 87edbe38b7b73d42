//! How a job ends here: the guest goes on, or its QEMU goes; the report.

use std::time::{Duration, Instant};

use sterna_host::qmp::QmpError;
use sterna_migration::outcome::Outcome;
use sterna_migration::source::{Fact, MayReturn};

use super::Drive;
use crate::journal::Entry;
use crate::outgoing::gauge::Ends;
use crate::outgoing::links::Links;
use crate::outgoing::qemu::{self, RunStateBefore};
use crate::registry::Owner;
use crate::vm::{describe_exit, quote_log};

/// Attempts to resume a guest, and the time between them.
const RETURN_ATTEMPTS: u32 = 150;
const RETURN_EVERY: Duration = Duration::from_millis(200);
/// From the end of QEMU's monitor to that of its process.
const DEATH_TAKES: Duration = Duration::from_secs(2);

impl Drive {
    pub(super) async fn return_guest(&mut self, may_return: MayReturn) {
        if let Some(bulk) = &mut self.bulk {
            bulk.abandon();
        }
        self.links = Links::default();
        let mut returned = self.try_to_return(&may_return).await;
        // A guest that stands must not stay so because its QEMU was busy for some seconds.
        for _ in 0..RETURN_ATTEMPTS {
            let Err(error) = &returned else { break };
            if error.is_closed() {
                break;
            }
            tracing::warn!(%error, "the guest is not resumed yet");
            tokio::time::sleep(RETURN_EVERY).await;
            returned = self.try_to_return(&may_return).await;
        }
        self.gauge.marks.running = Some(Instant::now());
        let fact = match returned {
            Ok(()) => Fact::GuestReturned,
            Err(error) => self.not_returned(&error).await,
        };
        self.fact(fact);
    }

    async fn try_to_return(&self, may_return: &MayReturn) -> Result<(), QmpError> {
        let guest_ran = self.guest_ran;
        match (&self.qemu, &self.wanted.live) {
            (Some(qemu), _) => qemu.give_back(may_return).await,
            // Taken up again after a restart: the guest stands by our stop.
            (None, Some(live)) if self.resumed => {
                let before = RunStateBefore { guest_ran, stop_sent: true };
                qemu::give_back(&live.qmp, before, may_return).await
            }
            // Nothing was done to it; that it is still there has to be seen all the same.
            (None, Some(_)) => match self.death_of_qemu().await {
                Some(cause) => Err(QmpError::Closed { cause: cause.into() }),
                None => Ok(()),
            },
            (None, None) => Err(QmpError::Closed { cause: "it had ended before".into() }),
        }
    }

    /// A guest whose QEMU died is lost, not unknown.
    async fn not_returned(&self, error: &QmpError) -> Fact {
        if self.wanted.live.is_none() {
            return Fact::QemuDied(error.to_string().into());
        }
        match self.death_of_qemu().await {
            Some(why) => Fact::QemuDied(why.into()),
            None => {
                Fact::ReturnFailed(format!("the guest could not be resumed at the source: {error}"))
            }
        }
    }

    /// How our QEMU ended, if it did. A monitor that closes is that of a QEMU that dies, most likely; its process outlives it
    /// for a moment.
    pub(super) async fn death_of_qemu(&self) -> Option<String> {
        let live = self.wanted.live.as_ref()?;
        live.qmp.end()?;
        let exit = tokio::time::timeout(DEATH_TAKES, live.process.exited()).await.ok()?.ok()?;
        Some(describe_exit(Some(exit)) + &quote_log(&self.wanted.vm.record().log))
    }

    pub(super) async fn destroy_guest(&mut self) {
        self.gauge.marks.over = Some(Instant::now());
        if let Some(bulk) = &mut self.bulk {
            bulk.finish();
        }
        let (host, job) = (self.wanted.to.name.clone(), self.job.id().clone());
        self.agent.change(&self.wanted.vm, |record| {
            record.epoch = record.epoch.next();
            record.owner = Owner::MovedTo { host, job };
            record.leaving = None;
        });
        if let Some(live) = &self.wanted.live
            && let Err(error) = live.quit().await
        {
            tracing::error!(%error, "the source's QEMU does not end; its guest is the destination's");
        }
        self.wanted.vm.ended(Owner::clone);
        self.agent.remember(&self.wanted.vm);
    }

    pub(super) async fn end(&mut self, outcome: &Outcome) {
        if let (Outcome::Refused(_), Some(qemu)) = (outcome, &self.qemu) {
            qemu.release().await;
        }
        self.settle_registry(outcome);
        self.wanted.vm.end_job();
        let ends = Ends {
            job: &self.job,
            strategy: self.strategy,
            source: self.agent.config.name.as_str(),
            link: self.link.as_ref(),
            peak_memory: self.agent.anonymous.peak(),
        };
        let report = Box::new(self.gauge.report(&ends, outcome, self.bulk.as_ref()));
        if let Err(error) = self.journal.note(&Entry::Report(report.clone())) {
            tracing::warn!(%error, "the journal lacks the report");
        }
        let state = serde_json::to_value(report.outcome).ok();
        let state = state.as_ref().and_then(serde_json::Value::as_str).unwrap_or("ended");
        tracing::info!(state, error = report.error, "the job has ended");
        self.job.end(state, report.error.clone(), Some(report));
        self.agent.prune_journals();
    }

    /// The registry follows the journal: whose the VM is, and that no job has it any more.
    fn settle_registry(&self, outcome: &Outcome) {
        let (vm, job) = (&self.wanted.vm, self.job.id());
        let changes_hands = matches!(outcome, Outcome::Lost(_) | Outcome::Unknown(_));
        if vm.record().leaving.is_none() && !changes_hands {
            return;
        }
        self.agent.change(vm, |record| {
            record.leaving = None;
            match outcome {
                Outcome::Lost(_) => record.owner = Owner::Lost,
                Outcome::Unknown(why) => record.lose_track(job, why),
                _ => {}
            }
        });
    }
}
