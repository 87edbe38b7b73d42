//! The guest runs at the destination, and pages that it lacks are still here: they are served until it lacks none.
//!
//! Nothing but that ends it, or the death of one of the two QEMUs: then the guest is lost, unless it was ours and what it had
//! of the guest is held. Links may break and agents be restarted as often as they will; the source makes its connections
//! anew, once every interval, for ever.

use super::offered::with;
use super::states::{Bereft, Effects, end};
use super::{Death, Effect, Fact, Limits, Source, Timer};
use crate::journal::SourceRecord;
use crate::outcome::Outcome;

/// The guest runs at the destination and lacks pages.
#[derive(Debug)]
pub struct Serving {
    limits: Limits,
    /// Our QEMU died, and what it still had with it, unless that is held. Whether the destination lacked any of it is its to
    /// say.
    bereft: Bereft,
    progress: Progress,
}

#[derive(Debug, PartialEq, Eq)]
enum Progress {
    /// *serving* is being made durable; whether there are connections to serve on then.
    Journaling { unlinked: bool },
    /// Pages are sent and asked for.
    Linked,
    /// The connections are gone.
    Unlinked,
}

/// The guest is not ours any more.
#[derive(Debug)]
pub struct Leaving {
    outcome: Outcome,
    phase: &'static str,
}

impl Serving {
    pub(super) fn begin(
        limits: Limits,
        bereft: Bereft,
        unlinked: bool,
        effects: &mut Effects,
    ) -> Source {
        effects.push(Effect::Journal(SourceRecord::Serving));
        Source::Serving(Self { limits, bereft, progress: Progress::Journaling { unlinked } })
    }

    pub(super) fn after_restart(limits: Limits, effects: &mut Effects) -> Source {
        let serving = Self { limits, bereft: None, progress: Progress::Unlinked };
        serving.rejoin(effects);
        Source::Serving(serving)
    }

    pub(super) fn handle(mut self, fact: Fact, effects: &mut Effects) -> Source {
        match fact {
            Fact::PeerComplete | Fact::PeerRunning { lacks_pages: false } => {
                effects.push(Effect::ClearTimer(Timer::Inquiry));
                return Leaving::begin("serving", Outcome::Done, effects);
            }
            Fact::PeerVanished(why) => {
                effects.push(Effect::ClearTimer(Timer::Inquiry));
                return Leaving::begin("serving", Outcome::Lost(with(self.bereft, why)), effects);
            }
            Fact::PeerUnknown(why) => {
                effects.push(Effect::ClearTimer(Timer::Inquiry));
                return end(Outcome::Unknown(with(self.bereft, why)), effects);
            }
            // Not to be able to write it down changes nothing: *offered* leads back here by asking.
            Fact::Journaled(SourceRecord::Serving) | Fact::JournalFailed(_) => {
                self.journaled(effects);
            }
            Fact::PeerLost(_) | Fact::PeerAway(_) | Fact::PeerFailed(_) => self.unlink(effects),
            Fact::TimerFired(Timer::Inquiry) if self.progress == Progress::Unlinked => {
                self.rejoin(effects);
            }
            Fact::Rejoined if self.progress == Progress::Unlinked => {
                effects.push(Effect::ClearTimer(Timer::Inquiry));
                self.link(effects);
            }
            Fact::QemuDied(death) if self.bereft.is_none() => self.bereave(death, effects),
            // Nothing else changes what has to be done here: not a cancel, nor a time-out, nor what comes late.
            _ => {}
        }
        Source::Serving(self)
    }

    fn journaled(&mut self, effects: &mut Effects) {
        match self.progress {
            Progress::Journaling { unlinked: true } => {
                self.progress = Progress::Unlinked;
                self.rejoin(effects);
            }
            Progress::Journaling { unlinked: false } => self.link(effects),
            Progress::Linked | Progress::Unlinked => {}
        }
    }

    fn link(&mut self, effects: &mut Effects) {
        self.progress = Progress::Linked;
        effects.push(match &self.bereft {
            Some(Death { why, memory_is_held: false }) => Effect::Abort(why.clone()),
            _ => Effect::Serve,
        });
    }

    fn unlink(&mut self, effects: &mut Effects) {
        match &mut self.progress {
            Progress::Journaling { unlinked } => *unlinked = true,
            Progress::Linked => {
                self.progress = Progress::Unlinked;
                effects.push(Effect::SetTimer(Timer::Inquiry, self.limits.inquiry_interval));
            }
            // The timer is set.
            Progress::Unlinked => {}
        }
    }

    fn rejoin(&self, effects: &mut Effects) {
        effects.push(Effect::Rejoin);
        effects.push(Effect::SetTimer(Timer::Inquiry, self.limits.inquiry_interval));
    }

    /// The destination has to hear of it, however long that takes: its guest waits for pages that nobody has. It answers
    /// that the guest is lost, or that it lacked nothing any more. With its memory held nothing changes.
    fn bereave(&mut self, death: Death, effects: &mut Effects) {
        if self.progress == Progress::Linked && !death.memory_is_held {
            effects.push(Effect::Abort(death.why.clone()));
        }
        self.bereft = Some(death);
    }
}

impl Leaving {
    pub(super) fn begin(phase: &'static str, outcome: Outcome, effects: &mut Effects) -> Source {
        effects.push(Effect::Journal(match outcome {
            Outcome::Lost(_) => SourceRecord::Vanished,
            _ => SourceRecord::Gone,
        }));
        Source::Leaving(Self { outcome, phase })
    }

    /// As long as it is not durable, it is told as the phase before.
    pub(super) const fn phase(&self) -> &'static str {
        self.phase
    }

    #[expect(clippy::needless_pass_by_value, reason = "a state's handle consumes the fact")]
    pub(super) fn handle(self, fact: Fact, effects: &mut Effects) -> Source {
        match fact {
            Fact::Journaled(SourceRecord::Gone | SourceRecord::Vanished)
            | Fact::JournalFailed(_) => {
                effects.push(Effect::DestroyGuest);
                end(self.outcome, effects)
            }
            _ => Source::Leaving(self),
        }
    }
}
