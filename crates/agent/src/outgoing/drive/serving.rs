//! Post-copy, the source's side: the guest runs at the destination and its last pages are still here. They are pushed, and
//! what the guest waits for goes first. The paused QEMU's memory is the page store: nothing else is needed to go on after
//! a cut or a restart, and where it is a file, not even QEMU.

use std::sync::Arc;
use std::time::Instant;

use sterna_host::memory::ram_of;
use sterna_host::tls::DataStream;
use sterna_migration::source::{Death, Fact, Finish};
use sterna_model::{JobId, Layout, PAGE_BYTES};
use sterna_wire::post_copy;
use sterna_wire::{FrameWriter, Role, Token};

use super::{Drive, Event, choice};
use crate::agent::Agent;
use crate::journal::{Entry, MemoryRecord};
use crate::outgoing::bulk::RoundSum;
use crate::outgoing::links::{Links, Reports, Settings};
use crate::outgoing::memory::SourceMemory;
use crate::peer::{self, Destination};

/// A data connection after the hello, and what numbers its frames.
pub(super) type DataConnection = (DataStream, FrameWriter);

impl Drive {
    /// How pages are sent.
    pub(super) fn settings(&self, layout: &Layout) -> Settings {
        let shared = |block: &&sterna_model::Block| self.shared_blocks.contains(&block.name);
        let deferrable = layout.blocks().iter().filter(shared);
        Settings {
            key: self.key,
            effort: self.effort(),
            rate: self.rate(),
            deferrable: deferrable.map(sterna_model::Block::page_numbers).collect(),
            verify_full: self.wanted.options.verify_full,
        }
    }

    pub(super) fn reports(&self) -> Reports {
        let to = self.events.clone();
        let connections = self.connections;
        Arc::new(move |worker, report| drop(to.send(Event::Worker(connections, worker, report))))
    }

    /// The guest runs at the destination: sends what it lacks there.
    pub(super) fn serve(&mut self) {
        if self.strategy != choice::FOLLOW {
            self.strategy = choice::name(self.wanted.options.strategy, Finish::PostCopy);
        }
        let (rate, round_trip) = (self.gauge.link_rate(), self.gauge.round_trip);
        self.gauge.post_copy_began(self.bulk.as_ref());
        let Some(bulk) = &mut self.bulk else {
            return self.fact(Fact::PeerLost("its data connections are gone".into()));
        };
        if let Err(why) = bulk.begin_push(rate, round_trip.unwrap_or_default()) {
            self.fact(Fact::PeerLost(why));
        }
    }

    /// All pages were handed to the connections; that they have arrived is for the destination to say.
    pub(super) fn pushed(&mut self, round: &RoundSum) {
        tracing::debug!(pages = round.sum.pages, "all pages of post-copy are sent");
        self.gauge.marks.pushed = Some(Instant::now());
    }

    pub(super) fn complete(&mut self, complete: &post_copy::Complete) {
        self.gauge.complete(complete);
        self.fact(Fact::PeerComplete);
    }

    /// Our QEMU died. A guest's memory in a file outlives it while this agent has the file open: what the guest lacks at the
    /// destination is served all the same.
    pub(super) fn qemu_died(&mut self, why: String) {
        let memory_is_held = self.head.as_ref().is_some_and(|head| head.memory.is_held());
        if memory_is_held {
            tracing::warn!(%why, "the source's QEMU died; this agent has what is left there of the guest's memory");
        }
        self.memory_is_gone = !memory_is_held;
        self.fact(Fact::QemuDied(Death { why, memory_is_held }));
    }

    /// The guest's memory, which stands still in its paused QEMU: as it was opened for the move, or opened again.
    pub(super) async fn page_store(&mut self) -> Result<Arc<SourceMemory>, String> {
        if let Some(head) = &self.head {
            return Ok(Arc::clone(&head.memory));
        }
        let stored = self.stored.clone().ok_or("the journal does not tell the guest's memory")?;
        let live = self.wanted.live()?;
        let budget_bytes = self.agent.config.limits.memory_budget.0;
        let mut readable = Vec::new();
        for name in &stored.shared_blocks {
            let block = stored.layout.block_named(name);
            let pages = block.ok_or("the journal tells a block without its length")?.pages;
            let length_bytes = u64::from(pages) * PAGE_BYTES as u64;
            let memory = ram_of(&live.process, &live.qmp, name, length_bytes).await;
            readable.push((name.clone(), memory.map_err(|error| error.to_string())?));
        }
        let memory = SourceMemory::open(&stored.layout, readable, budget_bytes);
        self.shared_blocks = stored.shared_blocks;
        memory.map(Arc::new).map_err(|error| error.to_string())
    }

    /// What a restart needs to serve pages: noted before the guest is stopped, since it must be there after.
    pub(super) fn note_layout(&mut self, layout: &Layout) -> Result<(), String> {
        let stored = MemoryRecord {
            layout: layout.clone(),
            shared_blocks: self.shared_blocks.clone(),
            ram_section: None,
            stream_inode: None,
            keep_ms: None,
        };
        self.journal.note(&Entry::Memory(stored)).map_err(|error| error.to_string())
    }
}

/// Makes a job's data connections.
///
/// # Errors
/// In words, when one cannot be made.
pub(super) async fn connect_data(
    agent: Arc<Agent>,
    job: JobId,
    to: Destination,
    token: Token,
    count: u16,
) -> Result<Vec<DataConnection>, String> {
    let connects = (0..count).map(|connection| {
        let role = Role::Data { job: job.clone(), token, connection };
        let (agent, to, options) = (Arc::clone(&agent), to.clone(), agent.link_options());
        tokio::spawn(async move { peer::connect(&agent.identity, &to, role, options).await })
    });
    let connects: Vec<_> = connects.collect();
    let mut data = Vec::with_capacity(connects.len());
    for connect in connects {
        let (greeted, _) =
            connect.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let link = greeted.connection.into_blocking().map_err(|error| error.to_string())?;
        data.push((link, greeted.writer));
    }
    Ok(data)
}

/// The last connection is for what the guest waits for.
pub(super) fn into_links(mut data: Vec<DataConnection>, post_copy: bool) -> Links {
    let urgent = if post_copy { data.pop() } else { None };
    Links { data, urgent }
}
