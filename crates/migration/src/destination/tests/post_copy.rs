//! Three stages: the guest runs here and lacks pages.

extern crate std;

use std::string::ToString;
use std::vec::Vec;

use super::Story;
use crate::destination::{Answer, Destination, Effect, End, Fact};
use crate::journal::DestinationRecord::{
    self, Discarded, Entitled, Faulting, Prepared, Running, Vanished,
};

const RESUMED: Fact = Fact::Resumed { lacks_pages: true };
const RUNS: Answer = Answer::Running { lacks_pages: true };

fn faulting() -> Story {
    let committed = Story::loaded().then(Fact::Commit).then(Fact::Journaled(Entitled));
    committed.then(RESUMED).then(Fact::Journaled(Faulting))
}

fn died() -> Fact {
    Fact::QemuDied("signal 9".to_string())
}

fn abort() -> Fact {
    Fact::Abort("signal 9".to_string())
}

impl Story {
    fn count(&self, wanted: impl Fn(&Effect) -> bool) -> usize {
        self.effects.iter().filter(|effect| wanted(effect)).count()
    }

    fn journals(&self, record: DestinationRecord) -> bool {
        self.count(|effect| matches!(effect, Effect::Journal(found) if *found == record)) > 0
    }

    fn recoveries(&self) -> usize {
        self.count(|effect| matches!(effect, Effect::RecoverStream))
    }

    fn killed(&self) -> bool {
        self.count(|effect| matches!(effect, Effect::KillQemu)) > 0
    }

    fn is_lost(&self) -> bool {
        matches!(self.machine.end(), Some(End::Lost(_)))
    }

    fn told_of_loss(&self) -> bool {
        self.count(|effect| matches!(effect, Effect::Answer(Answer::Vanished(_)))) > 0
    }
}

#[test]
fn a_move_goes_through_in_three_stages() {
    let story = faulting();
    assert!(story.answered(&RUNS) && story.journals(Faulting) && !story.journals(Running));
    assert_eq!((story.machine.phase(), story.recoveries()), ("faulting", 0));
    let story = story.then(Fact::MemoryComplete);
    assert!(!story.answered(&Answer::Complete), "not before running is durable");
    let story = story.then(Fact::Journaled(Running));
    assert!(story.answered(&Answer::Complete));
    assert_eq!(story.machine.end(), Some(&End::Running));
}

#[test]
fn nothing_but_completion_ends_it() {
    let story = faulting()
        .then(Fact::PeerLost("reset".to_string()))
        .then(Fact::Failed("a broken frame".to_string()))
        .then(Fact::Commit)
        .then(Fact::JournalFailed("disk full".to_string()))
        .then(Fact::Killed);
    assert_eq!(story.machine.phase(), "faulting");
    assert!(!story.killed());
}

#[test]
fn a_source_that_asks_hears_that_pages_are_lacking() {
    let story = faulting();
    let before = story.count(|effect| matches!(effect, Effect::Answer(answer) if *answer == RUNS));
    let story = story.then(Fact::Asked);
    let after = story.count(|effect| matches!(effect, Effect::Answer(answer) if *answer == RUNS));
    assert_eq!(after, before + 1);
}

/// *complete* may have been said on a link that broke.
#[test]
fn a_source_that_asks_late_hears_that_nothing_is_lacking() {
    let story = faulting().then(Fact::MemoryComplete).then(Fact::Journaled(Running));
    assert!(story.then(Fact::Asked).answered(&Answer::Running { lacks_pages: false }));
    let lost = faulting().then(died()).then(Fact::Journaled(Vanished));
    let before = lost.effects.len();
    let lost = lost.then(Fact::Asked);
    assert!(matches!(lost.effects[before..], [Effect::Answer(Answer::Vanished(_))]));
}

#[test]
fn a_broken_stream_is_recovered_as_often_as_it_breaks() {
    let broken = || Fact::StreamBroken("reset".to_string());
    let story = faulting().then(broken()).then(broken());
    assert_eq!(story.recoveries(), 2);
    let story = story.then(Fact::MemoryComplete).then(broken());
    assert_eq!(story.recoveries(), 2, "nothing is lacking any more");
}

