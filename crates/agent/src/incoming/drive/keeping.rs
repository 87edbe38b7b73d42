//! While the guest runs at the source: connections may break, and what is here is kept for a source that makes them anew.

use std::sync::Arc;
use std::time::Duration;

use sterna_migration::destination::Fact;
use sterna_model::PageId;
use sterna_wire::post_copy::{Rejoin, Rejoined};
use sterna_wire::{Blob, Hashes, Message};

use tracing::Instrument as _;

use super::Drive;
use crate::incoming::memory::DestinationMemory;
use crate::link::Link;

/// Hashes in one message.
const HASHES_AT_ONCE: u32 = 1024;

impl Drive {
    /// For how long this job is kept without connections, if it is: as the source asks, and no longer than this host allows.
    fn keep(&self) -> Option<Duration> {
        let asked = Duration::from_millis(self.prepare.keep_ms?);
        Some(asked.min(self.agent.config.limits.keep_copy))
    }

    fn phase(&self) -> &'static str {
        self.machine.as_ref().map_or("ended", |machine| machine.phase())
    }

    /// Whether nothing was committed: then it may be discarded whenever somebody wants that.
    pub(super) fn may_be_discarded(&self) -> bool {
        matches!(self.phase(), "starting" | "receiving")
    }

    /// A data connection came that is not awaited. Once the source has made its connections anew, it may be one of an attempt
    /// that the source gave up, and that took long: it may have taken a present one's place, so all are made anew once more.
    pub(super) fn not_connected(&mut self, why: String) {
        if self.control == 0 {
            return self.fact(Fact::Failed(why));
        }
        self.lost(why);
    }

    /// A connection to the source broke.
    pub(super) fn lost(&mut self, why: String) {
        if self.runs_here() {
            // A source that has nothing left to send does not see that one of its data connections is gone, and what was
            // under way on it with it. It sees that they all are, and is told what is lacking.
            self.links.clear();
            self.streams.leave_connections();
        }
        let keep = self.keep().filter(|_| self.phase() == "receiving" && !self.streams.has_last());
        let Some(keep) = keep else { return self.fact(Fact::PeerLost(why)) };
        if self.away.is_some() {
            return;
        }
        tracing::warn!(%why, keep_seconds = keep.as_secs(), "the source is away; what has arrived is kept");
        self.away = Some(keep);
        // All of them, so that the source notices too.
        self.links.clear();
        tokio::task::block_in_place(|| self.streams.leave_rounds());
        self.fact(Fact::PeerAway(why, keep));
    }

    /// The job comes to nothing: what has arrived is kept for the next one of this VM, if there is to be one.
    pub(super) fn keep_memory(&mut self) {
        let Some(keep) = self.keep().filter(|_| self.worth_keeping && !self.runs_here()) else {
            return;
        };
        tokio::task::block_in_place(|| self.streams.leave_rounds());
        let owner = (self.job.peer().clone(), self.prepare.uuid);
        self.agent.kept.keep(owner, self.streams.keep(), keep);
    }

    /// What was kept from an earlier job is here: the source is told its hashes, and sends what differs.
    pub(super) fn adopted(&mut self) {
        let (Some(memory), Some(link)) = (self.streams.memory(), self.links.last().cloned()) else {
            return;
        };
        tokio::spawn(tell_hashes(memory, link).in_current_span());
        self.streams.let_in();
    }

    /// Whether the source may make connections anew for this, with the guest still running there.
    pub(super) fn may_be_rejoined(&self, rejoin: &Rejoin) -> bool {
        self.keep().is_some()
            && self.phase() == "receiving"
            && !self.streams.has_last()
            && self.streams.has_key(&rejoin.page_key.0)
    }

    /// The source makes its connections anew. What it has not heard to be applied it sends again.
    pub(super) async fn rejoin_rounds(&mut self, rejoin: &Rejoin, link: Link) {
        tracing::info!("the source is back");
        (self.abandoned, self.away, self.watch_until) = (false, None, None);
        self.head_may_repeat = true;
        self.links = vec![link];
        let missing =
            tokio::task::block_in_place(|| self.streams.rejoin_rounds(rejoin.connections));
        self.send(&Message::Rejoined(Rejoined { token: self.token })).await;
        for message in missing {
            self.send(&message).await;
        }
    }
}

/// Tells the source what is here. Few pages at a time, so that other messages do not wait long behind them.
async fn tell_hashes(memory: Arc<DestinationMemory>, link: Link) {
    for pages in memory.shared_pieces(HASHES_AT_ONCE) {
        let first = PageId(pages.start);
        if let Some(hashes) = memory.hashes(pages).and_then(Blob::new) {
            send_hashes(&link, Hashes { first, hashes, last: false }).await;
        }
    }
    send_hashes(&link, Hashes { first: PageId(0), hashes: Blob::default(), last: true }).await;
}

async fn send_hashes(link: &Link, hashes: Hashes) {
    let message = Message::Hashes(hashes);
    // Many of them wait for the link; nothing else comes of one that is gone.
    while link.send(&message).await.is_err() && !link.is_closed() {}
}
