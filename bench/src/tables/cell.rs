//! A cell: a guest with its load over a link, who moves it, what is measured, and what Sterna is to reach there.

use super::contenders::Contender;
use super::links::Link;
use super::loads::Load;

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
    /// The one of them that the others are compared with, and whose aims these are.
    pub(crate) subject: &'static Contender,
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
    /// Pages that were sent with a content, each as often as it was sent; those of zeros do not count.
    Pages,
    /// The most often that one page was sent.
    SendsPerPage,
    /// Pages that the guest had to ask for, of those that it lacked when it was resumed, in percent.
    RequestPercent,
    /// Half of the waits for a page were no longer.
    FaultMedianMs,
    /// All but one in a hundred were no longer.
    FaultP99Ms,
    /// From the stop until the guest works at 95 % of its pace before the move.
    RecoveryMs,
    /// From asking for the guest until it ran at the destination; for a move, all of it.
    SwitchMs,
    /// Bytes a second on the wire while a guest is followed.
    BackgroundRate,
    /// The same by the pages that the run saw dirtied, each once an epoch, in percent.
    BackgroundPercent,
    /// How much less a followed guest does than before.
    SlowdownPercent,
    /// The upper end of that figure's 95 % interval.
    SlowdownMostPercent,
    /// What following takes of a processor, at both hosts, beyond what the guest's QEMU took before.
    HoldCpuPercent,
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
    /// Every run completes.
    Completes,
    /// Every run completes without post-copy.
    CompletesByPrecopy,
}
