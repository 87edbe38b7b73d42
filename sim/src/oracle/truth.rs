//! Truth: journals say what is before it is done, and reports say what is (law 1's order, the exit code's meaning).
//!
//! Checks, against what a power cut would leave on the disk: *stopping* before `stop`, *offered* before the commit,
//! *entitled* before the resume. *Discarded* is said only of a QEMU that is dead. A report of *done* means that the
//! destination has the guest and the source's QEMU is gone; of *failed*, *cancelled* or *refused*, that the guest is at the source
//! as it was; of *lost*, that it is dead and was not handed over, or died while it lacked pages; no end but that one is told
//! of a guest that lacks pages, nor is that given up while the source's agent has its memory; *unknown* is said only when a QEMU, a disk or a whole
//! host failed. A guest that its user had paused before never runs by our doing. Final records agree with where the guest is.
//!
//! Does not check words, numbers of the report, or what the command line makes of the outcome (the exit codes are a table
//! of the outcome's name).

use std::time::Duration;

use sterna_migration::destination::End;
use sterna_migration::journal::{DestinationRecord, SourceRecord};
use sterna_migration::outcome::OutcomeName;
use sterna_model::Instant;

use super::{Ended, Oracle};
use crate::disk::Reached;
use crate::faults::{Side, What};
use crate::world::World;

/// So long a death may go unnoticed.
const NOTICED: Duration = Duration::from_millis(1500);

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    died: [Option<Instant>; 2],
    /// It was alive when it was given back: what becomes of it later is no part of the move.
    given_back_alive: bool,
    /// The destination has said that it does not know.
    in_doubt: bool,
}

impl World {
    /// A QEMU is dead, by itself or by us.
    pub(crate) fn saw_death(&mut self, side: Side) {
        let now = self.now();
        self.oracles.truth.died[side.index()].get_or_insert(now);
    }

    /// The destination says that it does not know whose the guest is.
    pub(crate) fn doubt_is_said(&mut self) {
        self.oracles.truth.in_doubt = true;
    }

    /// The source says that it has given the guest back.
    pub(crate) fn guest_is_given_back(&mut self) {
        self.oracles.truth.given_back_alive = self.is_alive(Side::Source);
    }

    /// The source gives the command to stop.
    pub(crate) fn guest_is_stopped(&mut self) {
        self.stand_begins();
        self.check_durable(Side::Source, Reached::Source(SourceRecord::Stopping), "stop");
    }

    /// The source sends the commit.
    pub(crate) fn commit_is_sent(&mut self) {
        self.check_durable(Side::Source, Reached::Source(SourceRecord::Offered), "commit");
    }

    /// The source says that its QEMU died, and what the destination lacked with it.
    pub(crate) fn nothing_is_left_to_serve(&mut self) {
        if self.setting.held && self.hosts[Side::Source.index()].lives == 0 {
            self.blame(Oracle::Truth, "a guest is given up whose memory the source has");
        }
    }

    /// The destination says that its QEMU is dead.
    pub(crate) fn discard_is_said(&mut self) {
        if self.is_alive(Side::Destination) {
            self.blame(Oracle::Truth, "the destination says discarded, and its QEMU lives");
        }
        if self.oracles.single_owner.taken {
            self.blame(Oracle::Truth, "the destination says discarded of a guest that it took");
        }
    }

    pub(super) fn check_right_to_run(&mut self, side: Side) {
        if self.setting.paused {
            self.blame(Oracle::Truth, "a guest that its user had paused runs");
        }
        if side == Side::Destination {
            self.check_entitled();
        }
    }

    pub(super) fn check_entitled(&mut self) {
        let side = self.durable(Side::Destination);
        let entitled =
            [DestinationRecord::Entitled, DestinationRecord::Faulting, DestinationRecord::Running];
        if !entitled.iter().any(|record| side == Some(Reached::Destination(*record))) {
            let why = format!("the destination takes the guest, and its journal says {side:?}");
            self.blame(Oracle::Truth, why);
        }
    }

    fn check_durable(&mut self, side: Side, expected: Reached, step: &str) {
        let found = self.durable(side);
        if found != Some(expected) {
            let why = format!("{step}: expected {expected:?} to be durable, found {found:?}");
            self.blame(Oracle::Truth, why);
        }
    }

