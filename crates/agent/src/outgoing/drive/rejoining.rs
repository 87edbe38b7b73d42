//! After a cut, a silence or a restart the destination is connected anew: while the guest runs there and lacks pages, for
//! ever; while it runs here, for as long as the destination keeps what it has ([`away`](super::away)).
//!
//! ```text
//! idle --dial--> dialing --reached--> asked --what it lacks--> connecting --data connections--> idle, and serving
//!                                       \--it goes on---------> connecting --data connections--> idle, and copying
//! ```
//!
//! One attempt at a time: the machine wants one each second until one succeeds, and an attempt over a slow link takes longer.
//! What the guest asks for meanwhile is kept for the new connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sterna_migration::source::Fact;
use sterna_migration::tracker::Tracker;
use sterna_model::{Layout, PageId};
use sterna_page_codec::Known;
use sterna_wire::post_copy;
use sterna_wire::{Message, PageKey, Role, Sender as Side, Token};
use tokio::sync::mpsc;

use super::serving::{DataConnection, connect_data, into_links};
use super::{Drive, Event};
use crate::agent::Agent;
use crate::link::{Greeted, Link, MAX_UNREAD};
use crate::outgoing::bulk::Bulk;
use crate::peer::{self, Destination, PeerError};

/// A destination that guests wait at is reached within this, and says what it lacks, or it is tried again.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// A destination that may have the guest and was not heard for so long is connected anew: what was sent into a cut link is
/// sent again by TCP, but after a long cut only after as long a pause.
const SILENCE_LIMIT: Duration = Duration::from_secs(10);
/// Pages that the guest waits for and that are kept for the new connections, at most; others come by the push.
const MAX_KEPT: usize = 16 * 1024;

/// Connections that are being made anew, and what the destination says on them.
#[derive(Debug, Default)]
pub(super) struct Rejoining {
    attempt: u32,
    stage: Stage,
    to: Option<Destination>,
    token: Option<Token>,
    lacking: Vec<(PageId, u32)>,
    wanted: Vec<PageId>,
}

/// How far an attempt is.
#[derive(Clone, Copy, Debug, Default)]
enum Stage {
    /// Nothing is under way.
    #[default]
    Idle,
    /// A control connection is being made.
    Dialing,
    /// The destination was asked, or has said something of what it lacks.
    Asked(Instant),
    /// The data connections are being made.
    Connecting,
}

/// A control connection to a destination at which the guest runs, and where that was found.
pub(super) type Reached = Result<(Box<Greeted>, Destination), PeerError>;

impl Rejoining {
    fn is_under_way(&self) -> bool {
        match self.stage {
            Stage::Idle => false,
            Stage::Dialing | Stage::Connecting => true,
            Stage::Asked(since) => since.elapsed() < ANSWER_LIMIT,
        }
    }

    /// The destination cannot be joined now, or its connection is gone.
    pub(super) fn has_failed(&mut self) {
        if !matches!(self.stage, Stage::Dialing) {
            self.stage = Stage::Idle;
        }
    }

    /// The guest waits for these; there is no connection for them yet.
    fn keep(&mut self, pages: Vec<PageId>) {
        if self.wanted.len() + pages.len() <= MAX_KEPT {
            self.wanted.extend(pages);
        }
    }
}

impl Drive {
    /// Connects anew, unless that is being tried: what was under way on the old connections counts as lost, and the
    /// destination says what it lacks.
    pub(super) fn rejoin(&mut self) {
        if self.rejoining.is_under_way() {
            return;
        }
        if self.phase() == "copying" {
            self.leave_rounds();
        } else {
            self.leave_connections();
        }
        let attempt = self.rejoining.attempt.wrapping_add(1);
        self.rejoining = Rejoining { attempt, ..Rejoining::default() };
        let (agent, to, events) =
            (Arc::clone(&self.agent), self.known_addresses(), self.events.clone());
        if to.is_empty() {
            let peer = &self.wanted.to.name;
            tracing::error!(%peer, "no address of the destination is known; add [peers.{peer}] to the configuration and restart the agent");
            return;
        }
        self.rejoining.stage = Stage::Dialing;
        tokio::spawn(async move {
            if let Some(reached) = dial(&agent, to).await {
                let _ = events.send(Event::Reached(reached));
            }
        });
    }

