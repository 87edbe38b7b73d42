//! The source's machine, told as stories.

extern crate std;

mod away;
mod post_copy;

use std::boxed::Box;
use std::string::{String, ToString};
use std::time::Duration;
use std::vec::Vec;

use sterna_model::{ByteCount, PageHash, PageId, Rate, Root};

use super::{Effect, Fact, Limits, Source, Timer};
use crate::journal::SourceRecord;
use crate::outcome::{GuestIs, Outcome};
use crate::policy::{Policy, Precopy, RoundFacts};

fn facts(dirty_pages: u64) -> RoundFacts {
    RoundFacts {
        number: 1,
        pages: 10,
        wire_bytes: ByteCount(1),
        duration: Duration::from_millis(1),
        dirty_pages,
        rest_bytes: ByteCount(dirty_pages * 4096),
        link_rate: Rate { bytes_per_second: 125_000_000 },
        round_trip: Duration::ZERO,
        total_wire_bytes: ByteCount(1),
        memory: ByteCount(1 << 28),
    }
}

fn root(seed: u128) -> Root {
    let mut root = Root::ZERO_MEMORY;
    root.replace(PageId(1), PageHash::ZERO, PageHash::from_u128(seed));
    root
}

/// A machine under test: performs journal writes at once unless told otherwise, and keeps all other effects.
struct Story {
    machine: Option<Source>,
    effects: Vec<Effect>,
    journal: Vec<SourceRecord>,
    journal_works: bool,
}

impl Story {
    fn begin() -> Self {
        Self::by(Box::new(Precopy::new(Duration::from_millis(300))))
    }

    fn by(policy: Box<dyn Policy>) -> Self {
        let mut effects = Vec::new();
        let machine = Some(Source::begin(policy, Limits::default(), &mut effects));
        let mut story =
            Self { machine, effects: Vec::new(), journal: Vec::new(), journal_works: true };
        story.perform(effects);
        story
    }

    fn then(mut self, fact: Fact) -> Self {
        let mut effects = Vec::new();
        self.machine = self.machine.take().map(|machine| machine.handle(fact, &mut effects));
        self.perform(effects);
        self
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Journal(record) if self.journal_works => {
                    self.journal.push(record);
                    let mut more = Vec::new();
                    let fact = Fact::Journaled(record);
                    self.machine =
                        self.machine.take().map(|machine| machine.handle(fact, &mut more));
                    self.perform(more);
                }
                other => self.effects.push(other),
            }
        }
    }

    fn did(&self, wanted: impl Fn(&Effect) -> bool) -> bool {
        self.effects.iter().any(wanted)
    }

    fn returned(&self) -> bool {
        self.did(|effect| matches!(effect, Effect::ReturnGuest(_)))
    }

    fn committed(&self) -> bool {
        self.did(|effect| matches!(effect, Effect::Commit(_)))
    }

    fn outcome(&self) -> &Outcome {
        self.machine.as_ref().unwrap().outcome().expect("the job should have ended")
    }

    fn copying() -> Self {
        Self::begin().then(Fact::PeerPrepared)
    }

    fn flushing() -> Self {
        Self::copying()
            .then(Fact::RoundEnded(facts(0)))
            .then(Fact::GuestStopped)
            .then(Fact::StreamCompleted)
    }

    fn offered() -> Self {
        Self::flushing().then(Fact::Flushed(root(1))).then(Fact::PeerLoaded(root(1)))
    }
}

#[test]
fn a_move_goes_through() {
    let story = Story::offered();
    assert!(story.committed());
    let story = story.then(Fact::PeerRunning { lacks_pages: false });
    assert_eq!(*story.outcome(), Outcome::Done);
    use SourceRecord::{Copying, Gone, Offered, Stopping};
    assert_eq!(story.journal, [Copying, Stopping, Offered, Gone]);
    assert!(matches!(story.effects.last(), Some(Effect::End(Outcome::Done))));
    assert!(story.did(|effect| matches!(effect, Effect::DestroyGuest)) && !story.returned());
}

#[test]
fn the_guest_is_not_stopped_before_stopping_is_durable() {
    let mut story = Story::copying();
    story.journal_works = false;
    let story = story.then(Fact::RoundEnded(facts(0)));
    assert!(!story.did(|effect| matches!(effect, Effect::StopGuest(_))));
}

#[test]
fn the_commit_is_not_sent_before_offered_is_durable() {
    let mut story = Story::flushing().then(Fact::Flushed(root(1)));
    story.journal_works = false;
    let story = story.then(Fact::PeerLoaded(root(1)));
    assert!(!story.committed());
    let story = story.then(Fact::CancelRequested);
    assert!(!story.returned(), "too late to cancel");
}

