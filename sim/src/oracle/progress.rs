//! Progress: every run ends, on both hosts, and healthy ones in success; nobody is left standing, nothing is left over.
//!
//! Checks: both jobs come to an end within the run's virtual time, also after a last restart of both agents; a run in which
//! nothing harmful struck ends in *done*, and so does one in which the guest lacked pages at the destination unless a QEMU, a
//! disk or a whole host failed; a guest that is given back runs within a second, unless its QEMU was slow, and
//! with nothing offered it never stands longer than the machine's limit; at the end the guest runs where the report says, and no QEMU waits for a guest that will not come.
//!
//! Does not check what a person does about an end that is *unknown*, how fast a healthy move is, nor that a job without a time-out ends when a peer never says anything
//! again (standstills and silences are finite here).

use std::time::Duration;

use sterna_migration::destination::End;
use sterna_migration::outcome::OutcomeName;
use sterna_model::Instant;

use super::{Ended, Oracle};
use crate::faults::{Side, What};
use crate::world::World;

/// A guest that is to be given back runs within this.
const RETURN_LIMIT: Duration = Duration::from_secs(1);

/// A guest that is rolled back with nothing offered stands no longer than the hand-over takes, a silence of a second, and
/// some time to return.
const STAND_LIMIT: Duration = Duration::from_secs(4);

/// How far both hosts are.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    begun: [bool; 2],
    ended: [Option<Ended>; 2],
    returning_since: Option<Instant>,
    stands_since: Option<Instant>,
    offered: bool,
    /// How long the guest stood before it ran on at the source, with nothing offered.
    pub stood: Duration,
}

impl Progress {
    pub(crate) fn begun(&mut self, side: Side) {
        self.begun[side.index()] = true;
        self.ended[side.index()] = None;
    }

    pub(super) fn ended(&mut self, side: Side, how: Ended) {
        self.ended[side.index()] = Some(how);
    }

    /// A restarted agent finds in its journal how the job ended: nothing is checked that was checked then.
    pub(crate) fn remembered(&mut self, side: Side, name: OutcomeName) {
        self.ended[side.index()] = Some(Ended::Source(name));
    }

    /// As [`Self::remembered`], at the destination.
    pub(crate) fn remembered_there(&mut self, end: End) {
        self.ended[Side::Destination.index()] = Some(Ended::Destination(end));
    }

    /// Whether the job was ever begun on a host.
    pub(crate) const fn was_begun(&self, side: Side) -> bool {
        self.begun[side.index()]
    }

    /// The agent is restarted: whether the job is over is for its journal to say.
    pub(crate) fn restarted(&mut self, side: Side) {
        self.ended[side.index()] = None;
    }

    /// How the job ended on a host, if it did.
    pub(crate) const fn how_ended(&self, side: Side) -> Option<&Ended> {
        self.ended[side.index()].as_ref()
    }

    /// Whether nothing is under way on either host.
    pub(crate) fn is_settled(&self) -> bool {
        self.begun[0] && [0, 1].iter().all(|side| !self.begun[*side] || self.ended[*side].is_some())
    }
}

impl World {
    /// The source's guest stands by our stop.
    pub(super) fn stand_begins(&mut self) {
        let now = self.now();
        self.oracles.progress.stands_since.get_or_insert(now);
    }

    /// *Offered* is being written, and may be durable: only the destination's answer ends it from here on.
    pub(crate) fn stand_is_theirs(&mut self) {
        self.oracles.progress.offered = true;
    }

    /// The source's guest runs on.
    pub(super) fn stand_is_over(&mut self) {
        let Some(since) = self.oracles.progress.stands_since.take() else { return };
        let stood = self.now().since(since);
        if self.oracles.progress.offered {
            return;
        }
        self.oracles.progress.stood = self.oracles.progress.stood.max(stood);
        self.note(|| format!("the guest stood for {stood:?}, and nothing was offered"));
        let excused = self.oracles.struck.iter().any(|what| {
            matches!(
                what,
                What::CommandHangs(_)
                    | What::CommandRefused(_)
                    | What::Stalls(..)
                    | What::Crash(..)
                    | What::SlowSync(..)
            )
        });
        if stood > STAND_LIMIT && !excused {
            self.blame(Oracle::Progress, format!("the guest stood for {stood:?} for nothing"));
        }
    }

