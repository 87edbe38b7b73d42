//! `sterna agent`: the daemon, from its own crate, with its log on standard error.

use std::env;
use std::io::{self, IsTerminal};
use std::path::Path;

use sterna_agent::AgentError;
use tracing_subscriber::EnvFilter;

/// Runs the agent until it is told to end. `STERNA_LOG` chooses what is logged (`debug`, `sterna_agent=trace`).
pub(crate) fn run_agent(config: Option<&Path>) -> Result<(), AgentError> {
    let filter = EnvFilter::try_from_env("STERNA_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let is_coloured =
        io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(is_coloured)
        .init();
    sterna_agent::run(config)
}
