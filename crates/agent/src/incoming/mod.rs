//! The destination of a move: performs what the destination's machine asks for, and tells it what happened.
//!
//! ```text
//! control connection --messages, tail--> drive loop <--facts-- QEMU, receivers, loader
//! data connections   --> receivers --> memory --> loader --> QEMU
//! ```

mod acceptance;
mod drive;
mod loader;
mod memory;
mod qemu;
mod receiver;
mod streams;

pub(crate) use acceptance::{Programs, look};
pub(crate) use drive::{Handle, begin};
pub(crate) use qemu::Checked;
pub(crate) use streams::DataConnection;