    /// The destination said *unknown* before it resumed the guest after all (its disk had failed, say), and the guest lacks
    /// pages: the source's job is over, and its QEMU stands until somebody lets it serve.
    pub(crate) fn waits_for_a_person(&self) -> bool {
        let source = self.oracles.progress.how_ended(Side::Source);
        source == Some(&Ended::Source(OutcomeName::Unknown)) && self.stayed_lacking()
    }

    /// The source is to give the guest back.
    pub(crate) fn return_begins(&mut self) {
        let now = self.now();
        self.oracles.progress.returning_since = Some(now);
    }

    /// The source has given the guest back.
    pub(crate) fn return_is_over(&mut self) {
        let Some(since) = self.oracles.progress.returning_since.take() else { return };
        let took = self.now().since(since);
        let excused = self.oracles.struck.iter().any(|what| {
            matches!(what, What::CommandHangs(_) | What::CommandRefused(_) | What::Stalls(..))
        });
        if took > RETURN_LIMIT && !excused {
            self.blame(Oracle::Progress, format!("the guest was given back after {took:?} only"));
        }
    }

    /// The run goes on without end.
    pub(crate) fn blame_endless(&mut self) {
        let progress = &self.oracles.progress;
        let why = format!(
            "the jobs do not end: at the source {:?}, at the destination {:?}",
            progress.ended[0], progress.ended[1]
        );
        self.blame(Oracle::Progress, why);
    }

    /// Both jobs are over, for the first time.
    pub(crate) fn check_success(&mut self) {
        let done = Some(Ended::Source(OutcomeName::Done));
        let found = self.oracles.progress.ended[0].clone();
        if self.oracles.healthy && found != done {
            let why = format!("nothing harmful struck, and the job ended in {found:?}");
            self.blame(Oracle::Progress, why);
        }
    }

    /// The run is over: where is the guest, and what is left?
    pub(crate) fn check_leftovers(&mut self) {
        self.check_not_lost();
        self.check_journals();
        let taken = self.oracles.single_owner.taken;
        let ended = self.oracles.progress.ended.clone();
        let clouded = self.oracles.is_clouded();
        let unknown = ended.iter().flatten().any(|how| {
            matches!(how, Ended::Source(OutcomeName::Unknown) | Ended::Destination(End::Unknown(_)))
        });
        if unknown {
            return;
        }
        if self.is_alive(Side::Destination) && !taken {
            self.blame(Oracle::Progress, "a QEMU is left over at the destination");
        }
        let left = [OutcomeName::Done, OutcomeName::Lost].map(|name| Some(Ended::Source(name)));
        if taken && self.is_alive(Side::Source) && left.contains(&ended[0]) {
            self.blame(Oracle::Progress, "a QEMU is left over at the source");
        }
        if self.is_alive(Side::Destination)
            && matches!(ended[1], Some(Ended::Destination(End::Lost(_))))
        {
            self.blame(Oracle::Progress, "a QEMU of a lost guest is left over at the destination");
        }
        self.check_placement_at_end();
        self.check_served(clouded);
        let ran = !self.setting.paused && !self.was_stopped_by_others();
        let owner = if taken { Side::Destination } else { Side::Source };
        if ran && !clouded && self.is_alive(owner) && !self.runs(owner) {
            self.blame(Oracle::Progress, format!("the guest is left standing at the {owner:?}"));
        }
    }

    /// Once the guest runs and lacks pages, neither broken links nor restarts nor a cancel keep it from becoming whole.
    fn check_served(&mut self, clouded: bool) {
        let outcome = self.oracles.progress.ended[Side::Source.index()].clone();
        let done = Some(Ended::Source(OutcomeName::Done));
        if self.oracles.placement.lacked && !clouded && outcome != done {
            let why = format!("the guest ran at the destination, and its job ended in {outcome:?}");
            self.blame(Oracle::Progress, why);
        }
    }

    /// The guest's user paused it, or it shut down.
    pub(crate) fn was_stopped_by_others(&self) -> bool {
        let struck = &self.oracles.struck;
        struck.iter().any(|what| matches!(what, What::UserPauses | What::Shutdown))
    }
}
