//! The cells of moves: every mode of stock QEMU that there is, over every link.

use super::cell::{Aim, Cell, Metric, Version};
use super::contenders::{
    AUTO_CONVERGE, Contender, MULTIFD_ZSTD, OURS, OURS_THREE_STAGE, OURS_UNCOMPRESSED, POSTCOPY,
    POSTCOPY_PREEMPT, PRECOPY, PRECOPY_TLS, XBZRLE, joined,
};
use super::links::{FAST, GIGABIT, Link, UNSHAPED, WAN};
use super::loads::{
    AUDIO, DUPLICATES, EDIT, HOT_SET, IDLE, LARGE, Load, PROBED, RANDOM, RANDOM_SMALL, REDIS,
    SPARSE, SPARSE_SMALL, TEXT, TEXT_SMALL, VIDEO, WRITER_ABOVE, WRITER_AT, WRITER_BELOW,
};

/// Agents may use 64 MiB and 1 % of the guest's 262,136 KiB.
const AGENT_LIMIT_BYTES: f64 = 64.0 * 1048576.0 + 0.01 * 262_136.0 * 1024.0;

const MEMORY: Aim = Aim::AtMost(Metric::AgentBytes, AGENT_LIMIT_BYTES);

/// QEMU's modes without encryption.
static STOCK: [&Contender; 6] =
    [&PRECOPY, &XBZRLE, &MULTIFD_ZSTD, &POSTCOPY, &POSTCOPY_PREEMPT, &AUTO_CONVERGE];
/// For a guest that works. TLS is left to the cells where the link is no limit: below, it is pre-copy.
static BUSY: [&Contender; 8] = joined(&[&[&OURS, &OURS_THREE_STAGE], &STOCK]);
/// Everybody.
static ALL: [&Contender; 9] = joined(&[&BUSY, &[&PRECOPY_TLS]]);
/// Everybody, where the processor is the limit: what compression costs instead of what the strategy does.
static ALL_UNSHAPED: [&Contender; 9] =
    joined(&[&[&OURS, &OURS_UNCOMPRESSED], &STOCK, &[&PRECOPY_TLS]]);
/// For a guest that does nothing: there is nothing to throttle, and nothing that waits for a page.
static QUIET: [&Contender; 5] = [&OURS, &PRECOPY, &XBZRLE, &MULTIFD_ZSTD, &POSTCOPY];
/// The two that are best when the guest is quiet, and ours.
static CALM: [&Contender; 3] = [&OURS, &PRECOPY, &MULTIFD_ZSTD];
/// What compression and encryption cost.
static OVERHEAD: [&Contender; 5] =
    [&OURS, &OURS_UNCOMPRESSED, &PRECOPY, &MULTIFD_ZSTD, &PRECOPY_TLS];

const HEADLINE_RUNS: u32 = 5;
const RUNS: u32 = 2;

/// A cell of the matrix; what is special about others is said there.
const fn cell(link: &'static Link, load: &'static Load) -> Cell {
    let (qemu, runs) = (Version::Installed, RUNS);
    let contenders: &[_] = if load.is_busy() { &BUSY } else { &QUIET };
    Cell { load, link, qemu, runs, contenders, subject: &OURS, aims: &[], quick: &[] }
}

/// The cells, the ones that matter most first.
pub(super) static CELLS: &[Cell] = &[
    Cell {
        runs: HEADLINE_RUNS,
        aims: &[
            Aim::AtMost(Metric::DowntimeMs, 20.0),
            Aim::AtMostTimesBest(Metric::TotalMs, 1.0),
            MEMORY,
        ],
        contenders: &ALL,
        quick: &CALM,
        ..cell(&GIGABIT, &RANDOM)
    },
    Cell {
        runs: HEADLINE_RUNS,
        aims: &[Aim::CompletesByPrecopy, Aim::AtMostTimesBest(Metric::Bytes, 0.6), MEMORY],
        contenders: &ALL,
        quick: &[&OURS, &XBZRLE, &POSTCOPY],
        ..cell(&FAST, &SPARSE)
    },
    Cell {
        runs: HEADLINE_RUNS,
        contenders: &ALL_UNSHAPED,
        aims: &[
            Aim::AtMostTimes(Metric::TotalMs, 1.3, &PRECOPY),
            Aim::AtMostTimes(Metric::TotalMs, 1.0, &PRECOPY_TLS),
            MEMORY,
        ],
        quick: &[&OURS, &PRECOPY, &PRECOPY_TLS],
        ..cell(&UNSHAPED, &RANDOM)
    },
    Cell {
        contenders: &OVERHEAD,
        aims: &[Aim::AtMostTimes(Metric::TotalMs, 1.0, &PRECOPY_TLS)],
        ..cell(&UNSHAPED, &LARGE)
    },
    Cell { contenders: &CALM, runs: HEADLINE_RUNS, ..cell(&GIGABIT, &PROBED) },
    cell(&FAST, &IDLE),
    cell(&FAST, &RANDOM),
    cell(&FAST, &WRITER_BELOW),
    cell(&FAST, &WRITER_AT),
    cell(&FAST, &WRITER_ABOVE),
    cell(&FAST, &HOT_SET),
    cell(&FAST, &TEXT),
    cell(&FAST, &DUPLICATES),
    cell(&FAST, &REDIS),
    cell(&FAST, &EDIT),
    cell(&FAST, &AUDIO),
    cell(&FAST, &VIDEO),
    Cell { quick: &[&OURS, &PRECOPY], ..cell(&WAN, &RANDOM_SMALL) },
    cell(&WAN, &SPARSE_SMALL),
    cell(&WAN, &TEXT_SMALL),
    cell(&GIGABIT, &SPARSE),
    cell(&GIGABIT, &TEXT),
    cell(&UNSHAPED, &SPARSE),
    cell(&UNSHAPED, &TEXT),
    Cell { qemu: Version::Ten, contenders: &CALM, ..cell(&GIGABIT, &RANDOM) },
    Cell {
        qemu: Version::Ten,
        contenders: &[&OURS, &XBZRLE, &POSTCOPY, &POSTCOPY_PREEMPT],
        ..cell(&FAST, &SPARSE)
    },
    Cell {
        qemu: Version::Ten,
        contenders: &[&OURS, &PRECOPY, &PRECOPY_TLS],
        ..cell(&UNSHAPED, &RANDOM)
    },
];
