//! What peers that connect to us want: to send a VM, to send its pages, to ask what became of one, to see whether we are
//! there. Who may do what is decided here, after TLS has proven the name.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use sterna_host::tls::{read_frame, write_frame};
use sterna_model::{HostName, Refusal};
use sterna_wire::message::{Answer, Inquire, Prepare, Refused};
use sterna_wire::post_copy::Rejoin;
use sterna_wire::{AnswerState, FrameKind, Message, Role, Sender};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::admission::{Stranger, Visit};
use crate::agent::Agent;
use crate::incoming::{self, DataConnection};
use crate::jobs::NotBegun;
use crate::journal;
use crate::link::{Greeted, Inbound, Link, MAX_UNREAD};
use crate::peer::{PeerError, Visitor};
use crate::recovery;

/// Until a control connection says what it is for, and then between two of its messages. Sources ping each second.
const SILENCE_MIN: Duration = Duration::from_secs(30);
/// A job that was never committed is discarded within this: its QEMU is killed, and that is journalled.
const SUPERSEDED_WITHIN: Duration = Duration::from_secs(10);
/// A whole visit that only looks: pings, one question, half a second of probes over a slow link.
const CHECK_LIMIT: Duration = Duration::from_secs(180);

/// A peer that was let in, and what for.
enum Arrived {
    Control(Greeted, Visit),
    Check(Greeted, Visit),
    Data(Greeted, u16, incoming::Handle),
    /// It was sent away, and told why.
    Refused(Refusal),
}

/// Receives one connection of a peer. The stranger's place is given up when the peer has been greeted.
///
/// # Errors
/// When the peer cannot be talked to, or is turned away.
pub(crate) async fn receive(
    agent: &Arc<Agent>,
    socket: TcpStream,
    stranger: Stranger,
) -> Result<(), PeerError> {
    let (peer, arrived) = tokio::select! {
        arrived = arrive(agent, socket) => arrived?,
        () = stranger.crowded_out() => return Err(PeerError::CrowdedOut),
    };
    // A job that has much to hear must not keep other peers from being greeted.
    drop(stranger);
    match arrived {
        Arrived::Control(greeted, _visit) => control(agent, &peer, greeted).await,
        Arrived::Check(greeted, _visit) => {
            let silent = |_| PeerError::Idle { peer: peer.clone(), limit: CHECK_LIMIT };
            timeout(CHECK_LIMIT, check(agent, &peer, greeted)).await.map_err(silent)?
        }
        Arrived::Data(greeted, number, handle) => {
            greeted.connection.limit_silence(handle.silence_limit)?;
            let link = greeted.connection.into_blocking()?;
            handle.data(DataConnection { number, link, frames: greeted.reader }).await;
            Ok(())
        }
        Arrived::Refused(refusal) => {
            Err(PeerError::TurnedAway { peer, refusal: Box::new(refusal) })
        }
    }
}

/// From the first byte to our reply to the hello: who it is, and whether it may have what it asks for.
async fn arrive(agent: &Arc<Agent>, socket: TcpStream) -> Result<(HostName, Arrived), PeerError> {
    let visitor = Visitor::take(socket, &agent.identity, agent.link_options()).await?;
    let peer = visitor.peer().clone();
    let admitted = match visitor.unmet() {
        Some(refusal) => Err(refusal),
        None => admitted(agent, &peer, visitor.role()),
    };
    let arrived = match admitted {
        Err(refusal) => {
            visitor.refuse(&refusal).await?;
            Arrived::Refused(refusal)
        }
        Ok(Purpose::Control(visit)) => Arrived::Control(visitor.welcome().await?, visit),
        Ok(Purpose::Check(visit)) => Arrived::Check(visitor.welcome().await?, visit),
        Ok(Purpose::Data(number, handle)) => {
            Arrived::Data(visitor.welcome().await?, number, handle)
        }
    };
    Ok((peer, arrived))
}

