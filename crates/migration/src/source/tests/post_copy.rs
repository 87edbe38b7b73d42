//! Three stages: which pages are absent goes over with the guest stopped, the pages themselves when it runs there.

extern crate std;

use std::boxed::Box;
use std::string::ToString;
use std::time::Duration;
use std::vec::Vec;

use super::{Story, died, facts, root};
use crate::journal::SourceRecord::{self, Copying, Gone, Offered, Serving, Stopping, Vanished};
use crate::outcome::{GuestIs, Outcome};
use crate::policy::{Precopy, ThreeStage};
use crate::source::{Death, Effect, Fact, Finish, Limits, Source, Timer};

/// So many dirty pages do not fit the limit.
const MANY: u64 = 1_000_000;
const LACKS: Fact = Fact::PeerRunning { lacks_pages: true };
const LIMIT: Duration = Duration::from_millis(300);

fn copying() -> Story {
    Story::by(Box::new(ThreeStage::new(LIMIT, true))).then(Fact::PeerPrepared)
}

fn flushing() -> Story {
    copying()
        .then(Fact::RoundEnded(facts(MANY)))
        .then(Fact::GuestStopped)
        .then(Fact::StreamCompleted)
}

fn offered() -> Story {
    flushing().then(Fact::Flushed(root(1))).then(Fact::PeerLoaded(root(1)))
}

fn serving() -> Story {
    offered().then(LACKS)
}

fn lost_link() -> Fact {
    Fact::PeerLost("reset".to_string())
}

fn vanished() -> Fact {
    Fact::PeerVanished("its QEMU died".to_string())
}

fn serves(effect: &Effect) -> bool {
    matches!(effect, Effect::Serve)
}

fn rejoins(effect: &Effect) -> bool {
    matches!(effect, Effect::Rejoin)
}

fn destroys(effect: &Effect) -> bool {
    matches!(effect, Effect::DestroyGuest)
}

fn aborts(effect: &Effect) -> bool {
    matches!(effect, Effect::Abort(_))
}

impl Story {
    fn is_at(&self, phase: &str) -> bool {
        self.machine.as_ref().is_some_and(|machine| machine.phase() == phase)
    }

    fn count(&self, wanted: fn(&Effect) -> bool) -> usize {
        self.effects.iter().filter(|effect| wanted(effect)).count()
    }

    fn flushed_by(&self) -> Option<Finish> {
        self.effects.iter().find_map(|effect| match effect {
            Effect::Flush(finish) => Some(*finish),
            _ => None,
        })
    }
}

#[test]
fn a_move_goes_through_in_three_stages() {
    let story = flushing();
    assert_eq!(story.flushed_by(), Some(Finish::PostCopy));
    let story = story.then(Fact::Flushed(root(1))).then(Fact::PeerLoaded(root(1)));
    assert!(story.committed() && !story.did(serves), "nothing is served before it runs there");
    let story = story.then(LACKS);
    assert!(story.is_at("serving") && story.did(serves) && !story.did(destroys));
    let story = story.then(Fact::PeerComplete);
    assert_eq!(*story.outcome(), Outcome::Done);
    assert_eq!(story.journal, [Copying, Stopping, Offered, Serving, Gone]);
    assert!(story.did(destroys) && !story.returned());
}

#[test]
fn a_rest_that_fits_goes_over_by_pre_copy() {
    let story = copying().then(Fact::RoundEnded(facts(10)));
    let story = story.then(Fact::GuestStopped).then(Fact::StreamCompleted);
    assert_eq!(story.flushed_by(), Some(Finish::PreCopy));
    let story = story.then(Fact::Flushed(root(1))).then(Fact::PeerLoaded(root(1)));
    let story = story.then(Fact::PeerRunning { lacks_pages: false });
    assert_eq!(story.journal, [Copying, Stopping, Offered, Gone]);
}

#[test]
fn before_the_offer_everything_still_brings_the_guest_back() {
    for fact in [
        lost_link(),
        Fact::PeerFailed("disk full".to_string()),
        Fact::CancelRequested,
        Fact::TimerFired(Timer::Stop),
        Fact::TimerFired(Timer::Silence),
        LACKS,
        Fact::PeerComplete,
        vanished(),
    ] {
        let story = flushing().then(fact.clone());
        assert!(story.returned() && story.did(aborts), "{fact:?}");
        assert_eq!(story.then(Fact::GuestReturned).outcome().guest_is(), GuestIs::Source);
    }
}

