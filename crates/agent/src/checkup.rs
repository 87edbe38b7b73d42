//! `sterna check`: can a peer be reached and trusted, would it take a VM, and what does the link carry.

use std::time::{Duration, Instant};

use sterna_api::{ApiError, CheckView};
use sterna_host::tls::{FrameStreamError, read_frame, write_frame};
use sterna_model::{ByteCount, Epoch, JobId, Rate, Refusal, Uuid};
use sterna_wire::message::{Echo, Inquire};
use sterna_wire::{FrameKind, Message, Role, Sender, Welcome};

use crate::agent::Agent;
use crate::certificates::{self, Expiry, Whose};
use crate::link::Greeted;
use crate::peer::{self, Destination, PeerError};

/// Pings; the fastest counts.
const PINGS: u32 = 5;
/// The trial of the link ends after so long, or so much.
const TRIAL: Duration = Duration::from_millis(500);
const TRIAL_BYTES: u64 = 256 << 20;
const PROBE_BYTES: usize = 256 << 10;
/// A peer that does not answer within this is not there.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// Looks at a peer.
///
/// # Errors
/// When it cannot be reached or trusted; with exit code 3 when it is somebody else or says no.
pub(crate) async fn check(agent: &Agent, text: &str) -> Result<CheckView, ApiError> {
    let to = peer::destination(agent, text).map_err(|refusal| ApiError::refused(vec![refusal]))?;
    look(agent, &to).await.map_err(|error| match &error {
        PeerError::Tls(tls) if tls.is_transient() => ApiError::failed(error.to_string()),
        _ => ApiError::refused(vec![error.to_refusal()]),
    })
}

async fn look(agent: &Agent, to: &Destination) -> Result<CheckView, PeerError> {
    let (greeted, welcome) =
        peer::connect(&agent.identity, to, Role::Check, agent.link_options()).await?;
    let mut checkup = Checkup { greeted, to };
    let peer_certificate = checkup.greeted.connection.peer_validity();
    let round_trip = checkup.round_trip().await?;
    let refusals = checkup.refusals().await?;
    let rate = checkup.link_rate().await?;
    checkup.close().await;
    let now_unix = certificates::now_unix();
    let theirs = peer_certificate
        .and_then(|validity| Expiry::of(Whose::Peer(to.name.as_str()), validity, now_unix));
    let expiries = certificates::of_this_host(agent, now_unix).into_iter().chain(theirs);
    let Welcome { protocol, software, .. } = welcome;
    Ok(CheckView {
        peer: to.name.to_string(),
        address: to.address.clone(),
        software,
        protocol,
        accepts: refusals.is_empty(),
        round_trip_ms: round_trip.as_secs_f64() * 1000.0,
        link_bytes_per_second: rate.bytes_per_second,
        our_certificate_days: agent.identity.validity().days_left(now_unix),
        peer_certificate_days: peer_certificate.map_or(0, |validity| validity.days_left(now_unix)),
        warnings: expiries.map(|expiry| expiry.message).collect(),
        refusals,
    })
}

/// Whether a peer would take this VM: its reasons not to. `prepare` is what a move would begin with.
///
/// # Errors
/// When it cannot be asked.
pub(crate) async fn would_take(
    agent: &Agent,
    to: &Destination,
    prepare: &Message,
) -> Result<Vec<Refusal>, PeerError> {
    let (greeted, _) =
        peer::connect(&agent.identity, to, Role::Check, agent.link_options()).await?;
    let mut checkup = Checkup { greeted, to };
    let asked = prepare.clone().for_peer(&checkup.greeted.capabilities);
    let answer = checkup.ask(&asked).await?;
    checkup.close().await;
    match answer {
        Message::Refused(refused) => Ok(refused.refusals),
        _ => Err(PeerError::Closed { peer: to.name.clone() }),
    }
}

struct Checkup<'a> {
    greeted: Greeted,
    to: &'a Destination,
}

impl Checkup<'_> {
    async fn round_trip(&mut self) -> Result<Duration, PeerError> {
        let mut best = Duration::MAX;
        for nonce in 0..PINGS {
            let begun = Instant::now();
            self.ask(&Message::Ping(Echo { nonce: nonce.into(), sent_ns: 0 })).await?;
            best = best.min(begun.elapsed());
        }
        Ok(best)
    }

    async fn refusals(&mut self) -> Result<Vec<Refusal>, PeerError> {
        let nobody: Result<JobId, _> = "check".parse();
        let Ok(job) = nobody else { return Ok(Vec::new()) };
        match self
            .ask(&Message::Inquire(Inquire { job, uuid: Uuid([0; 16]), epoch: Epoch(0) }))
            .await?
        {
            Message::Refused(refused) => Ok(refused.refusals),
            _ => Ok(Vec::new()),
        }
    }

    /// Sends as much as goes in half a second, and waits until it has arrived.
    async fn link_rate(&mut self) -> Result<Rate, PeerError> {
        let probe = vec![0x5a; PROBE_BYTES];
        let begun = Instant::now();
        let mut sent = 0;
        while begun.elapsed() < TRIAL && sent < TRIAL_BYTES {
            self.write(FrameKind::Probe, &probe).await?;
            sent += PROBE_BYTES as u64;
        }
        self.ask(&Message::Ping(Echo { nonce: u64::MAX, sent_ns: 0 })).await?;
        Ok(Rate::of(ByteCount(sent), begun.elapsed()))
    }

    /// Says that nothing more will come, so that the peer does not take us for lost.
    async fn close(&mut self) {
        let _ = tokio::io::AsyncWriteExt::shutdown(self.greeted.connection.stream()).await;
    }

    async fn ask(&mut self, message: &Message) -> Result<Message, PeerError> {
        let silent = || PeerError::Silent { peer: self.to.name.clone() };
        let closed = || PeerError::Closed { peer: self.to.name.clone() };
        let payload = message.encode().map_err(|_| closed())?;
        self.write(FrameKind::Control, &payload).await?;
        let Greeted { connection, reader, .. } = &mut self.greeted;
        let read =
            tokio::time::timeout(ANSWER_DEADLINE, read_frame(connection.stream(), reader)).await;
        let more = read.map_err(|_| silent())?.map_err(|error| self.failed(error))?;
        let frame = self.greeted.reader.frame().filter(|_| more).ok_or_else(closed)?;
        Message::decode(frame.payload, Sender::Destination).map_err(|_| closed())
    }

    async fn write(&mut self, kind: FrameKind, payload: &[u8]) -> Result<(), PeerError> {
        let Greeted { connection, writer, .. } = &mut self.greeted;
        let written = write_frame(connection.stream(), writer, kind, payload).await;
        written.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: FrameStreamError) -> PeerError {
        match error {
            FrameStreamError::Connection(error) => PeerError::Tls(error),
            error @ FrameStreamError::Frame(_) => {
                PeerError::Frame { peer: self.to.name.clone(), error }
            }
        }
    }
}
