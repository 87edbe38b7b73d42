//! A broken link while the guest runs here: the rounds wait for new connections ([`rejoining`](super::rejoining)), and go
//! on.
//!
//! Nothing of ours is lost by it. QEMU is held on and goes on telling what is dirtied; what the destination has
//! acknowledged stays, what was under way counts as lost and goes again. Versions of pages go on, so that nothing that still
//! arrives over an old connection can take the place of something newer.

use std::time::{Duration, Instant};

use sterna_api::Strategy;
use sterna_migration::source::{Fact, Timer};

use super::Drive;
use super::serving::{DataConnection, into_links};
use crate::peer::PeerError;

/// Since when there is no connection, and why.
#[derive(Clone, Debug)]
pub(super) struct Away {
    pub since: Instant,
    pub why: String,
}

impl Drive {
    /// A connection to the destination is gone.
    pub(super) fn lost(&mut self, why: String) {
        self.rejoining.has_failed();
        if !self.rides_out() {
            return self.fact(Fact::PeerLost(why));
        }
        if self.away.is_none() {
            tracing::warn!(%why, "the destination is away; it is tried to be reached again");
            self.away = Some(Away { since: Instant::now(), why: why.clone() });
        }
        self.leave_rounds();
        self.fact(Fact::PeerAway(why));
    }

    /// Whether a broken link is not the end: the guest runs here, and the destination keeps what it has.
    fn rides_out(&self) -> bool {
        self.keeps && self.bulk.is_some() && self.phase() == "copying"
    }

    /// How long a timer of the machine is to take.
    pub(super) fn patience(&self, timer: Timer, after: Duration) -> Duration {
        // Whoever follows has time, but not whoever waits for the hand-over.
        if timer == Timer::Away && !self.is_following() {
            return after.min(self.agent.config.limits.link_timeout);
        }
        after
    }

    /// Gives up the connections, with the guest still running here.
    pub(super) fn leave_rounds(&mut self) {
        self.connections = self.connections.wrapping_add(1);
        self.broken = None;
        self.leave_link();
        if let Some(bulk) = &mut self.bulk {
            let pages = tokio::task::block_in_place(|| bulk.leave());
            tracing::debug!(pages, "so many pages were under way");
        }
    }

    /// The destination was not reached.
    pub(super) fn still_away(&mut self, error: &PeerError) {
        tracing::debug!(%error, "the destination is not reached yet");
        if self.wanted.follow.is_none() && error.nobody_listens() {
            // Its host is there: it was ended or died, and one that is started again discards what it finds.
            let why = format!("the destination's agent has ended, and the move with it: {error}");
            self.fact(Fact::PeerFailed(why));
        }
    }

    /// The data connections are made anew, or not.
    pub(super) async fn copy_on(&mut self, data: Result<Vec<DataConnection>, String>) {
        let Some(away) = self.away.clone() else { return };
        let joined = match data {
            Ok(data) => self.copy_on_over(data).await,
            Err(why) => Err(why),
        };
        if let Err(why) = joined {
            tracing::debug!(%why, "the destination is not joined yet");
            return self.leave_rounds();
        }
        self.away = None;
        tracing::info!(seconds = away.since.elapsed().as_secs(), "the destination is back");
        self.heard_at = Instant::now();
        self.was_away = true;
        self.fact(Fact::Rejoined);
    }

    async fn copy_on_over(&mut self, data: Vec<DataConnection>) -> Result<(), String> {
        let head = self.head.as_ref().ok_or("QEMU's stream has not begun")?;
        // It may not have arrived before.
        let message = Self::stream_head(head)?;
        let settings = self.settings(head.memory.layout());
        let reports = self.reports();
        self.send(&message).await;
        let links = into_links(data, self.has_urgent);
        let bulk = self.bulk.as_mut().ok_or("there is nothing to go on with")?;
        bulk.join(links, &settings, &reports)
    }

    /// The round that was broken off is begun anew; a followed guest's waits for its epoch, once all was copied.
    pub(super) fn go_on(&mut self) {
        if self.epochs_go_on() {
            return;
        }
        let once = self.wanted.options.strategy == Strategy::ThreeStage;
        if let Some(bulk) = &mut self.bulk {
            bulk.begin_round_anew(once);
        }
    }
}