/// Without a durable offer there is no commit, so there is nothing to wait for.
#[test]
fn an_offer_that_cannot_be_journalled_brings_the_guest_back_at_once() {
    let mut story = Story::flushing().then(Fact::Flushed(root(1)));
    story.journal_works = false;
    let story = story.then(Fact::PeerLoaded(root(1)));
    let story = story.then(Fact::JournalFailed("disk full".to_string()));
    assert!(story.returned() && !story.committed());
    assert!(story.did(|effect| matches!(effect, Effect::Abort(_))), "the destination discards");
    let mut story = Story::flushing().then(Fact::Flushed(root(1))).then(died());
    story.journal_works = false;
    let story = story.then(Fact::PeerLoaded(root(1)));
    let story = story.then(Fact::JournalFailed("disk full".to_string()));
    assert!(!story.returned() && !story.committed());
    assert_eq!(story.outcome().guest_is(), GuestIs::Lost);
}

#[test]
fn silence_counts_from_the_stop() {
    let watches = |effect: &Effect| matches!(effect, Effect::SetTimer(Timer::Silence, _));
    let asked = Story::copying().then(Fact::RoundEnded(facts(0)));
    assert!(!asked.did(watches), "the guest runs");
    let stopped = asked.then(Fact::GuestStopped);
    assert!(stopped.did(watches), "long before the last page is sent");
    assert!(stopped.then(Fact::TimerFired(Timer::Silence)).returned());
}

#[test]
fn different_roots_bring_the_guest_back() {
    let story = Story::flushing().then(Fact::Flushed(root(1))).then(Fact::PeerLoaded(root(2)));
    assert!(story.returned() && !story.committed());
    let story = story.then(Fact::GuestReturned);
    assert!(matches!(story.outcome(), Outcome::Failed(why) if why.contains("root")));
    assert_eq!(story.journal.last(), Some(&SourceRecord::Returned));
}

#[test]
fn everything_that_fails_before_the_offer_brings_the_guest_back() {
    let stories = [Story::begin, Story::copying, Story::flushing];
    let failures = [
        Fact::PeerLost("reset".to_string()),
        Fact::PeerFailed("disk full".to_string()),
        Fact::QemuFailed("broken pipe".to_string()),
        Fact::JournalFailed("disk full".to_string()),
        Fact::PeerDiscarded,
        Fact::PeerRunning { lacks_pages: false },
        Fact::CancelRequested,
        Fact::TimerFired(Timer::Job),
        Fact::TimerFired(Timer::Silence),
    ];
    for (number, begin) in stories.iter().enumerate() {
        for failure in &failures {
            let story = begin().then(failure.clone());
            assert!(story.returned() && !story.committed(), "{number} {failure:?}");
            let story = story.then(Fact::GuestReturned);
            assert_eq!(story.outcome().guest_is(), GuestIs::Source);
            assert!(matches!(story.outcome(), Outcome::Failed(_) | Outcome::Cancelled));
        }
    }
}

#[test]
fn once_offered_only_the_peer_decides() {
    for fact in [
        Fact::PeerLost("reset".to_string()),
        Fact::CancelRequested,
        Fact::TimerFired(Timer::Job),
        Fact::TimerFired(Timer::Silence),
        Fact::TimerFired(Timer::Inquiry),
        Fact::QemuFailed("late".to_string()),
        Fact::GuestReturned,
    ] {
        let story = Story::offered().then(fact.clone());
        assert!(
            !story.returned() && story.machine.as_ref().unwrap().outcome().is_none(),
            "{fact:?}"
        );
        let back = story.then(Fact::PeerDiscarded);
        assert!(back.returned());
    }
    let lost = Story::offered().then(Fact::PeerLost(String::new()));
    assert!(lost.did(|effect| matches!(effect, Effect::Inquire)));
    assert_eq!(*lost.then(Fact::PeerRunning { lacks_pages: false }).outcome(), Outcome::Done);
}

#[test]
fn a_spontaneous_completion_is_never_handed_over() {
    let early = Story::copying().then(Fact::StreamCompleted);
    assert!(early.did(|effect| matches!(effect, Effect::RestartStream)));
    let asked = Story::copying().then(Fact::RoundEnded(facts(0))).then(Fact::StreamCompleted);
    assert!(asked.did(|effect| matches!(effect, Effect::RestartStream)));
    assert!(!asked.did(|effect| matches!(effect, Effect::Flush(_))));
    let untimed = |effect: &Effect| matches!(effect, Effect::ClearTimer(Timer::Job));
    assert!(!asked.did(untimed), "the rounds that follow keep their time-out");
    assert!(Story::flushing().did(untimed), "the time-out ends rounds only");
    let late = asked.then(Fact::GuestStopped).then(Fact::StreamCompleted);
    assert!(
        !late.did(|effect| matches!(effect, Effect::Flush(_))),
        "a stop of the stream before does not count"
    );
}

