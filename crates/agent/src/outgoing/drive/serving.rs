//! Post-copy, the source's side: the guest runs at the destination and its last pages are still here. They are pushed, and
//! what the guest waits for goes first. The paused QEMU's memory is the page store: nothing else is needed to go on after
//! a cut or a restart.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sterna_host::memory::main_ram_of;
use sterna_host::tls::DataStream;
use sterna_migration::source::{Fact, Finish};
use sterna_migration::tracker::Tracker;
use sterna_model::{Layout, PAGE_BYTES, PageId};
use sterna_wire::post_copy;
use sterna_wire::{FrameWriter, Message, PageKey, Role, Sender as Side, Token};

use super::{Drive, Event, choice};
use crate::journal::{Entry, MemoryRecord};
use crate::link::Link;
use crate::outgoing::bulk::{Bulk, Links, Reports, RoundSum, Settings};
use crate::outgoing::memory::SourceMemory;
use crate::peer;

/// A message to a destination that guests wait at must not be slower than this.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Connections that are being made anew, and what the destination says on them.
#[derive(Debug, Default)]
pub(super) struct Rejoining {
    token: Option<Token>,
    lacking: Vec<(PageId, u32)>,
}

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
        }
    }

    pub(super) fn reports(&self) -> Reports {
        let to = self.events.clone();
        Arc::new(move |number, report| drop(to.send(Event::Worker(number, report))))
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

    /// Connects anew: what was under way on the old connections counts as lost, and the destination says what it lacks.
    pub(super) fn rejoin(&mut self) {
        self.leave_connections();
        if self.known_addresses().is_empty() {
            let peer = &self.wanted.to.name;
            tracing::error!(%peer, "no address of the destination is known; add [peers.{peer}] to the configuration and restart the agent");
        }
        self.rejoining = Rejoining::default();
        let (agent, addresses) = (Arc::clone(&self.agent), self.known_addresses());
        let (events, inbound) = (self.events.clone(), self.inbound.clone());
        tokio::spawn(async move {
            let options = agent.link_options();
            for to in addresses {
                let connect = peer::connect(&agent.identity, &to, Role::Control, options);
                let Ok(connected) = tokio::time::timeout(CONNECT_LIMIT, connect).await else {
                    continue;
                };
                let link = connected
                    .map(|(greeted, _)| Link::start(greeted, Side::Destination, inbound.clone()));
                let found = link.is_ok();
                let _ = events.send(Event::Reached(link));
                if found {
                    return;
                }
            }
        });
    }

    /// The destination is reached again.
    pub(super) async fn reached(&mut self, link: Link) {
        let record = self.wanted.vm.record();
        self.link = Some(link);
        let rejoin = post_copy::Rejoin {
            job: self.job.id().clone(),
            uuid: record.uuid,
            epoch: record.epoch.next(),
            page_key: PageKey(self.key),
            connections: self.wanted.options.connections,
        };
        self.send(&Message::Rejoin(rejoin)).await;
    }

    /// What the destination lacks, piece by piece; with the last one the data connections are made.
    pub(super) async fn lacking(&mut self, lacking: post_copy::Lacking) {
        let layout = self.head.as_ref().map(|head| head.memory.layout());
        let layout = layout.or(self.stored.as_ref().map(|stored| &stored.layout));
        let most = layout.map_or(0, |layout| layout.pages() as usize);
        if self.rejoining.lacking.len() + lacking.runs.len() > most {
            let why = format!("expected at most {most} runs of lacking pages, found more");
            return self.fact(Fact::PeerFailed(why));
        }
        self.rejoining.lacking.extend(lacking.runs);
        if !lacking.last {
            return;
        }
        let Some(token) = self.rejoining.token.take() else {
            return self.fact(Fact::PeerFailed("the destination gave no token".into()));
        };
        let runs = std::mem::take(&mut self.rejoining.lacking);
        match self.rejoin_data(token, &runs).await {
            Ok(bulk) => {
                self.bulk = Some(bulk);
                self.fact(Fact::Rejoined);
            }
            Err(why) => self.fact(Fact::PeerLost(why)),
        }
    }

    pub(super) fn rejoined(&mut self, rejoined: &post_copy::Rejoined) {
        self.rejoining.token = Some(rejoined.token);
    }

    async fn rejoin_data(&mut self, token: Token, runs: &[(PageId, u32)]) -> Result<Bulk, String> {
        let connections = self.wanted.options.connections;
        let data = self.connect_data(token, connections + 1).await?;
        let memory = self.page_store().await?;
        let tracker = Tracker::new(memory.layout().pages(), usize::from(connections));
        for (first, count) in runs {
            let end = first.0.checked_add(*count).filter(|end| *end <= memory.layout().pages());
            let end = end.ok_or("the destination lacks pages that the guest does not have")?;
            (first.0..end).for_each(|page| tracker.give_back(PageId(page)));
        }
        let settings = self.settings(memory.layout());
        let links = into_links(data, true);
        Bulk::start(links, memory, Arc::new(tracker), &settings, &self.reports())
    }

    /// The guest's memory, which stands still in its paused QEMU: as it was opened for the move, or opened again.
    async fn page_store(&mut self) -> Result<Arc<SourceMemory>, String> {
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
            let memory = main_ram_of(&live.process, &live.qmp, name, length_bytes).await;
            readable.push((name.clone(), memory.map_err(|error| error.to_string())?));
        }
        let memory = SourceMemory::open(&stored.layout, readable, budget_bytes);
        self.shared_blocks = stored.shared_blocks;
        memory.map(Arc::new).map_err(|error| error.to_string())
    }

    /// The guest waits for these pages at the destination.
    pub(super) fn wanted_pages(&mut self, wanted: post_copy::Wanted) {
        if let Some(bulk) = &self.bulk {
            bulk.wanted(wanted.pages);
        }
    }

    /// What a restart needs to serve pages: noted before the guest is stopped, since it must be there after.
    pub(super) fn note_layout(&mut self, layout: &Layout) -> Result<(), String> {
        let stored = MemoryRecord {
            layout: layout.clone(),
            shared_blocks: self.shared_blocks.clone(),
            ram_section: None,
            stream_inode: None,
        };
        self.journal.note(&Entry::Memory(stored)).map_err(|error| error.to_string())
    }

    /// Makes the job's data connections.
    pub(super) async fn connect_data(
        &self,
        token: Token,
        count: u16,
    ) -> Result<Vec<(DataStream, FrameWriter)>, String> {
        let options = self.agent.link_options();
        let connects = (0..count).map(|connection| {
            let role = Role::Data { job: self.job.id().clone(), token, connection };
            let (agent, to) = (Arc::clone(&self.agent), self.wanted.to.clone());
            tokio::spawn(async move { peer::connect(&agent.identity, &to, role, options).await })
        });
        let connects: Vec<_> = connects.collect();
        let mut data = Vec::with_capacity(connects.len());
        for connect in connects {
            let (greeted, _) = connect
                .await
                .map_err(|error| error.to_string())?
                .map_err(|error| error.to_string())?;
            let link = greeted.connection.into_blocking().map_err(|error| error.to_string())?;
            data.push((link, greeted.writer));
        }
        Ok(data)
    }

    /// What still goes on over connections that are given up ends.
    fn leave_connections(&mut self) {
        if let Some(bulk) = &mut self.bulk {
            self.gauge.leave(bulk);
            bulk.abandon();
        }
        self.bulk = None;
        self.link = None;
        self.broken = None;
    }
}

/// The last connection is for what the guest waits for.
pub(super) fn into_links(mut data: Vec<(DataStream, FrameWriter)>, post_copy: bool) -> Links {
    let urgent = if post_copy { data.pop() } else { None };
    Links { data, urgent }
}
