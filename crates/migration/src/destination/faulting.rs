//! The guest runs here and lacks pages: they come from the source, by push and on demand, until it lacks none.
//!
//! It is ours and stays ours. Nothing but completion ends this, or the death of one of the two QEMUs: without ours there is
//! no guest, without the source's its pages are nowhere. Then it is lost, which is journalled and told to the source. Who
//! makes broken connections anew is the source.

use alloc::format;
use alloc::string::String;

use super::states::Effects;
use super::{Answer, Destination, Effect, End, Fact};
use crate::journal::DestinationRecord;

/// The guest runs here and lacks pages.
#[derive(Debug)]
pub struct Faulting {
    progress: Progress,
}

#[derive(Debug)]
enum Progress {
    /// Pages come in.
    Lacking,
    /// The source's QEMU is dead; ours is being killed. Why.
    Doomed(String),
    /// All is here; *running* is being made durable.
    Complete,
}

/// The guest is dead; *vanished* is being made durable.
#[derive(Debug)]
pub struct Vanishing {
    why: String,
}

impl Faulting {
    pub(super) fn begin(stream_broken: bool, effects: &mut Effects) -> Destination {
        effects.push(Effect::Journal(DestinationRecord::Faulting));
        if stream_broken {
            effects.push(Effect::RecoverStream);
        }
        Destination::Faulting(Self { progress: Progress::Lacking })
    }

    pub(super) fn after_restart(effects: &mut Effects) -> Destination {
        effects.push(Effect::RecoverStream);
        Destination::Faulting(Self { progress: Progress::Lacking })
    }

    pub(super) fn handle(self, fact: Fact, effects: &mut Effects) -> Destination {
        match self.progress {
            Progress::Lacking => Self::lacking(fact, effects),
            Progress::Doomed(why) => Self::doomed(why, &fact, effects),
            Progress::Complete => Self::complete(&fact, effects),
        }
    }

    fn lacking(fact: Fact, effects: &mut Effects) -> Destination {
        let progress = match fact {
            Fact::MemoryComplete => {
                effects.push(Effect::Journal(DestinationRecord::Running));
                Progress::Complete
            }
            Fact::Abort(why) => {
                effects.push(Effect::KillQemu);
                Progress::Doomed(format!("the source's QEMU died: {why}"))
            }
            Fact::QemuDied(why) => {
                return Vanishing::begin(format!("the destination's QEMU died: {why}"), effects);
            }
            Fact::StreamBroken(_) => {
                effects.push(Effect::RecoverStream);
                Progress::Lacking
            }
            Fact::Asked => {
                effects.push(Effect::Answer(Answer::Running { lacks_pages: true }));
                Progress::Lacking
            }
            // The source makes its connections anew. That *faulting* could not be journalled changes nothing: *entitled*
            // leads here again, since QEMU knows what it lacks.
            _ => Progress::Lacking,
        };
        Destination::Faulting(Self { progress })
    }

    /// The guest cannot go on; whoever asks is answered when it is dead.
    fn doomed(why: String, fact: &Fact, effects: &mut Effects) -> Destination {
        match fact {
            Fact::Killed | Fact::QemuDied(_) => Vanishing::begin(why, effects),
            _ => Destination::Faulting(Self { progress: Progress::Doomed(why) }),
        }
    }

    /// The guest needs the source no more, whether or not that could be written down: after a restart QEMU tells the same.
    fn complete(fact: &Fact, effects: &mut Effects) -> Destination {
        match fact {
            Fact::Journaled(DestinationRecord::Running) | Fact::JournalFailed(_) => {
                effects.push(Effect::Answer(Answer::Complete));
                effects.push(Effect::End(End::Running));
                Destination::Ended(End::Running)
            }
            _ => Destination::Faulting(Self { progress: Progress::Complete }),
        }
    }
}

impl Vanishing {
    fn begin(why: String, effects: &mut Effects) -> Destination {
        effects.push(Effect::Journal(DestinationRecord::Vanished));
        Destination::Vanishing(Self { why })
    }

    #[expect(clippy::needless_pass_by_value, reason = "a state's handle consumes the fact")]
    pub(super) fn handle(self, fact: Fact, effects: &mut Effects) -> Destination {
        match fact {
            // Dead is dead: after a restart without the record its QEMU is found gone.
            Fact::Journaled(DestinationRecord::Vanished) | Fact::JournalFailed(_) => {
                effects.push(Effect::Answer(Answer::Vanished(self.why.clone())));
                effects.push(Effect::End(End::Lost(self.why.clone())));
                Destination::Ended(End::Lost(self.why))
            }
            _ => Destination::Vanishing(self),
        }
    }
}
