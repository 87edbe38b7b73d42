//! How a job ends here: the guest goes on, or its QEMU goes; the report.

use super::super::gauge::Ends;
use super::super::qemu;
use super::Drive;
use crate::journal::Entry;
use crate::registry::Owner;
use std::time::Instant;
use sterna_migration::outcome::Outcome;
use sterna_migration::source::Fact;
use sterna_migration::source::MayReturn;

impl Drive {
    pub(super) async fn return_guest(&mut self, _may_return: MayReturn) {
        if let Some(bulk) = &mut self.bulk {
            bulk.abandon();
        }
        self.data.clear();
        let returned = match &self.qemu {
            Some(qemu) => qemu.give_back().await,
            // Taken up again after a restart: the guest stands. Otherwise nothing was done to it.
            None if self.resumed => qemu::give_back(&self.wanted.live.qmp, self.guest_ran).await,
            None => Ok(()),
        };
        self.gauge.marks.running = Some(Instant::now());
        self.fact(match returned {
            Ok(()) => Fact::GuestReturned,
            Err(error) => {
                Fact::ReturnFailed(format!("the guest could not be resumed at the source: {error}"))
            }
        });
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

    pub(super) fn end(&mut self, outcome: &Outcome) {
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
