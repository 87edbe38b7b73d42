//! The source's machine: from the request to a guest that is gone, or back.
//!
//! Each state is a type that owns its data; leaving it consumes it. [`Source::handle`] takes a [`Fact`] and pushes
//! [`Effect`]s; the drive loop performs them in order and feeds back what came of them. A fact that a state does not
//! expect from the peer is the peer's misbehaviour and fails the job; a late local fact is ignored.

mod effect;
mod offered;
mod serving;
mod states;
#[cfg(test)]
mod tests;

pub use effect::{Death, DurableOffer, Effect, Fact, Finish, MayReturn, Timer};
pub use offered::{Offered, Offering};
pub use serving::{Leaving, Serving};
pub use states::{Copying, Flushing, Preparing, Returning, Stopping};

use alloc::vec::Vec;
use core::time::Duration;

use crate::outcome::Outcome;
use crate::policy::Policy;

/// What a job may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The whole job's time-out; none when zero.
    pub timeout: Duration,
    /// With the guest stopped and nothing offered, so much silence of the peer rolls back. Whoever drives the machine moves
    /// [`Timer::Silence`] by this much at each sign of life.
    pub stopped_silence: Duration,
    /// The stopped guest must be drained, sent and loaded within this, or it is resumed.
    pub stop: Duration,
    /// How long to wait before asking the peer again who owns the guest, or before rejoining it.
    pub inquiry_interval: Duration,
    /// A destination that keeps what it has is tried to be reached again for so long while the guest runs here.
    pub away: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timeout: Duration::ZERO,
            stopped_silence: Duration::from_secs(1),
            stop: Duration::from_secs(30),
            inquiry_interval: Duration::from_secs(1),
            away: Duration::from_secs(90),
        }
    }
}

/// The source's machine.
#[derive(Debug)]
pub enum Source {
    /// The destination gets ready.
    Preparing(Preparing),
    /// Pages are copied while the guest runs.
    Copying(Copying),
    /// The guest is being stopped, and QEMU makes its last pass.
    Stopping(Stopping),
    /// The last pages and the device state are sent.
    Flushing(Flushing),
    /// The destination has loaded everything; the offer is made durable.
    Offering(Offering),
    /// The commit is sent: only the destination's answer ends this.
    Offered(Offered),
    /// The guest runs at the destination and lacks pages: they are sent.
    Serving(Serving),
    /// The guest is not ours any more: that is made durable, and our QEMU ends.
    Leaving(Leaving),
    /// The guest is being resumed here.
    Returning(Returning),
    /// The job is over.
    Ended(Outcome),
}

impl Source {
    /// Begins a job. The first effects are to be performed by the caller.
    pub fn begin(
        policy: alloc::boxed::Box<dyn Policy>,
        limits: Limits,
        effects: &mut Vec<Effect>,
    ) -> Self {
        Preparing::begin(policy, limits, effects)
    }

    /// Takes a job up again whose journal ends in *offered*: only the peer knows.
    pub fn resume_offered(limits: Limits, effects: &mut Vec<Effect>) -> Self {
        Offered::after_restart(limits, effects)
    }

    /// Takes a job up again whose journal ends in *serving*: the guest is theirs, and its pages are here.
    pub fn resume_serving(limits: Limits, effects: &mut Vec<Effect>) -> Self {
        Serving::after_restart(limits, effects)
    }

    /// Takes a job up again whose journal ends before *offered*: the guest never left, and runs on here.
    pub fn resume_unoffered(effects: &mut Vec<Effect>) -> Self {
        Returning::after_restart(effects)
    }

    /// Takes a fact in.
    #[must_use]
    pub fn handle(self, fact: Fact, effects: &mut Vec<Effect>) -> Self {
        match self {
            Self::Preparing(state) => state.handle(fact, effects),
            Self::Copying(state) => state.handle(fact, effects),
            Self::Stopping(state) => state.handle(fact, effects),
            Self::Flushing(state) => state.handle(fact, effects),
            Self::Offering(state) => state.handle(fact, effects),
            Self::Offered(state) => state.handle(fact, effects),
            Self::Serving(state) => state.handle(fact, effects),
            Self::Leaving(state) => state.handle(fact, effects),
            Self::Returning(state) => state.handle(fact, effects),
            Self::Ended(outcome) => Self::Ended(outcome),
        }
    }

    /// How the job ended, if it did.
    #[must_use]
    pub const fn outcome(&self) -> Option<&Outcome> {
        match self {
            Self::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Whether a cancel still leads back: not once the guest is offered, nor without a QEMU to go back to.
    #[must_use]
    pub const fn can_cancel(&self) -> bool {
        match self {
            Self::Offering(_)
            | Self::Offered(_)
            | Self::Serving(_)
            | Self::Leaving(_)
            | Self::Ended(_) => false,
            Self::Flushing(state) => !state.is_bereft(),
            Self::Preparing(_) | Self::Copying(_) | Self::Stopping(_) | Self::Returning(_) => true,
        }
    }

    /// The state's name, for logs and progress.
    #[must_use]
    pub const fn phase(&self) -> &'static str {
        match self {
            Self::Preparing(_) => "preparing",
            Self::Copying(_) => "copying",
            Self::Stopping(_) => "stopping",
            Self::Flushing(_) => "flushing",
            Self::Offering(_) => "offering",
            Self::Offered(_) => "offered",
            Self::Serving(_) => "serving",
            Self::Leaving(state) => state.phase(),
            Self::Returning(_) => "returning",
            Self::Ended(_) => "ended",
        }
    }
}
