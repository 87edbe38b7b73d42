//! The hands on real things: processes, QEMUs and their memory. One program, so that it links once.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail the test; the lint knows only the tests themselves"
)]

mod memory;
mod process;
mod qmp;
mod support;
