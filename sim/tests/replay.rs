//! A seed decides everything: a replay gives the same trace, and a failure shrinks to what it needs.

use sterna_sim::campaign::{Tally, first_failure};
use sterna_sim::faults::Scenario;
use sterna_sim::oracle::Oracle;
use sterna_sim::plant::Plant;
use sterna_sim::run::{Options, run};
use sterna_sim::shrink::shrink;
use sterna_sim::trace::Recording;

#[test]
fn a_replay_gives_the_same_trace() {
    let recorded = Options { recording: Recording::On, ..Options::default() };
    for seed in 0..300 {
        let scenario = Scenario::from_seed(seed);
        let (one, other) = (run(&scenario, recorded), run(&scenario, recorded));
        assert!(one.trace.lines().len() > 5, "seed {seed}");
        assert_eq!(one.trace, other.trace, "seed {seed}");
        let silent = run(&scenario, Options::default());
        assert!(silent.trace.lines().is_empty());
        assert_eq!((silent.events, silent.outcome), (one.events, one.outcome), "seed {seed}");
    }
}

#[test]
fn a_failure_shrinks_to_what_it_needs_and_replays() {
    let options = Options {
        plant: Some(Plant::ReturnWithoutAsking),
        only: Some(Oracle::SingleOwner),
        ..Options::default()
    };
    let (mut from, mut smaller) = (0, 0);
    for _ in 0..20 {
        let failure = first_failure(from..20_000, options, &mut Tally::default());
        let failure = failure.expect("the planted bug is caught again and again");
        from = failure.seed + 1;
        let scenario = Scenario::from_seed(failure.seed);
        let shrunk = failure.shrunk.as_ref().expect("it fails, so it shrinks");
        smaller += u32::from(shrunk.kept.len() < scenario.faults.len());
        // Exactly what the printed command does.
        let replayed = run(&scenario.keeping(&shrunk.kept), options).violation;
        assert_eq!(replayed.as_ref(), Some(&shrunk.violation));
        for left_out in &shrunk.kept {
            let kept: Vec<usize> =
                shrunk.kept.iter().copied().filter(|place| place != left_out).collect();
            assert_eq!(run(&scenario.keeping(&kept), options).violation, None);
        }
        assert!(failure.to_string().contains(&failure.replay()));
        assert!(failure.replay().contains("--plant return-without-asking --only single-owner"));
    }
    assert!(smaller > 0, "some had faults that they did not need");
}

#[test]
fn what_does_not_fail_does_not_shrink() {
    assert!(shrink(&Scenario::from_seed(0), Options::default()).is_none());
}
