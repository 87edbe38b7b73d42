//! Moves from many seeds: no oracle complains. With STERNA_SOAK=1 for twenty minutes on all cores.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sterna_sim::campaign::{Tally, first_failure};
use sterna_sim::run::Options;

/// A few seconds' worth on one core.
const SEEDS: u64 = 110_000;
/// The soak begins behind these.
const SOAK_FROM: u64 = 1_000_000;
const SOAK_TIME: Duration = Duration::from_secs(20 * 60);
/// Seeds between two looks at the clock.
const PIECE: u64 = 5_000;

#[test]
fn no_law_is_broken() {
    let mut tally = Tally::default();
    if let Some(failure) = first_failure(0..SEEDS, Options::default(), &mut tally) {
        panic!("{failure}");
    }
    println!("{tally:?}");
    // A simulation in which nothing ever goes wrong, or right, proves nothing.
    for outcome in ["done", "failed", "cancelled", "refused", "lost", "unknown"] {
        let often = tally.outcomes.get(outcome).copied().unwrap_or(0);
        assert!(often > SEEDS / 1000, "{outcome}: {:?}", tally.outcomes);
    }
    assert!(tally.outcomes["done"] > SEEDS / 3, "{:?}", tally.outcomes);
    // Nor one in which no guest ever lacks pages, no link breaks then, and no QEMU dies.
    for often in [tally.whole, tally.rejoined, tally.lacking] {
        assert!(often > SEEDS / 1000, "{tally:?}");
    }
}

#[test]
fn no_law_is_broken_in_a_soak() {
    if std::env::var_os("STERNA_SOAK").is_none_or(|value| value != "1") {
        return;
    }
    let (begun, next) = (Instant::now(), AtomicU64::new(SOAK_FROM));
    let soak = || {
        let mut tally = Tally::default();
        while begun.elapsed() < SOAK_TIME {
            let from = next.fetch_add(PIECE, Ordering::Relaxed);
            if let Some(failure) = first_failure(from..from + PIECE, Options::default(), &mut tally)
            {
                panic!("{failure}");
            }
        }
        tally.runs
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runs: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(soak)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a seed fails, see above")).sum()
    });
    println!("{runs} seeds in {:?}", begun.elapsed());
}
