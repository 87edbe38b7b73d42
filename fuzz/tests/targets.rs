//! Every target over its corpus and some thousand inputs; with `STERNA_SOAK=1` for minutes each, with a result to commit.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use sterna_fuzz::engine::{Budget, Places, Tally, fuzz};
use sterna_fuzz::results::{Part, write};
use sterna_fuzz::{Target, corpus, targets};

/// The seed of the tests: another one is `cargo run -p sterna-fuzz --release -- run all --seed N`.
const SEED: u64 = 1;
/// Seconds for each target, unless `STERNA_FUZZ_SECONDS` says otherwise.
const SOAK_SECONDS: u64 = 180;
/// Targets that are soaked at a time.
const THREADS: usize = 2;

/// A campaign that has to find nothing.
fn campaign(target: &Target, budget: Budget) -> Tally {
    let failures = corpus::home().join("failures");
    let places = Places { failures: Some(&failures), trail: None };
    let corpus = corpus::load(target).unwrap();
    assert!(!corpus.is_empty(), "expected a corpus of {}, found none", target.name);
    fuzz(target, SEED, corpus, budget, places).unwrap()
}

fn told(target: &Target, tally: &Tally) -> String {
    let told = |failure: &sterna_fuzz::engine::Failure| {
        format!("{}: {failure}\n  {}\n", target.name, failure.replay(target))
    };
    tally.failures.iter().map(told).collect()
}

/// Fuzzes a target for a moment. Enough has to happen in it: inputs, some of them good, and different ones.
fn a_moment(name: &str) {
    let target = targets::find(name).unwrap();
    let budget = Budget { inputs: 60_000, time: Duration::from_millis(2500), failures: 5 };
    let tally = campaign(target, budget);
    assert!(tally.failures.is_empty(), "{}", told(target, &tally));
    eprintln!(
        "{name}: {} inputs in {:?}, {} accepted, {} signatures",
        tally.inputs,
        tally.took,
        tally.accepted,
        tally.signatures.len()
    );
    // Even on a machine that is busy with other things.
    assert!(tally.inputs >= 200, "{name}: only {} inputs in {:?}", tally.inputs, tally.took);
    assert!(tally.accepted * 20 >= tally.inputs, "{name}: {} of {}", tally.accepted, tally.inputs);
    assert!(tally.signatures.len() >= 10, "{name}: {:?}", tally.signatures);
}

macro_rules! moments {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                a_moment(stringify!($name));
            }
        )*

        #[test]
        fn every_target_has_its_test() {
            let tested = [$(stringify!($name)),*];
            let all: Vec<&str> = targets::ALL.iter().map(|target| target.name).collect();
            assert_eq!(all, tested);
        }
    };
}

moments! {
    stream inspect return_path frames hello messages pages moves journal record config qmp description api
}

#[test]
fn a_seed_decides_every_input() {
    let target = targets::find("messages").unwrap();
    let budget = Budget { inputs: 2000, time: Duration::from_secs(60), failures: 1 };
    let run = |seed| fuzz(target, seed, Vec::new(), budget, Places::default()).unwrap();
    let (one, same, other) = (run(3), run(3), run(4));
    assert_eq!((one.accepted, &one.signatures), (same.accepted, &same.signatures));
    assert_ne!((one.accepted, &one.signatures), (other.accepted, &other.signatures));
}

/// Minutes for each target, two at a time. The result is committed.
#[test]
fn soak() {
    if std::env::var_os("STERNA_SOAK").is_none_or(|value| value != "1") {
        return;
    }
    let seconds = std::env::var("STERNA_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let time = Duration::from_secs(seconds.unwrap_or(SOAK_SECONDS));
    let budget = Budget { inputs: u64::MAX, time, failures: 5 };
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        let turns = std::iter::from_fn(|| {
            let turn = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            targets::ALL.get(turn).map(|target| (turn, target, campaign(target, budget)))
        });
        turns.collect::<Vec<_>>()
    };
    let mut done = std::thread::scope(|scope| {
        let threads = [(); THREADS].map(|()| scope.spawn(work));
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    done.sort_by_key(|(turn, ..)| *turn);
    let parts: Vec<Part> = done.iter().map(|(_, target, tally)| Part::of(target, tally)).collect();
    write(&corpus::home().join("results/soak.json"), SEED, &parts).unwrap();
    let failures: String = done.iter().map(|(_, target, tally)| told(target, tally)).collect();
    assert!(failures.is_empty(), "{failures}");
}