    /// The destination is reached again, or not.
    pub(super) async fn reached(&mut self, reached: Reached) {
        let (greeted, to) = match reached {
            Ok(reached) => reached,
            Err(error) => {
                self.rejoining.stage = Stage::Idle;
                if self.phase() == "copying" {
                    return self.still_away(&error);
                }
                tracing::warn!(%error, "the guest waits for pages at the destination, which cannot be reached");
                return;
            }
        };
        if !matches!(self.phase(), "copying" | "serving") {
            // Meanwhile the job took another way: this connection closes.
            self.rejoining.stage = Stage::Idle;
            return;
        }
        let record = self.wanted.vm.record();
        self.heard_at = Instant::now();
        // What earlier connections have brought and was not heard yet is not of this one.
        let (inbound, heard) = mpsc::channel(MAX_UNREAD);
        (self.inbound, self.next_peer) = (inbound.clone(), Some(heard));
        self.link = Some(Link::start(*greeted, Side::Destination, inbound));
        self.rejoining.stage = Stage::Asked(Instant::now());
        self.rejoining.to = Some(to);
        let rejoin = post_copy::Rejoin {
            job: self.job.id().clone(),
            uuid: record.uuid,
            epoch: record.epoch.next(),
            page_key: PageKey(self.key),
            connections: self.wanted.options.connections,
        };
        self.send(&Message::Rejoin(rejoin)).await;
    }

    /// The destination goes on with the job; a guest that runs there lacks something, which it says next.
    pub(super) fn rejoined(&mut self, rejoined: &post_copy::Rejoined) {
        self.rejoining.token = Some(rejoined.token);
        if self.phase() != "copying" {
            return;
        }
        if self.away.is_none() || !matches!(self.rejoining.stage, Stage::Asked(_)) {
            return self.fact(Fact::PeerFailed("the destination rejoined out of turn".into()));
        }
        self.connect_again();
    }

    /// What the destination lacks, piece by piece; with the last one the data connections are made.
    pub(super) fn lacking(&mut self, lacking: post_copy::Lacking) {
        if !matches!(self.rejoining.stage, Stage::Asked(_)) {
            let why = "the destination said what it lacks without being asked";
            return self.fact(Fact::PeerFailed(why.into()));
        }
        self.rejoining.stage = Stage::Asked(Instant::now());
        let layout = self.head.as_ref().map(|head| head.memory.layout());
        let layout = layout.or(self.stored.as_ref().map(|stored| &stored.layout));
        let most = layout.map_or(0, |layout| layout.pages() as usize);
        if self.rejoining.lacking.len() + lacking.runs.len() > most {
            let why = format!("expected at most {most} runs of lacking pages, found more");
            return self.not_joined(why);
        }
        self.rejoining.lacking.extend(lacking.runs);
        if lacking.last {
            self.connect_again();
        }
    }

    fn connect_again(&mut self) {
        let copying = self.phase() == "copying";
        if self.memory_is_gone && !copying {
            // There is nothing to serve: it is told so.
            self.rejoining.stage = Stage::Idle;
            return self.fact(Fact::Rejoined);
        }
        let (Some(token), Some(to)) = (self.rejoining.token.take(), self.rejoining.to.clone())
        else {
            return self.not_joined("the destination gave no token".into());
        };
        self.rejoining.stage = Stage::Connecting;
        let (agent, job, attempt) =
            (Arc::clone(&self.agent), self.job.id().clone(), self.rejoining.attempt);
        let urgent = if copying { self.has_urgent } else { true };
        let count = self.wanted.options.connections + u16::from(urgent);
        let events = self.events.clone();
        tokio::spawn(async move {
            let data = connect_data(agent, job, to, token, count).await;
            let _ = events.send(Event::Joined(attempt, data));
        });
    }

    /// The data connections are there, or not.
    pub(super) async fn joined(&mut self, attempt: u32, data: Result<Vec<DataConnection>, String>) {
        let is_awaited =
            attempt == self.rejoining.attempt && matches!(self.rejoining.stage, Stage::Connecting);
        if !is_awaited {
            return;
        }
        if self.phase() == "copying" {
            self.rejoining.stage = Stage::Idle;
            return self.copy_on(data).await;
        }
        let bulk = match data {
            Ok(data) => self.serve_on(data).await,
            Err(why) => Err(why),
        };
        match bulk {
            Ok(bulk) => {
                let wanted = std::mem::take(&mut self.rejoining.wanted);
                if !wanted.is_empty() {
                    bulk.wanted(wanted);
                }
                self.bulk = Some(bulk);
                self.rejoining.stage = Stage::Idle;
                tracing::info!("the destination is back; it is sent what the guest lacks there");
                self.fact(Fact::Rejoined);
            }
            Err(why) => self.not_joined(why),
        }
    }

    fn not_joined(&mut self, why: String) {
        tracing::warn!(%why, "the destination is not joined again yet; it is tried again");
        self.rejoining.has_failed();
        self.fact(Fact::PeerLost(why));
    }

    async fn serve_on(&mut self, data: Vec<DataConnection>) -> Result<Bulk, String> {
        let memory = self.page_store().await?;
        let lacking = std::mem::take(&mut self.rejoining.lacking);
        let workers = usize::from(self.wanted.options.connections);
        let tracker = tracker_of(memory.layout(), workers, &lacking)?;
        let settings = self.settings(memory.layout());
        let links = into_links(data, true);
        let known = Known::new(memory.layout().pages());
        Bulk::start(known, links, memory, Arc::new(tracker), &settings, &self.reports())
    }

