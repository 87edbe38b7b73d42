//! Virtual time: the real source and destination machines over a simulated QEMU, link, disk and journal, from one seed.
//!
//! ```text
//!  seed --> scenario: setting + list of faults      oracles: single owner, memory, progress, bounds, truth, twice, placement,
//!                |                                           rejoining
//!                |                                                 ^ look at every step
//!  source's agent (real machine, policy, tracker)  --.         .---|--- destination's agent (real machine)
//!    futures, polled by the run; a crash drops them   --> world <--      journals and QEMUs outlive them
//!                                                        |
//!                      clock . network . disks . QEMUs . guest . faults that strike at a step
//! ```
//!
//! What is real: `sterna-migration`, whole. What is a model of ours, written after what the agent and QEMU 7.2 do: the drive
//! loops with what a restart does ([`run`] polls them), QEMU, network, disk. So a run proves the machines, and the rules by
//! which the agent's hands have to perform their effects; that the agent's hands keep to these rules is for the tests on real
//! QEMU (`e2e`). Mistakes that were found in the agent this way are [planted](plant::Plant) here for good.
//!
//! Links may break at any moment: in the rounds the source rejoins and the destination keeps what it has (`away`, `keeping`,
//! `rejoining`), as in the third stage.
//!
//! Not simulated: disks, `follow`, a second job of the same VM, peers that break the protocol. Left out: the page codec and
//! frames (contents are numbers), blocks that QEMU has to be fed, QEMU's pace by measured rates, `--verify full`, a guest with more than one
//! processor. A standstill, a silence, a full disk always end.
//!
//! One thread, one source of randomness, no clock, no I/O: a seed replays to the same trace, and a failing one shrinks.

mod bulk;
pub mod campaign;
mod clock;
mod destination;
pub mod disk;
pub mod faults;
mod guest;
mod hands;
mod host;
mod message;
mod network;
pub mod oracle;
pub mod plant;
mod postcopy;
mod qemu;
pub mod random;
mod receiver;
pub mod run;
mod serving;
pub mod shrink;
mod source;
mod stream;
pub mod trace;
mod world;
