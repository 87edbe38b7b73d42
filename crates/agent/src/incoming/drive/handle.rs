//! How others reach a job that arrives: its beginning, and the queue of what peers' connections bring it.

use std::sync::Arc;
use std::time::Duration;

use sterna_model::{HostName, Refusal};
use sterna_wire::Token;
use sterna_wire::message::Prepare;
use tokio::sync::mpsc;
use tracing::Instrument as _;

use super::{Drive, Inbox};
use crate::agent::Agent;
use crate::incoming::qemu::Checked;
use crate::incoming::streams::DataConnection;
use crate::jobs::Role;
use crate::link::{Inbound, Link, MAX_UNREAD};

/// What others need to reach a job that arrives.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    /// Who sends.
    pub peer: HostName,
    /// What its data connections must show.
    pub token: Token,
    /// After so much silence its connections count as gone.
    pub silence_limit: Duration,
    queue: mpsc::Sender<FromPeer>,
}

/// What a peer's connection brings.
pub(super) enum FromPeer {
    /// On the job's control connection.
    Inbound(Inbound),
    /// A data connection.
    Data(Box<DataConnection>),
    /// Who owns the guest? The answer goes there.
    Asked(Link),
    /// This agent is being ended.
    AgentEnds,
}

impl Handle {
    /// Gives the job a data connection. Like all of these it waits while the job has much to hear already.
    pub(crate) async fn data(&self, connection: DataConnection) {
        let _ = self.queue.send(FromPeer::Data(Box::new(connection))).await;
    }

    /// Asks the job who owns the guest; the answer goes to `link`.
    pub(crate) async fn ask(&self, link: Link) {
        let _ = self.queue.send(FromPeer::Asked(link)).await;
    }

    /// This agent is being ended: what is not committed is discarded.
    pub(crate) async fn agent_ends(&self) {
        let _ = self.queue.send(FromPeer::AgentEnds).await;
    }

    /// Something came on the job's control connection. `false` when the job hears nothing any more.
    pub(crate) async fn inbound(&self, inbound: Inbound) -> bool {
        self.queue.send(FromPeer::Inbound(inbound)).await.is_ok()
    }
}

/// Begins a job that a peer asked for and that was found good; its drive loop runs until the job is over.
///
/// # Errors
/// When there are no random bytes for its token, or another job was begun since it was looked at.
pub(crate) fn begin(
    agent: &Arc<Agent>,
    peer: &HostName,
    (prepare, checked): (Prepare, Checked),
    link: Link,
) -> Result<Handle, Refusal> {
    let (to_events, events) = mpsc::unbounded_channel();
    let (queue, from_peer) = mpsc::channel(MAX_UNREAD);
    let no_random = |error: std::io::Error| {
        let remedy = "look at the destination's log";
        Refusal::new("destination-not-ready", format!("no random bytes: {error}"), remedy)
    };
    let token = Token(crate::random::bytes().map_err(no_random)?);
    let silence_limit = agent.silence_limit(prepare.link_timeout_ms);
    let (id, most) = (prepare.job.clone(), agent.config.limits.jobs);
    let named = (id.clone(), prepare.vm.clone());
    let job = agent.jobs.begin_at_most(most, named, peer.clone(), Role::Destination);
    let job = job.map_err(|not_begun| not_begun.to_refusal(&id))?;
    let span = job.span();
    tracing::info!(parent: &span, from = %peer, "a VM begins to arrive");
    let drive = Drive::new(Arc::clone(agent), job, (prepare, checked), token, link, to_events);
    tokio::spawn(drive.run(Inbox { events, peer: from_peer }).instrument(span));
    Ok(Handle { peer: peer.clone(), token, silence_limit, queue })
}
