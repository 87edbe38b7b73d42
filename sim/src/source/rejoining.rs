//! Connections that are made anew, as the agent's `rejoining`: while the guest runs at the destination and lacks pages, and
//! while it runs here ([`away`](super::away)).
//!
//! ```text
//! idle --dial--> dialing --reached--> asked --"rejoined"--> connecting --data connections--> idle
//! ```
//!
//! One attempt at a time; one that was given up may still bring the destination its connections. What an older connection
//! still brings, its end included, is nothing about the new ones.

use std::time::Duration;

use sterna_migration::source::Fact;
use sterna_model::{Instant, PageId};

use super::Drive;
use super::serving::Joined;
use crate::faults::Side;
use crate::message::Message;
use crate::network::{CONNECT_TIMEOUT, Closing, ConnectionId, Reached};
use crate::plant::Plant;
use crate::world::{Event, Inbound, World};

/// A destination is reached within this, and answers, or it is tried again.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How far an attempt to rejoin is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejoin {
    /// There is none.
    Idle,
    /// A connection is being made.
    Dialing,
    /// The destination has been asked.
    Asked(Instant),
    /// The connections for pages are being made.
    Connecting,
}

impl Drive {
    fn is_rejoining(&self) -> bool {
        match self.rejoin {
            Rejoin::Idle => false,
            Rejoin::Dialing | Rejoin::Connecting => true,
            Rejoin::Asked(since) => self.hands.now().since(since) < ANSWER_LIMIT,
        }
    }

    /// The destination cannot be joined now, or its connection is gone.
    pub(super) const fn rejoin_failed(&mut self) {
        if !matches!(self.rejoin, Rejoin::Dialing) {
            self.rejoin = Rejoin::Idle;
        }
    }

    /// Tries to rejoin, unless that is being tried.
    pub(super) async fn rejoin(&mut self) {
        if self.is_rejoining() {
            return;
        }
        if self.phase() == "copying" {
            self.leave_rounds();
        } else {
            self.leave_serving();
        }
        if self.has_tried_to_rejoin && self.hands.errs(Plant::RejoinsOnce) {
            return;
        }
        self.has_tried_to_rejoin = true;
        self.attempt += 1;
        self.rejoin = Rejoin::Dialing;
        self.hands.step("dials, to rejoin").await;
        self.hands.with(|world| {
            let (takes, life) = (world.connecting_takes_at_most(), world.host(Side::Source).lives);
            world.clock.after(takes.min(ANSWER_LIMIT), Event::Dialed(life));
        });
    }

    fn leave_serving(&mut self) {
        self.broken = None;
        self.hands.with(|world| {
            world.joining = None;
            world.stop_serving(Closing::Broken);
            world.abandon_bulk(Closing::Broken);
        });
        self.leave_links();
    }

    /// Closes what is not for the pages of rounds.
    pub(super) fn leave_links(&mut self) {
        for connection in [self.urgent.take(), self.link.take()].into_iter().flatten() {
            self.hands.with(|world| world.close(connection, Side::Source, Closing::Broken));
        }
    }

    /// A connection is there, or not.
    pub(super) async fn dialed(&mut self, reached: Reached) {
        let copying = self.phase() == "copying";
        match (self.rejoin, reached) {
            (Rejoin::Dialing, Reached::Link(link)) if copying || self.is_serving() => {
                self.link = Some(link);
                self.rejoin = Rejoin::Asked(self.hands.now());
                self.heard_at = self.hands.now();
                self.send(Message::Rejoin).await;
            }
            (Rejoin::Dialing, Reached::Nobody) => {
                self.rejoin = Rejoin::Idle;
                if copying {
                    // Its host is there: it was ended or died, and one that is started again discards what it finds.
                    let why = "the destination's agent has ended, and the move with it";
                    self.fact(Fact::PeerFailed(why.into()));
                }
            }
            (Rejoin::Dialing, Reached::Nothing) => self.rejoin = Rejoin::Idle,
            // It was asked for before, or the job took another way meanwhile.
            (_, Reached::Link(link)) => {
                self.rejoin_failed();
                self.hands.with(|world| world.close(link, Side::Source, Closing::InOrder));
            }
            (_, Reached::Nobody | Reached::Nothing) => {}
        }
    }

    /// The destination goes on with the job, and says what it lacks if the guest runs there; the connections for pages are
    /// made.
    pub(super) fn rejoined(&mut self, link: ConnectionId, lacking: Vec<PageId>) {
        if self.link != Some(link) {
            return;
        }
        let asked = matches!(self.rejoin, Rejoin::Asked(_));
        let copying = self.phase() == "copying";
        if copying && !(self.is_away && asked) {
            return self.fact(Fact::PeerFailed("the destination rejoined out of turn".into()));
        }
        if !asked {
            return;
        }
        self.lacking = lacking;
        self.rejoin = Rejoin::Connecting;
        let (attempt, urgent) = (self.attempt, !copying || self.has_urgent);
        self.hands.with(|world| {
            let (takes, life) = (world.connecting_takes_at_most(), world.host(Side::Source).lives);
            let count = world.setting.connections + usize::from(urgent);
            world.joining = Some(attempt);
            world.clock.after(takes, Event::Joined(life, attempt, count));
        });
    }

    /// The connections for pages are there, or not.
    pub(super) async fn joined(&mut self, attempt: u32, data: Option<Vec<ConnectionId>>) {
        let awaited = attempt == self.attempt && self.rejoin == Rejoin::Connecting;
        let phase = self.phase();
        if !awaited || !matches!(phase, "copying" | "serving") {
            let data = data.unwrap_or_default();
            return self.hands.with(|world| world.close_all(data));
        }
        self.rejoin = Rejoin::Idle;
        if phase == "copying" {
            return self.copy_on(data).await;
        }
        let lacking = std::mem::take(&mut self.lacking).into_iter().collect();
        match data {
            Some(connections) => {
                self.joined = Some(Joined { lacking, connections });
                self.fact(Fact::Rejoined);
            }
            None => self.fact(Fact::PeerLost("a data connection cannot be made".into())),
        }
    }
}

impl World {
    /// The time for the connections of an attempt to rejoin has come.
    pub(crate) fn joined(&mut self, life: u32, attempt: u32, count: usize) {
        if self.host(Side::Source).lives != life {
            return;
        }
        // They are made at once, and each is tried for a while.
        if self.silent_until().is_some_and(|until| until.since(self.now()) < CONNECT_TIMEOUT) {
            let takes = self.connecting_takes_at_most();
            return self.clock.after(takes, Event::Joined(life, attempt, count));
        }
        let made = self.connect_data(count);
        if self.joining == Some(attempt) {
            self.tell(Side::Source, Inbound::Joined(attempt, made));
        } else {
            // Nobody waits for them any more.
            self.close_all(made.unwrap_or_default());
        }
    }

    fn close_all(&mut self, connections: Vec<ConnectionId>) {
        for connection in connections {
            self.close(connection, Side::Source, Closing::Broken);
        }
    }
}
