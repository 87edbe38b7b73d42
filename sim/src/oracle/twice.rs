//! No page is sent more than twice (the promise of the three-stage copy), and once the guest runs at the destination each
//! at most once, whatever the strategy.
//!
//! Counts each page as it is written to a connection, zero pages included; the mark that a page is absent is none. A copy
//! that cannot have counted is not held against the source: one that the destination could not decode and asked for again,
//! one that was not acknowledged when its connection broke in the rounds, one that was lost with its connection or with the
//! destination's agent before QEMU placed it. What was lost then is what the destination's QEMU itself lacks when the source
//! rejoins, not what either agent believes.
//!
//! Does not check bytes (the page codec's matter), pages that a strategy of rounds sends before the hand-over, nor whether a
//! page had to be sent at all.

use std::collections::BTreeMap;

use sterna_model::PageId;

use super::Oracle;
use crate::faults::{Side, Strategy};
use crate::world::World;

/// Times that a page may be sent, of a three-stage copy.
const LIMIT: u32 = 2;
/// Times that an absent page may be served.
const SERVED_LIMIT: u32 = 1;

/// A page's counts.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    sent: u32,
    served: u32,
    /// Copies that were of no use.
    wasted: u32,
    /// Those of them that were served.
    wasted_served: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Twice {
    counts: BTreeMap<PageId, Count>,
}

impl World {
    /// A page goes to a connection, before the hand-over.
    pub(crate) fn page_is_sent(&mut self, page: PageId) {
        self.count(page, |count| count.sent += 1);
    }

    /// An absent page goes to a connection.
    pub(crate) fn page_is_served(&mut self, page: PageId) {
        self.count(page, |count| {
            count.sent += 1;
            count.served += 1;
        });
    }

    fn count(&mut self, page: PageId, add: impl FnOnce(&mut Count)) {
        let count = self.oracles.twice.counts.entry(page).or_default();
        add(count);
        let Count { sent, served, wasted, wasted_served } = *count;
        let once = self.setting.strategy == Strategy::ThreeStage;
        if once && sent > LIMIT + wasted {
            let why = format!("page {} is sent {sent} times, {wasted} of them in vain", page.0);
            self.blame(Oracle::Twice, why);
        }
        if served > SERVED_LIMIT + wasted_served {
            let why = format!(
                "page {} is served {served} times, {wasted_served} of them in vain",
                page.0
            );
            self.blame(Oracle::Twice, why);
        }
    }

    /// A page came and could not be decoded.
    pub(crate) fn page_is_undecodable(&mut self, page: PageId) {
        self.oracles.twice.counts.entry(page).or_default().wasted += 1;
    }

    /// The connection that a page was sent on is gone, and nobody has said that it arrived.
    pub(crate) fn page_is_unacknowledged(&mut self, page: PageId) {
        self.page_is_undecodable(page);
    }

    /// The source rejoins, and is told that these are lacking: what was served of them before was lost.
    pub(crate) fn rejoin_begins(&mut self, lacking: &[PageId]) {
        self.oracles.placement.rejoined = true;
        let Some(qemu) = &self.hosts[Side::Destination.index()].qemu else { return };
        for page in lacking.iter().filter(|page| qemu.guest.is_absent(**page)) {
            let count = self.oracles.twice.counts.entry(*page).or_default();
            count.wasted += count.served - count.wasted_served;
            count.wasted_served = count.served;
        }
    }
}
