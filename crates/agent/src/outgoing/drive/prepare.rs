//! Before anything is copied: looking at the VM, reaching the destination, getting both ready.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sterna_migration::source::Fact;
use sterna_model::JobId;
use sterna_wire::keep::KEEP;
use sterna_wire::limits::MAX_KEEP_MS;
use sterna_wire::message as wire;
use sterna_wire::{Message, PageKey, Role, Sender as Side, Verify};

use super::serving::{connect_data, into_links};
use super::{Drive, choice};
use crate::agent::Agent;
use crate::journal::Entry;
use crate::link::Link;
use crate::outgoing::Move;
use crate::outgoing::preflight::{self, Subject};
use crate::outgoing::qemu::SourceQemu;
use crate::peer::{self, PeerError};

impl Drive {
    /// Looks at the VM, reaches the destination, and lets it get ready while we do too.
    pub(super) async fn prepare(&mut self) {
        let record = self.wanted.vm.record();
        // Both take some ten milliseconds. What is refused here needs no connection, which is closed again then.
        let (examined, connected) =
            tokio::join!(self.wanted.examine(&self.agent, &record), self.connect());
        let subject = match examined {
            Ok(subject) => subject,
            Err(refusals) => {
                // One that dies while it is asked is not one that does not answer as it should.
                return match self.death_of_qemu().await {
                    Some(why) => self.fact(Fact::QemuDied(why.into())),
                    None => self.fact(Fact::PeerRefused(refusals)),
                };
            }
        };
        self.gauge.memory = subject.ram_bytes;
        let subject = &*self.subject.insert(subject);
        let mut message = match prepare_message(
            self.job.id(),
            &record,
            subject,
            &self.wanted,
            self.key,
            &self.agent,
        ) {
            Ok(message) => message,
            Err(refusal) => return self.fact(Fact::PeerRefused(vec![refusal])),
        };
        match connected {
            Ok(link) => {
                message = message.for_peer(link.capabilities());
                self.keeps = link.capabilities().contains(KEEP);
                self.link = Some(link);
                self.asked_for_post_copy =
                    matches!(&message, Message::Prepare(prepare) if prepare.post_copy);
            }
            Err(error) if is_refusal(&error) => {
                return self.fact(Fact::PeerRefused(vec![error.to_refusal()]));
            }
            Err(error) => return self.fact(Fact::PeerFailed(error.to_string())),
        }
        self.send(&message).await;
        // The destination starts its QEMU meanwhile; nothing is offered before this is durable.
        let job = self.job.id().clone();
        self.agent.change(&self.wanted.vm, |record| record.leaving = Some(job));
        if let Err(why) = self.prepare_qemu().await {
            self.fact(Fact::QemuFailed(why));
        }
    }

    pub(super) async fn connect(&self) -> Result<Link, PeerError> {
        let options = self.agent.link_options();
        let (greeted, _) =
            peer::connect(&self.agent.identity, &self.wanted.to, Role::Control, options).await?;
        Ok(Link::start(greeted, Side::Destination, self.inbound.clone()))
    }

    pub(super) async fn prepare_qemu(&mut self) -> Result<(), String> {
        let live = self.wanted.live()?;
        let qmp = live.qmp.clone();
        let schema = live.schema().await.map_err(|error| error.to_string())?;
        let qemu = SourceQemu::prepare(qmp, &schema).await.map_err(|error| error.to_string())?;
        self.guest_ran = qemu.guest_ran();
        let ran = Entry::GuestRan(self.guest_ran);
        self.journal.note(&ran).map_err(|error| error.to_string())?;
        self.qemu = Some(qemu);
        Ok(())
    }

    /// The destination is ready: its data connections are made.
    pub(super) async fn prepared(&mut self, prepared: wire::Prepared) {
        self.gauge.destination_start = Duration::from_millis(prepared.start_ms);
        let post_copy = prepared.post_copy && self.asked_for_post_copy;
        let count = self.wanted.options.connections + u16::from(post_copy);
        let (agent, job) = (Arc::clone(&self.agent), self.job.id().clone());
        let to = self.wanted.to.clone();
        match connect_data(agent, job, to, prepared.token, count).await {
            Ok(data) => self.links = into_links(data, post_copy),
            Err(why) => return self.fact(Fact::PeerFailed(why)),
        }
        self.has_urgent = post_copy;
        self.reuse.is_awaited = prepared.kept && self.wanted.follow.is_some();
        self.shared_blocks = prepared.shared_blocks;
        self.post_copy.store(post_copy, Ordering::Relaxed);
        self.gauge.marks.prepared = Some(Instant::now());
        self.ping().await;
        self.fact(Fact::PeerPrepared);
    }
}

/// What a move begins with at the destination.
pub(in crate::outgoing) fn prepare_message(
    job: &JobId,
    record: &crate::registry::Record,
    subject: &Subject,
    wanted: &Move,
    key: [u8; 32],
    agent: &Agent,
) -> Result<Message, sterna_model::Refusal> {
    let link_timeout = agent.config.limits.link_timeout.as_millis();
    Ok(Message::Prepare(wire::Prepare {
        job: job.clone(),
        vm: record.name.clone(),
        uuid: record.uuid,
        epoch: record.epoch.next(),
        description: preflight::describe(&subject.description)?,
        page_key: PageKey(key),
        connections: wanted.options.connections,
        verify: if wanted.options.verify_full { Verify::Full } else { Verify::Roots },
        link_timeout_ms: u64::try_from(link_timeout).unwrap_or(u64::MAX),
        evidence: Some(subject.evidence.for_move(&wanted.options)),
        post_copy: choice::may_finish_by_post_copy(&wanted.options),
        keep_ms: Some(keep_ms(wanted, agent)),
        reuse: wanted.follow.is_some(),
    }))
}

/// For how long the destination is asked to keep what it has without a connection: as long as it is tried to be reached.
fn keep_ms(wanted: &Move, agent: &Agent) -> u64 {
    let limits = &agent.config.limits;
    let keep = if wanted.follow.is_some() { limits.keep_copy } else { limits.link_timeout };
    u64::try_from(keep.as_millis()).unwrap_or(u64::MAX).clamp(1, MAX_KEEP_MS)
}

/// Whether a peer's no is a decision (exit code 3), or something that may pass.
pub(super) fn is_refusal(error: &PeerError) -> bool {
    match error {
        PeerError::Tls(error) => !error.is_transient(),
        PeerError::Refused { .. } => true,
        _ => false,
    }
}
