//! The destination's machine, told as stories.

extern crate std;

mod post_copy;

use std::string::ToString;
use std::time::Duration;
use std::vec::Vec;

use sterna_model::{PageHash, PageId, Root};

use super::{Answer, Destination, Effect, End, Fact};
use crate::journal::DestinationRecord::{Discarded, Entitled, Prepared, Running};

fn root(seed: u128) -> Root {
    let mut root = Root::ZERO_MEMORY;
    root.replace(PageId(1), PageHash::ZERO, PageHash::from_u128(seed));
    root
}

struct Story {
    machine: Destination,
    effects: Vec<Effect>,
}

impl Story {
    fn begin() -> Self {
        let mut effects = Vec::new();
        Self { machine: Destination::begin(&mut effects), effects }
    }

    fn then(mut self, fact: Fact) -> Self {
        self.machine = self.machine.handle(fact, &mut self.effects);
        self
    }

    fn receiving() -> Self {
        Self::begin().then(Fact::Journaled(Prepared)).then(Fact::QemuStarted)
    }

    fn loaded() -> Self {
        Self::receiving().then(Fact::FinalReceived(root(1))).then(Fact::MemoryLoaded(root(1)))
    }

    fn resumed(&self) -> bool {
        self.effects.iter().any(|effect| matches!(effect, Effect::Resume(_)))
    }

    fn answered(&self, wanted: &Answer) -> bool {
        self.effects
            .iter()
            .any(|effect| matches!(effect, Effect::Answer(answer) if answer == wanted))
    }
}

#[test]
fn a_move_goes_through() {
    let story = Story::loaded();
    assert!(story.answered(&Answer::Loaded(root(1))) && !story.resumed());
    let story = story.then(Fact::Commit);
    assert!(!story.resumed(), "not before entitled is durable");
    let story = story.then(Fact::Journaled(Entitled));
    assert!(story.resumed());
    let story = story.then(Fact::Resumed { lacks_pages: false }).then(Fact::Journaled(Running));
    assert!(story.answered(&Answer::Running { lacks_pages: false }));
    assert_eq!(story.machine.end(), Some(&End::Running));
}

#[test]
fn qemu_is_not_started_before_the_journal_knows() {
    assert!(!Story::begin().effects.iter().any(|effect| matches!(effect, Effect::StartQemu)));
}

#[test]
fn everything_before_the_commit_discards() {
    let failures = [
        Fact::Abort("cancelled".to_string()),
        Fact::PeerLost("reset".to_string()),
        Fact::Asked,
        Fact::Failed("disk full".to_string()),
        Fact::QemuDied("signal 9".to_string()),
    ];
    for begin in [Story::begin, Story::receiving, Story::loaded] {
        for failure in &failures {
            let story = begin().then(failure.clone());
            assert!(!story.answered(&Answer::Discarded), "not before QEMU is dead: {failure:?}");
            let story = story.then(Fact::Killed);
            assert!(!story.answered(&Answer::Discarded), "not before it is durable: {failure:?}");
            let story = story.then(Fact::Journaled(Discarded));
            assert!(story.answered(&Answer::Discarded) && !story.resumed(), "{failure:?}");
            let late = story.then(Fact::Commit).then(Fact::Journaled(Entitled));
            assert!(!late.resumed(), "a late commit is refused");
        }
    }
}

#[test]
fn what_has_arrived_is_kept_for_a_source_that_comes_back() {
    let keep = Duration::from_secs(90);
    let away = || Fact::PeerAway("reset".to_string(), keep);
    let story = Story::receiving().then(away());
    assert!(matches!(story.machine, Destination::Receiving(_)));
    let watched = |effect: &Effect| matches!(effect, Effect::WatchSource(limit) if *limit == keep);
    assert_eq!(story.effects.iter().filter(|effect| watched(effect)).count(), 1);
    let gone = Story::receiving().then(away()).then(Fact::PeerLost("for too long".to_string()));
    assert!(matches!(gone.machine, Destination::Discarding(_)));
    let story = story.then(Fact::FinalReceived(root(1))).then(Fact::MemoryLoaded(root(1)));
    assert!(story.answered(&Answer::Loaded(root(1))), "it came back");
    // With nothing more to come, the source waits with its guest stopped: there is no time for it.
    for begin in [Story::begin, Story::loaded] {
        assert!(matches!(begin().then(away()).machine, Destination::Discarding(_)));
    }
}

#[test]
fn a_commit_out_of_turn_discards() {
    let story = Story::receiving().then(Fact::Commit);
    assert!(!story.resumed());
    assert!(matches!(story.machine, Destination::Discarding(_)));
}

#[test]
fn different_roots_are_never_loaded() {
    let story =
        Story::receiving().then(Fact::FinalReceived(root(1))).then(Fact::MemoryLoaded(root(2)));
    assert!(matches!(story.machine, Destination::Discarding(_)));
    assert!(!story.then(Fact::Commit).resumed());
}

#[test]
fn after_the_commit_nothing_discards() {
    let story = Story::loaded().then(Fact::Commit).then(Fact::Abort("late".to_string()));
    let story = story.then(Fact::PeerLost("reset".to_string())).then(Fact::Asked);
    let story = story.then(Fact::Journaled(Entitled)).then(Fact::PeerLost("reset".to_string()));
    assert!(story.resumed());
    let story = story
        .then(Fact::Resumed { lacks_pages: false })
        .then(Fact::Journaled(Running))
        .then(Fact::Asked);
    assert_eq!(story.machine.end(), Some(&End::Running));
}

#[test]
fn a_qemu_that_dies_after_the_commit_is_unknown() {
    let story = Story::loaded().then(Fact::Commit).then(Fact::QemuDied("signal 9".to_string()));
    assert!(matches!(story.machine.end(), Some(End::Unknown(_))));
    let story = Story::loaded().then(Fact::Commit).then(Fact::Journaled(Entitled));
    assert!(matches!(
        story.then(Fact::ResumeFailed("lock".to_string())).machine.end(),
        Some(End::Unknown(_))
    ));
}
