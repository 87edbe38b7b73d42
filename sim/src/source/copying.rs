//! While the guest runs: the stream, the rounds, QEMU's pace.

use std::rc::Rc;
use std::time::Duration;

use sterna_migration::source::Fact;
use sterna_migration::tracker::Tracker;

use super::Drive;
use crate::bulk::{Bulk, RoundSum};
use crate::faults::{Moment, Strategy};
use crate::message::Message;
use crate::plant::Plant;
use crate::qemu::{Command, Status};
use crate::world::World;

/// A round that waits begins within this.
const TICK: Duration = Duration::from_millis(100);
/// A destination that was not heard for so long is not stopped for.
const HEARD_LATELY: Duration = Duration::from_secs(4);

impl Drive {
    pub(super) async fn begin_stream(&mut self) {
        self.hands.with(|world| {
            if world.tracker.is_none() {
                let tracker = Tracker::new(world.setting.pages, world.setting.connections);
                world.tracker = Some(Rc::new(tracker));
            }
        });
        self.streams += 1;
        match self.hands.qemu(Command::Migrate).await {
            Ok(_) => {
                // QEMU counts its own: others may have begun one before.
                self.streams = self.hands.with(|world| {
                    let qemu = world.hosts[0].qemu.as_ref();
                    qemu.map_or(0, |qemu| qemu.stream)
                });
            }
            Err(error) => self.fact(Fact::QemuFailed(format!("migrate: {error:?}"))),
        }
    }

    pub(super) async fn restart_stream(&mut self) {
        self.again = Again { in_first_pass: true, rounds: 0 };
        match self.resume_after_completion().await {
            Ok(()) => self.begin_stream().await,
            Err(error) => self.fact(Fact::QemuFailed(format!("{error:?}"))),
        }
    }

    /// The stream has begun: the destination is told, the workers start. One that was begun anew changes nothing.
    pub(super) async fn head(&mut self) {
        if self.hands.with(|world| world.bulk.is_some()) || self.data.is_empty() {
            return;
        }
        self.send(Message::StreamHead).await;
        let connections = std::mem::take(&mut self.data);
        self.hands.with(|world| {
            let Some(tracker) = world.tracker.clone() else { return };
            let pages = world.setting.pages;
            let once = world.setting.strategy == Strategy::ThreeStage
                && !world.errs(Plant::RoundsSendAgain);
            world.bulk = Some(Bulk::new(tracker, (pages, once)));
            world.join_bulk(&connections);
            world.begin_next_round();
            world.moment_comes(|moment| match moment {
                Moment::Copying(after) => Some(after),
                _ => None,
            });
        });
    }

    pub(super) fn begin_round(&self) {
        self.hands.with(World::begin_next_round);
    }

    /// Begins a round that has waited, if there still are connections.
    pub(super) fn begin_waiting_round(&self) {
        if self.hands.with(|world| world.bulk.as_ref().is_some_and(Bulk::is_linked)) {
            self.begin_round();
        }
    }

    /// Begins the next round; after one over nothing, when there may be something to send. One that was broken off is begun
    /// anew.
    pub(super) fn next_round(&mut self) {
        if std::mem::take(&mut self.was_away) {
            return self.begin_round();
        }
        if self.hands.with(|world| world.bulk.as_ref().is_some_and(Bulk::has_nothing)) {
            self.round_waits_until = Some(self.hands.now().after(TICK));
        } else {
            self.begin_round();
        }
    }

    /// The first pass is over: QEMU would now look for dirty pages as often as it can.
    pub(super) async fn first_pass_over(&mut self) {
        let _ = self.hands.qemu(Command::Pace { slow: true }).await;
        if !std::mem::take(&mut self.again.in_first_pass) {
            return;
        }
        // A round that goes on may have passed what was reported meanwhile; so may not the next one.
        self.again.rounds = 2;
        let idle = |bulk: &Bulk| bulk.is_idle() && bulk.is_linked();
        if self.hands.with(|world| world.bulk.as_ref().is_some_and(idle)) {
            self.again.rounds = 1;
            self.begin_round();
        }
    }

    pub(super) async fn round_done(&mut self, round: RoundSum) {
        let heard = self.hands.with(|world| {
            let bulk = world.bulk.as_mut()?;
            bulk.is_heard();
            Some((bulk.waiting_pages(), bulk.wire_bytes))
        });
        let Some((waiting, wire_bytes)) = heard else { return };
        if self.phase() == "flushing" {
            if !round.is_last {
                // Cut short, or its end came late.
                let idle = self.hands.with(|world| world.bulk.as_ref().is_some_and(Bulk::is_idle));
                return if idle {
                    self.begin_last()
                };
            }
            // The destination may have asked for pages that the round had passed by then.
            if waiting == 0 {
                return self.send_final(&round).await;
            }
            return self.begin_last();
        }
        let pages = self.hands.with(|world| world.setting.pages);
        if self.again.withholds() {
            let _ = self.gauge.round_ended(&round, waiting, wire_bytes, pages);
            if self.again.begins_round() {
                self.begin_round();
            }
            return;
        }
        if self.hands.now().since(self.heard_at) > HEARD_LATELY {
            // The link is cut, most likely: the guest runs until the destination is heard again, or given up.
            self.round_waits_until = Some(self.hands.now().after(TICK));
            return;
        }
        // A paced QEMU knows of more than it has told.
        let untold = self.hands.qemu(Command::Query).await.map_or(0, |answer| answer.remaining);
        let facts = self.gauge.round_ended(&round, waiting + untold, wire_bytes, pages);
        self.hands.with(|world| world.round_is_told(round.duration));
        self.fact(Fact::RoundEnded(facts));
    }

    async fn resume_after_completion(&self) -> Result<(), crate::qemu::CommandError> {
        self.end_migration().await?;
        self.resume_guest().await
    }

    pub(super) async fn end_migration(&self) -> Result<(), crate::qemu::CommandError> {
        if self.hands.qemu(Command::Query).await?.status == Status::Active {
            self.hands.qemu(Command::Cancel).await?;
        }
        Ok(())
    }
}

/// A stream that was begun anew reports all memory once more. Until it has been gone through, a round's end tells nothing
/// of what is left.
#[derive(Debug, Default)]
pub(super) struct Again {
    /// QEMU's first pass is not over.
    pub(super) in_first_pass: bool,
    /// Rounds whose end is not told; the last of them is the one over all memory.
    pub(super) rounds: u32,
}

impl Again {
    const fn withholds(&self) -> bool {
        self.in_first_pass || self.rounds > 0
    }

    const fn begins_round(&mut self) -> bool {
        self.rounds = self.rounds.saturating_sub(1);
        !self.in_first_pass
    }
}
