//! A broken link while the guest runs here, as the agent's `away`: the rounds wait for new connections, and go on.
//!
//! QEMU is held on and goes on telling what is dirtied; what the destination has acknowledged stays, what was under way
//! counts as lost and goes again.

use std::time::Duration;

use sterna_migration::source::{Fact, Timer};
use sterna_model::Instant;

use super::Drive;
use crate::faults::Moment;
use crate::message::Message;
use crate::network::ConnectionId;

/// A peer that closes its connections has said why before; on another connection that arrives within this.
const REASON_TAKES: Duration = Duration::from_millis(300);

impl Drive {
    /// When a connection for pages that broke counts as the loss of the destination.
    pub(super) fn broken_until(&self) -> Option<Instant> {
        self.broken.as_ref().map(|(since, _)| since.after(REASON_TAKES))
    }

    /// A connection to the destination is gone.
    pub(super) fn lost(&mut self, why: String) {
        self.rejoin_failed();
        if !self.rides_out() {
            return self.fact(Fact::PeerLost(why));
        }
        if !std::mem::replace(&mut self.is_away, true) {
            self.hands.with(|world| {
                world.rounds_are_broken_off();
                world.moment_comes(|moment| match moment {
                    Moment::Away(after) => Some(after),
                    _ => None,
                });
            });
        }
        self.leave_rounds();
        self.fact(Fact::PeerAway(why));
    }

    /// Whether a broken link is not the end.
    fn rides_out(&self) -> bool {
        self.phase() == "copying" && self.hands.with(|world| world.bulk.is_some())
    }

    /// Gives up the connections, with the guest still running here.
    pub(super) fn leave_rounds(&mut self) {
        self.broken = None;
        self.hands.with(|world| {
            world.joining = None;
            world.leave_bulk();
        });
        self.leave_links();
    }

    /// The connections for pages are made anew, or not.
    pub(super) async fn copy_on(&mut self, data: Option<Vec<ConnectionId>>) {
        let Some(mut data) = data.filter(|_| self.is_away) else { return self.leave_rounds() };
        // It may not have arrived before.
        self.send(Message::StreamHead).await;
        self.urgent = if self.has_urgent { data.pop() } else { None };
        self.hands.with(|world| {
            world.rounds_are_joined();
            world.join_bulk(&data);
        });
        self.is_away = false;
        self.was_away = true;
        self.heard_at = self.hands.now();
        self.fact(Fact::Rejoined);
    }

    /// For the oracles: what makes an end of the job no wonder, whatever becomes of its connections.
    pub(super) fn look_at_loss(&self, phase: &str, fact: &Fact) {
        let timer = |of: Timer| matches!(fact, Fact::TimerFired(fired) if *fired == of);
        let lost = matches!(fact, Fact::PeerLost(_)) && phase != "serving";
        self.hands.with(|world| {
            let rides_out = phase == "copying" && world.bulk.is_some();
            if (lost && !rides_out) || timer(Timer::Silence) || timer(Timer::Stop) {
                world.link_is_the_end();
            }
            if timer(Timer::Away) && phase == "copying" {
                world.away_for_too_long();
            }
        });
    }
}
