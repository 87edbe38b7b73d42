//! All targets: one row each.

mod api;
mod codec;
mod config;
mod description;
mod description_grammar;
mod frames;
mod hello;
mod inspect;
mod journal;
mod messages;
mod moves;
mod pages;
mod qmp;
mod record;
mod return_path;
mod stream;
mod stream_grammar;

use crate::Target;

/// Everything that is fuzzed.
pub const ALL: &[Target] = &[
    stream::TARGET,
    inspect::TARGET,
    return_path::TARGET,
    frames::TARGET,
    hello::TARGET,
    messages::TARGET,
    pages::TARGET,
    moves::TARGET,
    journal::TARGET,
    record::TARGET,
    config::TARGET,
    qmp::TARGET,
    description::TARGET,
    api::TARGET,
];

/// The target of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    ALL.iter().find(|target| target.name == name)
}

/// A property does not hold.
#[track_caller]
#[expect(clippy::panic, reason = "a panic is how a target complains, and the harness catches it")]
pub(crate) fn broken(what: &dyn std::fmt::Display) -> ! {
    panic!("{what}")
}
