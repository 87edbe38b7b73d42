//! The suites: cells that are measured together, with the table that shows them.

use super::cell::{Cell, Metric};
use super::{follow, moves, three_stage};

/// Cells that are measured together.
#[derive(Debug)]
pub(crate) struct Suite {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    /// The name of its files.
    pub(crate) stem: &'static str,
    /// The name of a quick benchmark's files.
    pub(crate) quick_stem: &'static str,
    /// The heading of its results.
    pub(crate) title: &'static str,
    /// The cells, the ones that matter most first.
    pub(crate) cells: &'static [Cell],
    /// What the overview of all cells shows: heading and figure.
    pub(crate) overview: &'static [(&'static str, Metric)],
    /// What a cell's table shows.
    pub(crate) columns: &'static [(&'static str, Metric)],
    /// What the figures mean, beside what holds for all suites.
    pub(crate) meaning: &'static str,
}

impl PartialEq for Suite {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// Sterna's defaults beside all of stock's modes: what the README quotes.
pub(crate) static MOVES: Suite = Suite {
    name: "moves",
    stem: "latest",
    quick_stem: "quick",
    title: "Sterna beside stock QEMU",
    cells: moves::CELLS,
    overview: &[
        ("total", Metric::TotalMs),
        ("downtime", Metric::DowntimeMs),
        ("on the wire", Metric::Bytes),
    ],
    columns: &[
        ("total", Metric::TotalMs),
        ("downtime", Metric::DowntimeMs),
        ("gap seen outside", Metric::GapMs),
        ("on the wire", Metric::Bytes),
        ("lost work", Metric::LostWorkS),
        ("CPU, agents", Metric::AgentCpuS),
        ("CPU, QEMUs", Metric::QemuCpuS),
    ],
    meaning: "",
};

static THREE_STAGE: Suite = Suite {
    name: "three-stage",
    stem: "three-stage",
    quick_stem: "quick-three-stage",
    title: "The three-stage copy beside pre-copy and stock post-copy",
    cells: three_stage::CELLS,
    overview: &[
        ("total", Metric::TotalMs),
        ("downtime", Metric::DowntimeMs),
        ("pages", Metric::Pages),
        ("old pace again", Metric::RecoveryMs),
    ],
    columns: &[
        ("total", Metric::TotalMs),
        ("downtime", Metric::DowntimeMs),
        ("pages", Metric::Pages),
        ("on the wire", Metric::Bytes),
        ("asked for, of the lacking", Metric::RequestPercent),
        ("wait for a page: median", Metric::FaultMedianMs),
        ("99th percentile", Metric::FaultP99Ms),
        ("old pace again", Metric::RecoveryMs),
        ("lost work", Metric::LostWorkS),
    ],
    meaning: "\
- Pages: those that were sent with a content, each as often as it was sent; pages of zeros do not count, for nobody.
- Asked for: pages that the guest had to wait for, by the pages that were lacking when it was resumed. Stock: its requests \
by the pages of its post-copy bytes.
- Wait: from QEMU's request at the destination to the page in its stream, as Sterna reports it; stock's QEMU does not tell. \
The links here have no delay of their own: the round trip of the aims counts as nothing.
- Old pace again: from the stop until the guest did at least 95 % of its work before the move over half a second. The guest \
tells ten times a second.
- Pre-copy is given up after 40 s (Sterna's, by `--timeout`) or 45 s (stock's).
",
};

static FOLLOW: Suite = Suite {
    name: "follow",
    stem: "follow",
    quick_stem: "quick-follow",
    title: "A followed guest beside one that is moved when it is asked for",
    cells: follow::CELLS,
    overview: &[
        ("asked until it runs there", Metric::SwitchMs),
        ("downtime", Metric::DowntimeMs),
    ],
    columns: &[
        ("asked until it runs there", Metric::SwitchMs),
        ("downtime", Metric::DowntimeMs),
        ("background", Metric::BackgroundRate),
        ("by all that was dirtied", Metric::BackgroundPercent),
        ("guest slower by", Metric::SlowdownPercent),
        ("at most, 95 %", Metric::SlowdownMostPercent),
        ("CPU to hold it", Metric::HoldCpuPercent),
    ],
    meaning: "\
- Each guest is watched for ten seconds, followed, watched for half a minute after its memory was copied once, then asked for.
- Asked until it runs there: the report's `switch_ms`; for a move, its total.
- Background: what Sterna put on the wire in that half minute. By all that was dirtied: by the pages that the same run saw \
dirtied, 4096 bytes each, once for each of its epochs (1 to 30 s). *Every dirty page whole, each second* is that for real: no \
prediction, no slow start, no look at contents (`[lab]` in an agent's configuration).
- Guest slower by: its work a second while it is followed by that before, with the upper end of the 95 % interval of that \
(Welch, over whole seconds). Editor and players work at a pace of their own: they are slower when they cannot keep it.
- CPU to hold it: all that agents and QEMUs of both hosts take of one processor, less what the guest's QEMU took before.
",
};

/// All of them.
pub(crate) static SUITES: [&Suite; 3] = [&MOVES, &THREE_STAGE, &FOLLOW];
