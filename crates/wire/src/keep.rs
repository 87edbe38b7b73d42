//! What a destination keeps of a guest that still runs at its source: over a broken link, and from one job to the next.
//!
//! ```text
//!   source                                               destination
//!     Prepare { keep_ms }    -------------------------->   keeps the job for so long without connections
//!                        <------------------------------   Prepared
//!     ... pages; the connections break; on a new control connection:
//!     Rejoin             ------------------------------>
//!                        <------------------------------   Rejoined, Missing ...
//!     (data connections, each with the token; what was not acknowledged goes again)
//!
//!     Prepare { reuse }      -------------------------->   a job of this VM came to nothing, and its memory is still here
//!                        <------------------------------   Prepared { kept }
//!     StreamHead         ------------------------------>   takes it over, and hashes it by the new key
//!                        <------------------------------   Hashes ...
//!     pages whose hash is another  ====================>
//!
//!     Abort { keep }         -------------------------->   kills its QEMU, keeps the memory for a job to come
//! ```
//!
//! All of it is only between agents that both name the capability [`KEEP`].

use serde::{Deserialize, Serialize};
use sterna_model::PageId;

use crate::blob::Blob;
use crate::error::{MessageError, within};
use crate::limits::{MAX_HASH_BYTES, MAX_HASHES};

/// The capability of agents that keep a guest's memory over a broken link and from one job to the next.
pub const KEEP: &str = "keep";

/// Bytes of a page's hash.
pub const HASH_BYTES: usize = 16;

/// Hashes of consecutive pages that the destination has from before the job, after StreamHead: as many of these as it
/// takes. Of pages that none of them names it has nothing but zeros.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hashes {
    /// The first of the pages.
    pub first: PageId,
    /// [`HASH_BYTES`] of each, by the job's key; at most [`MAX_HASHES`] of them.
    pub hashes: Blob<MAX_HASH_BYTES>,
    /// Whether nothing else follows.
    pub last: bool,
}

impl Hashes {
    /// The pages and their hashes.
    pub fn pages(&self) -> impl Iterator<Item = (PageId, [u8; HASH_BYTES])> + '_ {
        let (hashes, _) = self.hashes.as_bytes().as_chunks::<HASH_BYTES>();
        // Up to the last number that there is: a range without an end counts one beyond what it gives.
        (self.first.0..=u32::MAX).map(PageId).zip(hashes.iter().copied())
    }

    pub(crate) fn check_limits(&self) -> Result<(), MessageError> {
        let bytes = self.hashes.as_bytes().len();
        within("bytes beyond whole hashes", (0, 0), (bytes % HASH_BYTES) as u64)?;
        let beyond = u64::from(u32::MAX) + 1;
        let most = (MAX_HASHES as u64).min(beyond - u64::from(self.first.0));
        within("hashes", (0, most), (bytes / HASH_BYTES) as u64)
    }
}
