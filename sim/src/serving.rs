//! The source's third stage: absent pages are read from the guest that stands, and sent, each once: by push over the
//! ordinary data connections, and those that are asked for over one of their own, so that they overtake the rest.
//!
//! After a request the push goes on behind the page that was asked for: what is near it is wanted next.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use sterna_model::PageId;

use crate::faults::Side;
use crate::message::{Message, Sent};
use crate::network::{Closing, ConnectionId};
use crate::plant::Plant;
use crate::world::{Event, Inbound, World};

/// Pages of a push, at most: more would only be ahead of others in the link's queues.
const PUSH_PAGES: usize = 8;
/// Between two pushes on a connection.
const PACE: Duration = Duration::from_micros(20);

/// See the module.
#[derive(Debug)]
pub(crate) struct Server {
    number: u32,
    /// Not sent yet.
    unsent: BTreeSet<PageId>,
    /// Asked for and not sent yet, the oldest first.
    urgent: VecDeque<PageId>,
    /// Where the push goes on.
    cursor: PageId,
    /// The last one is for what is asked for.
    connections: Vec<ConnectionId>,
    urgent_is_idle: bool,
    push_pages: usize,
}

impl Server {
    /// Whether it has this number.
    pub(crate) const fn is(&self, number: u32) -> bool {
        self.number == number
    }

    fn urgent_worker(&self) -> usize {
        self.connections.len().saturating_sub(1)
    }

    /// The worker's next pages.
    fn take(&mut self, worker: usize) -> Vec<PageId> {
        if worker == self.urgent_worker() {
            return self.urgent.pop_front().into_iter().collect();
        }
        let behind = self.unsent.range(self.cursor..).chain(self.unsent.range(..self.cursor));
        let pages: Vec<PageId> = behind.take(self.push_pages).copied().collect();
        for page in &pages {
            self.unsent.remove(page);
        }
        if let Some(last) = pages.last() {
            self.cursor = PageId(last.0 + 1);
        }
        pages
    }
}

impl World {
    /// Begins to send these pages over these connections.
    pub(crate) fn serve(&mut self, lacking: BTreeSet<PageId>, connections: Vec<ConnectionId>) {
        self.links += 1;
        let (number, workers) = (self.links, connections.len());
        self.note(|| format!("{} absent pages are served", lacking.len()));
        self.server = Some(Server {
            number,
            unsent: lacking,
            urgent: VecDeque::new(),
            cursor: PageId(0),
            connections,
            urgent_is_idle: true,
            push_pages: self.setting.batch_pages.min(PUSH_PAGES),
        });
        for worker in 0..workers.saturating_sub(1) {
            self.clock.after(PACE, Event::Serve(number, worker));
        }
    }

    /// The destination's guest waits for these. What is on its way already is not sent again.
    pub(crate) fn want(&mut self, pages: &[PageId]) {
        let forgets = self.errs(Plant::ServesTwice);
        let Some(server) = self.server.as_mut() else { return };
        for page in pages {
            if forgets || server.unsent.remove(page) {
                server.urgent.push_back(*page);
                server.cursor = PageId(page.0 + 1);
            }
        }
        if !server.urgent.is_empty() && std::mem::take(&mut server.urgent_is_idle) {
            let (number, worker) = (server.number, server.urgent_worker());
            self.clock.after(Duration::ZERO, Event::Serve(number, worker));
        }
    }

    /// A worker sends what is next.
    pub(crate) fn serve_next(&mut self, number: u32, worker: usize) {
        let (now, stalled) = (self.now(), self.host(Side::Source).stalled_until);
        let readable = self.is_alive(Side::Source) || self.setting.held;
        let Some(server) = self.server.as_mut().filter(|server| server.number == number) else {
            return;
        };
        // Nothing can be read any more.
        if !readable {
            return;
        }
        if stalled > now {
            return self.clock.at(stalled, Event::Serve(number, worker));
        }
        let pages = server.take(worker);
        if pages.is_empty() {
            server.urgent_is_idle |= worker == server.urgent_worker();
            return;
        }
        let connection = server.connections[worker];
        let sent: Vec<Sent> = pages
            .iter()
            .map(|page| {
                let content = self.read_source(*page);
                Sent { page: *page, version: u32::MAX, content, absent: false, whole: true }
            })
            .collect();
        self.note(|| {
            format!(
                "worker {worker} serves {:?}",
                pages.iter().map(|page| page.0).collect::<Vec<_>>()
            )
        });
        match self.send(connection, Side::Source, Message::Pages(sent)) {
            Some(taken) => {
                pages.iter().for_each(|page| self.page_is_served(*page));
                self.clock.at(taken.after(PACE), Event::Serve(number, worker));
            }
            None => {
                let why = format!("data connection {worker} is broken");
                self.tell(Side::Source, Inbound::WorkerFailed(number, why));
            }
        }
    }

    /// Serving is over, or begins anew over other connections.
    pub(crate) fn stop_serving(&mut self, how: Closing) {
        let Some(server) = self.server.take() else { return };
        for connection in server.connections {
            self.close(connection, Side::Source, how);
        }
    }
}
