//! What the policy is told at the end of a round, measured as the agent's gauge does.

use std::time::Duration;

use sterna_migration::policy::RoundFacts;
use sterna_model::{ByteCount, PAGE_BYTES, Rate};

use crate::bulk::RoundSum;

/// Rounds below this say nothing about the link.
const MIN_RATE_SAMPLE: u64 = 256 << 10;
/// Rounds with fewer pages say nothing about what a page costs.
const MIN_COST_SAMPLE_PAGES: u64 = 32;

/// What was measured so far.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    link_rate: Option<Rate>,
    page_cost: Option<u64>,
    round_trip: Option<Duration>,
}

impl Gauge {
    /// An answer came after so long: the fastest counts.
    pub(super) fn pong(&mut self, took: Duration) {
        self.round_trip = Some(self.round_trip.map_or(took, |best| best.min(took)));
    }

    /// What the policy wants to know.
    pub(super) fn round_ended(
        &mut self,
        round: &RoundSum,
        dirty_pages: u64,
        total_wire_bytes: u64,
        pages: u32,
    ) -> RoundFacts {
        if round.wire_bytes >= MIN_RATE_SAMPLE || self.link_rate.is_none() {
            self.link_rate = Some(Rate::of(ByteCount(round.wire_bytes), round.duration));
        }
        if round.pages >= MIN_COST_SAMPLE_PAGES {
            self.page_cost = Some(round.wire_bytes / round.pages);
        }
        let cost = self.page_cost.unwrap_or(PAGE_BYTES as u64);
        RoundFacts {
            number: round.number,
            pages: round.pages,
            wire_bytes: ByteCount(round.wire_bytes),
            duration: round.duration,
            dirty_pages,
            rest_bytes: ByteCount(dirty_pages.saturating_mul(cost)),
            link_rate: self.link_rate.unwrap_or_default(),
            round_trip: self.round_trip.unwrap_or_default(),
            total_wire_bytes: ByteCount(total_wire_bytes),
            memory: ByteCount(u64::from(pages) * PAGE_BYTES as u64),
        }
    }
}
