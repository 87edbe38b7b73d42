//! The destination of a move: performs what the destination's machine asks for, and tells it what happened.
//!
//! ```text
//! control connection --messages, tail--> drive loop <--facts-- QEMU, receivers, loader
//! data connections   --> receivers --> memory --> loader --> QEMU
//! ```

mod acceptance;
mod asked;
mod drive;
mod faulting;
mod kept;
mod latency;
mod loader;
mod memory;
mod qemu;
mod receiver;
mod recover;
mod return_path;
mod streams;

pub(crate) use acceptance::{Programs, look};
pub(crate) use drive::{Handle, Left, begin, resume};
pub(crate) use kept::KeptMemories;
pub(crate) use qemu::{Checked, memory_left};
pub(crate) use streams::DataConnection;
