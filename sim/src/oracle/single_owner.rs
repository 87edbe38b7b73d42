//! Single owner (law 1): never two running copies, and none is lost but with its last host.
//!
//! Checks, whenever a guest begins to run: the other host's copy does not run; and the source's copy never runs again once
//! the destination's has run, even if that is dead by now, since the world outside has seen it. At the end: if nobody killed
//! a QEMU, the guest is still somewhere, and all of it: as long as the destination lacks pages, that needs both QEMUs, and no
//! agent ends one of them while the other lives.
//!
//! Does not check who is *entitled* without running (the truth oracle does), nor what a person does with `sterna resolve`.

use super::Oracle;
use crate::disk::Crash;
use crate::faults::{Side, What};
use crate::qemu::RunState;
use crate::world::World;

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct SingleOwner {
    /// The destination's copy has run.
    pub ran_there: bool,
    /// The destination has taken the guest over, whether it runs or is left paused.
    pub taken: bool,
}

impl World {
    pub(super) fn check_single_owner(&mut self, side: Side) {
        if self.runs(side.other()) {
            self.blame(Oracle::SingleOwner, "two copies of the guest run");
        }
        match side {
            Side::Source if self.oracles.single_owner.ran_there => {
                self.blame(
                    Oracle::SingleOwner,
                    "the guest runs at the source again after it ran at the destination",
                );
            }
            Side::Source => {}
            Side::Destination => self.oracles.single_owner.ran_there = true,
        }
    }

    /// An agent is about to end its QEMU: the guest, if it lacks pages, needs both.
    pub(crate) fn check_ending(&mut self, side: Side) {
        if self.stayed_lacking() && self.is_alive(side) && self.is_alive(side.other()) {
            let why = format!("the {side:?} ends its QEMU, and the guest lives and lacks pages");
            self.blame(Oracle::SingleOwner, why);
        }
    }

    /// At the end of a run: the guest is somewhere, unless its host or its QEMU was killed.
    pub(crate) fn check_not_lost(&mut self) {
        let killed = self
            .oracles
            .struck
            .iter()
            .any(|what| matches!(what, What::QemuDies(_) | What::Crash(_, Crash::Power, _)));
        let (here, there) = (self.is_alive(Side::Source), self.is_alive(Side::Destination));
        let is_somewhere = match (self.oracles.single_owner.taken, self.stayed_lacking()) {
            (false, _) => here,
            (true, false) => there || here,
            (true, true) => there && here,
        };
        if !killed && !is_somewhere {
            self.blame(Oracle::SingleOwner, "no copy of the guest is left, and nobody killed one");
        }
    }

    /// Whether a host has a QEMU for the guest that is not dead.
    pub(crate) fn is_alive(&self, side: Side) -> bool {
        self.hosts[side.index()].qemu.as_ref().is_some_and(|qemu| qemu.alive)
    }

    /// Whether the guest runs on a host.
    pub(crate) fn runs(&self, side: Side) -> bool {
        let qemu = self.hosts[side.index()].qemu.as_ref();
        qemu.is_some_and(|qemu| qemu.alive && qemu.run == RunState::Running)
    }
}
