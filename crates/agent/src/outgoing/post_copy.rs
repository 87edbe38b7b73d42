//! The part of the measurements that only post-copy has: what went over which connections, what the guest waited for.

use sterna_api::FaultLatency;
use sterna_model::PageId;
use sterna_wire::post_copy::Complete;

use super::bulk::{Bulk, histogram_of};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct PostCopy {
    /// Bytes that had been sent when it began.
    began_at: Option<u64>,
    /// Bytes that went over connections that were given up.
    pub left_bytes: u64,
    /// Sends of each page over connections that were given up.
    left_sends: Vec<u8>,
    /// What the destination says at the end.
    pub complete: Option<Complete>,
}

impl PostCopy {
    pub(super) fn began(&mut self, bulk: Option<&Bulk>) {
        if self.began_at.is_none() {
            self.began_at = Some(bulk.map_or(0, Bulk::wire_bytes) + self.left_bytes);
        }
    }

    pub(super) fn leave(&mut self, bulk: &Bulk) {
        self.left_bytes += bulk.wire_bytes();
        self.left_sends.resize(bulk.pages() as usize, 0);
        for (page, sends) in (0..).map(PageId).zip(&mut self.left_sends) {
            let more = u8::try_from(bulk.sends_of(page)).unwrap_or(u8::MAX);
            *sends = sends.saturating_add(more);
        }
    }

    /// Of so many bytes of pages, those sent since it began.
    pub(super) fn bytes(&self, page_bytes: u64) -> u64 {
        self.began_at.map_or(0, |began| page_bytes.saturating_sub(began))
    }

    /// How many pages were sent how often, over all connections.
    pub(super) fn histogram(&self, bulk: Option<&Bulk>) -> Vec<u64> {
        match bulk {
            Some(bulk) if self.left_sends.is_empty() => bulk.resend_histogram(),
            Some(bulk) => {
                let left = self.left_sends.iter().map(|sends| usize::from(*sends));
                let pages = (0..).map(PageId);
                histogram_of(pages.zip(left).map(|(page, left)| bulk.sends_of(page) + left))
            }
            None => histogram_of(self.left_sends.iter().map(|sends| usize::from(*sends))),
        }
    }

    /// Pages that the guest had to wait for; none without post-copy.
    pub(super) fn requests(&self) -> Option<u64> {
        self.complete.as_ref().map(|complete| complete.requests)
    }

    /// How long it waited.
    pub(super) fn fault_latency(&self) -> Option<FaultLatency> {
        self.complete.as_ref().map(|complete| FaultLatency {
            p50: complete.fault_latency_p50_us,
            p99: complete.fault_latency_p99_us,
            max: complete.fault_latency_max_us,
        })
    }
}
