//! The source's states, in the order in which a move goes through them.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use sterna_model::Root;

use super::{DurableOffer, Effect, Fact, Limits, MayReturn, Source, Timer};
use crate::journal::SourceRecord;
use crate::outcome::Outcome;
use crate::policy::{Decision, Policy, RoundFacts};

type Effects = Vec<Effect>;

/// The destination gets ready; the guest is untouched.
pub struct Preparing {
    policy: Box<dyn Policy>,
    limits: Limits,
    peer_prepared: bool,
    journaled: bool,
}

/// Pages are copied while the guest runs.
pub struct Copying {
    policy: Box<dyn Policy>,
    limits: Limits,
}

/// The guest is being stopped, and QEMU makes its last pass.
pub struct Stopping {
    policy: Box<dyn Policy>,
    limits: Limits,
    progress: StopProgress,
}

#[derive(Debug, PartialEq, Eq)]
enum StopProgress {
    /// *stopping* is not durable yet: QEMU has not been asked.
    Journaling,
    /// QEMU has been asked to stop.
    Asked,
    /// The guest stands by our stop; QEMU's stream goes on to its end.
    Stopped,
}

/// The last pages and the device state are on their way.
#[derive(Debug)]
pub struct Flushing {
    limits: Limits,
    ours: Option<Root>,
    theirs: Option<Root>,
    bereft: Bereft,
}

/// Both memories are the same; the offer is being made durable.
#[derive(Debug)]
pub struct Offering {
    limits: Limits,
    bereft: Bereft,
    _roots_match: RootsMatch,
}

/// The commit is sent, or may have been.
#[derive(Debug)]
pub struct Offered {
    limits: Limits,
    bereft: Bereft,
    closing: bool,
}

/// The guest is being resumed here.
#[derive(Debug)]
pub struct Returning {
    outcome: Outcome,
    returned: bool,
}

/// Why our QEMU died, if it did, with all that the destination needs on its way already. There is nothing left to go back
/// to then: the destination's copy is the only one.
type Bereft = Option<String>;

/// Proof that the destination's memory is ours.
#[derive(Debug)]
struct RootsMatch(());

impl RootsMatch {
    fn compare(ours: Root, theirs: Root) -> Option<Self> {
        (ours == theirs).then_some(Self(()))
    }
}

/// Before the offer: resume the guest here, whatever state it is in, and tell the peer.
fn give_back(outcome: Outcome, effects: &mut Effects) -> Source {
    let why = match &outcome {
        Outcome::Failed(why) => why.clone(),
        _ => String::from("cancelled by the user"),
    };
    for timer in [Timer::Job, Timer::Stop, Timer::Silence] {
        effects.push(Effect::ClearTimer(timer));
    }
    // The reason first: the destination would otherwise only see its connections cut.
    effects.push(Effect::Abort(why));
    effects.push(Effect::ReturnGuest(MayReturn(())));
    Source::Returning(Returning { outcome, returned: false })
}

fn end(outcome: Outcome, effects: &mut Effects) -> Source {
    effects.push(Effect::End(outcome.clone()));
    Source::Ended(outcome)
}

/// Before the offer, without a QEMU to go back to: whatever the destination has is of no use without a commit.
fn lose(why: String, effects: &mut Effects) -> Source {
    effects.push(Effect::Abort(format!("the source's QEMU died: {why}")));
    end(Outcome::Lost(why), effects)
}

