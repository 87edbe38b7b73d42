//! The control socket, seen from its client: one connection per request, a JSON line out, JSON lines back until the
//! last. The agent is believed no more than any peer: its lines have a limit.

use std::io;
use std::path::PathBuf;

use sterna_api::{Request, Response};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Bytes in one answer. A report of 100,000 rounds has 12 MiB.
const MAX_LINE_BYTES: usize = 64 << 20;

/// Why the agent could not be asked, or its answer not be heard.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nothing was sent.
    #[error(
        "cannot reach the agent at {}: {error} (is `sterna agent` running, and may you use its socket? \
         --agent SOCKET or STERNA_AGENT names another one)",
        .socket.display()
    )]
    NotReached {
        /// The control socket.
        socket: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The connection broke before the last answer.
    #[error("the connection to the agent broke: {0}")]
    Broken(#[source] io::Error),
    /// The agent ended the connection before its last answer.
    #[error("the agent ended the connection before its answer was complete")]
    Ended,
    /// An answer has no end.
    #[error(
        "expected answers of at most {MAX_LINE_BYTES} bytes from the agent, found a longer one"
    )]
    TooLong,
    /// An answer cannot be read.
    #[error("the agent's answer cannot be read ({0}); are agent and client of one version?")]
    NotUnderstood(#[source] serde_json::Error),
}

/// Knows where the agent is.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    socket: PathBuf,
}

/// One request and its answers.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: BufReader<UnixStream>,
    /// What came of the next line. Kept here, so that waiting for it can be broken off at any time.
    line: Vec<u8>,
    is_over: bool,
}

impl Client {
    /// A client of the agent at that control socket.
    #[must_use]
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Connects; nothing is asked yet.
    ///
    /// # Errors
    /// [`ClientError::NotReached`]: there is no agent, or the user may not ask it.
    pub(crate) async fn connect(&self) -> Result<Connection, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| ClientError::NotReached { socket: self.socket.clone(), error })?;
        Ok(Connection { stream: BufReader::new(stream), line: Vec::new(), is_over: false })
    }

    /// Asks and waits for the last answer.
    ///
    /// # Errors
    /// All of [`ClientError`].
    pub(crate) async fn ask(&self, request: &Request) -> Result<Response, ClientError> {
        let mut connection = self.connect().await?;
        connection.send(request).await?;
        loop {
            let response = connection.next().await?;
            if response.is_last() {
                return Ok(response);
            }
        }
    }
}

impl Connection {
    /// Asks.
    ///
    /// # Errors
    /// The connection broke; the agent may have heard it.
    pub(crate) async fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let mut line = serde_json::to_vec(request).map_err(ClientError::NotUnderstood)?;
        line.push(b'\n');
        self.stream.write_all(&line).await.map_err(ClientError::Broken)
    }

    /// Waits for the next answer. Can be broken off and called again without losing anything.
    ///
    /// # Errors
    /// The connection broke, ended early, or carries something else than answers.
    pub(crate) async fn next(&mut self) -> Result<Response, ClientError> {
        while !self.is_over {
            let heard = self.stream.fill_buf().await.map_err(ClientError::Broken)?;
            let end = heard.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(heard.len());
            if self.line.len() + taken > MAX_LINE_BYTES {
                return Err(ClientError::TooLong);
            }
            self.is_over = heard.is_empty();
            self.line.extend_from_slice(&heard[..taken]);
            self.stream.consume(taken + usize::from(end.is_some()));
            if end.is_some() {
                let response = serde_json::from_slice(&self.line);
                self.line.clear();
                return response.map_err(ClientError::NotUnderstood);
            }
        }
        Err(ClientError::Ended)
    }
}
