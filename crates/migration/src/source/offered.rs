//! From the offer on: the guest may be the destination's, and only its answer tells.

use alloc::format;
use alloc::string::String;

use super::serving::{Leaving, Serving};
use super::states::{Bereft, Effects, Returning, RootsMatch, end, give_back, lose};
use super::{DurableOffer, Effect, Fact, Limits, MayReturn, Source, Timer};
use crate::journal::SourceRecord;
use crate::outcome::Outcome;

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
    /// The connections that pages could be served on are gone.
    unlinked: bool,
}

impl Offering {
    pub(super) const fn new(limits: Limits, bereft: Bereft, roots_match: RootsMatch) -> Self {
        Self { limits, bereft, _roots_match: roots_match }
    }

    pub(super) fn handle(mut self, fact: Fact, effects: &mut Effects) -> Source {
        match fact {
            Fact::Journaled(SourceRecord::Offered) => {
                effects.push(Effect::Commit(DurableOffer(())));
                effects.push(Effect::SetTimer(Timer::Inquiry, self.limits.inquiry_interval));
                let Self { limits, bereft, .. } = self;
                Source::Offered(Offered { limits, bereft, unlinked: false })
            }
            // No commit was sent, nor will one be: the destination can only discard, and the guest goes on here at once.
            // The record may be on disk all the same: a restart would ask, which is safe.
            Fact::JournalFailed(why) => match self.bereft {
                Some(died) => lose(format!("{died}; {why}"), effects),
                None => give_back(Outcome::Failed(why), effects),
            },
            // A cancel is refused from here on; whatever else happens is for the next state to hear of.
            Fact::PeerLost(_) | Fact::PeerAway(_) | Fact::PeerFailed(_) | Fact::PeerDiscarded => {
                Offered::asking(self.limits, self.bereft, effects)
            }
            Fact::QemuDied(death) => {
                self.bereft = Some(death);
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
        let asking = Self { limits, bereft, unlinked: true };
        asking.inquire(effects);
        Source::Offered(asking)
    }

    fn inquire(&self, effects: &mut Effects) {
        effects.push(Effect::Inquire);
        effects.push(Effect::SetTimer(Timer::Inquiry, self.limits.inquiry_interval));
    }

    pub(super) fn handle(mut self, fact: Fact, effects: &mut Effects) -> Source {
        match fact {
            Fact::PeerRunning { lacks_pages: true } => {
                effects.push(Effect::ClearTimer(Timer::Inquiry));
                Serving::begin(self.limits, self.bereft, self.unlinked, effects)
            }
            Fact::PeerRunning { lacks_pages: false } | Fact::PeerComplete => {
                effects.push(Effect::ClearTimer(Timer::Inquiry));
                Leaving::begin("offered", Outcome::Done, effects)
            }
            Fact::PeerVanished(why) => {
                effects.push(Effect::ClearTimer(Timer::Inquiry));
                Leaving::begin("offered", Outcome::Lost(with(self.bereft, why)), effects)
            }
            Fact::PeerDiscarded => {
                effects.push(Effect::ClearTimer(Timer::Inquiry));
                let why = "the destination discarded the guest after it was offered";
                if self.bereft.is_some() {
                    return end(Outcome::Lost(with(self.bereft, why.into())), effects);
                }
                effects.push(Effect::ReturnGuest(MayReturn(())));
                let outcome = Outcome::Failed(why.into());
                Source::Returning(Returning { outcome, returned: false })
            }
            Fact::PeerUnknown(why) => {
                effects.push(Effect::ClearTimer(Timer::Inquiry));
                end(Outcome::Unknown(why), effects)
            }
            Fact::PeerLost(_) | Fact::PeerAway(_) | Fact::PeerFailed(_) => {
                self.unlinked = true;
                self.inquire(effects);
                Source::Offered(self)
            }
            Fact::TimerFired(Timer::Inquiry) => {
                self.inquire(effects);
                Source::Offered(self)
            }
            // Whether the guest is lost is the destination's to say: it may run there.
            Fact::QemuDied(death) => {
                self.bereft = Some(death);
                Source::Offered(self)
            }
            _ => Source::Offered(self),
        }
    }
}

/// Why the guest is lost: its QEMU here died before, perhaps, and then this.
pub(super) fn with(bereft: Bereft, why: String) -> String {
    match bereft {
        Some(died) => format!("{died}; {why}"),
        None => why,
    }
}
