//! What goes wrong in a run: a list drawn from the seed, so that faults can be taken away one by one while the run still
//! fails; and the setting, which is drawn as well.

mod draw;

use std::time::Duration;

use sterna_model::Instant;

use crate::disk::{Ailment, Crash};
use crate::random::Random;

/// One of the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where the guest comes from.
    Source,
    /// Where it goes to.
    Destination,
}

impl Side {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }

    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Source => 0,
            Self::Destination => 1,
        }
    }
}

/// Everything that a run follows from.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The seed of all that is random while it runs.
    pub seed: u64,
    /// Guest, link and command.
    pub setting: Setting,
    /// What goes wrong.
    pub faults: Vec<Fault>,
}

/// Guest, link and command.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Pages of the guest.
    pub pages: u32,
    /// How many of them are zero.
    pub zero_percent: u64,
    /// Time between two of its writes.
    pub write_every: Duration,
    /// Pages that it writes.
    pub working_set: u32,
    /// Its user has paused it before.
    pub paused: bool,
    /// Its memory is a file at the source, which the agent there has open: it outlives that QEMU.
    pub held: bool,
    /// Data connections.
    pub connections: usize,
    /// A message's way.
    pub one_way: Duration,
    /// So much longer, at most.
    pub jitter: Duration,
    /// What a page takes on one connection.
    pub page_time: Duration,
    /// A connection breaks after so much silence.
    pub link_timeout: Duration,
    /// The job's time-out; none when zero.
    pub timeout: Duration,
    /// A sync of the disk.
    pub sync_time: Duration,
    /// Pages of a frame, at most.
    pub batch_pages: usize,
    /// When to stop.
    pub strategy: Strategy,
    /// Post-copy was found possible, and is prepared for.
    pub post_copy: bool,
    /// The downtime that is asked for.
    pub max_downtime: Duration,
}

/// How the command was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Rounds, and nothing but rounds.
    Precopy,
    /// Rounds, and post-copy when they do not converge or run out of time.
    Auto,
    /// One round, and post-copy.
    ThreeStage,
}

/// One thing that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// When.
    pub at: Moment,
    /// What.
    pub what: What,
}

/// When something goes wrong. Steps are what an agent does that others can see: a command given or answered, a message
/// sent, a record begun, written, synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// At a time.
    Time(Instant),
    /// At an agent's step of this number.
    Step(Side, u32),
    /// So many steps after an agent begins its append of this number (0 is the subject).
    Append(Side, u32, u32),
    /// So long after the guest runs at the destination and lacks pages, if it still does.
    Lacking(Duration),
    /// So long after pages begin to be copied, if the guest still runs at the source then.
    Copying(Duration),
    /// So long after the links broke in the rounds, if they are not made anew by then.
    Away(Duration),
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// An agent ends before its time, and comes back after a while.
    Crash(Side, Crash, Duration),
    /// A disk ails for a while.
    Disk(Side, Ailment, Duration),
    /// The next record takes so long.
    SlowSync(Side, Duration),
    /// Connections are reset.
    Cut(Cut),
    /// Nothing gets through for a while.
    Silence(Duration),
    /// A QEMU dies.
    QemuDies(Side),
    /// A QEMU refuses its next command.
    CommandRefused(Side),
    /// A QEMU does not answer its next command, whether or not it obeys.
    CommandHangs(Side),
    /// QEMU's outgoing stream breaks.
    StreamBreaks,
    /// The stream of absent pages into the destination's QEMU breaks.
    FeedBreaks,
    /// QEMU completes by itself.
    Completes,
    /// The destination's QEMU does not load what it gets.
    LoadFails,
    /// The destination takes no guest.
    Refuses,
    /// A page cannot be decoded for want of its base: it is asked for again.
    BaseMissing,
    /// What comes cannot be used at all.
    DecodeFails,
    /// The user ends the job.
    Cancel,
    /// The user pauses the guest.
    UserPauses,
    /// The guest shuts down.
    Shutdown,
    /// An agent does nothing for a while, and its host goes on.
    Stalls(Side, Duration),
}

/// Which connections are reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Those for messages.
    Control,
    /// One of those for pages.
    Data(usize),
    /// All.
    All,
}

impl What {
    /// Whether a move gets through in spite of it, alone or with others of its kind.
    #[must_use]
    pub fn is_harmless(self, setting: &Setting) -> bool {
        match self {
            Self::BaseMissing | Self::UserPauses => true,
            // A guest that its user paused stays in QEMU's *postmigrate*, and QEMU then begins no other stream.
            Self::Completes => !setting.paused,
            Self::SlowSync(_, time) => time < Duration::from_millis(500),
            // A longer hiccup may be taken for the link's round trip or rate, and a few empty rounds later the policy gives up.
            Self::Stalls(_, time) | Self::Silence(time) => {
                time < Duration::from_millis(40) && time < setting.link_timeout
            }
            _ => false,
        }
    }

    /// Whether nobody can be blamed for not knowing whose the guest is, or for losing it.
    #[must_use]
    pub const fn clouds_ownership(self) -> bool {
        matches!(
            self,
            Self::QemuDies(_)
                | Self::CommandRefused(_)
                | Self::CommandHangs(_)
                | Self::Crash(_, Crash::Power, _)
                | Self::Disk(..)
        )
    }
}

impl Scenario {
    /// What a seed stands for.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut setting = draw::setting(&mut random);
        let mut faults = draw::faults(&mut random, &setting);
        draw::strategy(&mut Random::new(seed ^ 0x3333_3333), &mut setting, &mut faults);
        draw::rounds(&mut Random::new(seed ^ 0x7777_7777), &setting, &mut faults);
        Self { seed, setting, faults }
    }

    /// The same with only some of its faults, by their place in the list.
    #[must_use]
    pub fn keeping(&self, kept: &[usize]) -> Self {
        let numbered = self.faults.iter().enumerate();
        let faults =
            numbered.filter(|(at, _)| kept.contains(at)).map(|(_, fault)| fault.clone()).collect();
        Self { faults, ..self.clone() }
    }

    fn strikes(&self, what: What) -> bool {
        self.faults.iter().any(|fault| fault.what == what)
    }

    /// Whether such a run has to end in success.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.setting.timeout.is_zero()
            && self.setting.gets_through()
            && self.faults.iter().all(|fault| fault.what.is_harmless(&self.setting))
            && !(self.strikes(What::Completes) && self.strikes(What::UserPauses))
    }
}

impl Setting {
    /// Whether the guest gets over without anything going wrong.
    #[must_use]
    pub fn gets_through(&self) -> bool {
        match self.strategy {
            Strategy::Precopy => self.converges(),
            Strategy::Auto | Strategy::ThreeStage => self.post_copy,
        }
    }

    /// Whether what the guest writes fits through the link, with room to spare, and the rest into the downtime.
    #[must_use]
    pub fn converges(&self) -> bool {
        // Now and then it writes somewhere else.
        let rest = self.page_time.saturating_mul(self.working_set + self.pages / 8);
        rest < Duration::from_millis(50) && self.one_way + self.jitter < Duration::from_millis(25)
    }
}
