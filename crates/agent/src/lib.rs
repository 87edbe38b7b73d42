//! The agent: one per host. It owns the VMs that run here, the jobs that move them, and the sockets over which both are
//! asked for.
//!
//! ```text
//! clients --unix socket--> control --> machines (VMs)      registry (whose a VM is)
//!                                 \--> outgoing (a move that leaves)  --\
//! peers --TCP, TLS--> visitors ------> incoming (a move that arrives) ----> jobs, journals
//! what nobody but a person can know: resolve
//! at the start: recovery (what the journals say must be done)
//! ```

mod admission;
mod agent;
mod certificates;
mod checkup;
mod config;
mod control;
mod following;
mod incoming;
mod jobs;
mod journal;
mod keeper;
mod leaving;
mod link;
mod machines;
mod outgoing;
mod peer;
mod place;
mod random;
mod recovery;
mod registry;
mod resolve;
mod service;
pub mod stored;
#[cfg(test)]
mod testing;
mod visitors;
mod vm;

pub use agent::{AgentError, run};
pub use config::{Config, ConfigError, DEFAULT_PORT};