/// What a peer may use its connection for.
enum Purpose {
    Control(Visit),
    Check(Visit),
    Data(u16, incoming::Handle),
}

fn admitted(agent: &Arc<Agent>, peer: &HostName, role: &Role) -> Result<Purpose, Refusal> {
    if !agent.config.peers.contains_key(peer) {
        let reason = format!("{} does not know the host {peer}", agent.config.name);
        let remedy = format!("add [peers.{peer}] to its configuration");
        return Err(Refusal::new("peer-not-allowed", reason, remedy));
    }
    match role {
        Role::Control => visit(agent, peer).map(Purpose::Control),
        Role::Check => visit(agent, peer).map(Purpose::Check),
        // As many as the job has agreed on: the job counts them.
        Role::Data { job, token, connection } => {
            let handle = agent.incoming(job);
            let handle = handle.filter(|handle| handle.peer == *peer && handle.token == *token);
            let handle = handle.ok_or_else(|| {
                let reason = format!("no job {job} of {peer} waits for data with this token");
                Refusal::new("job-unknown", reason, "begin the move again")
            })?;
            Ok(Purpose::Data(*connection, handle))
        }
    }
}

fn visit(agent: &Arc<Agent>, peer: &HostName) -> Result<Visit, Refusal> {
    agent.admission.visit(peer, agent.config.limits.jobs).map_err(|most| {
        let reason =
            format!("expected fewer than {most} connections of {peer} at a time, found {most}");
        let remedy = format!("look what {peer} does, and restart its agent");
        Refusal::new("too-many-connections", reason, remedy)
    })
}

/// A control connection: its first messages say what it is for.
async fn control(
    agent: &Arc<Agent>,
    peer: &HostName,
    mut greeted: Greeted,
) -> Result<(), PeerError> {
    let limit = agent.config.limits.link_timeout.max(SILENCE_MIN);
    let idle = |_| PeerError::Idle { peer: peer.clone(), limit };
    let first = timeout(limit, first_message(peer, &mut greeted)).await.map_err(idle)??;
    let Some(first) = first else { return Ok(()) };
    if let Message::Prepare(prepare) = &first {
        greeted.connection.limit_silence(agent.silence_limit(prepare.link_timeout_ms))?;
    }
    let (sender, mut inbox) = mpsc::channel(MAX_UNREAD);
    let link = Link::start(greeted, Sender::Source, sender);
    let mut next = Some(first);
    while let Some(message) = next.take() {
        match message {
            Message::Prepare(prepare) => {
                if let Some(handle) = begin(agent, peer, prepare, &link).await {
                    drop(link);
                    pass_on(&mut inbox, &handle, 0).await;
                }
                return Ok(());
            }
            Message::Inquire(inquire) => answer(agent, peer, &inquire, &link).await,
            Message::Rejoin(rejoin) => {
                let handle = agent.incoming(&rejoin.job).filter(|handle| handle.peer == *peer);
                let Some(handle) = handle else {
                    let Rejoin { job, uuid, epoch, .. } = rejoin;
                    answer(agent, peer, &Inquire { job, uuid, epoch }, &link).await;
                    continue;
                };
                let number = handle.rejoin(rejoin, link).await;
                pass_on(&mut inbox, &handle, number).await;
                return Ok(());
            }
            Message::Ping(echo) => drop(link.send(&Message::Pong(echo)).await),
            other => {
                let why =
                    format!("expected a message that begins something, found {}", other.name());
                return Err(misbehaves(peer, why));
            }
        }
        if let Some(Inbound::Message(message)) = timeout(limit, inbox.recv()).await.map_err(idle)? {
            next = Some(*message);
        }
    }
    Ok(())
}

