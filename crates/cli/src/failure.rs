//! What can go wrong in the program itself, and the exit code of each. What goes wrong with a job is in its report.

use std::io;
use std::path::PathBuf;

use sterna_api::ApiError;
use sterna_host::pki::PkiError;

use crate::client::ClientError;
use sterna_agent::AgentError;

/// It failed.
pub(crate) const FAILED: u8 = 1;
/// It is refused; nothing was touched.
pub(crate) const REFUSED: u8 = 3;
/// Whether it was done is not known.
pub(crate) const UNKNOWN: u8 = 4;

/// What can go wrong in the program itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The working directory cannot be told.
    #[error("cannot tell the working directory: {0}")]
    WorkingDirectory(#[source] io::Error),
    /// A path cannot be sent to the agent.
    #[error("expected a path in UTF-8, found {0:?}")]
    NotText(PathBuf),
    /// The agent was not reached, or went away.
    #[error("{error}{}", advice(*code))]
    Client {
        /// What happened.
        error: ClientError,
        /// The exit code: failed, or unknown where something may have been done.
        code: u8,
    },
    /// The agent said no.
    #[error("{}", crate::render::error(.0))]
    Api(ApiError),
    /// The agent answered something that is no last answer.
    #[error(
        "expected an answer from the agent, found the start of a job; are both of one version?"
    )]
    WrongAnswer,
    /// The agent could not be, or stopped being one.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// No certificate was made.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A file could not be read or written.
    #[error("{path:?}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The machinery of the client did not start.
    #[error("the system refuses the client its event loop: {0}")]
    EventLoop(#[source] io::Error),
}

impl Failure {
    /// The exit code, by the table in `sterna --help`.
    #[must_use]
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::NotText(_) => 2,
            Self::Api(error) => error_code(error),
            Self::Client { code, .. } => *code,
            Self::WrongAnswer => UNKNOWN,
            _ => FAILED,
        }
    }
}

/// An agent's error never exits with 0.
pub(crate) fn error_code(error: &ApiError) -> u8 {
    error.exit_code.max(FAILED)
}

fn advice(code: u8) -> &'static str {
    match code {
        UNKNOWN => "; it may have been done: look with `sterna vm list` and `sterna jobs`",
        _ => "",
    }
}
