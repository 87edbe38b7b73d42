//! Frames, hello and messages between two agents: the bytes on the wire, and nothing that moves them.
//!
//! One connection carries [frames](frame): a header of 16 bytes and a payload whose length was checked against the limit
//! of its kind before anything was allocated for it. The first frame of each direction is a [`Hello`] or its [`Reply`],
//! which agree on protocol version and capabilities ([`versions`] says how, and how to raise them). After that a control connection carries one [`Message`] a frame
//! (JSON), and a data connection carries batches of pages, the device state and probes, which this crate does not look
//! into.
//!
//! ```text
//!   migration --Message--> encode --payload--> FrameWriter --bytes--> TLS --bytes--> FrameReader --payload--> decode
//! ```
//!
//! Pure: no I/O, no clock. A peer is hostile here: whatever it sends becomes a value, or an error that names what was
//! expected and what was found; what it makes us allocate is bounded by the constants in [`frame`] and [`limits`].
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod answer;
mod blob;
mod error;
pub mod evidence;
pub mod frame;
pub mod hello;
mod json;
pub mod keep;
pub mod limits;
pub mod message;
pub mod post_copy;
mod refusals;
#[cfg(test)]
mod tests;
pub mod versions;

pub use answer::{AnswerState, GuestState, Sender, Verify};
pub use blob::{Blob, PageKey, Text, Token};
pub use evidence::{CpuEvidence, DiskEvidence, Evidence};
pub use frame::{Frame, FrameError, FrameKind, FrameReader, FrameWriter, HEADER_BYTES, Header};
pub use hello::{Capabilities, Capability, Hello, HelloError, Offer, Reply, Role, Welcome};
pub use json::JsonError;
pub use keep::Hashes;
pub use message::{Message, MessageError};
pub use post_copy::{Complete, Lacking, Rejoin, Rejoined, Vanished, Wanted};
pub use versions::{Agreed, negotiate};
