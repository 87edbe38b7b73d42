//! How a job ends here: the guest goes on, or its QEMU goes; the report.

use std::time::Duration;

use sterna_migration::journal::SourceRecord;
use sterna_migration::outcome::Outcome;
use sterna_migration::source::{Fact, MayReturn};

use super::Drive;
use crate::disk::{Entry, Owner, Record};
use crate::faults::Side;
use crate::network::Closing;
use crate::oracle::Ended;
use crate::plant::Plant;
use crate::qemu::{Command, CommandError, RunState};

/// Attempts to resume a guest, and the time between them.
const RETURN_ATTEMPTS: u32 = 30;
const RETURN_EVERY: Duration = Duration::from_secs(1);
/// A QEMU that was told to quit has done so within this.
const QUITTING_TAKES: Duration = Duration::from_millis(20);

impl Drive {
    pub(super) async fn return_guest(&mut self, _may_return: MayReturn) {
        self.hands.with(|world| {
            world.return_begins();
            world.joining = None;
            world.abandon_bulk(Closing::Broken);
        });
        self.data.extend(self.urgent.take());
        for data in std::mem::take(&mut self.data) {
            self.hands.with(|world| world.close(data, Side::Source, Closing::Broken));
        }
        let mut returned = self.give_back().await;
        // A guest that stands must not stay so because its QEMU was busy for some seconds.
        for _ in 0..RETURN_ATTEMPTS {
            if matches!(returned, Ok(()) | Err(CommandError::Closed)) {
                break;
            }
            self.hands.sleep(RETURN_EVERY).await;
            returned = self.give_back().await;
        }
        self.hands.with(|world| {
            world.return_is_over();
            world.guest_is_given_back();
        });
        self.fact(match returned {
            Ok(()) => Fact::GuestReturned,
            // A monitor that closes is that of a QEMU that dies.
            Err(CommandError::Closed) => Fact::QemuDied("its monitor has closed".into()),
            Err(error) => Fact::ReturnFailed(format!("the guest could not be resumed: {error:?}")),
        });
    }

    pub(super) async fn give_back(&self) -> Result<(), CommandError> {
        if !self.qemu_prepared && !self.resumed {
            // Nothing was done to it; that it is still there has to be seen all the same.
            let seen = self.hands.with(|world| world.is_alive(Side::Source));
            let ok = seen || self.hands.errs(Plant::FoundReturnsUnseen);
            return if ok { Ok(()) } else { Err(CommandError::Closed) };
        }
        self.end_migration().await?;
        self.resume_guest().await
    }

    /// Lets a guest run on that we, or QEMU's own completion, stopped; one that its user paused stays so.
    pub(super) async fn resume_guest(&self) -> Result<(), CommandError> {
        let ran = self.guest_ran || self.hands.errs(Plant::PausedGuestRuns);
        let ours = match self.hands.qemu(Command::Query).await?.run {
            RunState::PostMigrate => ran,
            RunState::Paused => ran && self.stop_sent,
            _ => false,
        };
        if ours && !self.hands.errs(Plant::GuestStaysStopped) {
            self.hands.qemu(Command::Cont).await?;
        }
        Ok(())
    }

    pub(super) async fn destroy_guest(&mut self) {
        self.hands.with(|world| {
            world.joining = None;
            world.stop_serving(Closing::InOrder);
            world.abandon_bulk(Closing::InOrder);
            if let Some(urgent) = self.urgent {
                world.close(urgent, Side::Source, Closing::InOrder);
            }
        });
        self.record.owner = Owner::MovedTo;
        self.hands.store(Some(self.record)).await;
        quit(&self.hands).await;
        self.record.process = false;
        self.hands.store(Some(self.record)).await;
    }

    pub(super) async fn end(&mut self, outcome: &Outcome) {
        let owner = match outcome {
            Outcome::Lost(_) => Some(Owner::Lost),
            Outcome::Unknown(_) => Some(Owner::Unknown),
            _ => None,
        };
        if let Some(owner) = owner {
            self.record = Record { owner, ..self.record };
            self.hands.store(Some(self.record)).await;
        }
        let mut name = outcome.name();
        if self.hands.errs(Plant::ReportsDone) {
            name = sterna_migration::outcome::OutcomeName::Done;
        }
        if self.unoffered {
            self.close_unoffered(outcome).await;
        } else if self.journal_is_open {
            let _ = self.hands.append(Entry::Report(name)).await;
        }
        self.hands.with(|world| {
            if let Some(link) = self.link {
                world.close(link, Side::Source, Closing::InOrder);
            }
            world.job_ended(Side::Source, Ended::Source(name));
        });
    }
}

impl Drive {
    /// How a restarted agent closes the journal of a job that had offered nothing.
    async fn close_unoffered(&mut self, outcome: &Outcome) {
        if matches!(outcome, Outcome::Lost(_)) {
            // There is no record of its own for that: the guest was not handed over.
            let _ = self.hands.append(Entry::Source(SourceRecord::Returned)).await;
        }
        // Of an unknown one the next start tries again.
        if !matches!(outcome, Outcome::Unknown(_)) {
            let _ = self.hands.append(Entry::Ended).await;
        }
    }
}

/// Asks the QEMU to quit, and kills it if it does not.
pub(super) async fn quit(hands: &crate::hands::Hands) {
    hands.step("quits QEMU").await;
    hands.sleep(QUITTING_TAKES).await;
    hands.with(|world| {
        world.check_ending(Side::Source);
        if let Some(qemu) = world.host(Side::Source).qemu.as_mut() {
            qemu.alive = false;
        }
        world.saw_death(Side::Source);
    });
    hands.step("QEMU has quit").await;
}
