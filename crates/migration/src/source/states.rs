//! The source's states before the offer, in the order in which a move goes through them, and the way back.
//!
//! What follows the offer is in `offered` and `serving`.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use sterna_model::Root;

use super::offered::Offering;
use super::{Death, Effect, Fact, Finish, Limits, MayReturn, Source, Timer};
use crate::journal::SourceRecord;
use crate::outcome::Outcome;
use crate::policy::{Decision, Policy};

pub(super) type Effects = Vec<Effect>;

/// Attempts to reach a destination again before the time between two of them is doubled.
const ATTEMPTS_AT_EACH_PACE: u32 = 10;
/// So often it is doubled: to half a minute, where it is a second at first.
const MOST_DOUBLINGS: u32 = 5;

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
    away: Option<Away>,
}

/// The connections broke: QEMU goes on telling what the guest dirties, and nothing is sent.
#[derive(Debug)]
struct Away {
    why: String,
    attempts: u32,
}

/// The guest is being stopped, and QEMU makes its last pass.
pub struct Stopping {
    policy: Box<dyn Policy>,
    limits: Limits,
    finish: Finish,
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

/// The guest is being resumed here.
#[derive(Debug)]
pub struct Returning {
    pub(super) outcome: Outcome,
    pub(super) returned: bool,
}

/// How our QEMU died, if it did, with all that the destination needs to run the guest on its way already. There is nothing
/// left to go back to then: the destination's copy is the only one.
pub(super) type Bereft = Option<Death>;

/// Proof that the destination's memory is ours.
#[derive(Debug)]
pub(super) struct RootsMatch(());

impl RootsMatch {
    fn compare(ours: Root, theirs: Root) -> Option<Self> {
        (ours == theirs).then_some(Self(()))
    }
}

/// Before the offer: resume the guest here, whatever state it is in, and tell the peer.
pub(super) fn give_back(outcome: Outcome, effects: &mut Effects) -> Source {
    let why = match &outcome {
        Outcome::Failed(why) => why.clone(),
        _ => String::from("cancelled by the user"),
    };
    for timer in [Timer::Job, Timer::Stop, Timer::Silence, Timer::Away, Timer::Inquiry] {
        effects.push(Effect::ClearTimer(timer));
    }
    // The reason first: the destination would otherwise only see its connections cut.
    effects.push(Effect::Abort(why));
    effects.push(Effect::ReturnGuest(MayReturn(())));
    Source::Returning(Returning { outcome, returned: false })
}

pub(super) fn end(outcome: Outcome, effects: &mut Effects) -> Source {
    effects.push(Effect::End(outcome.clone()));
    Source::Ended(outcome)
}

/// Before the offer, without a QEMU to go back to: whatever the destination has is of no use without a commit.
pub(super) fn lose(why: String, effects: &mut Effects) -> Source {
    effects.push(Effect::Abort(format!("the source's QEMU died: {why}")));
    end(Outcome::Lost(why), effects)
}

/// What every state before the offer does with a fact that is not its next step.
fn otherwise(state: Source, fact: Fact, effects: &mut Effects) -> Source {
    let failed = match fact {
        Fact::CancelRequested => return give_back(Outcome::Cancelled, effects),
        Fact::QemuDied(death) => return lose(death.why, effects),
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
        Fact::PeerLost(why) | Fact::PeerAway(why) => format!("the destination was lost: {why}"),
        Fact::PeerDiscarded => String::from("the destination discarded the guest"),
        Fact::PeerRefused(_)
        | Fact::PeerPrepared
        | Fact::PeerLoaded(_)
        | Fact::PeerRunning { .. }
        | Fact::PeerComplete
        | Fact::PeerVanished(_)
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
        | Fact::Rejoined
        | Fact::TimerFired(Timer::Inquiry | Timer::Away) => return state,
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
            return Source::Copying(Copying::linked(self.policy, self.limits));
        }
        Source::Preparing(self)
    }
}

impl Copying {
    const fn linked(policy: Box<dyn Policy>, limits: Limits) -> Self {
        Self { policy, limits, away: None }
    }

    pub(super) fn handle(mut self, fact: Fact, effects: &mut Effects) -> Source {
        if let Some(away) = self.away.take() {
            return self.handle_away(away, fact, effects);
        }
        match fact {
            Fact::PeerAway(why) => {
                effects.push(Effect::SetTimer(Timer::Away, self.limits.away));
                let mut away = Away { why, attempts: 0 };
                away.attempt(self.limits, effects);
                Source::Copying(Self { away: Some(away), ..self })
            }
            Fact::RoundEnded(facts) => match self.policy.round_ended(&facts) {
                Decision::NextRound => {
                    effects.push(Effect::BeginRound);
                    Source::Copying(self)
                }
                decision => self.rounds_are_over(decision, effects),
            },
            Fact::TimerFired(Timer::Job) => match self.policy.timed_out() {
                // The round that is under way goes on.
                Decision::NextRound => Source::Copying(self),
                decision => self.rounds_are_over(decision, effects),
            },
            Fact::StreamCompleted => {
                effects.push(Effect::RestartStream);
                Source::Copying(self)
            }
            other => otherwise(Source::Copying(self), other, effects),
        }
    }