#[test]
fn a_time_out_ends_the_rounds_in_post_copy() {
    let story = copying().then(Fact::TimerFired(Timer::Job));
    assert!(story.is_at("stopping") && !story.returned());
    // The round that was under way tells its end late.
    let story = story.then(Fact::RoundEnded(facts(MANY)));
    let story = story.then(Fact::GuestStopped).then(Fact::StreamCompleted);
    assert_eq!(story.flushed_by(), Some(Finish::PostCopy));
}

#[test]
fn a_time_out_while_the_guest_is_being_stopped_sends_no_more_than_marks() {
    let story = copying().then(Fact::RoundEnded(facts(10))).then(Fact::TimerFired(Timer::Job));
    assert!(story.is_at("stopping") && !story.returned());
    let story = story.then(Fact::GuestStopped).then(Fact::StreamCompleted);
    assert_eq!(story.flushed_by(), Some(Finish::PostCopy));
}

#[test]
fn without_post_copy_a_time_out_brings_the_guest_back() {
    let policy = Box::new(ThreeStage::new(LIMIT, false));
    let story = Story::by(policy).then(Fact::PeerPrepared).then(Fact::TimerFired(Timer::Job));
    assert!(story.returned());
    let policy = Box::new(ThreeStage::new(LIMIT, false));
    let story = Story::by(policy).then(Fact::PeerPrepared).then(Fact::RoundEnded(facts(MANY)));
    assert!(story.returned(), "nor can one round be enough");
}

#[test]
fn pre_copy_that_runs_out_of_time_ends_in_post_copy_if_it_can() {
    let policy = Box::new(Precopy::with_post_copy(LIMIT, true));
    let story = Story::by(policy).then(Fact::PeerPrepared).then(Fact::RoundEnded(facts(MANY)));
    assert!(story.did(|effect| matches!(effect, Effect::BeginRound)));
    let story = story.then(Fact::TimerFired(Timer::Job));
    let story = story.then(Fact::GuestStopped).then(Fact::StreamCompleted);
    assert_eq!(story.flushed_by(), Some(Finish::PostCopy));
}

#[test]
fn a_spontaneous_completion_leads_back_to_copying_and_then_on() {
    let story = copying().then(Fact::RoundEnded(facts(MANY))).then(Fact::StreamCompleted);
    assert!(story.is_at("copying") && story.flushed_by().is_none());
    let story = story.then(Fact::RoundEnded(facts(MANY)));
    let story = story.then(Fact::GuestStopped).then(Fact::StreamCompleted);
    assert_eq!(story.flushed_by(), Some(Finish::PostCopy));
}

#[test]
fn running_is_not_gone_while_pages_are_lacking() {
    let mut story = offered();
    story.journal_works = false;
    let story = story.then(LACKS);
    assert!(!story.did(serves), "not before serving is durable");
    let story = story.then(Fact::Journaled(Serving));
    assert!(story.did(serves) && !story.did(destroys));
}

/// *offered* leads back here by asking.
#[test]
fn serving_that_cannot_be_journalled_is_served_all_the_same() {
    let mut story = offered();
    story.journal_works = false;
    let story = story.then(LACKS).then(Fact::JournalFailed("disk full".to_string()));
    assert!(story.did(serves));
    let story = story.then(Fact::PeerComplete).then(Fact::JournalFailed("disk full".to_string()));
    assert_eq!(*story.outcome(), Outcome::Done);
}

#[test]
fn nothing_of_the_source_ends_its_serving() {
    let story = serving()
        .then(Fact::CancelRequested)
        .then(Fact::TimerFired(Timer::Job))
        .then(Fact::TimerFired(Timer::Inquiry))
        .then(Fact::QemuFailed("late".to_string()))
        .then(Fact::PeerDiscarded)
        .then(Fact::Rejoined)
        .then(LACKS);
    assert!(story.is_at("serving") && !story.returned() && !story.did(destroys));
    assert!(!story.machine.as_ref().unwrap().can_cancel());
    assert_eq!((story.count(serves), story.count(rejoins)), (1, 0));
}

