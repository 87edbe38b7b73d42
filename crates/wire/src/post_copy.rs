//! Post-copy: the messages of a job whose guest runs at the destination before all its memory is there.
//!
//! ```text
//!   source                                               destination
//!     Prepare { post_copy }  -------------------------->
//!                        <------------------------------   Prepared { post_copy }
//!     ... Final, Loaded, Commit as in every job; pages may be absent
//!                        <------------------------------   Running { lacks_pages }
//!     absent pages       ==============================>   (data connections)
//!                        <------------------------------   Wanted ...     (the guest waits for these)
//!     wanted pages       ==============================>   (the data connection for urgent pages)
//!                        <------------------------------   Complete | Vanished
//!
//!   when the connections broke, or an agent was restarted, on a new control connection:
//!     Rejoin             ------------------------------>
//!                        <------------------------------   Rejoined, Lacking ...
//!     (data connections, each with the new token)
//! ```
//!
//! All of it is only between agents that both name the capability [`POST_COPY`].

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use sterna_model::{Epoch, JobId, PageId, Uuid};

use crate::blob::{PageKey, Text, Token};
use crate::error::{MessageError, within};
use crate::limits::{MAX_CONNECTIONS, MAX_LACKING_RUNS, MAX_WANTED_PAGES};

/// The capability of agents that can finish a job by post-copy.
pub const POST_COPY: &str = "post-copy";

/// Pages that the guest at the destination waits for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// At most [`MAX_WANTED_PAGES`].
    pub pages: Vec<PageId>,
}

/// Every page is at the destination: the source is needed no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Complete {
    /// Pages that the guest waited for, by QEMU's requests.
    pub requests: u64,
    /// How long half of the requests took at most, from QEMU's asking to the page's being given to it, in microseconds.
    pub fault_latency_p50_us: u64,
    /// The same of 99 in 100.
    pub fault_latency_p99_us: u64,
    /// The same of the slowest.
    pub fault_latency_max_us: u64,
    /// The most anonymous memory that the destination's agent had.
    pub peak_anonymous_bytes: u64,
}

/// Goes on with a job whose guest runs at the destination: the first message on a new control connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rejoin {
    /// The job.
    pub job: JobId,
    /// Its VM.
    pub uuid: Uuid,
    /// Its epoch.
    pub epoch: Epoch,
    /// The key of the page hashes from here on.
    pub page_key: PageKey,
    /// Data connections that will follow, 1 to [`MAX_CONNECTIONS`], and after them the one for urgent pages.
    pub connections: u16,
}

/// The destination goes on as well.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rejoined {
    /// What the new data connections show.
    pub token: Token,
}

/// What the destination lacks, after [`Rejoined`]: as many of these as it takes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lacking {
    /// First pages of runs and how many pages each has, at least 1; at most [`MAX_LACKING_RUNS`].
    pub runs: Vec<(PageId, u32)>,
    /// Whether nothing else is lacking.
    pub last: bool,
}

/// The destination's QEMU died while pages were lacking: the guest is lost.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vanished {
    /// How it died.
    pub reason: Text,
}

impl Wanted {
    pub(crate) fn check_limits(&self) -> Result<(), MessageError> {
        within("wanted pages", (0, MAX_WANTED_PAGES as u64), self.pages.len() as u64)
    }
}

impl Rejoin {
    pub(crate) fn check_limits(&self) -> Result<(), MessageError> {
        within("connections", (1, MAX_CONNECTIONS as u64), self.connections.into())
    }
}

impl Lacking {
    pub(crate) fn check_limits(&self) -> Result<(), MessageError> {
        within("runs", (0, MAX_LACKING_RUNS as u64), self.runs.len() as u64)?;
        let beyond = u64::from(u32::MAX) + 1;
        self.runs.iter().try_for_each(|(first, count)| {
            within("pages of a run", (1, beyond - u64::from(first.0)), (*count).into())
        })
    }
}
