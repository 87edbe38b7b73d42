//! The brain of a move: what the two agents do, step by step, as pure machines.
//!
//! Facts and the time go in, effects come out; the agent performs the effects and reports back what happened. The same
//! machines run in the simulator. Nothing here knows QEMU, sockets or the bytes of a page.
//!
//! ```text
//!  SOURCE                                               DESTINATION
//!  Preparing ---- Prepare ------------------------->    Starting    (QEMU started, waits for a stream)
//!     |      <--- Prepared ------------------------- |  journal: prepared
//!  Copying        pages, rounds                      |  Receiving
//!     |           the policy says stop               |     |
//!     |           journal: stopping                  |     |
//!  Stopping       the guest stands; last pass        |     |
//!  Flushing  ---- last pages, tail, root -------->   |  Loading     (all pages in, QEMU loads the devices)
//!     |      <--- Loaded, root -------------------- -|  Loaded      (nothing runs; waits for the commit)
//!  Offering       roots compared, journal: offered   |     |
//!  Offered   ---- Commit ----------------------->    |  Entitling   journal: entitled
//!     |                                              |  Resuming
//!     |      <--- Running ------------------------- -|  Running     journal: running
//!  Leaving        journal: gone, its QEMU ends
//!
//!  Three-stage copy: Flushing sends only marks of the pages that the destination lacks, and Resuming leads to a guest
//!  that runs without them.
//!     |      <--- Running, lacks pages ------------ -|  Faulting    journal: faulting
//!  Serving        journal: serving                   |     |
//!     |      ---- pages, by push and on demand -->   |     |
//!     |      <--- Complete ------------------------ -|  Running     journal: running
//!  Leaving        journal: gone, its QEMU ends
//!  A broken link is made anew by the source (Rejoin), a broken stream by the destination (RecoverStream), for ever.
//!  Either QEMU's death loses the guest: Vanished, journal: vanished on both hosts, nothing is left over.
//!
//!  Before Offered, anything that goes wrong leads to Returning (the guest runs on at the source) and Returned.
//!  A source QEMU that dies with everything sent does not end the move: what is dead never runs again, and the
//!  destination's copy is then the only one. The move goes on to its commit, or the guest is lost.
//!  From Offered on the source waits: Running ends in Gone, or leads to Serving; Discarded ends in Returned, Vanished in
//!  Vanished; nothing else ends it.
//!  Before Entitling, the destination may discard: its QEMU is killed and reaped, journalled, answered.
//! ```
//!
//! Law 1 (never two running copies) is carried by types: the guest is resumed at the source only with a
//! [`MayReturn`](source::MayReturn), at the destination only with an [`Entitlement`](destination::Entitlement), and the
//! commit is sent only with a [`DurableOffer`](source::DurableOffer). Only the step that proves the right makes the token.
//! A restarted agent takes a job up at its journal's last record: [`Source::resume_unoffered`](source::Source::resume_unoffered)
//! and its like give the tokens that this record is worth.
#![no_std]

extern crate alloc;

pub mod destination;
pub mod journal;
pub mod outcome;
pub mod policy;
pub mod predictor;
pub mod push_window;
pub mod source;
pub mod tracker;