#[test]
fn a_broken_link_is_made_anew_for_ever() {
    let mut story = serving().then(lost_link()).then(lost_link());
    assert!(!story.did(rejoins), "after a pause");
    for attempt in 1..=5 {
        story = story.then(Fact::TimerFired(Timer::Inquiry));
        assert_eq!(story.count(rejoins), attempt);
        let timer = |effect: &Effect| matches!(effect, Effect::SetTimer(Timer::Inquiry, _));
        assert!(story.effects.last().is_some_and(timer), "and again");
    }
    let story = story.then(Fact::Rejoined);
    assert_eq!(story.count(serves), 2);
    let story = story.then(Fact::TimerFired(Timer::Inquiry));
    assert_eq!(story.count(rejoins), 5, "a timer that was cleared");
    let story = story.then(Fact::PeerFailed("a broken frame".to_string()));
    let story = story.then(Fact::TimerFired(Timer::Inquiry)).then(Fact::Rejoined);
    assert_eq!(story.count(serves), 3);
    assert_eq!(*story.then(Fact::PeerComplete).outcome(), Outcome::Done);
}

/// What became of it may have been said on a link that broke: the destination answers by its journal.
#[test]
fn an_end_that_was_missed_is_heard_when_rejoining() {
    for last in [Fact::PeerComplete, Fact::PeerRunning { lacks_pages: false }] {
        let story = serving().then(lost_link()).then(Fact::TimerFired(Timer::Inquiry)).then(last);
        assert_eq!(*story.outcome(), Outcome::Done);
        assert_eq!(story.journal.last(), Some(&Gone));
        let cleared = |effect: &Effect| matches!(effect, Effect::ClearTimer(Timer::Inquiry));
        assert!(story.count(cleared) >= 2);
    }
    for last in [Fact::PeerComplete, vanished()] {
        let story = offered().then(lost_link()).then(last);
        assert!(story.did(destroys) && !story.did(serves) && !story.returned());
    }
}

/// The answer to the commit was lost; the connections for pages are gone.
#[test]
fn a_commit_that_was_lost_and_found_is_rejoined_not_served() {
    let story = offered().then(lost_link());
    assert!(story.did(|effect| matches!(effect, Effect::Inquire)));
    let story = story.then(LACKS);
    assert_eq!((story.count(serves), story.count(rejoins)), (0, 1));
    assert_eq!(story.journal.last(), Some(&Serving));
    assert_eq!(story.then(Fact::Rejoined).count(serves), 1);
    // And while *serving* is being written.
    let mut story = offered();
    story.journal_works = false;
    let story = story.then(LACKS).then(lost_link()).then(Fact::Journaled(Serving));
    assert_eq!((story.count(serves), story.count(rejoins)), (0, 1));
}

#[test]
fn the_destinations_death_loses_the_guest() {
    let links: [fn() -> Story; 3] = [offered, serving, || serving().then(lost_link())];
    for (number, begin) in links.iter().enumerate() {
        let story = begin().then(vanished());
        assert_eq!(story.outcome().guest_is(), GuestIs::Lost, "{number}");
        assert_eq!(story.journal.last(), Some(&Vanished), "{number}");
        assert!(story.did(destroys) && !story.returned(), "what is stale here never runs again");
    }
}

#[test]
fn our_qemus_death_is_told_until_the_destination_has_heard_it() {
    let story = serving().then(died());
    assert_eq!(story.count(aborts), 1);
    assert!(story.is_at("serving"), "it may have lacked nothing any more");
    let story = story.then(lost_link()).then(Fact::TimerFired(Timer::Inquiry));
    let story = story.then(Fact::Rejoined);
    assert_eq!((story.count(aborts), story.count(serves)), (2, 1));
    let lost = story.then(vanished());
    assert_eq!(lost.outcome().guest_is(), GuestIs::Lost);
    assert!(matches!(lost.outcome(), Outcome::Lost(why) if why.contains("signal 9")));
    let complete = serving().then(died()).then(Fact::PeerComplete);
    assert_eq!(*complete.outcome(), Outcome::Done, "the last page had arrived");
}

