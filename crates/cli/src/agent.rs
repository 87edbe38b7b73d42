//! `sterna agent`: the daemon, from its own crate, with its log.

use std::path::Path;

use sterna_agent::AgentError;

use crate::log;

/// Runs the agent until it is told to end.
pub(crate) fn run_agent(config: Option<&Path>) -> Result<(), AgentError> {
    log::begin();
    sterna_agent::run(config)
}