    /// Without connections nothing is decided: it is waited for them, or given up.
    fn handle_away(self, mut away: Away, fact: Fact, effects: &mut Effects) -> Source {
        match fact {
            Fact::Rejoined => {
                effects.push(Effect::ClearTimer(Timer::Inquiry));
                effects.push(Effect::ClearTimer(Timer::Away));
                // The one that was broken off.
                effects.push(Effect::BeginRound);
                return Source::Copying(self);
            }
            Fact::TimerFired(Timer::Inquiry) => away.attempt(self.limits, effects),
            Fact::TimerFired(Timer::Away) => {
                let (why, seconds) = (away.why, self.limits.away.as_secs());
                let why = format!(
                    "the destination was lost: {why}; expected to reach it again within {seconds} s, found nobody"
                );
                return give_back(Outcome::Failed(why), effects);
            }
            // The time is over whatever the policy would make of it: nothing can be handed over.
            Fact::TimerFired(Timer::Job) => {
                let why = format!(
                    "the time-out passed while the destination could not be reached: {}",
                    away.why
                );
                return give_back(Outcome::Failed(why), effects);
            }
            Fact::StreamCompleted => effects.push(Effect::RestartStream),
            // More of the same, and what was under way before.
            Fact::PeerAway(_) | Fact::RoundEnded(_) => {}
            other => {
                return otherwise(
                    Source::Copying(Self { away: Some(away), ..self }),
                    other,
                    effects,
                );
            }
        }
        Source::Copying(Self { away: Some(away), ..self })
    }

    fn rounds_are_over(self, decision: Decision, effects: &mut Effects) -> Source {
        let finish = match decision {
            Decision::NextRound => return Source::Copying(self),
            Decision::Stop => Finish::PreCopy,
            Decision::StopForPostCopy => Finish::PostCopy,
            Decision::GiveUp(why) => return give_back(Outcome::Failed(why), effects),
        };
        effects.push(Effect::Journal(SourceRecord::Stopping));
        let Self { policy, limits, .. } = self;
        Source::Stopping(Stopping { policy, limits, finish, progress: StopProgress::Journaling })
    }
}

impl Away {
    /// Tries to make new connections, and sets when it is tried again: ever more seldom.
    fn attempt(&mut self, limits: Limits, effects: &mut Effects) {
        let doublings = (self.attempts / ATTEMPTS_AT_EACH_PACE).min(MOST_DOUBLINGS);
        self.attempts = self.attempts.saturating_add(1);
        effects.push(Effect::Rejoin);
        effects.push(Effect::SetTimer(Timer::Inquiry, limits.inquiry_interval * (1 << doublings)));
    }
}

impl Stopping {
    pub(super) fn handle(mut self, fact: Fact, effects: &mut Effects) -> Source {
        match (&self.progress, fact) {
            (StopProgress::Journaling, Fact::Journaled(SourceRecord::Stopping)) => {
                effects.push(Effect::SetTimer(Timer::Stop, self.limits.stop));
                effects.push(Effect::StopGuest(self.finish));
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
                effects.push(Effect::Flush(self.finish));
                let (limits, bereft) = (self.limits, None);
                Source::Flushing(Flushing { limits, ours: None, theirs: None, bereft })
            }
            // It completed before our stop took hold. Such a stream is never handed over: its device state may be of
            // a moment that we did not choose. The guest goes on, and so does copying.
            (_, Fact::StreamCompleted) => {
                effects.push(Effect::ClearTimer(Timer::Stop));
                effects.push(Effect::RestartStream);
                Source::Copying(Copying::linked(self.policy, self.limits))
            }
            // The rounds are over already; if they can end in post-copy, the time-out only hurries them.
            (_, Fact::TimerFired(Timer::Job)) => match self.policy.timed_out() {
                Decision::GiveUp(why) => give_back(Outcome::Failed(why), effects),
                Decision::StopForPostCopy => {
                    self.finish = Finish::PostCopy;
                    Source::Stopping(self)
                }
                Decision::Stop | Decision::NextRound => Source::Stopping(self),
            },
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
            // Before a post-copy the copy may lack pages, which are gone then unless they are held: that is the destination's
            // to know, and its answer to the commit tells.
            Fact::QemuDied(death) if self.ours.is_some() => {
                effects.push(Effect::ClearTimer(Timer::Stop));
                effects.push(Effect::ClearTimer(Timer::Silence));
                self.bereft = Some(death);
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
        Source::Offering(Offering::new(self.limits, self.bereft, roots_match))
    }

    /// As before the offer everywhere, but that without a QEMU nothing leads back: neither a cancel nor a deadline may
    /// then cost the only copy, and what the destination fails at is the guest's end.
    fn otherwise(self, fact: Fact, effects: &mut Effects) -> Source {
        let Some(died) = &self.bereft else {
            return otherwise(Source::Flushing(self), fact, effects);
        };
        let why = match fact {
            Fact::PeerFailed(why) | Fact::PeerLost(why) | Fact::PeerAway(why) => why,
            Fact::PeerDiscarded => String::from("the destination discarded the guest"),
            Fact::PeerRefused(_)
            | Fact::PeerPrepared
            | Fact::PeerRunning { .. }
            | Fact::PeerComplete
            | Fact::PeerVanished(_)
            | Fact::PeerUnknown(_) => String::from("the destination answered out of turn"),
            _ => return Source::Flushing(self),
        };
        lose(format!("{died}; {why}"), effects)
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
            Fact::QemuDied(death) => end(Outcome::Lost(death.why), effects),
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
