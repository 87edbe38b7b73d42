//! Links that break in the rounds: the source rejoins, nothing is left behind, and the move goes on.
//!
//! Checks, when the source has made its connections anew while the guest runs there: of each page that it believes the
//! destination to have, the destination has that very content, in its table and in its memory, unless it is about to ask for
//! it. What was under way and not acknowledged must not be believed to be there. At the end: a job whose links broke in the
//! rounds and nothing else was hurt ends in *done*; it may end otherwise only when a silence lasted nearly as long as the
//! limit, when a round that stood in it was taken for the link's rate, or when a link broke where that ends the move (before the
//! rounds, or with the guest stopped).
//!
//! Does not check when it is tried again, nor how much is sent twice (the twice oracle does that for a three-stage copy); what
//! follows the hand-over is the progress oracle's matter.

use std::time::Duration;

use sterna_migration::outcome::OutcomeName;
use sterna_model::{Instant, PageId};

use super::{Ended, Oracle};
use crate::bulk::Bulk;
use crate::faults::{Side, What};
use crate::guest::hash_of;
use crate::run::Rounds;
use crate::world::World;

/// A link that is there again for so long before the limit is found in time: attempts become rare, and take a while.
const FOUND_WITHIN: Duration = Duration::from_secs(20);

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Rejoining {
    /// The source is without connections in the rounds.
    away_since: Option<Instant>,
    /// The destination keeps what it has.
    kept_since: Option<Instant>,
    broken_off: bool,
    joined: bool,
    gave_up: bool,
    /// The job may end otherwise than in *done*.
    excused: bool,
}

impl World {
    /// The source's links broke in the rounds.
    pub(crate) fn rounds_are_broken_off(&mut self) {
        let now = self.now();
        self.oracles.rejoining.broken_off = true;
        self.oracles.rejoining.away_since = Some(now);
    }

    /// The source has made them anew: nothing is under way at this moment.
    pub(crate) fn rounds_are_joined(&mut self) {
        self.oracles.rejoining.joined = true;
        self.oracles.rejoining.away_since = None;
        let Some(bulk) = &self.bulk else { return };
        let wrong: Vec<PageId> = self.wrongly_believed(bulk);
        if let Some(first) = wrong.first() {
            let why = format!(
                "the source rejoined and believes {} pages to be at the destination that are not, the first is {}",
                wrong.len(),
                first.0
            );
            self.blame(Oracle::Rejoining, why);
        }
    }

    fn wrongly_believed(&self, bulk: &Bulk) -> Vec<PageId> {
        let qemu = self.hosts[Side::Destination.index()].qemu.as_ref();
        let (Some(receiver), Some(qemu)) = (&self.receiver, qemu) else { return Vec::new() };
        let is_there = |page, content| {
            receiver.misses(page)
                || (receiver.has(page, hash_of(content)) && qemu.guest.read(page) == content)
        };
        let believed = bulk.believed().filter(|(page, content)| !is_there(*page, *content));
        believed.map(|(page, _)| page).collect()
    }

    /// The destination is without its source, and keeps what it has.
    pub(crate) fn keeping_begins(&mut self) {
        let now = self.now();
        self.oracles.rejoining.kept_since = Some(now);
    }

    /// Its source is back.
    pub(crate) const fn keeping_ends(&mut self) {
        self.oracles.rejoining.kept_since = None;
    }

    /// A link broke where that ends the move.
    pub(crate) const fn link_is_the_end(&mut self) {
        self.oracles.rejoining.excused = true;
    }

    /// The source has given its destination up.
    pub(crate) fn away_for_too_long(&mut self) {
        self.oracles.rejoining.gave_up = true;
        let away_since = self.oracles.rejoining.away_since;
        self.oracles.rejoining.excused |= self.was_silent_since(away_since);
    }

    /// The destination has given its source up.
    pub(crate) fn kept_for_too_long(&mut self) {
        let kept_since = self.oracles.rejoining.kept_since;
        self.oracles.rejoining.excused |= self.was_silent_since(kept_since);
    }

    /// The policy is told of a round: of one that stood in a silence it may conclude that the link is too slow.
    pub(crate) fn round_is_told(&mut self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.oracles.rejoining.excused |=
            self.last_silence().nanos > self.now().nanos.saturating_sub(took);
    }

    /// Whether nothing got through until so lately that nobody can have been found since.
    fn was_silent_since(&self, since: Option<Instant>) -> bool {
        let (now, silence) = (self.now(), self.last_silence());
        since.is_some_and(|since| silence > since && now.since(silence) < FOUND_WITHIN)
    }

    /// Whether the source is without connections in the rounds.
    pub(crate) fn is_away(&self) -> bool {
        self.source_phase == "copying" && self.oracles.rejoining.away_since.is_some()
    }

    /// What became of a job whose links broke in the rounds.
    pub(crate) fn rounds(&self) -> Option<Rounds> {
        let Rejoining { broken_off, joined, gave_up, .. } = self.oracles.rejoining;
        let done = self.is_done();
        broken_off.then_some(match (joined, gave_up) {
            (true, _) if done => Rounds::Rejoined,
            (_, true) => Rounds::GivenUp,
            _ => Rounds::EndedOtherwise,
        })
    }

    fn is_done(&self) -> bool {
        let ended = self.oracles.progress.how_ended(Side::Source);
        ended == Some(&Ended::Source(OutcomeName::Done))
    }

    /// Both jobs are over, for the first time.
    pub(crate) fn check_rejoining(&mut self) {
        let Rejoining { broken_off, excused, .. } = self.oracles.rejoining;
        if !broken_off || excused || self.is_done() || !self.only_links_broke() {
            return;
        }
        let found = self.oracles.progress.how_ended(Side::Source);
        let why = format!("only links broke, in the rounds, and the job ended in {found:?}");
        self.blame(Oracle::Rejoining, why);
    }

    /// Whether nothing was hurt but links.
    fn only_links_broke(&self) -> bool {
        let struck = &self.oracles.struck;
        let breaks_links = |what: &What| matches!(what, What::Cut(_) | What::Silence(_));
        let is_harmless = |what: &What| what.is_harmless(&self.setting) || breaks_links(what);
        let twice = struck.contains(&What::Completes) && struck.contains(&What::UserPauses);
        let gets_through = self.setting.timeout.is_zero() && self.setting.gets_through();
        gets_through && !twice && struck.iter().all(is_harmless)
    }
}