    fn durable(&self, side: Side) -> Option<Reached> {
        self.hosts[side.index()].disk.durable_story().map(|story| story.side)
    }

    pub(super) fn check_ended(&mut self, how: &Ended) {
        let taken = self.oracles.single_owner.taken;
        let (here, there) = (self.is_alive(Side::Source), self.is_alive(Side::Destination));
        // Its last page may have been placed a moment before it died: then nobody could write that down.
        let (lacked, lacking) = (self.oracles.placement.lacked, self.stayed_lacking());
        let lie = match how {
            Ended::Source(OutcomeName::Done) => !taken || here || lacking,
            Ended::Source(OutcomeName::Failed | OutcomeName::Cancelled | OutcomeName::Refused) => {
                taken || !self.is_as_before()
            }
            Ended::Source(OutcomeName::Lost) => here || (taken && (there || !lacked)),
            Ended::Source(OutcomeName::Unknown) | Ended::Destination(End::Unknown(_)) => {
                !self.oracles.is_clouded()
            }
            Ended::Destination(End::Running) => !taken || lacking,
            Ended::Destination(End::Discarded(_)) => taken || there,
            Ended::Destination(End::Lost(_)) => !lacked || there,
            Ended::Forgotten => taken,
        };
        if lie {
            let why = format!(
                "{how:?}: the destination has {} the guest{}; alive: source {here}, destination {there}",
                if taken { "taken" } else { "not taken" },
                if lacking { ", which lacks pages" } else { "" }
            );
            self.blame(Oracle::Truth, why);
        }
        self.check_loss_is_told(how);
    }

    /// Whether the guest is at the source, as it was.
    fn is_as_before(&self) -> bool {
        if !self.is_alive(Side::Source) {
            let truth = &self.oracles.truth;
            let died = truth.died[Side::Source.index()];
            let unnoticed = died.is_some_and(|died| self.now().since(died) < NOTICED);
            // An agent that stands still hears of nothing.
            let stalled = self
                .oracles
                .struck
                .iter()
                .any(|what| matches!(what, What::Stalls(Side::Source, _)));
            return unnoticed || stalled || truth.given_back_alive;
        }
        self.runs(Side::Source) || self.setting.paused || self.was_stopped_by_others()
    }

    /// The only QEMU that held the guest is dead, and the destination was never entitled: that is *lost*, and no doubt.
    fn check_loss_is_told(&mut self, how: &Ended) {
        let theirs = self.durable(Side::Destination);
        let may_be_theirs =
            [DestinationRecord::Entitled, DestinationRecord::Faulting, DestinationRecord::Running]
                .iter()
                .any(|record| theirs == Some(Reached::Destination(*record)));
        let in_doubt = self.oracles.truth.in_doubt;
        let unknown = *how == Ended::Source(OutcomeName::Unknown);
        if unknown && !self.is_alive(Side::Source) && !may_be_theirs && !in_doubt {
            let why = "the guest died with its QEMU and was never handed over, and its end is told as unknown";
            self.blame(Oracle::Truth, why);
        }
    }

    /// At the end of a run: final records agree with where the guest is.
    pub(super) fn check_journals(&mut self) {
        let (taken, lacking) = (self.oracles.single_owner.taken, self.stayed_lacking());
        let lacked = self.oracles.placement.lacked;
        let records = [self.durable(Side::Source), self.durable(Side::Destination)];
        for record in records.into_iter().flatten() {
            let lie = match record {
                Reached::Source(SourceRecord::Gone)
                | Reached::Destination(DestinationRecord::Running) => !taken || lacking,
                Reached::Source(SourceRecord::Vanished)
                | Reached::Destination(DestinationRecord::Vanished) => !lacked,
                Reached::Source(SourceRecord::Serving)
                | Reached::Destination(DestinationRecord::Faulting) => !taken,
                Reached::Source(SourceRecord::Returned)
                | Reached::Destination(DestinationRecord::Discarded) => taken,
                _ => false,
            };
            if lie {
                let why = format!(
                    "a journal ends in {record:?}; the destination took it: {taken}, and it lacks pages: {lacking}"
                );
                self.blame(Oracle::Truth, why);
            }
        }
    }
}