/// Gives a job what comes on its control connection. A source that is alive pings; one that only keeps its connection
/// open must not keep a QEMU waiting for ever.
async fn pass_on(inbox: &mut mpsc::Receiver<Inbound>, handle: &incoming::Handle, number: u64) {
    let limit = handle.silence_limit.max(SILENCE_MIN);
    loop {
        let inbound = tokio::select! {
            inbound = timeout(limit, inbox.recv()) => inbound,
            // The source has made another one.
            () = handle.replaced(number) => return,
        };
        let Ok(inbound) = inbound else {
            let why = format!("it said nothing for {} s", limit.as_secs());
            let _ = handle.inbound(number, Inbound::Closed(why)).await;
            return;
        };
        let Some(inbound) = inbound else { return };
        if !handle.inbound(number, inbound).await {
            return;
        }
    }
}

/// What a peer says first, before anything else is read for it.
async fn first_message(
    peer: &HostName,
    greeted: &mut Greeted,
) -> Result<Option<Message>, PeerError> {
    let Greeted { connection, reader, .. } = greeted;
    let failed = |error| PeerError::Frame { peer: peer.clone(), error };
    if !read_frame(connection.stream(), reader).await.map_err(failed)? {
        return Ok(None);
    }
    let Some(frame) = reader.frame() else { return Ok(None) };
    match frame.kind {
        FrameKind::Control => decode(peer, frame.payload).map(Some),
        kind => Err(misbehaves(peer, format!("expected a message, found a frame of kind {kind}"))),
    }
}

fn decode(peer: &HostName, payload: &[u8]) -> Result<Message, PeerError> {
    Message::decode(payload, Sender::Source).map_err(|error| misbehaves(peer, error.to_string()))
}

fn misbehaves(peer: &HostName, why: String) -> PeerError {
    PeerError::Misbehaves { peer: peer.clone(), why }
}

async fn begin(
    agent: &Arc<Agent>,
    peer: &HostName,
    prepare: Prepare,
    link: &Link,
) -> Option<incoming::Handle> {
    let (job, vm) = (prepare.job.clone(), prepare.vm.clone());
    supersede(agent, peer, &prepare).await;
    let begun = look_at(agent, peer, &prepare).await.and_then(|checked| {
        incoming::begin(agent, peer, (prepare, checked), link.clone())
            .map_err(|refusal| vec![refusal])
    });
    match begun {
        Ok(handle) => {
            agent.remember_incoming(job, handle.clone());
            Some(handle)
        }
        Err(refusals) => {
            // Nothing was begun: neither a job nor a journal is left of it.
            for refusal in &refusals {
                agent.complain(|| tracing::warn!(%job, %vm, %peer, %refusal, "a VM was refused"));
            }
            let _ = link.send(&Message::Refused(Refused::new(&refusals))).await;
            None
        }
    }
}

/// A source has one job of a VM at a time. What an earlier one of the same VM has left here, waiting for its source to come
/// back, makes room.
async fn supersede(agent: &Agent, peer: &HostName, prepare: &Prepare) {
    let Some((job, handle)) = agent.incoming_of(peer, prepare.uuid) else { return };
    if job == prepare.job {
        return;
    }
    tracing::info!(earlier = %job, job = %prepare.job, "the source has begun another job of this VM");
    if !handle.supersede().await {
        return;
    }
    let Some(job) = agent.jobs.get(&job) else { return };
    let mut watch = job.watch();
    // One that does not end is in the way, and told as such.
    let _ = timeout(SUPERSEDED_WITHIN, watch.wait_for(|status| status.ended.is_some())).await;
}

/// Whether this peer may begin this job, and whether its VM can be taken. A peer that nothing is taken from learns no more
/// than that.
async fn look_at(
    agent: &Agent,
    peer: &HostName,
    prepare: &Prepare,
) -> Result<incoming::Checked, Vec<Refusal>> {
    if let Some(refusal) = not_accepted(agent, peer) {
        return Err(vec![refusal]);
    }
    let looked = incoming::look(agent, prepare).await;
    // Last, so that nothing is waited for between these and the job's beginning.
    let mut refusals = engaged(agent, prepare);
    match looked {
        Ok(checked) if refusals.is_empty() => return Ok(checked),
        Ok(_) => {}
        Err(more) => refusals.extend(more),
    }
    Err(refusals)
}

