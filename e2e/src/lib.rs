//! End-to-end tests on real QEMU: two network namespaces are two hosts.
//!
//! The library is the harness, for the tests in `tests/` and for the benchmark. From the bottom up:
//! [`command`] runs programs, [`World`] is the networks with a [`Link`] between the hosts, [`Guest`] an
//! argument vector for QEMU, [`Host`] an agent in a namespace, [`GuestLog`] what a guest says about
//! itself, [`Prober`] what a client sees, [`Vm`] a guest that is moved, [`story`] puts them together, and a [`Blow`] strikes
//! in a [`Phase`] of a move, or [one of its connections](connections) breaks.
//! It knows of Sterna only what a user knows: the command line, the configuration, the report.
//!
//! Needs root, QEMU and iproute2. Two worlds run at a time on a machine, in whatever process ([`Turn`]).

mod artifacts;
pub mod command;
mod configuration;
pub mod connections;
mod emulated;
mod error;
mod fault;
mod guest;
mod host;
mod journald;
mod log;
mod memory_group;
mod prober;
mod qmp;
mod residue;
mod story;
mod vm;
mod world;

pub use artifacts::{
    Accelerator, QEMU, applications, cache, kernel_and_initrd, qemu10, repository, sterna,
};
pub use configuration::{Authority, HostSetup, LogTo, MemoryLimit, Peer, StateDisk};
pub use emulated::{EmulatedLink, Link};
pub use error::{Error, Result, expect_that};
pub use fault::{Blow, Journals, Phase, Wound};
pub use guest::{Application, Guest};
pub use host::{Host, MOVE_LIMIT, with_json};
pub use log::{GuestLog, Mark, Tick};
pub use prober::{ProbeReport, Prober, ask_guest};
pub use qmp::Qmp;
pub use residue::Turn;
pub use story::{Pair, Setup, can_run_here, make_disk, story};
pub use vm::{Move, Vm};
pub use world::{CLIENT_ADDRESS, Counters, GUEST_ADDRESS, GuestNetwork, Side, TAP, World};
