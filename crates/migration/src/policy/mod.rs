//! Policies: when to copy on, when to stop the guest, when to give up. Facts in, decisions out.
//!
//! A policy never sees a page, a socket or a clock. The source machine asks it at the end of each round, and when the job's
//! time-out passes meanwhile.

mod epochs;
mod follow;
mod precopy;
mod three_stage;

pub use epochs::{Ablation, EpochFacts, Epochs};
pub use follow::{Follow, HAND_OVER_FIXED, HAND_OVER_GOAL};
pub use precopy::Precopy;
pub use three_stage::ThreeStage;

use alloc::string::String;
use core::time::Duration;
use serde::{Deserialize, Serialize};
use sterna_model::{ByteCount, Rate};

/// Rests below this are sent with the guest stopped, whatever the limit: the hand-over's fixed part is longer.
const NEGLIGIBLE: Duration = Duration::from_millis(1);

/// What is known at the end of a round.
#[derive(Clone, Debug, PartialEq)]
pub struct RoundFacts {
    /// The round's number, from 1.
    pub number: u32,
    /// Pages sent in it.
    pub pages: u64,
    /// Bytes that it put on the wire.
    pub wire_bytes: ByteCount,
    /// How long it took.
    pub duration: Duration,
    /// Pages that the destination lacks now.
    pub dirty_pages: u64,
    /// What these pages are expected to cost on the wire.
    pub rest_bytes: ByteCount,
    /// What the link carries when it is kept busy.
    pub link_rate: Rate,
    /// A message there and its answer.
    pub round_trip: Duration,
    /// Bytes on the wire since the move began.
    pub total_wire_bytes: ByteCount,
    /// The guest's memory.
    pub memory: ByteCount,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Send what is dirty now.
    NextRound,
    /// Stop the guest and send the rest.
    Stop,
    /// Stop the guest and send only which pages the destination lacks; they follow when the guest runs there (post-copy).
    StopForPostCopy,
    /// The move cannot be completed as it was asked for.
    GiveUp(String),
}

/// A decision's short name, for the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecisionName {
    /// See [`Decision::NextRound`].
    NextRound,
    /// See [`Decision::Stop`].
    Stop,
    /// See [`Decision::StopForPostCopy`].
    StopForPostCopy,
    /// See [`Decision::GiveUp`].
    GiveUp,
}

impl Decision {
    /// The decision without its reason.
    #[must_use]
    pub const fn name(&self) -> DecisionName {
        match self {
            Self::NextRound => DecisionName::NextRound,
            Self::Stop => DecisionName::Stop,
            Self::StopForPostCopy => DecisionName::StopForPostCopy,
            Self::GiveUp(_) => DecisionName::GiveUp,
        }
    }
}

/// When to copy on, when to stop the guest, when to give up.
pub trait Policy: Send + Sync {
    /// The strategy's name, as on the command line.
    fn name(&self) -> &'static str;

    /// Decides at the end of a round.
    fn round_ended(&mut self, facts: &RoundFacts) -> Decision;

    /// Decides when the job's time-out passes while rounds go on: it ends them, by post-copy where that was prepared, else
    /// by giving up. A round may be under way.
    fn timed_out(&mut self) -> Decision {
        out_of_time()
    }
}

fn out_of_time() -> Decision {
    Decision::GiveUp(String::from("the time-out passed before the guest could be handed over"))
}

/// How long the guest would stand if it were stopped now and the rest sent.
fn downtime(facts: &RoundFacts) -> Duration {
    facts.link_rate.time_for(facts.rest_bytes).saturating_add(facts.round_trip * 2)
}
