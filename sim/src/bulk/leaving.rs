//! Connections for pages that break in the rounds: the workers end, what was not acknowledged goes again over new ones.

use std::collections::VecDeque;

use sterna_model::PageId;

use super::{Bulk, Worker};
use crate::faults::Side;
use crate::network::{Closing, ConnectionId};
use crate::plant::Plant;
use crate::world::World;

impl Bulk {
    /// A worker for each connection; `number` tells their events from those of earlier ones.
    fn join(&mut self, number: u32, connections: &[ConnectionId]) {
        let worker = |(at, connection): (usize, &ConnectionId)| Worker {
            connection: *connection,
            order: None,
            cursor: self.tracker.cursor(at),
            claims: Vec::new(),
            read_early: None,
            frames: 0,
            in_flight: VecDeque::new(),
        };
        let workers = connections.iter().enumerate().map(worker).collect();
        (self.number, self.workers) = (number, workers);
    }

    /// Whether there are connections.
    pub(crate) const fn is_linked(&self) -> bool {
        !self.workers.is_empty()
    }

    /// The destination has applied so many frames of each connection.
    pub(crate) fn confirm(&mut self, frames: &[u64]) {
        for (worker, frames) in self.workers.iter_mut().zip(frames) {
            while worker.in_flight.front().is_some_and(|(frame, _)| frame <= frames) {
                worker.in_flight.pop_front();
            }
        }
    }

    /// What the destination has of each page, as far as is known here.
    pub(crate) fn believed(&self) -> impl Iterator<Item = (PageId, u64)> {
        let numbered = (0..).map(PageId).zip(&self.known);
        numbered.filter_map(|(page, known)| Some((page, known.content?)))
    }
}

impl World {
    /// Connections for pages, the first time or after [`World::leave_bulk`].
    pub(crate) fn join_bulk(&mut self, connections: &[ConnectionId]) {
        self.links += 1;
        let number = self.links;
        if let Some(bulk) = self.bulk.as_mut() {
            bulk.join(number, connections);
        }
    }

    /// Gives the connections up, with the guest still running here: the round that is going on ends nowhere, and what was not
    /// acknowledged is to be sent again.
    pub(crate) fn leave_bulk(&mut self) {
        let forgets = self.errs(Plant::RejoinForgetsUnacknowledged);
        let Some(mut bulk) = self.bulk.take() else { return };
        let mut lost = 0;
        for worker in std::mem::take(&mut bulk.workers) {
            self.close(worker.connection, Side::Source, Closing::Broken);
            // Claimed, and not sent.
            worker.claims.iter().for_each(|claim| bulk.tracker.give_back(claim.page));
            let unacknowledged = worker.in_flight.into_iter().flat_map(|(_, pages)| pages);
            for page in unacknowledged.filter(|_| !forgets) {
                bulk.known[page.index()].content = None;
                bulk.tracker.give_back(page);
                self.page_is_unacknowledged(page);
                lost += 1;
            }
        }
        // Nobody has this number: what the workers were about to do is not done.
        (bulk.number, bulk.waiting_for, bulk.unheard) = (0, 0, false);
        self.note(|| format!("the rounds are left; {lost} pages were under way"));
        self.bulk = Some(bulk);
    }

    /// Whether this is the number of a set of connections that still counts.
    pub(crate) fn are_current(&self, number: u32) -> bool {
        let serves = self.server.as_ref().is_some_and(|server| server.is(number));
        serves || self.bulk.as_ref().is_some_and(|bulk| bulk.is_linked() && bulk.number == number)
    }
}
