//! The cells: a guest with its load over a link, who moves it, and what Sterna is to reach there.

use super::contenders::{
    AUTO_CONVERGE, Contender, MULTIFD_ZSTD, OURS, OURS_THREE_STAGE, OURS_UNCOMPRESSED, POSTCOPY,
    POSTCOPY_PREEMPT, PRECOPY, PRECOPY_TLS, XBZRLE,
};
use super::links::{FAST, GIGABIT, Link, UNSHAPED, WAN};
use super::loads::{
    AUDIO, DUPLICATES, EDIT, HOT_SET, IDLE, LARGE, Load, PROBED, RANDOM, RANDOM_SMALL, REDIS,
    SPARSE, SPARSE_SMALL, TEXT, TEXT_SMALL, VIDEO, WRITER_ABOVE, WRITER_AT, WRITER_BELOW,
};

/// A guest with a load over a link, and who moves it.
#[derive(Debug)]
pub(crate) struct Cell {
    /// What is moved.
    pub(crate) load: &'static Load,
    /// Over what.
    pub(crate) link: &'static Link,
    /// Which QEMU is at both ends.
    pub(crate) qemu: Version,
    /// Runs of each contender.
    pub(crate) runs: u32,
    /// Who moves it, in this order in every round.
    pub(crate) contenders: &'static [&'static Contender],
    /// What Sterna is to reach here.
    pub(crate) aims: &'static [Aim],
    /// Whether a quick benchmark has it, and of which contenders.
    pub(crate) quick: &'static [&'static Contender],
}

/// Which QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// The distribution's.
    Installed,
    /// 10.0, fetched.
    Ten,
}

impl Cell {
    /// Its name in files and tables.
    pub(crate) fn name(&self) -> String {
        let suffix = if self.qemu == Version::Ten { "-qemu10" } else { "" };
        format!("{}-{}{suffix}", self.link.name, self.load.name)
    }

    /// What is moved over what, in words.
    pub(crate) fn title(&self) -> String {
        let suffix = if self.qemu == Version::Ten { " (QEMU 10.0)" } else { "" };
        format!("{}: {}{suffix}", self.link.title, self.load.title)
    }
}

/// Something measured, of which less is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metric {
    /// From the command until the source may be destroyed.
    TotalMs,
    /// The guest stopped at the source until running at the destination.
    DowntimeMs,
    /// The longest silence that a client sees.
    GapMs,
    /// Bytes on the wire, both directions, headers included.
    Bytes,
    /// What the guest did not do, in seconds of its work before.
    LostWorkS,
    /// Time of the agents on a CPU.
    AgentCpuS,
    /// Time of both QEMUs on a CPU.
    QemuCpuS,
    /// Anonymous memory of the larger agent.
    AgentBytes,
}

/// Something that is to be reached by the median of Sterna's runs.
#[derive(Debug)]
pub(crate) enum Aim {
    /// At most so much.
    AtMost(Metric, f64),
    /// At most so many times the best competing stock mode that completed.
    AtMostTimesBest(Metric, f64),
    /// At most so many times this contender.
    AtMostTimes(Metric, f64, &'static Contender),
    /// Every run completes without post-copy.
    CompletesByPrecopy,
}

/// Agents may use 64 MiB and 1 % of the guest's 262,136 KiB.
const AGENT_LIMIT_BYTES: f64 = 64.0 * 1048576.0 + 0.01 * 262_136.0 * 1024.0;

/// Everybody.
static ALL: [&Contender; 9] = [
    &OURS,
    &OURS_THREE_STAGE,
    &PRECOPY,
    &XBZRLE,
    &MULTIFD_ZSTD,
    &POSTCOPY,
    &POSTCOPY_PREEMPT,
    &AUTO_CONVERGE,
    &PRECOPY_TLS,
];
/// For a guest that works. TLS is left to the cells where the link is no limit: below, it is pre-copy.
static BUSY: [&Contender; 8] = [
    &OURS,
    &OURS_THREE_STAGE,
    &PRECOPY,
    &XBZRLE,
    &MULTIFD_ZSTD,
    &POSTCOPY,
    &POSTCOPY_PREEMPT,
    &AUTO_CONVERGE,
];
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
    Cell { load, link, qemu, runs, contenders, aims: &[], quick: &[] }
}

/// The cells, the ones that matter most first.
pub(crate) static CELLS: &[Cell] = &[
    Cell {
        runs: HEADLINE_RUNS,
        aims: &[
            Aim::AtMost(Metric::DowntimeMs, 20.0),
            Aim::AtMostTimesBest(Metric::TotalMs, 1.0),
            Aim::AtMost(Metric::AgentBytes, AGENT_LIMIT_BYTES),
        ],
        contenders: &ALL,
        quick: &CALM,
        ..cell(&GIGABIT, &RANDOM)
    },
    Cell {
        runs: HEADLINE_RUNS,
        aims: &[
            Aim::CompletesByPrecopy,
            Aim::AtMostTimesBest(Metric::Bytes, 0.6),
            Aim::AtMost(Metric::AgentBytes, AGENT_LIMIT_BYTES),
        ],
        contenders: &ALL,
        quick: &[&OURS, &XBZRLE, &POSTCOPY],
        ..cell(&FAST, &SPARSE)
    },
    Cell {
        runs: HEADLINE_RUNS,
        contenders: &[
            &OURS,
            &OURS_UNCOMPRESSED,
            &PRECOPY,
            &XBZRLE,
            &MULTIFD_ZSTD,
            &POSTCOPY,
            &POSTCOPY_PREEMPT,
            &AUTO_CONVERGE,
            &PRECOPY_TLS,
        ],
        aims: &[
            Aim::AtMostTimes(Metric::TotalMs, 1.3, &PRECOPY),
            Aim::AtMostTimes(Metric::TotalMs, 1.0, &PRECOPY_TLS),
            Aim::AtMost(Metric::AgentBytes, AGENT_LIMIT_BYTES),
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
