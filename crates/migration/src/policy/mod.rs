//! Policies: when to copy on, when to stop the guest, when to give up. Facts in, decisions out.
//!
//! A policy never sees a page, a socket or a clock. The source machine asks it at the end of each round.

mod precopy;

pub use precopy::Precopy;

use alloc::string::String;
use core::time::Duration;
use serde::{Deserialize, Serialize};
use sterna_model::{ByteCount, Rate};

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
}