/// What every state before the offer does with a fact that is not its next step.
fn otherwise(state: Source, fact: Fact, effects: &mut Effects) -> Source {
    let failed = match fact {
        Fact::CancelRequested => return give_back(Outcome::Cancelled, effects),
        Fact::QemuDied(why) => return lose(why, effects),
        Fact::TimerFired(Timer::Job) => {
            String::from("the time-out passed before the guest could be handed over")
        }
        Fact::TimerFired(Timer::Stop) => {
            String::from("the stopped guest's last pages took too long")
        }
        Fact::TimerFired(Timer::Silence) => {
            String::from("the destination fell silent while the guest was stopped")
        }
        Fact::PeerFailed(why) | Fact::QemuFailed(why) | Fact::JournalFailed(why) => why,
        Fact::PeerLost(why) => format!("the destination was lost: {why}"),
        Fact::PeerDiscarded => String::from("the destination discarded the guest"),
        Fact::PeerRefused(_)
        | Fact::PeerPrepared
        | Fact::PeerLoaded(_)
        | Fact::PeerRunning
        | Fact::PeerUnknown(_) => {
            format!("the destination answered out of turn while {}", state.phase())
        }
        // Local facts that came late: the step that asked for them is over.
        Fact::RoundEnded(_)
        | Fact::Journaled(_)
        | Fact::GuestStopped
        | Fact::StreamCompleted
        | Fact::Flushed(_)
        | Fact::GuestReturned
        | Fact::ReturnFailed(_)
        | Fact::TimerFired(Timer::Inquiry) => return state,
    };
    give_back(Outcome::Failed(failed), effects)
}

impl Preparing {
    pub(super) fn begin(policy: Box<dyn Policy>, limits: Limits, effects: &mut Effects) -> Source {
        effects.push(Effect::Journal(SourceRecord::Copying));
        effects.push(Effect::Prepare);
        if !limits.timeout.is_zero() {
            effects.push(Effect::SetTimer(Timer::Job, limits.timeout));
        }
        Source::Preparing(Self { policy, limits, peer_prepared: false, journaled: false })
    }

    pub(super) fn handle(mut self, fact: Fact, effects: &mut Effects) -> Source {
        match fact {
            Fact::PeerPrepared if !self.peer_prepared => self.peer_prepared = true,
            Fact::Journaled(SourceRecord::Copying) => self.journaled = true,
            Fact::PeerRefused(refusals) => {
                // Nothing was touched, but the journal says that copying may have begun.
                effects.push(Effect::Journal(SourceRecord::Returned));
                return end(Outcome::Refused(refusals), effects);
            }
            other => return otherwise(Source::Preparing(self), other, effects),
        }
        if self.peer_prepared && self.journaled {
            effects.push(Effect::BeginCopy);
            return Source::Copying(Copying { policy: self.policy, limits: self.limits });
        }
        Source::Preparing(self)
    }
}

impl Copying {
    pub(super) fn handle(self, fact: Fact, effects: &mut Effects) -> Source {
        match fact {
            Fact::RoundEnded(facts) => self.round_ended(&facts, effects),
            Fact::StreamCompleted => {
                effects.push(Effect::RestartStream);
                Source::Copying(self)
            }
            other => otherwise(Source::Copying(self), other, effects),
        }
    }

    fn round_ended(mut self, facts: &RoundFacts, effects: &mut Effects) -> Source {
        match self.policy.round_ended(facts) {
            Decision::NextRound => {
                effects.push(Effect::BeginRound);
                Source::Copying(self)
            }
            Decision::Stop => {
                effects.push(Effect::Journal(SourceRecord::Stopping));
                let progress = StopProgress::Journaling;
                Source::Stopping(Stopping { policy: self.policy, limits: self.limits, progress })
            }
            Decision::GiveUp(why) => give_back(Outcome::Failed(why), effects),
        }
    }
}

impl Stopping {
    pub(super) fn handle(mut self, fact: Fact, effects: &mut Effects) -> Source {
        match (&self.progress, fact) {
            (StopProgress::Journaling, Fact::Journaled(SourceRecord::Stopping)) => {
                effects.push(Effect::SetTimer(Timer::Stop, self.limits.stop));
                effects.push(Effect::StopGuest);
                self.progress = StopProgress::Asked;
                Source::Stopping(self)
            }
            (StopProgress::Asked, Fact::GuestStopped) => {
                // Not before: rounds that a completion of QEMU's own brings back have their time-out still.
                effects.push(Effect::ClearTimer(Timer::Job));
                effects.push(Effect::SetTimer(Timer::Silence, self.limits.stopped_silence));
                self.progress = StopProgress::Stopped;
                Source::Stopping(self)
            }
            (StopProgress::Stopped, Fact::StreamCompleted) => {
                effects.push(Effect::Flush);
                let (limits, bereft) = (self.limits, None);
                Source::Flushing(Flushing { limits, ours: None, theirs: None, bereft })
            }
            // It completed before our stop took hold. Such a stream is never handed over: its device state may be of
            // a moment that we did not choose. The guest goes on, and so does copying.
            (_, Fact::StreamCompleted) => {
                effects.push(Effect::ClearTimer(Timer::Stop));
                effects.push(Effect::RestartStream);
                Source::Copying(Copying { policy: self.policy, limits: self.limits })
            }
            (_, other) => otherwise(Source::Stopping(self), other, effects),
        }
    }
}

