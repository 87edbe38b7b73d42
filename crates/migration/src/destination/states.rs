//! The destination's states, in the order in which a move goes through them.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use sterna_model::Root;

use super::faulting::Faulting;
use super::{Answer, Destination, Effect, End, Entitlement, Fact};
use crate::journal::DestinationRecord;

pub(super) type Effects = Vec<Effect>;

/// Loaded, and the source says nothing: after this the guest is discarded, so that it can be resumed there.
const LOADED_SILENCE: Duration = Duration::from_secs(10);

/// QEMU is being started.
#[derive(Debug)]
pub struct Starting {
    started: bool,
}

/// Pages come in.
#[derive(Debug)]
pub struct Receiving(());

/// Everything is here; QEMU loads.
#[derive(Debug)]
pub struct Loading {
    theirs: Root,
}

/// Everything is loaded and the roots agree; nothing runs.
#[derive(Debug)]
pub struct Loaded {
    roots_match: RootsMatch,
}

/// The commit came; *entitled* is being made durable.
#[derive(Debug)]
pub struct Entitling {
    stream_broken: bool,
    _roots_match: RootsMatch,
}

/// The guest is being resumed.
#[derive(Debug)]
pub struct Resuming {
    /// Whatever fed QEMU is gone since it loaded, with the agent perhaps.
    stream_broken: bool,
}

/// The guest runs here; *running* is being made durable.
#[derive(Debug)]
pub struct Running(());

/// Our QEMU is being killed.
#[derive(Debug)]
pub struct Discarding {
    why: String,
    killed: bool,
}

/// Proof that our memory is the source's.
#[derive(Debug)]
struct RootsMatch(());

/// Kill, then journal, then answer.
pub(super) fn discard(why: String, effects: &mut Effects) -> Destination {
    effects.push(Effect::KillQemu);
    Destination::Discarding(Discarding { why, killed: false })
}

/// What a job that is over still answers.
pub(super) fn ended(end: End, fact: &Fact, effects: &mut Effects) -> Destination {
    if matches!(fact, Fact::Asked | Fact::Commit) {
        effects.push(Effect::Answer(match &end {
            // A source that waits for *complete* takes this for it.
            End::Running => Answer::Running { lacks_pages: false },
            End::Discarded(_) => Answer::Discarded,
            End::Unknown(why) => Answer::Unknown(why.clone()),
            End::Lost(why) => Answer::Vanished(why.clone()),
        }));
    }
    Destination::Ended(end)
}

/// What every state before the commit does with a fact that is not its next step.
fn otherwise(state: Destination, fact: Fact, effects: &mut Effects) -> Destination {
    let why = match fact {
        Fact::Abort(why) => format!("the source gave up: {why}"),
        Fact::PeerLost(why) | Fact::PeerAway(why, _) => format!("the source was lost: {why}"),
        Fact::Asked => String::from("the source asked before the commit"),
        Fact::Commit => {
            let why = format!("the source committed out of turn while {}", state.phase());
            effects.push(Effect::Answer(Answer::Failed(why.clone())));
            why
        }
        Fact::Failed(why) | Fact::JournalFailed(why) | Fact::StreamBroken(why) => {
            effects.push(Effect::Answer(Answer::Failed(why.clone())));
            why
        }
        Fact::QemuDied(why) => {
            let why = format!("the destination's QEMU died: {why}");
            effects.push(Effect::Answer(Answer::Failed(why.clone())));
            why
        }
        Fact::FinalReceived(_) => {
            let why =
                format!("the source sent its last message out of turn while {}", state.phase());
            effects.push(Effect::Answer(Answer::Failed(why.clone())));
            why
        }
        Fact::QemuStarted
        | Fact::StartRefused(_)
        | Fact::Journaled(_)
        | Fact::MemoryLoaded(_)
        | Fact::Resumed { .. }
        | Fact::ResumeFailed(_)
        | Fact::MemoryComplete
        | Fact::Killed => return state,
    };
    discard(why, effects)
}

impl Starting {
    pub(super) fn begin(effects: &mut Effects) -> Destination {
        effects.push(Effect::Journal(DestinationRecord::Prepared));
        Destination::Starting(Self { started: false })
    }

    pub(super) fn handle(mut self, fact: Fact, effects: &mut Effects) -> Destination {
        match fact {
            // The journal comes first: a QEMU that no journal knows would stay behind after a crash.
            Fact::Journaled(DestinationRecord::Prepared) if !self.started => {
                self.started = true;
                effects.push(Effect::StartQemu);
                Destination::Starting(self)
            }
            Fact::QemuStarted => {
                effects.push(Effect::Answer(Answer::Prepared));
                Destination::Receiving(Receiving(()))
            }
            Fact::StartRefused(refusals) => {
                effects.push(Effect::Journal(DestinationRecord::Discarded));
                effects.push(Effect::Answer(Answer::Refused(refusals)));
                let end = End::Discarded(String::from("the guest was refused"));
                effects.push(Effect::End(end.clone()));
                Destination::Ended(end)
            }
            other => otherwise(Destination::Starting(self), other, effects),
        }
    }
}