/// A guest's memory in a file outlives its QEMU.
#[test]
fn what_is_held_is_served_without_a_qemu() {
    let held = || Fact::QemuDied(Death { why: "signal 9".to_string(), memory_is_held: true });
    let story = serving().then(held());
    assert!(!story.did(aborts) && story.is_at("serving"));
    let story = story.then(lost_link()).then(Fact::TimerFired(Timer::Inquiry));
    let story = story.then(Fact::Rejoined);
    assert!(!story.did(aborts) && story.count(serves) == 2);
    assert_eq!(*story.then(Fact::PeerComplete).outcome(), Outcome::Done);
    let lost = serving().then(held()).then(vanished());
    assert!(matches!(lost.outcome(), Outcome::Lost(why) if why.contains("signal 9")));
    // Before the answer to the commit.
    let story = flushing().then(Fact::Flushed(root(1))).then(held());
    let story = story.then(Fact::PeerLoaded(root(1))).then(LACKS);
    assert!(story.did(serves) && !story.did(aborts));
    // Without the device state memory is no guest.
    let lost = flushing().then(held());
    assert_eq!(lost.outcome().guest_is(), GuestIs::Lost);
}

#[test]
fn a_qemu_that_dies_before_the_answer_is_told_with_it() {
    let sent = || flushing().then(Fact::Flushed(root(1))).then(died());
    let story = sent().then(Fact::PeerLoaded(root(1)));
    assert!(story.committed(), "only the destination knows whether it lacks anything");
    let lacking = story.then(LACKS);
    assert!(lacking.did(aborts) && !lacking.did(serves));
    assert_eq!(lacking.then(vanished()).outcome().guest_is(), GuestIs::Lost);
    let story = sent().then(Fact::PeerLoaded(root(1)));
    let whole = story.then(Fact::PeerRunning { lacks_pages: false });
    assert_eq!(*whole.outcome(), Outcome::Done);
}

#[test]
fn a_destination_that_does_not_know_leaves_it_to_a_person() {
    let story = serving().then(Fact::PeerUnknown("its journal is lost".to_string()));
    assert!(matches!(story.outcome(), Outcome::Unknown(_)));
    assert!(!story.did(destroys) && !story.returned());
}

#[test]
fn a_restart_finds_its_way_back_to_serving() {
    let mut effects = Vec::new();
    let machine = Source::resume_serving(Limits::default(), &mut effects);
    assert!(matches!(effects[..], [Effect::Rejoin, Effect::SetTimer(Timer::Inquiry, _)]));
    let machine = machine.handle(Fact::Rejoined, &mut effects);
    assert!(matches!(effects.last(), Some(Effect::Serve)));
    let machine = machine.handle(Fact::PeerComplete, &mut effects);
    let machine = machine.handle(Fact::Journaled(Gone), &mut effects);
    assert_eq!(machine.outcome(), Some(&Outcome::Done));
    // From *offered*, by asking.
    let mut effects = Vec::new();
    let machine = Source::resume_offered(Limits::default(), &mut effects);
    let machine = machine.handle(LACKS, &mut effects);
    assert!(matches!(effects.last(), Some(Effect::Journal(Serving))));
    let machine = machine.handle(Fact::Journaled(Serving), &mut effects);
    assert_eq!(machine.phase(), "serving");
    assert!(effects.iter().any(rejoins) && !effects.iter().any(serves));
}

/// Its QEMU died while the agent was away: its pages are lost, and the destination has to hear that.
#[test]
fn a_restart_without_a_qemu_tells_the_destination() {
    let mut effects = Vec::new();
    let machine = Source::resume_serving(Limits::default(), &mut effects);
    let machine = machine.handle(died(), &mut effects);
    assert!(!effects.iter().any(aborts), "nobody is connected");
    let machine = machine.handle(Fact::Rejoined, &mut effects);
    assert!(effects.iter().any(aborts) && !effects.iter().any(serves));
    let machine = machine.handle(vanished(), &mut effects);
    let machine = machine.handle(Fact::Journaled(Vanished), &mut effects);
    assert_eq!(machine.outcome().map(Outcome::guest_is), Some(GuestIs::Lost));
}

#[test]
fn only_ends_are_final() {
    assert!(!Serving.is_final() && !Offered.is_final());
    assert!([Gone, Vanished, SourceRecord::Returned].into_iter().all(SourceRecord::is_final));
}
