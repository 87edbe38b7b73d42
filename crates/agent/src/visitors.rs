//! What peers that connect to us want: to send a VM, to send its pages, to ask what became of one, to see whether we are
//! there. Who may do what is decided here, after TLS has proven the name.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use sterna_host::tls::{read_frame, write_frame};
use sterna_model::{HostName, Refusal};
use sterna_wire::message::{Answer, Inquire, Prepare, Refused};
use sterna_wire::{AnswerState, FrameKind, Message, Role, Sender};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::agent::Agent;
use crate::incoming::{self, DataConnection};
use crate::journal;
use crate::link::{Greeted, Inbound, Link, MAX_UNREAD};
use crate::peer::{PeerError, Visitor};
use crate::recovery;

/// Receives one connection of a peer. The permit is given up when the peer has been greeted.
///
/// # Errors
/// When the peer cannot be talked to, or is turned away.
pub(crate) async fn receive(
    agent: &Arc<Agent>,
    socket: TcpStream,
    permit: OwnedSemaphorePermit,
) -> Result<(), PeerError> {
    let visitor = Visitor::take(socket, &agent.identity, agent.link_options()).await?;
    let peer = visitor.peer().clone();
    if !agent.config.peers.contains_key(&peer) {
        let reason = format!("{} does not know the host {peer}", agent.config.name);
        let refusal = Refusal::new(
            "peer-not-allowed",
            reason,
            format!("add [peers.{peer}] to its configuration"),
        );
        visitor.refuse(&refusal).await?;
        return Err(PeerError::Refused { peer, refusal: Box::new(refusal) });
    }
    match visitor.role().clone() {
        Role::Control => {
            let greeted = visitor.welcome().await?;
            drop(permit);
            control(agent, &peer, greeted).await?;
        }
        Role::Data { job, token, connection } => {
            let handle = agent.incoming(&job);
            let Some(handle) = handle.filter(|handle| handle.peer == peer && handle.token == token)
            else {
                let reason = format!("no job {job} of {peer} waits for data with this token");
                let refusal = Refusal::new("job-unknown", reason, "begin the move again");
                return visitor.refuse(&refusal).await;
            };
            let greeted = visitor.welcome().await?;
            // A job that has much to hear must not keep other peers from being greeted.
            drop(permit);
            greeted.connection.limit_silence(handle.silence_limit)?;
            let link = greeted.connection.into_blocking()?;
            let data = DataConnection { number: connection, link, frames: greeted.reader };
            handle.data(data).await;
        }
        Role::Check => {
            let greeted = visitor.welcome().await?;
            drop(permit);
            check(agent, &peer, greeted).await?;
        }
    }
    Ok(())
}

/// A control connection: its first messages say what it is for.
async fn control(
    agent: &Arc<Agent>,
    peer: &HostName,
    mut greeted: Greeted,
) -> Result<(), PeerError> {
    let Some(first) = first_message(peer, &mut greeted).await? else { return Ok(()) };
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
                    while let Some(inbound) = inbox.recv().await {
                        handle.inbound(inbound).await;
                    }
                }
                return Ok(());
            }
            Message::Inquire(inquire) => answer(agent, peer, &inquire, &link).await,
            Message::Ping(echo) => drop(link.send(&Message::Pong(echo)).await),
            other => {
                tracing::warn!(%peer, message = other.name(), "a peer sent a message that begins nothing");
                return Ok(());
            }
        }
        if let Some(Inbound::Message(message)) = inbox.recv().await {
            next = Some(*message);
        }
    }
    Ok(())
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
    let Some(frame) = reader.frame().filter(|frame| frame.kind == FrameKind::Control) else {
        return Ok(None);
    };
    match Message::decode(frame.payload, Sender::Source) {
        Ok(message) => Ok(Some(message)),
        Err(error) => {
            tracing::warn!(%peer, %error, "a peer misbehaves");
            Ok(None)
        }
    }
}