#[test]
fn the_guests_death_is_durable_before_it_is_told() {
    let story = faulting().then(died());
    assert!(story.journals(Vanished) && !story.told_of_loss());
    let story = story.then(Fact::Asked).then(Fact::Journaled(Vanished));
    assert!(story.told_of_loss() && story.is_lost() && !story.killed());
    let unwritten = faulting().then(died()).then(Fact::JournalFailed("disk full".to_string()));
    assert!(unwritten.told_of_loss() && unwritten.is_lost(), "dead is dead");
}

#[test]
fn the_death_of_the_sources_qemu_is_the_guests_end() {
    let story = faulting().then(abort());
    assert!(story.killed() && !story.told_of_loss(), "not before it is dead");
    let story = story.then(Fact::MemoryComplete).then(Fact::Asked);
    assert!(!story.journals(Vanished) && !story.journals(Running));
    let story = story.then(Fact::Killed);
    assert!(story.journals(Vanished) && !story.told_of_loss());
    let story = story.then(Fact::Journaled(Vanished));
    assert!(story.told_of_loss() && story.is_lost());
    let died_first = faulting().then(abort()).then(died()).then(Fact::Journaled(Vanished));
    assert!(died_first.is_lost());
}

#[test]
fn a_guest_that_lacks_nothing_outlives_the_source() {
    let story = faulting().then(Fact::MemoryComplete).then(abort());
    assert!(!story.killed());
    let story = story.then(Fact::JournalFailed("disk full".to_string()));
    assert_eq!(story.machine.end(), Some(&End::Running), "it runs, written down or not");
}

#[test]
fn before_the_commit_an_absent_page_changes_nothing() {
    for fact in [abort(), died(), Fact::PeerLost("reset".to_string()), Fact::Asked] {
        let story = Story::loaded().then(fact.clone()).then(Fact::Killed);
        let story = story.then(Fact::Journaled(Discarded));
        assert!(story.answered(&Answer::Discarded) && !story.resumed(), "{fact:?}");
    }
    let late = Story::receiving().then(Fact::MemoryComplete);
    assert_eq!(late.machine.phase(), "receiving");
}

#[test]
fn a_stream_that_breaks_before_the_guest_runs_is_not_forgotten() {
    let broken = || Fact::StreamBroken("reset".to_string());
    let uncommitted = Story::loaded().then(broken()).then(Fact::Killed);
    assert!(uncommitted.then(Fact::Journaled(Discarded)).answered(&Answer::Discarded));
    let committed = || Story::loaded().then(Fact::Commit);
    let entitling = committed().then(broken()).then(Fact::Journaled(Entitled)).then(RESUMED);
    let resuming = committed().then(Fact::Journaled(Entitled)).then(broken()).then(RESUMED);
    assert_eq!((entitling.recoveries(), resuming.recoveries()), (1, 1));
}

#[test]
fn a_restart_goes_on_faulting() {
    let mut effects = Vec::new();
    let machine = Destination::resume_faulting(&mut effects);
    assert!(matches!(effects[..], [Effect::RecoverStream]));
    let machine = machine.handle(Fact::MemoryComplete, &mut effects);
    let machine = machine.handle(Fact::Journaled(Running), &mut effects);
    assert_eq!(machine.end(), Some(&End::Running));
    let gone = Destination::resume_faulting(&mut effects).handle(died(), &mut effects);
    let gone = gone.handle(Fact::Journaled(Vanished), &mut effects);
    assert!(matches!(gone.end(), Some(End::Lost(_))));
}

/// Whoever fed it is gone with the agent.
#[test]
fn a_restart_when_entitled_recovers_the_stream_only_if_pages_are_lacking() {
    let restarted = || {
        let mut effects = Vec::new();
        let machine = Destination::resume_entitled(&mut effects);
        Story { machine, effects }
    };
    let lacking = restarted().then(RESUMED);
    assert!(lacking.journals(Faulting) && lacking.answered(&RUNS));
    assert_eq!(lacking.recoveries(), 1);
    let whole = restarted().then(Fact::Resumed { lacks_pages: false });
    assert!(whole.journals(Running));
    assert_eq!(whole.recoveries(), 0);
}

#[test]
fn only_ends_are_final() {
    assert!(!Faulting.is_final() && !Entitled.is_final() && !Prepared.is_final());
    assert!([Running, Discarded, Vanished].into_iter().all(DestinationRecord::is_final));
}