    /// The guest waits for these pages at the destination.
    pub(super) fn wanted_pages(&mut self, wanted: post_copy::Wanted) {
        match &self.bulk {
            Some(bulk) => bulk.wanted(wanted.pages),
            None => self.rejoining.keep(wanted.pages),
        }
    }

    /// Whoever may have the guest is not waited for on a connection on which nothing comes.
    pub(super) fn look_for_silence(&mut self) {
        let matters = matches!(self.phase(), "offered" | "serving");
        if !matters || self.link.is_none() || self.heard_at.elapsed() < SILENCE_LIMIT {
            return;
        }
        self.leave_link();
        self.rejoining.has_failed();
        let why = format!("it said nothing for {} s", SILENCE_LIMIT.as_secs());
        self.fact(Fact::PeerLost(why));
    }

    /// What still goes on over connections that are given up ends.
    fn leave_connections(&mut self) {
        if let Some(bulk) = &mut self.bulk {
            self.gauge.leave(bulk);
            bulk.abandon();
        }
        self.bulk = None;
        self.connections = self.connections.wrapping_add(1);
        self.broken = None;
        self.leave_link();
    }

    /// What still comes on the control connection is not heard any more.
    pub(super) fn leave_link(&mut self) {
        if let Some(link) = self.link.take() {
            link.leave();
        }
    }
}

/// Tries one address after the other; none when there is no address.
async fn dial(agent: &Agent, addresses: Vec<Destination>) -> Option<Reached> {
    let mut last = None;
    for to in addresses {
        let connect = peer::connect(&agent.identity, &to, Role::Control, agent.link_options());
        last = Some(match tokio::time::timeout(ANSWER_LIMIT, connect).await {
            Ok(Ok((greeted, _))) => return Some(Ok((Box::new(greeted), to))),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(PeerError::Silent { peer: to.name }),
        });
    }
    last
}

/// What is to be sent to a destination that lacks these runs of pages.
fn tracker_of(
    layout: &Layout,
    workers: usize,
    lacking: &[(PageId, u32)],
) -> Result<Tracker, String> {
    let tracker = Tracker::new(layout.pages(), workers);
    for (first, count) in lacking {
        let end = first.0.checked_add(*count).filter(|end| *end <= layout.pages());
        let end = end.ok_or("the destination lacks pages that the guest does not have")?;
        (first.0..end).for_each(|page| tracker.give_back(PageId(page)));
    }
    Ok(tracker)
}

#[cfg(test)]
mod tests {
    use sterna_model::{BlockName, PAGE_BYTES};

    use super::*;

    #[test]
    fn one_attempt_at_a_time_and_none_for_ever() {
        let at = |stage| Rejoining { stage, ..Rejoining::default() };
        let long_ago = Instant::now().checked_sub(ANSWER_LIMIT).unwrap();
        assert!(!at(Stage::Idle).is_under_way());
        assert!(at(Stage::Dialing).is_under_way() && at(Stage::Connecting).is_under_way());
        assert!(at(Stage::Asked(Instant::now())).is_under_way());
        assert!(!at(Stage::Asked(long_ago)).is_under_way(), "a destination that says nothing");
        // A connection that is gone ends an attempt; the one that is being made is another.
        let under_way = |stage| {
            let mut rejoining = at(stage);
            rejoining.has_failed();
            rejoining.is_under_way()
        };
        assert!(!under_way(Stage::Asked(Instant::now())) && !under_way(Stage::Connecting));
        assert!(under_way(Stage::Dialing));
    }

    #[test]
    fn what_the_guest_waits_for_is_kept_within_bounds() {
        let mut rejoining = Rejoining::default();
        rejoining.keep(vec![PageId(3), PageId(9)]);
        rejoining.keep((0..MAX_KEPT).map(|page| PageId(u32::try_from(page).unwrap())).collect());
        assert_eq!(rejoining.wanted, [PageId(3), PageId(9)]);
        rejoining.keep(vec![PageId(4)]);
        assert_eq!(rejoining.wanted, [PageId(3), PageId(9), PageId(4)]);
    }

    #[test]
    fn a_destination_lacks_only_pages_that_there_are() {
        let name = BlockName::new(b"pc.ram").unwrap();
        let layout = Layout::new(&[(name, 100 * PAGE_BYTES as u64)]).unwrap();
        let tracker = tracker_of(&layout, 4, &[(PageId(3), 2), (PageId(99), 1)]).unwrap();
        assert_eq!(tracker.waiting(), 3);
        assert!(tracker.claim_page(PageId(4)).is_some(), "before a push has begun, too");
        for (first, count) in [(100, 1), (99, 2), (u32::MAX, 1), (1, u32::MAX)] {
            assert!(tracker_of(&layout, 4, &[(PageId(first), count)]).is_err());
        }
    }
}