async fn begin(
    agent: &Arc<Agent>,
    peer: &HostName,
    prepare: Prepare,
    link: &Link,
) -> Option<incoming::Handle> {
    let (job, vm) = (prepare.job.clone(), prepare.vm.clone());
    let begun = look_at(agent, peer, &prepare).and_then(|checked| {
        incoming::begin(agent, peer, (prepare, checked), link.clone()).map_err(|error| {
            let remedy = "look at the destination's log";
            vec![Refusal::new("destination-not-ready", error.to_string(), remedy)]
        })
    });
    match begun {
        Ok(handle) => {
            agent.remember_incoming(job, handle.clone());
            Some(handle)
        }
        Err(refusals) => {
            // Nothing was begun: neither a job nor a journal is left of it.
            for refusal in &refusals {
                tracing::warn!(%job, %vm, %peer, %refusal, "a VM was refused");
            }
            let _ = link.send(&Message::Refused(Refused::new(&refusals))).await;
            None
        }
    }
}

/// Whether this peer may begin this job, and whether its VM can be taken.
fn look_at(
    agent: &Agent,
    peer: &HostName,
    prepare: &Prepare,
) -> Result<incoming::Checked, Vec<Refusal>> {
    match refused(agent, peer, prepare) {
        Some(refusal) => Err(vec![refusal]),
        None => incoming::check(agent, prepare),
    }
}

/// Why this peer may not begin this job, if it may not.
fn refused(agent: &Agent, peer: &HostName, prepare: &Prepare) -> Option<Refusal> {
    if let Some(refusal) = not_accepted(agent, peer) {
        return Some(refusal);
    }
    if agent.jobs.are_closed() {
        let reason = format!("the agent of {} is being ended", agent.config.name);
        return Some(Refusal::new("destination-not-ready", reason, "try again in a minute"));
    }
    let most = agent.config.limits.jobs;
    if agent.jobs.running() >= most {
        let reason = format!("expected fewer than {most} jobs at a time, found {most}");
        return Some(Refusal::new(
            "too-many-jobs",
            reason,
            "wait, or raise limits.jobs at the destination",
        ));
    }
    // An old job's journal must not get another one's entries.
    let has_journal = journal::path_of(&agent.config.state_dir, &prepare.job).exists();
    if has_journal || agent.jobs.get(&prepare.job).is_some() {
        let reason = format!("the job {} is known here already", prepare.job);
        return Some(Refusal::new("job-known", reason, "begin the move again"));
    }
    None
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
    let Greeted { mut connection, mut reader, mut writer } = greeted;
    let failed = |error| PeerError::Frame { peer: peer.clone(), error };
    while read_frame(connection.stream(), &mut reader).await.map_err(failed)? {
        let Some(frame) = reader.frame().filter(|frame| frame.kind == FrameKind::Control) else {
            continue;
        };
        let reply = match Message::decode(frame.payload, Sender::Source) {
            Ok(Message::Ping(echo)) => Message::Pong(echo),
            // Would this VM be taken? Everything is checked, nothing is begun; no refusals mean yes.
            Ok(Message::Prepare(prepare)) => {
                let refusals = look_at(agent, peer, &prepare).err().unwrap_or_default();
                Message::Refused(Refused::new(&refusals))
            }
            // Would any VM be taken? A job that nobody knows, or the reason why not.
            Ok(Message::Inquire(inquire)) => match not_accepted(agent, peer) {
                Some(refusal) => Message::Refused(Refused::new(&[refusal])),
                None => Message::Answer(Answer { job: inquire.job, state: AnswerState::Unknown }),
            },
            _ => return Ok(()),
        };
        let Ok(payload) = reply.encode() else { return Ok(()) };
        write_frame(connection.stream(), &mut writer, FrameKind::Control, &payload)
            .await
            .map_err(failed)?;
    }
    Ok(())
}
