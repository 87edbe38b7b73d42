//! The destination of a move: performs what the destination's machine asks for, and tells it what happened.
//!
//! ```text
//! control connection --messages, tail--> drive loop <--facts-- QEMU, receivers, loader
//! data connections   --> receivers --> memory --> loader --> QEMU
//! ```

mod drive;
mod loader;
mod memory;
mod qemu;
mod receiver;
mod streams;

pub(crate) use drive::{Handle, begin};
pub(crate) use qemu::Checked;
pub(crate) use streams::DataConnection;

use sterna_model::Refusal;
use sterna_wire::message::Prepare;

use crate::agent::Agent;

/// Looks whether a VM can be taken. Nothing is touched.
///
/// # Errors
/// All reasons not to take it.
pub(crate) fn check(agent: &Agent, prepare: &Prepare) -> Result<Checked, Vec<Refusal>> {
    qemu::check(agent, prepare)
}
