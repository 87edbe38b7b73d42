//! The third stage: the guest runs at the destination and lacks pages, which are served; connections are made anew.
//!
//! The destination is rejoined on a new control connection, one at a time: it says what it lacks, and only then are the
//! others made. What an older connection still brings, its end included, is nothing about the new ones.

use std::collections::BTreeSet;

use sterna_migration::source::Fact;
use sterna_model::PageId;

use super::Drive;
use crate::bulk::Bulk;
use crate::faults::Side;
use crate::message::Message;
use crate::network::{Closing, ConnectionId, Kind};
use crate::plant::Plant;
use crate::world::Event;

/// How far an attempt to rejoin is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejoin {
    /// There is none.
    Idle,
    /// A connection is being made.
    Dialing,
    /// The destination has been asked what it lacks.
    Asked,
}

/// What came of one.
#[derive(Debug)]
pub(super) struct Joined {
    lacking: BTreeSet<PageId>,
    connections: Vec<ConnectionId>,
}

impl Drive {
    pub(super) fn is_serving(&self) -> bool {
        self.phase() == "serving"
    }

    /// The guest runs there.
    pub(super) fn runs_there(&mut self, lacks_pages: bool) {
        let lacks_pages = lacks_pages && !self.hands.errs(Plant::GoneAtRunning);
        self.fact(Fact::PeerRunning { lacks_pages });
    }

    /// Sends what the destination lacks: what was marked, or what it said when it was rejoined.
    pub(super) fn serve(&mut self) {
        let marked = || {
            self.hands.with(|world| {
                let bulk = world.bulk.as_ref();
                let lacking = bulk.map(Bulk::absent_pages).unwrap_or_default();
                let mut connections = bulk.map(Bulk::connections).unwrap_or_default();
                connections.extend(self.urgent);
                Joined { lacking, connections }
            })
        };
        let Joined { lacking, connections } = self.joined.take().unwrap_or_else(marked);
        self.hands.with(|world| world.serve(lacking, connections));
    }

    /// Tries to rejoin, unless that is being tried.
    pub(super) async fn rejoin(&mut self) {
        if self.rejoin != Rejoin::Idle {
            return;
        }
        self.hands.with(|world| {
            world.stop_serving(Closing::Broken);
            world.abandon_bulk(Closing::Broken);
            for connection in [self.urgent.take(), self.link.take()].into_iter().flatten() {
                world.close(connection, Side::Source, Closing::Broken);
            }
        });
        if self.has_tried_to_rejoin && self.hands.errs(Plant::RejoinsOnce) {
            return;
        }
        self.has_tried_to_rejoin = true;
        self.rejoin = Rejoin::Dialing;
        self.hands.step("dials, to rejoin").await;
        self.hands.with(|world| {
            let (takes, life) = (world.connecting_takes(), world.host(Side::Source).lives);
            world.clock.after(takes, Event::Dialed(life));
        });
    }

    /// A connection is there, or not.
    pub(super) async fn dialed(&mut self, link: Option<ConnectionId>) {
        match (self.rejoin, link) {
            (Rejoin::Dialing, Some(link)) => {
                self.link = Some(link);
                self.rejoin = Rejoin::Asked;
                self.send(Message::Rejoin).await;
            }
            (Rejoin::Dialing, None) => self.rejoin = Rejoin::Idle,
            // It was asked for before.
            (_, Some(link)) => {
                self.hands.with(|world| world.close(link, Side::Source, Closing::InOrder));
            }
            (_, None) => {}
        }
    }

    /// The destination says something else: not yet, or never again.
    pub(super) fn not_rejoined(&mut self) {
        self.rejoin = Rejoin::Idle;
    }

    /// The destination says what it lacks; the connections for it are made.
    pub(super) async fn rejoined(&mut self, link: ConnectionId, lacking: Vec<PageId>) {
        if self.rejoin != Rejoin::Asked || self.link != Some(link) {
            return;
        }
        self.rejoin = Rejoin::Idle;
        let count = self.hands.with(|world| world.setting.connections + 1);
        let mut connections = Vec::new();
        for number in 0..count {
            let Some(connection) = self.hands.connect(Kind::Data(number)).await else {
                self.hands.with(|world| {
                    for connection in connections {
                        world.close(connection, Side::Source, Closing::Broken);
                    }
                });
                return;
            };
            connections.push(connection);
        }
        self.joined = Some(Joined { lacking: lacking.into_iter().collect(), connections });
        self.fact(Fact::Rejoined);
    }
}
