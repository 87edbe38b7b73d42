//! Pages on the wire: zero, same, ref, delta, zstd, raw, absent.
//!
//! This is the middle of the memory pipeline. At the source, each worker thread owns one connection and one
//! [`Encoder`]: it pushes the pages that it claimed, finishes the batch and writes the bytes as one frame. At the
//! destination, one thread per connection owns a [`Decoder`] that gives the pages back to a [`PageStore`].
//!
//! ```text
//!  guest pages --> is_zero, page_hashes --> what does the destination have? (Known, shared by all encoders)
//!                                             |
//!      zero | unchanged (nothing sent) | ref | delta (Bases: old contents, chunk digests) | literal | absent (post-copy)
//!                                             v
//!      records + plain bytes + packed bytes (zstd, at the effort that the Governor picks) --> one batch
//! ```
//!
//! What the source believes about the destination may be wrong or late: connections reorder, break and are replaced.
//! No harm comes of it, since every record says what its page must hash to, and the decoder recomputes that hash. A
//! wrong belief costs a round trip: the destination reports the page as missing and the source sends it as a literal.
//!
//! The device state travels beside them, packed as well ([`pack_state`]).
//!
//! Pure: no clock, no thread, no I/O. The only foreign code is zstd and BLAKE3.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod assembly;
mod bases;
mod bytes;
mod decoder;
mod digest;
mod encoder;
mod format;
mod governor;
mod hash;
mod known;
mod lanes;
mod pack;
mod probe;
mod runs;
mod slots;
mod state;

pub use decoder::{BatchOutcome, DecodeError, Decoder, Missing, PageStore, Stored};
pub use encoder::{
    Batch, BatchStats, Encoder, EncoderConfig, Hint, NoMemory, PageCounts, PushError, Pushed, Sent,
};
pub use format::{FormatError, MAX_BATCH_BYTES, MAX_BATCH_PAGES};
pub use governor::{BatchFacts, Governor, Processors};
pub use hash::{PageKey, is_zero, page_hash, page_hashes};
pub use known::{Entry, Known};
pub use pack::{Effort, Level};
pub use state::{StateError, pack_state, unpack_state};
