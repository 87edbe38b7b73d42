//! Fuzzing of everything that comes from outside, on stable Rust: QEMU's stream and its QMP, the peer's frames, messages,
//! batches and descriptions, the agent's own files after a crash, its configuration, its clients' requests.
//!
//! ```text
//!  corpus/TARGET, golden files --.                        .--> properties hold: a new signature? keep the input
//!                                 >-- mutate --> catch --<
//!  arbitrary: grammar of the     |    (bytes, JSON,       '--> a complaint: shrink --> failures/TARGET-HASH
//!  format, valid inputs ---------'     lines)
//! ```
//!
//! A [`Target`] is one row of [`targets::ALL`]. Stable Rust tells nothing about the branches that an input took, so three
//! things stand in for it: inputs are generated from the grammar of their format, valid ones have to be accepted, and what
//! comes of an input (its [`Outcome`]: which error, which shape of a result) decides whether it is worth mutating further.
//!
//! Everything is decided by a seed; a failing input is a file that [replays](catch::examine).

pub mod catch;
pub mod corpus;
pub mod engine;
pub mod mutate;
pub mod results;
pub mod shrink;
pub mod signature;
pub mod target;
pub mod targets;

pub use target::{Made, Outcome, Target, Verdict};
