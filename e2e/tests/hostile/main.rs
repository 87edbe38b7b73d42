//! Hostile peers: the real agent in a process of its own, on loopback, and somebody who connects to it or answers it and
//! breaks every rule that the network has.
//!
//! After each: the agent is alive and as small as before, honest peers are served (meanwhile too), the log names the culprit,
//! and no guest has changed hands.

mod bench;
mod caller;
mod destination;
mod floods;
mod guest;
mod protocol;
mod rejoining;
mod replay;
mod strangers;

/// Anything that goes wrong in a test.
type Failure = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Failure>;

/// Runs a test on a runtime of its own.
fn run(test: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(test)
}

/// Checks one thing.
fn expect(is_so: bool, what: &str, found: &dyn std::fmt::Debug) -> Result<()> {
    if is_so { Ok(()) } else { Err(format!("expected {what}, found {found:?}").into()) }
}
