//! The cells of the three-stage copy: guests of four sizes with writers below, at and above the link's rate, and with one
//! that walks over all its memory as memory tests do.

use super::cell::{Aim, Cell, Metric, Version};
use super::contenders::{Contender, OURS_PRECOPY, OURS_THREE_STAGE, POSTCOPY_PREEMPT, PRECOPY};
use super::links::{FAST, GIGABIT, Link};
use super::loads::{Client, Load, Program};

const RUNS: u32 = 2;

static CONTENDERS: [&Contender; 4] =
    [&OURS_THREE_STAGE, &OURS_PRECOPY, &PRECOPY, &POSTCOPY_PREEMPT];

/// What holds for every load: bounded where pre-copy never ends, and little harm after the guest was handed over.
const BOUNDS: [Aim; 5] = [
    Aim::Completes,
    Aim::AtMost(Metric::SendsPerPage, 2.0),
    Aim::AtMost(Metric::RequestPercent, 5.0),
    Aim::AtMost(Metric::FaultMedianMs, 3.0),
    Aim::AtMost(Metric::FaultP99Ms, 15.0),
];
/// At a low dirty rate, beside that: the paper's figures.
const LOW: [Aim; 7] = {
    let [completes, sends, requests, median, p99] = BOUNDS;
    let pages = Aim::AtMostTimes(Metric::Pages, 0.78, &PRECOPY);
    let total = Aim::AtMostTimes(Metric::TotalMs, 0.64, &PRECOPY);
    [pages, total, completes, sends, requests, median, p99]
};

/// A guest of some memory with a load over a working set, not probed: what is measured is what the guest waits for.
const fn load(
    name: &'static str,
    title: &'static str,
    parameters: &'static str,
    memory_kib: u32,
) -> Load {
    Load { name, title, program: Program::Pages(parameters), client: Client::Nobody, memory_kib }
}

const fn cell(link: &'static Link, load: &'static Load) -> Cell {
    Cell {
        load,
        link,
        qemu: Version::Installed,
        runs: RUNS,
        contenders: &CONTENDERS,
        subject: &OURS_THREE_STAGE,
        aims: &BOUNDS,
        quick: &[],
    }
}

/// The loads of a guest of one size: random pages of a set rewritten at shares of the link's rate, and the walk over the
/// whole set that writes one pattern after the other and looks whether it is still there, as memory tests do.
macro_rules! loads {
    ($memory:literal, $kib:literal, $set:literal; $($share:literal = $rate:literal),+) => {
        [
            $(load(
                concat!($memory, "-writer-", $share),
                concat!($memory, " guest, ", $set, " of random data rewritten at ", $share, " of the link's rate"),
                concat!("uniform size=", $set, " rate=", $rate),
                $kib,
            ),)+
            load(
                concat!($memory, "-passes"),
                concat!($memory, " guest, a memory test over ", $set),
                concat!("passes size=", $set, " rate=max duplicate=100"),
                $kib,
            ),
        ]
    };
}

// No guest's memory is a multiple of 256 KiB: see `sterna_e2e::Guest`.
static SMALLEST: [Load; 5] = loads!("128m", 131_064, "48M";
    "0.1" = "1220k", "0.5" = "6103k", "1" = "12207k", "2" = "24414k");
static SMALL: [Load; 5] = loads!("512m", 524_280, "256M";
    "0.1" = "12207k", "0.5" = "61035k", "1" = "122070k", "2" = "244140k");
static MEDIUM: [Load; 5] = loads!("1g", 1_048_568, "512M";
    "0.1" = "12207k", "0.5" = "61035k", "1" = "122070k", "2" = "244140k");
static LARGE: [Load; 5] = loads!("4g", 4_194_296, "1G";
    "0.1" = "12207k", "0.5" = "61035k", "1" = "122070k", "2" = "244140k");

/// At a low dirty rate.
const fn low(link: &'static Link, load: &'static Load) -> Cell {
    Cell { aims: &LOW, ..cell(link, load) }
}

pub(super) static CELLS: &[Cell] = &[
    Cell { quick: &CONTENDERS, ..low(&FAST, &SMALLEST[0]) },
    low(&GIGABIT, &SMALL[0]),
    low(&GIGABIT, &MEDIUM[0]),
    low(&GIGABIT, &LARGE[0]),
    cell(&FAST, &SMALLEST[1]),
    cell(&FAST, &SMALLEST[2]),
    Cell { quick: &CONTENDERS, ..cell(&FAST, &SMALLEST[3]) },
    cell(&FAST, &SMALLEST[4]),
    cell(&GIGABIT, &SMALL[1]),
    cell(&GIGABIT, &SMALL[2]),
    cell(&GIGABIT, &SMALL[3]),
    cell(&GIGABIT, &SMALL[4]),
    cell(&GIGABIT, &MEDIUM[1]),
    cell(&GIGABIT, &MEDIUM[2]),
    cell(&GIGABIT, &MEDIUM[3]),
    cell(&GIGABIT, &MEDIUM[4]),
    cell(&GIGABIT, &LARGE[1]),
    cell(&GIGABIT, &LARGE[2]),
    cell(&GIGABIT, &LARGE[3]),
    cell(&GIGABIT, &LARGE[4]),
];