impl Flushing {
    /// Our QEMU is dead, and the destination's copy is the only one.
    pub(super) const fn is_bereft(&self) -> bool {
        self.bereft.is_some()
    }

    pub(super) fn handle(mut self, fact: Fact, effects: &mut Effects) -> Source {
        match fact {
            Fact::Flushed(root) => self.ours = Some(root),
            Fact::PeerLoaded(root) => self.theirs = Some(root),
            // Everything was handed over, so the destination's copy will be whole; to go on cannot make two running
            // copies, since what is dead never runs again. Nothing hurries any more: there is no guest to resume.
            Fact::QemuDied(why) if self.ours.is_some() => {
                effects.push(Effect::ClearTimer(Timer::Stop));
                effects.push(Effect::ClearTimer(Timer::Silence));
                self.bereft = Some(why);
            }
            other => return self.otherwise(other, effects),
        }
        let (Some(ours), Some(theirs)) = (self.ours, self.theirs) else {
            return Source::Flushing(self);
        };
        let Some(roots_match) = RootsMatch::compare(ours, theirs) else {
            let why = format!(
                "the destination's memory differs from ours: expected root {ours:?}, found {theirs:?}"
            );
            return match self.bereft {
                Some(died) => lose(format!("{died}; {why}"), effects),
                None => give_back(Outcome::Failed(why), effects),
            };
        };
        effects.push(Effect::ClearTimer(Timer::Stop));
        effects.push(Effect::ClearTimer(Timer::Silence));
        effects.push(Effect::Journal(SourceRecord::Offered));
        let Self { limits, bereft, .. } = self;
        Source::Offering(Offering { limits, bereft, _roots_match: roots_match })
    }

    /// As before the offer everywhere, but that without a QEMU nothing leads back: neither a cancel nor a deadline may
    /// then cost the only copy, and what the destination fails at is the guest's end.
    fn otherwise(self, fact: Fact, effects: &mut Effects) -> Source {
        let Some(died) = &self.bereft else {
            return otherwise(Source::Flushing(self), fact, effects);
        };
        let why = match fact {
            Fact::PeerFailed(why) | Fact::PeerLost(why) => why,
            Fact::PeerDiscarded => String::from("the destination discarded the guest"),
            Fact::PeerRefused(_)
            | Fact::PeerPrepared
            | Fact::PeerRunning
            | Fact::PeerUnknown(_) => String::from("the destination answered out of turn"),
            _ => return Source::Flushing(self),
        };
        lose(format!("{died}; {why}"), effects)
    }
}

impl Offering {
    pub(super) fn handle(mut self, fact: Fact, effects: &mut Effects) -> Source {
        match fact {
            Fact::Journaled(SourceRecord::Offered) => {
                effects.push(Effect::Commit(DurableOffer(())));
                effects.push(Effect::SetTimer(Timer::Inquiry, self.limits.inquiry_interval));
                let Self { limits, bereft, .. } = self;
                Source::Offered(Offered { limits, bereft, closing: false })
            }
            // No commit was sent, nor will one be: the destination can only discard, and the guest goes on here at once.
            // The record may be on disk all the same: a restart would ask, which is safe.
            Fact::JournalFailed(why) => match self.bereft {
                Some(died) => lose(format!("{died}; {why}"), effects),
                None => give_back(Outcome::Failed(why), effects),
            },
            // A cancel is refused from here on; whatever else happens is for the next state to hear of.
            Fact::PeerLost(_) | Fact::PeerFailed(_) | Fact::PeerDiscarded => {
                Offered::asking(self.limits, self.bereft, effects)
            }
            Fact::QemuDied(why) => {
                self.bereft = Some(why);
                Source::Offering(self)
            }
            _ => Source::Offering(self),
        }
    }
}

