//! `sterna agent`: the daemon, from its own crate.

use std::path::Path;

/// Why the agent ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentFailure {
    /// This build has no agent.
    #[error("this build of sterna has no agent")]
    NotBuilt,
}

/// Runs the agent until it is told to end.
pub(crate) fn run_agent(_config: Option<&Path>) -> Result<(), AgentFailure> {
    Err(AgentFailure::NotBuilt)
}