impl Receiving {
    pub(super) fn handle(self, fact: Fact, effects: &mut Effects) -> Destination {
        match fact {
            Fact::FinalReceived(theirs) => Destination::Loading(Loading { theirs }),
            // What is here is kept for a source that comes back; whoever drives the machine stops to watch for it then.
            Fact::PeerAway(_, keep) => {
                effects.push(Effect::WatchSource(keep));
                Destination::Receiving(self)
            }
            other => otherwise(Destination::Receiving(self), other, effects),
        }
    }
}

impl Loading {
    pub(super) fn handle(self, fact: Fact, effects: &mut Effects) -> Destination {
        match fact {
            Fact::MemoryLoaded(ours) if ours == self.theirs => {
                effects.push(Effect::Answer(Answer::Loaded(ours)));
                effects.push(Effect::WatchSource(LOADED_SILENCE));
                Destination::Loaded(Loaded { roots_match: RootsMatch(()) })
            }
            Fact::MemoryLoaded(ours) => {
                let theirs = self.theirs;
                let why = format!(
                    "the memory received differs: expected root {theirs:?}, found {ours:?}"
                );
                effects.push(Effect::Answer(Answer::Failed(why.clone())));
                discard(why, effects)
            }
            other => otherwise(Destination::Loading(self), other, effects),
        }
    }
}

impl Loaded {
    pub(super) fn handle(self, fact: Fact, effects: &mut Effects) -> Destination {
        match fact {
            Fact::Commit => {
                effects.push(Effect::Journal(DestinationRecord::Entitled));
                let Self { roots_match } = self;
                let (stream_broken, _roots_match) = (false, roots_match);
                Destination::Entitling(Entitling { stream_broken, _roots_match })
            }
            other => otherwise(Destination::Loaded(self), other, effects),
        }
    }
}

impl Entitling {
    pub(super) fn after_restart(effects: &mut Effects) -> Destination {
        Self::durable(true, effects)
    }

    fn durable(stream_broken: bool, effects: &mut Effects) -> Destination {
        effects.push(Effect::Resume(Entitlement(())));
        Destination::Resuming(Resuming { stream_broken })
    }

    pub(super) fn handle(mut self, fact: Fact, effects: &mut Effects) -> Destination {
        match fact {
            Fact::Journaled(DestinationRecord::Entitled) => {
                Self::durable(self.stream_broken, effects)
            }
            Fact::StreamBroken(_) => {
                self.stream_broken = true;
                Destination::Entitling(self)
            }
            // Whether the record is on disk is not known: after a restart it may entitle us. So nothing may run here
            // or there until a person looks.
            Fact::JournalFailed(why) => {
                unknown(format!("the commit could not be made durable: {why}"), effects)
            }
            Fact::QemuDied(why) => unknown(format!("QEMU died at the commit: {why}"), effects),
            _ => Destination::Entitling(self),
        }
    }
}

impl Resuming {
    pub(super) fn handle(mut self, fact: Fact, effects: &mut Effects) -> Destination {
        match fact {
            Fact::Resumed { lacks_pages } => {
                effects.push(Effect::Answer(Answer::Running { lacks_pages }));
                if lacks_pages {
                    return Faulting::begin(self.stream_broken, effects);
                }
                effects.push(Effect::Journal(DestinationRecord::Running));
                Destination::Running(Running(()))
            }
            Fact::StreamBroken(_) => {
                self.stream_broken = true;
                Destination::Resuming(self)
            }
            Fact::ResumeFailed(why) => {
                unknown(format!("the guest could not be resumed: {why}"), effects)
            }
            Fact::QemuDied(why) => {
                unknown(format!("QEMU died while it was resumed: {why}"), effects)
            }
            _ => Destination::Resuming(self),
        }
    }
}

impl Running {
    #[expect(clippy::needless_pass_by_value, reason = "a state's handle consumes the fact")]
    pub(super) fn handle(self, fact: Fact, effects: &mut Effects) -> Destination {
        match fact {
            Fact::Asked => effects.push(Effect::Answer(Answer::Running { lacks_pages: false })),
            // The guest runs whether or not the last record could be written: *entitled* says enough after a restart.
            Fact::Journaled(DestinationRecord::Running) | Fact::JournalFailed(_) => {
                effects.push(Effect::End(End::Running));
                return Destination::Ended(End::Running);
            }
            _ => {}
        }
        Destination::Running(self)
    }
}

impl Discarding {
    #[expect(clippy::needless_pass_by_value, reason = "a state's handle consumes the fact")]
    pub(super) fn handle(mut self, fact: Fact, effects: &mut Effects) -> Destination {
        match fact {
            Fact::Killed | Fact::QemuDied(_) if !self.killed => {
                self.killed = true;
                effects.push(Effect::Journal(DestinationRecord::Discarded));
                Destination::Discarding(self)
            }
            Fact::Journaled(DestinationRecord::Discarded) | Fact::JournalFailed(_)
                if self.killed =>
            {
                effects.push(Effect::Answer(Answer::Discarded));
                let end = End::Discarded(self.why);
                effects.push(Effect::End(end.clone()));
                Destination::Ended(end)
            }
            // The question is answered when the discard is done.
            _ => Destination::Discarding(self),
        }
    }
}

fn unknown(why: String, effects: &mut Effects) -> Destination {
    effects.push(Effect::Answer(Answer::Unknown(why.clone())));
    effects.push(Effect::End(End::Unknown(why.clone())));
    Destination::Ended(End::Unknown(why))
}
