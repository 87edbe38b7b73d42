//! With the guest stopped: QEMU's last pass, the last pages, the commit, and asking what became of it.

use std::time::Duration;

use sterna_migration::source::{DurableOffer, Fact, Finish};

use super::Drive;
use crate::bulk::{Order, RoundSum};
use crate::disk::Entry;
use crate::faults::Side;
use crate::message::{Final, Message};
use crate::plant::Plant;
use crate::qemu::{Command, CommandError, RunState, Status};
use crate::world::Event;

/// With the guest stopped, QEMU looks for dirty pages so often within this.
const LOOKS_DEADLINE: Duration = Duration::from_millis(500);
/// So many looks after the stop, and everything is known and told.
const LOOKS_WANTED: u64 = 3;
/// Between two questions.
const ASK_EVERY: Duration = Duration::from_millis(1);

impl Drive {
    /// Stops the guest, and lets QEMU make its last pass.
    pub(super) async fn stop_guest(&mut self) {
        if let Err(why) = self.try_to_stop().await {
            self.fact(Fact::QemuFailed(why));
        }
    }

    async fn try_to_stop(&mut self) -> Result<(), String> {
        let failed = |error: CommandError| format!("{error:?}");
        let guest_ran = match self.hands.qemu(Command::Query).await.map_err(failed)?.run {
            RunState::Running => true,
            RunState::Paused => false,
            // The end of that stream is, or will be, reported by its reader.
            RunState::PostMigrate => return Ok(()),
            other => {
                return Err(format!("expected a guest that runs or is paused, found {other:?}"));
            }
        };
        if guest_ran != self.guest_ran {
            self.guest_ran = guest_ran;
            if let Err(why) = self.hands.append(Entry::GuestRan(guest_ran)).await {
                self.fact(Fact::JournalFailed(why));
                return Ok(());
            }
        }
        self.stop_sent = true;
        self.hands.qemu(Command::Stop).await.map_err(failed)?;
        let after = self.hands.qemu(Command::Query).await.map_err(failed)?;
        if after.status != Status::Active {
            return Ok(());
        }
        let _ = self.hands.qemu(Command::Pace { slow: false }).await;
        let finished = self.finish(after.looks).await;
        self.fact(Fact::GuestStopped);
        finished
    }

    /// Lets QEMU end its stream, once it has looked often enough.
    async fn finish(&self, looks_before: u64) -> Result<(), String> {
        let failed = |error: CommandError| format!("{error:?}");
        let until = self.hands.now().after(LOOKS_DEADLINE);
        loop {
            let answer = self.hands.qemu(Command::Query).await.map_err(failed)?;
            let since = answer.looks.saturating_sub(looks_before);
            let active = answer.status == Status::Active;
            let enough = since >= LOOKS_WANTED || self.hands.errs(Plant::NoLookAfterStop);
            if active && enough {
                return self.hands.qemu(Command::LetGo).await.map(drop).map_err(failed);
            }
            match (active, since) {
                (true, _) if self.hands.now() >= until => {
                    return self.hands.qemu(Command::Release).await.map(drop).map_err(failed);
                }
                (true, _) => {}
                (false, 1..) => return Ok(()),
                (false, 0) => return Err("QEMU's stream has ended without a look".into()),
            }
            self.hands.sleep(ASK_EVERY).await;
        }
    }

    pub(super) async fn flush(&mut self, finish: Finish) {
        self.last_order = match finish {
            Finish::PreCopy => Order::Last,
            Finish::PostCopy => Order::Marks,
        };
        self.round_waits_until = None;
        // After a time-out a round may still be under way: what it has not sent is left.
        let idle = self.hands.with(|world| {
            let bulk = world.bulk.as_mut()?;
            bulk.cut_short();
            Some(bulk.is_idle())
        });
        if idle == Some(true) {
            self.begin_last();
        }
        if let Some(device) = self.tail {
            self.send(Message::Tail(device)).await;
        }
    }

    /// Lets the workers send what is left.
    pub(super) fn begin_last(&self) {
        let order = self.last_order;
        self.hands.with(|world| world.begin_round(order));
    }

    pub(super) async fn send_final(&mut self, round: &RoundSum) {
        let mut frames = round.frames.clone();
        // Nothing goes over the connection for absent pages yet.
        frames.extend(self.urgent.map(|_| 0));
        let last = Final { root: round.root, frames, guest_ran: self.guest_ran };
        self.send(Message::Final(last)).await;
        self.flushed = true;
        self.fact(Fact::Flushed(round.root));
    }

    pub(super) async fn commit(&mut self, _offer: DurableOffer) {
        self.hands.with(|world| world.commit_is_sent());
        self.send(Message::Commit).await;
    }

    /// Asks who owns the guest: on the connection that there is, or on a new one.
    pub(super) async fn inquire(&mut self) {
        if self.link.is_some() {
            return self.send(Message::Inquire).await;
        }
        self.hands.step("dials").await;
        self.hands.with(|world| {
            let (takes, life) = (world.connecting_takes(), world.host(Side::Source).lives);
            world.clock.after(takes, Event::Dialed(life));
        });
    }
}
