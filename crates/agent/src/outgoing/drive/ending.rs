//! How a job ends here: the guest goes on, or its QEMU goes; the report.

use super::super::gauge::Ends;
use super::super::qemu::{self, RunStateBefore};
use super::Drive;
use crate::journal::Entry;
use crate::registry::Owner;
use std::time::{Duration, Instant};
use sterna_host::qmp::QmpError;
use sterna_migration::outcome::Outcome;
use sterna_migration::source::Fact;
use sterna_migration::source::MayReturn;

/// Attempts to resume a guest, and the time between them.
const RETURN_ATTEMPTS: u32 = 30;
const RETURN_EVERY: Duration = Duration::from_secs(1);

impl Drive {
    pub(super) async fn return_guest(&mut self, _may_return: MayReturn) {
        if let Some(bulk) = &mut self.bulk {
            bulk.abandon();
        }
        self.data.clear();
        let mut returned = self.try_to_return().await;
        // A guest that stands must not stay so because its QEMU was busy for some seconds.
        for _ in 0..RETURN_ATTEMPTS {
            let Err(error) = &returned else { break };
            if error.is_closed() {
                break;
            }
            tracing::warn!(job = %self.job.id(), %error, "the guest is not resumed yet");
            tokio::time::sleep(RETURN_EVERY).await;
            returned = self.try_to_return().await;
        }
        self.gauge.marks.running = Some(Instant::now());
        self.fact(match returned {
            Ok(()) => Fact::GuestReturned,
            Err(error) => {
                Fact::ReturnFailed(format!("the guest could not be resumed at the source: {error}"))
            }
        });
    }

    async fn try_to_return(&self) -> Result<(), QmpError> {
        let guest_ran = self.guest_ran;
        match &self.qemu {
            Some(qemu) => qemu.give_back().await,
            // Taken up again after a restart: the guest stands by our stop.
            None if self.resumed => {
                let before = RunStateBefore { guest_ran, stop_sent: true };
                qemu::give_back(&self.wanted.live.qmp, before).await
            }
            // Nothing was done to it.
            None => Ok(()),
        }
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
        });
        if let Err(error) = self.wanted.live.quit().await {
            tracing::error!(job = %self.job.id(), %error, "the source's QEMU does not end; its guest is the destination's");
        }
        self.wanted.vm.ended(Owner::clone);
        self.agent.remember(&self.wanted.vm);
    }

    pub(super) async fn end(&mut self, outcome: &Outcome) {
        if let (Outcome::Refused(_), Some(qemu)) = (outcome, &self.qemu) {
            qemu.release().await;
        }
        self.wanted.vm.end_job();
        match outcome {
            Outcome::Lost(_) => {
                self.agent.change(&self.wanted.vm, |record| record.owner = Owner::Lost)
            }
            Outcome::Unknown(_) => {
                let job = self.job.id().clone();
                self.agent.change(&self.wanted.vm, |record| record.owner = Owner::Unknown { job });
            }
            _ => {}
        }
        let ends = Ends {
            job: &self.job,
            strategy: self.strategy,
            source: self.agent.config.name.as_str(),
            link: self.link.as_ref(),
            peak_memory: self.agent.anonymous.peak(),
        };
        let report = Box::new(self.gauge.report(&ends, outcome, self.bulk.as_ref()));
        if let Some(journal) = &mut self.journal
            && let Err(error) = journal.append(&Entry::Report(report.clone()))
        {
            tracing::warn!(job = %self.job.id(), %error, "the journal lacks the report");
        }
        let state = serde_json::to_value(report.outcome).ok();
        let state = state.as_ref().and_then(serde_json::Value::as_str).unwrap_or("ended");
        tracing::info!(job = %self.job.id(), vm = %self.job.vm(), state, error = report.error, "the job has ended");
        self.job.end(state, report.error.clone(), Some(report));
    }
}
