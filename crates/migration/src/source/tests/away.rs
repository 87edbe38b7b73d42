//! A link that breaks while the guest runs here, at a destination that keeps what it has.

extern crate std;

use std::string::ToString;
use std::time::Duration;
use std::vec::Vec;

use super::{Story, facts};
use crate::outcome::{GuestIs, Outcome};
use crate::source::{Effect, Fact, Limits, Timer};

fn away() -> Fact {
    Fact::PeerAway("reset".to_string())
}

fn fired(timer: Timer) -> Fact {
    Fact::TimerFired(timer)
}

fn attempts(story: &Story) -> usize {
    story.effects.iter().filter(|effect| matches!(effect, Effect::Rejoin)).count()
}

fn rounds(story: &Story) -> usize {
    story.effects.iter().filter(|effect| matches!(effect, Effect::BeginRound)).count()
}

/// How long it waits before each attempt after the first.
fn waits(story: &Story) -> Vec<Duration> {
    let wait = |effect: &Effect| match effect {
        Effect::SetTimer(Timer::Inquiry, wait) => Some(*wait),
        _ => None,
    };
    story.effects.iter().filter_map(wait).collect()
}

#[test]
fn copying_goes_on_over_new_connections() {
    let story = Story::copying().then(away());
    assert_eq!((attempts(&story), rounds(&story)), (1, 0));
    // What was under way before the cut is of no interest, and it is not told twice.
    let story = story.then(Fact::RoundEnded(facts(0))).then(away());
    let story = story.then(fired(Timer::Inquiry));
    assert_eq!(attempts(&story), 2);
    assert!(!story.returned());
    let story = story.then(Fact::Rejoined);
    assert_eq!(rounds(&story), 1, "the one that was broken off");
    let story =
        story.then(Fact::RoundEnded(facts(0))).then(Fact::GuestStopped).then(Fact::StreamCompleted);
    assert!(story.did(|effect| matches!(effect, Effect::Flush(_))));
}

#[test]
fn nothing_is_decided_without_connections() {
    let story = Story::copying().then(away()).then(Fact::RoundEnded(facts(0)));
    assert!(!story.did(|effect| matches!(effect, Effect::StopGuest(_))));
    let story = story.then(Fact::StreamCompleted);
    assert!(story.did(|effect| matches!(effect, Effect::RestartStream)), "QEMU is held on");
    let timed_out = story.then(fired(Timer::Job));
    assert!(timed_out.returned());
}

#[test]
fn attempts_become_rare() {
    let mut story = Story::copying().then(away());
    for _ in 0..100 {
        story = story.then(fired(Timer::Inquiry));
    }
    let waits = waits(&story);
    assert!(waits.is_sorted());
    assert_eq!(waits[0], Limits::default().inquiry_interval);
    assert_eq!(*waits.last().unwrap(), Limits::default().inquiry_interval * 32);
}

#[test]
fn a_destination_that_stays_away_or_has_nothing_any_more_ends_it() {
    let ends = [
        fired(Timer::Away),
        Fact::PeerDiscarded,
        Fact::PeerFailed("its agent has ended".to_string()),
        Fact::CancelRequested,
    ];
    for end in ends {
        let cancelled = matches!(end, Fact::CancelRequested);
        let story = Story::copying().then(away()).then(end);
        assert!(story.returned());
        let cleared = |timer| {
            story.did(|effect| matches!(effect, Effect::ClearTimer(cleared) if *cleared == timer))
        };
        assert!(cleared(Timer::Away) && cleared(Timer::Inquiry));
        let story = story.then(Fact::GuestReturned);
        assert_eq!(story.outcome().guest_is(), GuestIs::Source);
        assert_eq!(matches!(story.outcome(), Outcome::Cancelled), cancelled);
    }
}

/// Once the guest stands there is no time for it.
#[test]
fn a_stopped_guest_does_not_wait_for_new_connections() {
    for story in [Story::flushing(), Story::copying().then(Fact::RoundEnded(facts(0)))] {
        let story = story.then(away());
        assert_eq!(attempts(&story), 0);
        assert!(story.returned());
    }
    let offered = Story::offered().then(away());
    assert!(!offered.returned(), "only the destination's answer ends that");
}

#[test]
fn what_comes_too_late_changes_nothing() {
    let story = Story::copying();
    let before = story.effects.len();
    let story = story.then(Fact::Rejoined).then(fired(Timer::Away)).then(fired(Timer::Inquiry));
    assert_eq!(story.effects.len(), before);
}
