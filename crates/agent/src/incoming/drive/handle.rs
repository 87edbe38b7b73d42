//! How others reach a job that arrives: its beginning, and the queue of what peers' connections bring it.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use sterna_host::process::Process;
use sterna_model::{HostName, Refusal, Uuid};
use sterna_wire::message::Prepare;
use sterna_wire::post_copy::Rejoin;
use sterna_wire::{PageKey, Token, Verify};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Instrument as _;

use super::{Drive, Inbox};
use crate::agent::Agent;
use crate::incoming::qemu::Checked;
use crate::incoming::streams::DataConnection;
use crate::jobs::{Job, Role};
use crate::journal::{Journal, Story};
use crate::link::{Inbound, Link, MAX_UNREAD};
use crate::vm::Vm;

/// What others need to reach a job that arrives.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    /// Who sends.
    pub peer: HostName,
    /// What its data connections must show.
    pub token: Token,
    /// After so much silence its connections count as gone.
    pub silence_limit: Duration,
    /// The VM.
    pub uuid: Uuid,
    /// What has arrived is worth keeping for another job.
    pub keeps: bool,
    queue: mpsc::Sender<FromPeer>,
    /// Counts control connections: only the last one is heard.
    control: Arc<watch::Sender<u64>>,
}

/// What a peer's connection brings.
pub(super) enum FromPeer {
    /// On the job's control connection of this number.
    Inbound(u64, Inbound),
    /// A data connection.
    Data(Box<DataConnection>),
    /// Who owns the guest? The answer goes there.
    Asked(Link),
    /// The source makes its connections anew; what it is told goes there. It is the control connection of this number.
    Rejoin(Box<Rejoin>, Link, u64),
    /// The source has begun another job of this VM. The answer says whether this one makes room.
    Superseded(oneshot::Sender<bool>),
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

    /// The source makes its connections anew. Gives the number of the new control connection; the one before is heard no
    /// more.
    pub(crate) async fn rejoin(&self, rejoin: Rejoin, link: Link) -> u64 {
        let mut number = 0;
        self.control.send_modify(|control| {
            *control += 1;
            number = *control;
        });
        let _ = self.queue.send(FromPeer::Rejoin(Box::new(rejoin), link, number)).await;
        number
    }

    /// Waits until a control connection is heard no more.
    pub(crate) async fn replaced(&self, number: u64) {
        // The sender lives as long as this.
        let _ = self.control.subscribe().wait_for(|control| *control != number).await;
    }

    /// The source has begun another job of this VM: this one makes room if it was not committed and its source is away.
    pub(crate) async fn supersede(&self) -> bool {
        let (answer, makes_room) = oneshot::channel();
        let _ = self.queue.send(FromPeer::Superseded(answer)).await;
        makes_room.await.unwrap_or(false)
    }

    /// This agent is being ended: what is not committed is discarded.
    pub(crate) async fn agent_ends(&self) {
        let _ = self.queue.send(FromPeer::AgentEnds).await;
    }

    /// Something came on the job's control connection. `false` when the job hears nothing any more.
    pub(crate) async fn inbound(&self, number: u64, inbound: Inbound) -> bool {
        self.queue.send(FromPeer::Inbound(number, inbound)).await.is_ok()
    }
}

/// A job that a restarted agent goes on with: its guest is this host's, and lacks pages.
pub(crate) struct Left {
    /// The job.
    pub job: Arc<Job>,
    /// Its journal.
    pub journal: Journal,
    /// What that says.
    pub story: Story,
    /// The VM.
    pub vm: Arc<Vm>,
    /// Its QEMU.
    pub process: Arc<Process>,
    /// The stream by which QEMU is fed, if it has kept it.
    pub kept: Option<UnixStream>,
}

/// Goes on with a job whose guest lacks pages, after a restart. The source finds it by its job.
///
/// # Errors
/// When the guest's memory cannot be found.
pub(crate) fn resume(agent: &Arc<Agent>, left: Left) -> Result<(), String> {
    let stored = left.story.memory.clone().ok_or("the journal does not tell the guest's memory")?;
    let budget = agent.config.limits.memory_budget;
    let memory = crate::incoming::qemu::memory_of(&left.process, &stored, budget)?;
    let (to_events, events) = mpsc::unbounded_channel();
    let (queue, from_peer) = mpsc::channel(MAX_UNREAD);
    let token = crate::random::bytes().map_err(|error| format!("no random bytes: {error}"))?;
    let prepare = prepare_of(&left.story);
    let handle = Handle {
        peer: left.story.subject.peer.clone(),
        token: Token(token),
        silence_limit: agent.silence_limit(prepare.link_timeout_ms),
        uuid: prepare.uuid,
        keeps: false,
        queue,
        control: Arc::default(),
    };
    let (id, span) = (prepare.job.clone(), left.job.span());
    let drive = Drive::again(Arc::clone(agent), left, (prepare, memory), handle.token, to_events);
    agent.remember_incoming(id, handle);
    tokio::spawn(drive.run(Inbox { events, peer: from_peer }).instrument(span));
    Ok(())
}

/// What the source had asked for, as far as it still matters.
fn prepare_of(story: &Story) -> Prepare {
    let subject = &story.subject;
    Prepare {
        job: subject.job.clone(),
        vm: subject.vm.clone(),
        uuid: subject.uuid,
        epoch: subject.epoch,
        description: String::new(),
        page_key: PageKey([0; 32]),
        // The source says how many when it joins again.
        connections: 1,
        verify: Verify::Roots,
        link_timeout_ms: 0,
        evidence: None,
        post_copy: true,
        keep_ms: None,
        reuse: false,
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
    let (uuid, keeps) = (prepare.uuid, prepare.reuse);
    let named = (id.clone(), prepare.vm.clone());
    let job = agent.jobs.begin_at_most(most, named, peer.clone(), Role::Destination);
    let job = job.map_err(|not_begun| not_begun.to_refusal(&id))?;
    let span = job.span();
    span.in_scope(|| tracing::info!(from = %peer, "a VM begins to arrive"));
    let drive = Drive::new(Arc::clone(agent), job, (prepare, checked), token, link, to_events);
    tokio::spawn(drive.run(Inbox { events, peer: from_peer }).instrument(span));
    let control = Arc::default();
    Ok(Handle { peer: peer.clone(), token, silence_limit, uuid, keeps, queue, control })
}