#[test]
fn a_refusal_touches_nothing() {
    let story = Story::begin().then(Fact::PeerRefused(Vec::new()));
    assert_eq!(*story.outcome(), Outcome::Refused(Vec::new()));
    assert!(!story.returned() && !story.did(|effect| matches!(effect, Effect::BeginCopy)));
}

#[test]
fn a_dead_qemu_is_reported_lost() {
    let story = Story::copying().then(died());
    assert_eq!(story.outcome().guest_is(), GuestIs::Lost);
}

#[test]
fn after_a_restart_offered_asks() {
    let mut effects = Vec::new();
    let machine = Source::resume_offered(Limits::default(), &mut effects);
    assert!(matches!(effects[0], Effect::Inquire));
    let machine = machine.handle(Fact::PeerRunning { lacks_pages: false }, &mut effects);
    let machine = machine.handle(Fact::Journaled(SourceRecord::Gone), &mut effects);
    assert_eq!(machine.outcome(), Some(&Outcome::Done));
}

fn died() -> Fact {
    Fact::QemuDied("signal 9".to_string().into())
}

#[test]
fn a_qemu_that_dies_with_everything_sent_does_not_cost_the_destinations_copy() {
    let story = Story::flushing().then(Fact::Flushed(root(1))).then(died());
    assert!(story.machine.as_ref().unwrap().outcome().is_none());
    assert!(!story.machine.as_ref().unwrap().can_cancel());
    // Nothing of the source's own may end it: there is no guest to resume any more.
    let story = [Timer::Silence, Timer::Stop, Timer::Job]
        .into_iter()
        .fold(story, |story, timer| story.then(Fact::TimerFired(timer)));
    let story = story.then(Fact::CancelRequested).then(Fact::PeerLoaded(root(1)));
    assert!(story.committed() && !story.returned());
    assert!(!story.did(|effect| matches!(effect, Effect::Abort(_))));
    let story = story.then(Fact::PeerRunning { lacks_pages: false });
    assert_eq!(*story.outcome(), Outcome::Done);
    use SourceRecord::{Copying, Gone, Offered, Stopping};
    assert_eq!(story.journal, [Copying, Stopping, Offered, Gone]);
}

#[test]
fn a_qemu_that_dies_before_everything_is_sent_is_lost() {
    let story = Story::flushing().then(died());
    assert_eq!(story.outcome().guest_is(), GuestIs::Lost);
    assert!(story.did(|effect| matches!(effect, Effect::Abort(_))) && !story.committed());
}

#[test]
fn without_a_qemu_the_destinations_failure_is_the_guests_end() {
    for failure in [
        Fact::PeerLost("reset".to_string()),
        Fact::PeerFailed("disk full".to_string()),
        Fact::PeerDiscarded,
        Fact::PeerRunning { lacks_pages: false },
        Fact::PeerLoaded(root(2)),
    ] {
        let story = Story::flushing().then(Fact::Flushed(root(1))).then(died());
        let story = story.then(failure.clone());
        assert!(!story.returned() && !story.committed(), "{failure:?}");
        assert_eq!(story.outcome().guest_is(), GuestIs::Lost, "{failure:?}");
        assert!(story.did(|effect| matches!(effect, Effect::Abort(_))), "{failure:?}");
    }
}

#[test]
fn a_qemu_that_dies_once_offered_leaves_the_answer_to_the_destination() {
    let story = Story::offered().then(died()).then(Fact::PeerDiscarded);
    assert_eq!(story.outcome().guest_is(), GuestIs::Lost);
    assert!(!story.returned(), "there is nothing to resume");
    assert_eq!(
        *Story::offered().then(died()).then(Fact::PeerRunning { lacks_pages: false }).outcome(),
        Outcome::Done
    );
    // Between the last message and the durable offer.
    let mut story = Story::flushing().then(Fact::Flushed(root(1)));
    story.journal_works = false;
    let mut story = story.then(Fact::PeerLoaded(root(1))).then(died());
    story.journal_works = true;
    let story = story.then(Fact::Journaled(SourceRecord::Offered));
    assert!(story.committed());
    assert_eq!(story.then(Fact::PeerDiscarded).outcome().guest_is(), GuestIs::Lost);
}

#[test]
fn after_a_restart_a_guest_that_was_not_offered_comes_back() {
    let mut effects = Vec::new();
    let machine = Source::resume_unoffered(&mut effects);
    assert!(matches!(effects[..], [Effect::ReturnGuest(_)]));
    let machine = machine.handle(Fact::GuestReturned, &mut effects);
    assert!(matches!(effects.last(), Some(Effect::Journal(SourceRecord::Returned))));
    let machine = machine.handle(Fact::Journaled(SourceRecord::Returned), &mut effects);
    assert!(matches!(machine.outcome(), Some(Outcome::Failed(_))));
    let gone = Source::resume_unoffered(&mut effects).handle(died(), &mut effects);
    assert_eq!(gone.outcome().map(Outcome::guest_is), Some(GuestIs::Lost));
}
