//! Moves from many seeds: no oracle complains. With STERNA_SOAK=1 for twenty minutes on all cores
//! (`STERNA_SIM_SECONDS`), with a result to commit: `results/soak.json`.

mod soaked;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use soaked::Soaked;
use sterna_sim::campaign::{Tally, first_failure};
use sterna_sim::run::Options;

/// Half a minute's worth on two cores.
const SEEDS: u64 = 110_000;
/// The soak begins behind these.
const SOAK_FROM: u64 = 1_000_000;
/// Unless `STERNA_SIM_SECONDS` says otherwise.
const SOAK_SECONDS: u64 = 20 * 60;
/// Seeds between two looks at the clock.
const PIECE: u64 = 5_000;

#[test]
fn no_law_is_broken() {
    let half = |seeds: std::ops::Range<u64>| {
        let mut tally = Tally::default();
        let failure = first_failure(seeds, Options::default(), &mut tally);
        (tally, failure)
    };
    let (mut tally, other) = std::thread::scope(|scope| {
        let first = scope.spawn(|| half(0..SEEDS / 2));
        let second = half(SEEDS / 2..SEEDS);
        let (tally, failure) = first.join().expect("a simulation panicked");
        if let Some(failure) = failure.or(second.1) {
            panic!("{failure}");
        }
        (tally, second.0)
    });
    tally.add(&other);
    println!("{tally:?}");
    // A simulation in which nothing ever goes wrong, or right, proves nothing.
    for outcome in ["done", "failed", "cancelled", "refused", "lost", "unknown"] {
        let often = tally.outcomes.get(outcome).copied().unwrap_or(0);
        assert!(often > SEEDS / 1000, "{outcome}: {:?}", tally.outcomes);
    }
    assert!(tally.outcomes["done"] > SEEDS / 3, "{:?}", tally.outcomes);
    // Nor one in which no guest ever lacks pages, no link breaks then, and no QEMU dies; or in which no link breaks in the
    // rounds, for a while or for too long.
    for often in [tally.whole, tally.rejoined, tally.lacking, tally.joined_again, tally.given_up] {
        assert!(often > SEEDS / 1000, "{tally:?}");
    }
}

/// All cores take pieces of the seeds until the time is over or one fails. The result is written either way.
#[test]
fn no_law_is_broken_in_a_soak() {
    if std::env::var_os("STERNA_SOAK").is_none_or(|value| value != "1") {
        return;
    }
    let seconds = std::env::var("STERNA_SIM_SECONDS").ok().and_then(|text| text.parse().ok());
    let time = Duration::from_secs(seconds.unwrap_or(SOAK_SECONDS));
    let (begun, next, broken) = (Instant::now(), AtomicU64::new(SOAK_FROM), AtomicBool::new(false));
    let soak = || {
        let mut tally = Tally::default();
        while begun.elapsed() < time && !broken.load(Ordering::Relaxed) {
            let from = next.fetch_add(PIECE, Ordering::Relaxed);
            let seeds = from..from + PIECE;
            if let Some(failure) = first_failure(seeds, Options::default(), &mut tally) {
                broken.store(true, Ordering::Relaxed);
                return (tally, Some(failure));
            }
        }
        (tally, None)
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let ended: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(soak)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a simulation panicked")).collect()
    });
    let mut tally = Tally::default();
    ended.iter().for_each(|(part, _)| tally.add(part));
    let failures: Vec<String> =
        ended.into_iter().filter_map(|(_, failure)| Some(failure?.to_string())).collect();
    let soaked = Soaked { first_seed: SOAK_FROM, cores, took: begun.elapsed(), tally, failures };
    soaked.write().expect("the result is kept");
    assert!(soaked.failures.is_empty(), "{}", soaked.failures.join("\n"));
}