impl Offered {
    pub(super) fn after_restart(limits: Limits, effects: &mut Effects) -> Source {
        Self::asking(limits, None, effects)
    }

    fn asking(limits: Limits, bereft: Bereft, effects: &mut Effects) -> Source {
        effects.push(Effect::Inquire);
        effects.push(Effect::SetTimer(Timer::Inquiry, limits.inquiry_interval));
        Source::Offered(Self { limits, bereft, closing: false })
    }

    pub(super) fn handle(mut self, fact: Fact, effects: &mut Effects) -> Source {
        match fact {
            Fact::PeerRunning if !self.closing => {
                effects.push(Effect::ClearTimer(Timer::Inquiry));
                effects.push(Effect::Journal(SourceRecord::Gone));
                self.closing = true;
                Source::Offered(self)
            }
            Fact::Journaled(SourceRecord::Gone) | Fact::JournalFailed(_) if self.closing => {
                effects.push(Effect::DestroyGuest);
                end(Outcome::Done, effects)
            }
            Fact::PeerDiscarded if !self.closing => {
                effects.push(Effect::ClearTimer(Timer::Inquiry));
                let why = "the destination discarded the guest after it was offered";
                if let Some(died) = self.bereft {
                    return end(Outcome::Lost(format!("{died}; {why}")), effects);
                }
                effects.push(Effect::ReturnGuest(MayReturn(())));
                let outcome = Outcome::Failed(why.into());
                Source::Returning(Returning { outcome, returned: false })
            }
            Fact::PeerUnknown(why) if !self.closing => {
                effects.push(Effect::ClearTimer(Timer::Inquiry));
                end(Outcome::Unknown(why), effects)
            }
            Fact::TimerFired(Timer::Inquiry) | Fact::PeerLost(_) | Fact::PeerFailed(_)
                if !self.closing =>
            {
                effects.push(Effect::Inquire);
                effects.push(Effect::SetTimer(Timer::Inquiry, self.limits.inquiry_interval));
                Source::Offered(self)
            }
            // Whether the guest is lost is the destination's to say: it may run there.
            Fact::QemuDied(why) => {
                self.bereft = Some(why);
                Source::Offered(self)
            }
            _ => Source::Offered(self),
        }
    }
}

impl Returning {
    pub(super) fn after_restart(effects: &mut Effects) -> Source {
        effects.push(Effect::ReturnGuest(MayReturn(())));
        let why = "the source's agent was restarted; the guest runs on at the source";
        Source::Returning(Self { outcome: Outcome::Failed(why.into()), returned: false })
    }

    pub(super) fn handle(mut self, fact: Fact, effects: &mut Effects) -> Source {
        match fact {
            Fact::GuestReturned if !self.returned => {
                self.returned = true;
                effects.push(Effect::Journal(SourceRecord::Returned));
                Source::Returning(self)
            }
            // The guest runs: a journal that cannot be written must not hide that.
            Fact::Journaled(SourceRecord::Returned) | Fact::JournalFailed(_) if self.returned => {
                end(self.outcome, effects)
            }
            Fact::ReturnFailed(why) => end(Outcome::Unknown(why), effects),
            Fact::QemuDied(why) => end(Outcome::Lost(why), effects),
            _ => Source::Returning(self),
        }
    }
}

impl fmt::Debug for Preparing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Preparing")
            .field("peer_prepared", &self.peer_prepared)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Stopping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stopping").field("progress", &self.progress).finish_non_exhaustive()
    }
}

impl fmt::Debug for Copying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Copying").field("policy", &self.policy.name()).finish_non_exhaustive()
    }
}
