//! Values to text, for people: pure functions without an end of line at the end. Sizes in IEC units, times of the guest
//! standing in milliseconds. Scripts are better off with `-o json`.

mod follow;
mod outcome;
mod plan;
mod progress;
mod report;
mod resolve;
mod table;
mod units;
mod vm;

pub(crate) use follow::follow;
pub(crate) use outcome::{error, outcome};
pub(crate) use plan::{check, plan};
pub(crate) use progress::{bar_message, progress_line};
pub(crate) use report::report;
pub(crate) use resolve::resolve;
pub(crate) use units::timestamp;
pub(crate) use vm::{jobs, vm, vms};

#[cfg(test)]
pub(crate) use report::tests::done_report;
