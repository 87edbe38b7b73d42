//! The third stage: the guest runs at the destination and lacks pages, which are served, also over connections that were
//! made anew ([`rejoining`](super::rejoining)).

use std::collections::BTreeSet;

use sterna_migration::source::{Death, Fact};
use sterna_model::PageId;

use super::Drive;
use crate::bulk::Bulk;
use crate::network::ConnectionId;
use crate::plant::Plant;

/// What came of an attempt to rejoin.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) lacking: BTreeSet<PageId>,
    pub(super) connections: Vec<ConnectionId>,
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

    /// What the agent had open before a restart it has not after.
    pub(super) fn qemu_died(&mut self, why: String) {
        let forgets = self.hands.errs(Plant::HeldMemoryIsForgotten);
        let held = self.hands.with(|world| world.setting.held);
        let memory_is_held = held && !self.resumed && !forgets;
        self.fact(Fact::QemuDied(Death { why, memory_is_held }));
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
}
