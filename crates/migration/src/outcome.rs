//! How a job ends, in the words of the report.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use sterna_model::Refusal;

/// The report's `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutcomeName {
    /// The guest runs at the destination.
    Done,
    /// The guest is where it was.
    Failed,
    /// Nothing was touched.
    Refused,
    /// The user ended it; the guest is where it was.
    Cancelled,
    /// Where the guest runs is not known here.
    Unknown,
    /// The only QEMU that held the guest died, or one of the two that had its pages in post-copy.
    Lost,
}

/// The report's `guest_is`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestIs {
    /// At the source, as it was before the job.
    Source,
    /// At the destination.
    Destination,
    /// Stopped at the source, until it is known who owns it.
    Paused,
    /// Nowhere.
    Lost,
}

/// How a job ended, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest runs at the destination.
    Done,
    /// It was refused before anything was touched.
    Refused(Vec<Refusal>),
    /// It failed; the guest is at the source.
    Failed(String),
    /// The user ended it; the guest is at the source.
    Cancelled,
    /// Where the guest is must be looked up.
    Unknown(String),
    /// The guest died with its QEMU, or with the one that still had some of its pages.
    Lost(String),
}

impl Outcome {
    /// The report's `outcome`.
    #[must_use]
    pub const fn name(&self) -> OutcomeName {
        match self {
            Self::Done => OutcomeName::Done,
            Self::Refused(_) => OutcomeName::Refused,
            Self::Failed(_) => OutcomeName::Failed,
            Self::Cancelled => OutcomeName::Cancelled,
            Self::Unknown(_) => OutcomeName::Unknown,
            Self::Lost(_) => OutcomeName::Lost,
        }
    }

    /// The report's `guest_is`.
    #[must_use]
    pub const fn guest_is(&self) -> GuestIs {
        match self {
            Self::Done => GuestIs::Destination,
            Self::Refused(_) | Self::Failed(_) | Self::Cancelled => GuestIs::Source,
            Self::Unknown(_) => GuestIs::Paused,
            Self::Lost(_) => GuestIs::Lost,
        }
    }
}
