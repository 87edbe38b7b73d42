//! Oracles: what has to hold in every run, each in its own file, which says what it checks and what it does not.

pub(crate) mod bounds;
pub(crate) mod memory;
pub(crate) mod placement;
pub(crate) mod progress;
pub(crate) mod rejoining;
pub(crate) mod single_owner;
pub(crate) mod truth;
pub(crate) mod twice;

pub(crate) use bounds::Gauge;

use std::fmt;

use clap::ValueEnum;
use sterna_migration::destination::End;
use sterna_migration::outcome::OutcomeName;
use sterna_model::Instant;

use crate::faults::{Scenario, Side, What};
use crate::world::World;

/// Which oracle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Oracle {
    /// Never two running copies, none lost.
    SingleOwner,
    /// What runs at the destination is what stood at the source.
    Memory,
    /// Every run ends, healthy ones in success.
    Progress,
    /// Nothing grows without bound.
    Bounds,
    /// Journals and reports say what is.
    Truth,
    /// No page is sent more than twice.
    Twice,
    /// What was absent is placed once.
    Placement,
    /// Links that break in the rounds are made anew, and nothing is left behind.
    Rejoining,
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Who saw it.
    pub oracle: Oracle,
    /// When.
    pub at: Instant,
    /// What.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.at.nanos / 1_000_000;
        write!(f, "{:?} at {}.{:03} s: {}", self.oracle, millis / 1000, millis % 1000, self.what)
    }
}

/// How a job ended on one of the hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// At the source, as the report says.
    Source(OutcomeName),
    /// At the destination.
    Destination(End),
    /// The agent was restarted, and its journal knows of nothing that was begun.
    Forgotten,
}

/// All oracles of a run, and the first violation.
#[derive(Debug)]
pub(crate) struct Oracles {
    pub single_owner: single_owner::SingleOwner,
    pub memory: memory::Memory,
    pub progress: progress::Progress,
    pub bounds: bounds::Bounds,
    pub truth: truth::Truth,
    pub twice: twice::Twice,
    pub placement: placement::Placement,
    pub rejoining: rejoining::Rejoining,
    pub struck: Vec<What>,
    pub healthy: bool,
    /// Only this one counts.
    only: Option<Oracle>,
    violation: Option<Violation>,
}

impl Oracles {
    pub(crate) fn new(scenario: &Scenario, only: Option<Oracle>) -> Self {
        Self {
            single_owner: single_owner::SingleOwner::default(),
            memory: memory::Memory::default(),
            progress: progress::Progress::default(),
            bounds: bounds::Bounds::new(&scenario.setting),
            truth: truth::Truth::default(),
            twice: twice::Twice::default(),
            placement: placement::Placement::default(),
            rejoining: rejoining::Rejoining::default(),
            struck: Vec::new(),
            healthy: scenario.is_healthy(),
            only,
            violation: None,
        }
    }

    /// Only the first counts: what follows may follow from it.
    pub(crate) fn blame(&mut self, oracle: Oracle, at: Instant, what: String) {
        if self.only.is_none_or(|only| only == oracle) {
            self.violation.get_or_insert(Violation { oracle, at, what });
        }
    }

    pub(crate) const fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    pub(crate) fn struck(&mut self, what: What) {
        self.struck.push(what);
    }

    /// Whether something happened after which not to know is no lie.
    pub(crate) fn is_clouded(&self) -> bool {
        self.struck.iter().any(|what| what.clouds_ownership())
    }
}

impl World {
    /// The guest has begun to run somewhere.
    pub(crate) fn guest_runs(&mut self, side: Side) {
        self.note(|| format!("the guest runs at the {side:?}"));
        self.check_single_owner(side);
        self.check_right_to_run(side);
        match side {
            Side::Source => self.stand_is_over(),
            Side::Destination => self.check_memory(),
        }
    }

    /// The destination's hands report that the guest is resumed, or left paused as it was.
    pub(crate) fn guest_is_taken(&mut self) {
        self.check_memory();
        self.check_entitled();
        let before = std::mem::replace(&mut self.oracles.single_owner.taken, true);
        if !before && self.is_lacking() {
            self.taken_while_lacking();
        }
    }

    /// The job is over on a host.
    pub(crate) fn job_ended(&mut self, side: Side, how: Ended) {
        self.note(|| format!("{side:?}: the job is over: {how:?}"));
        self.check_ended(&how);
        self.oracles.progress.ended(side, how);
    }
}
