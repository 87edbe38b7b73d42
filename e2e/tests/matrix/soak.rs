//! Everything strikes everywhere, [`ROUNDS`] times (or `STERNA_SOAK_ROUNDS`): hours, of which most are spent waiting, so several worlds do it at a time
//! (`STERNA_SOAK_WORLDS`, default 4). A cell is a moment and a blow; the one that was struck least comes next, so an
//! interrupted soak has covered all of them evenly. Half of the worlds take the long cuts first, so that those pass beside
//! shorter blows.
//!
//! Only what held is counted ([`crate::tally`]). What did not is told, all that both hosts have of it is kept in
//! `target/faults`, the soak goes on in a new world, and fails in the end. `STERNA_FAULTS="Copying: LongCut"`: only the
//! cells with this in their name.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::thread;

use sterna_e2e::{
    Blow, Error, Pair, Phase, Result, Setup, can_run_here, expect_that, repository, story,
};

use crate::strike::strike_all;
use crate::tally::{Tally, cell};

/// How often everything strikes everywhere.
const ROUNDS: u64 = 20;
/// Blows in one world: what lasts for hours may suffer from other things.
const BLOWS_PER_WORLD: usize = 20;
const WORLDS: u64 = 4;

/// Strikes until everything has struck often enough everywhere.
pub(crate) fn everything_everywhere(setup: &Setup) -> Result<()> {
    if !can_run_here()? {
        return Ok(());
    }
    let wanted = std::env::var("STERNA_FAULTS").unwrap_or_default();
    let tally = Tally::open()?;
    let rounds = number_from("STERNA_SOAK_ROUNDS", ROUNDS)?;
    let queue = Queue::of(&tally, &wanted, rounds);
    let broken: Vec<String> = thread::scope(|scope| {
        let (queue, tally) = (&queue, &tally);
        let start = |number| {
            let first = if number % 2 == 0 { Length::Long } else { Length::Short };
            scope.spawn(move || work(setup, queue, tally, number, first))
        };
        let workers: Vec<_> = (0..number_from("STERNA_SOAK_WORLDS", WORLDS)?).map(start).collect();
        let broken = workers.into_iter().map(|worker| {
            worker.join().unwrap_or_else(|_| vec!["a world that panicked".to_owned()])
        });
        Ok::<_, Error>(broken.flatten().collect())
    })?;
    expect_that(broken.is_empty(), "law 1", "that it held", broken.join("\n"))
}

/// A number that the environment may give.
fn number_from(variable: &'static str, default: u64) -> Result<u64> {
    let Ok(text) = std::env::var(variable) else { return Ok(default) };
    let number = text.parse::<NonZeroU64>();
    let number = number.map_err(|_| Error::unexpected(variable, "a number from 1", &text))?;
    Ok(number.get())
}

/// One world after the other, until nothing is left to be struck; gives what did not hold.
fn work(setup: &Setup, queue: &Queue, tally: &Tally, number: u64, first: Length) -> Vec<String> {
    let mut broken = Vec::new();
    loop {
        let mut last = None;
        let next = || {
            last = queue.next(first);
            last
        };
        let told = story(setup, |pair| {
            let blows = std::iter::from_fn(next).take(BLOWS_PER_WORLD);
            let struck =
                strike_all(pair, blows, |phase, blow, ended| tally.add(phase, blow, ended));
            struck.inspect_err(|_| keep(pair, number, broken.len()))
        });
        match (told, last) {
            // Asked for one more, the queue had none.
            (Ok(()), None) => return broken,
            (Ok(()), Some(_)) => {}
            (Err(error), Some((phase, blow))) => {
                let what = format!("{}: {error}", cell(phase, blow));
                eprintln!("BROKEN in world {number}: {what}");
                broken.push(what);
            }
            // Nothing was struck: the machine is in the way, and would be so again.
            (Err(error), None) => {
                broken.push(error.to_string());
                return broken;
            }
        }
    }
}

/// Keeps what both hosts have: logs, journals, records, what guests printed.
fn keep(pair: &Pair, world: u64, number: usize) {
    let name = format!("{}-{world}-{number}", std::process::id());
    let folder = repository().join("target/faults").join(name);
    match pair.keep(&folder) {
        Ok(()) => eprintln!("kept: {}", folder.display()),
        Err(error) => eprintln!("cannot keep what the hosts have: {error}"),
    }
}

/// What is still to be struck.
#[derive(Debug)]
struct Queue {
    cells: Mutex<Vec<Cell>>,
    rounds: u64,
}

/// A moment and a blow, and how often it was begun, in earlier soaks too.
#[derive(Clone, Copy, Debug)]
struct Cell {
    phase: Phase,
    blow: Blow,
    begun: u64,
}

/// How long a run of a cell takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Short,
    /// More than a minute.
    Long,
}

impl Queue {
    fn of(tally: &Tally, wanted: &str, rounds: u64) -> Self {
        let phases = Phase::ALL.into_iter().chain(Phase::OF_POST_COPY);
        let cells = phases.flat_map(|phase| {
            Blow::ALL.map(|blow| Cell { phase, blow, begun: tally.runs(phase, blow) })
        });
        let cells = cells.filter(|it| cell(it.phase, it.blow).contains(wanted)).collect();
        Self { cells: Mutex::new(cells), rounds }
    }

    /// The cell that was struck least, of this length if there is one among those.
    fn next(&self, first: Length) -> Option<(Phase, Blow)> {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        let left = cells.iter_mut().filter(|cell| cell.begun < self.rounds);
        let next = left.min_by_key(|cell| (cell.begun, cell.length() != first))?;
        next.begun += 1;
        Some((next.phase, next.blow))
    }
}

impl Cell {
    fn length(&self) -> Length {
        if self.blow == Blow::LongCut { Length::Long } else { Length::Short }
    }
}

#[test]
fn all_are_struck_before_one_is_struck_again_and_long_cuts_beside_short_blows() {
    let cells = |begun: [u64; 3]| {
        let blows = [Blow::SourceAgent, Blow::LongCut, Blow::ShortCut];
        let cells = blows.into_iter().zip(begun);
        let cells = cells.map(|(blow, begun)| Cell { phase: Phase::Copying, blow, begun });
        Queue { cells: Mutex::new(cells.collect()), rounds: ROUNDS }
    };
    let struck = |queue: &Queue, first| queue.next(first).map(|(_, blow)| blow);
    let queue = cells([0; 3]);
    assert_eq!(struck(&queue, Length::Long), Some(Blow::LongCut));
    assert_eq!(struck(&queue, Length::Long), Some(Blow::SourceAgent));
    assert_eq!(struck(&queue, Length::Short), Some(Blow::ShortCut));
    assert_eq!(struck(&queue, Length::Short), Some(Blow::SourceAgent), "the second round");
    // An earlier soak has done some.
    let queue = cells([ROUNDS, ROUNDS - 1, ROUNDS - 2]);
    assert_eq!(struck(&queue, Length::Long), Some(Blow::ShortCut));
    assert_eq!(struck(&queue, Length::Short), Some(Blow::ShortCut));
    assert_eq!(struck(&queue, Length::Short), Some(Blow::LongCut));
    assert_eq!(struck(&queue, Length::Short), None);
}