/// Why no job, or not this one, can be begun now.
fn engaged(agent: &Agent, prepare: &Prepare) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    if agent.jobs.are_closed() {
        let reason = format!("the agent of {} is being ended", agent.config.name);
        refusals.push(Refusal::new("destination-not-ready", reason, "try again in a minute"));
    }
    // An old job's journal must not get another one's entries.
    if journal::path_of(&agent.config.state_dir, &prepare.job).exists() {
        refusals.push(NotBegun::Known.to_refusal(&prepare.job));
    } else if let Some(hindrance) = agent.jobs.hindrance(&prepare.job, agent.config.limits.jobs) {
        refusals.push(hindrance.to_refusal(&prepare.job));
    }
    refusals
}

/// Why no VM of this peer is taken, if none is.
fn not_accepted(agent: &Agent, peer: &HostName) -> Option<Refusal> {
    if agent.config.peers.get(peer).is_some_and(|peer| peer.accept) {
        return None;
    }
    let host = &agent.config.name;
    let reason = format!("{host} accepts no VMs from {peer}");
    let remedy = format!("set accept = true in [peers.{peer}] of {host}'s configuration");
    Some(Refusal::new("peer-not-allowed", reason, remedy))
}

/// Answers who owns a guest: by the job if it is still there, else by how it ended in this life of the agent, else by its
/// journal.
async fn answer(agent: &Agent, peer: &HostName, inquire: &Inquire, link: &Link) {
    if let Some(handle) = agent.incoming(&inquire.job).filter(|handle| handle.peer == *peer) {
        return handle.ask(link.clone()).await;
    }
    let state = recovery::journaled_state(agent, peer, inquire);
    let answer = Answer { job: inquire.job.clone(), state };
    let _ = link.send(&Message::Answer(answer)).await;
}

/// A peer that looks whether we are there: pings are answered, probes counted, and a ping says that they have arrived.
async fn check(agent: &Agent, peer: &HostName, greeted: Greeted) -> Result<(), PeerError> {
    let Greeted { mut connection, mut reader, mut writer, .. } = greeted;
    let failed = |error| PeerError::Frame { peer: peer.clone(), error };
    while read_frame(connection.stream(), &mut reader).await.map_err(failed)? {
        let Some(frame) = reader.frame() else { continue };
        let message = match frame.kind {
            FrameKind::Probe => continue,
            FrameKind::Control => decode(peer, frame.payload)?,
            kind => {
                let why = format!("expected a message or a probe, found a frame of kind {kind}");
                return Err(misbehaves(peer, why));
            }
        };
        let reply = match message {
            Message::Ping(echo) => Message::Pong(echo),
            // Would this VM be taken? Everything is checked, nothing is begun; no refusals mean yes.
            Message::Prepare(prepare) => {
                let refusals = look_at(agent, peer, &prepare).await.err().unwrap_or_default();
                Message::Refused(Refused::new(&refusals))
            }
            // Would any VM be taken? A job that nobody knows, or the reason why not.
            Message::Inquire(inquire) => match not_accepted(agent, peer) {
                Some(refusal) => Message::Refused(Refused::new(&[refusal])),
                None => Message::Answer(Answer { job: inquire.job, state: AnswerState::Unknown }),
            },
            other => {
                let why = format!("expected a question, found {}", other.name());
                return Err(misbehaves(peer, why));
            }
        };
        let Ok(payload) = reply.encode() else { return Ok(()) };
        write_frame(connection.stream(), &mut writer, FrameKind::Control, &payload)
            .await
            .map_err(failed)?;
    }
    Ok(())
}
