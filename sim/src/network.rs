//! The network between the hosts: connections that keep their own order and none among each other, with delay, a rate,
//! silence, resets, and hosts that are not there.
//!
//! A silence delays what is under way; one that outlasts the link time-out breaks every connection, on both ends. A write
//! to a data connection returns when the link has taken it: that is the only back-pressure, as in the agent.

use std::time::Duration;

use sterna_model::Instant;

use crate::faults::{Cut, Side};
use crate::message::{Message, contents};
use crate::oracle::Gauge;
use crate::world::{Event, Inbound, World};

/// Connecting to a host that says nothing is given up after this.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection's number.
pub(crate) type ConnectionId = usize;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Messages.
    Control,
    /// Pages; its number in the job.
    Data(usize),
}

/// How an end learns that there is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closing {
    /// The peer has closed it, in order.
    InOrder,
    /// It broke.
    Broken,
}

/// What came of connecting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    /// It is there.
    Link(ConnectionId),
    /// The host is there, and nobody listens.
    Nobody,
    /// Nothing is heard.
    Nothing,
}

#[derive(Debug)]
struct Connection {
    kind: Kind,
    open: [bool; 2],
    /// When what was sent last to an end is there.
    last_arrival: [Instant; 2],
    /// When the link has taken what was written.
    busy_until: Instant,
    pages_in_flight: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Network {
    connections: Vec<Connection>,
    silent_until: Instant,
    /// Pages that are there: what a source sees acknowledged.
    delivered_pages: u64,
}

impl World {
    /// Pages that the other host's system has acknowledged.
    pub(crate) const fn delivered_pages(&self) -> u64 {
        self.network.delivered_pages
    }

    /// Whether nothing gets through now, and until when.
    pub(crate) fn silent_until(&self) -> Option<Instant> {
        Some(self.network.silent_until).filter(|until| *until > self.now())
    }

    /// When the last silence is over, or was.
    pub(crate) const fn last_silence(&self) -> Instant {
        self.network.silent_until
    }

    /// What a connection is for.
    pub(crate) fn kind_of(&self, id: ConnectionId) -> Option<Kind> {
        self.network.connections.get(id).map(|connection| connection.kind)
    }

    /// Makes a connection from the source, if the other host can be reached now.
    pub(crate) fn connect(&mut self, kind: Kind) -> Option<ConnectionId> {
        match self.reach(kind) {
            Reached::Link(id) => Some(id),
            Reached::Nobody | Reached::Nothing => None,
        }
    }

    /// The same, with the reason why there is none.
    pub(crate) fn reach(&mut self, kind: Kind) -> Reached {
        let there = &self.hosts[Side::Destination.index()];
        if self.silent_until().is_some() || !there.powered {
            return Reached::Nothing;
        }
        if !there.up || !there.listening {
            return Reached::Nobody;
        }
        self.network.connections.push(Connection {
            kind,
            open: [true; 2],
            last_arrival: [self.now(); 2],
            busy_until: self.now(),
            pages_in_flight: 0,
        });
        Reached::Link(self.network.connections.len() - 1)
    }

    /// Connections for pages, all at once; none when one of them is not taken.
    pub(crate) fn connect_data(&mut self, count: usize) -> Option<Vec<ConnectionId>> {
        let mut made = Vec::new();
        for number in 0..count {
            if self.receiver.is_none() {
                break;
            }
            let Some(id) = self.connect(Kind::Data(number)) else { break };
            made.push(id);
            if !self.receiver.as_mut().is_some_and(|receiver| receiver.attach(number)) {
                let why = format!("expected each data connection once, found {number} again");
                self.tell(Side::Destination, Inbound::Unawaited(why));
            }
        }
        if made.len() == count {
            return Some(made);
        }
        for id in made {
            self.close(id, Side::Source, Closing::Broken);
        }
        None
    }

    /// An end says that nothing more comes from it. It goes on to hear what the other one says.
    pub(crate) fn shut(&mut self, id: ConnectionId, side: Side) {
        self.close(id, side, Closing::InOrder);
        if let Some(connection) = self.network.connections.get_mut(id) {
            connection.open[side.index()] = true;
        }
    }

    /// How long it takes to connect, or to learn that it does not work.
    pub(crate) fn connecting_takes(&self) -> Duration {
        let round_trips = self.setting.one_way * 4;
        let silence = self.network.silent_until.since(self.now());
        silence.min(CONNECT_TIMEOUT).saturating_add(round_trips)
    }

    /// The same in the background: a host that heard nothing is asked again after ever longer pauses, so the answer may come
    /// long after the link is back, and after that to another attempt.
    pub(crate) fn connecting_takes_at_most(&mut self) -> Duration {
        let silence = self.network.silent_until.since(self.now()).min(CONNECT_TIMEOUT);
        let pause = self.random.time(Duration::ZERO, silence);
        self.connecting_takes().saturating_add(pause)
    }

    /// Sends a message. Gives when the link has taken it; none when the connection is closed on this end.
    pub(crate) fn send(
        &mut self,
        id: ConnectionId,
        from: Side,
        message: Message,
    ) -> Option<Instant> {
        let jitter = self.random.time(Duration::ZERO, self.setting.jitter);
        let (now, one_way) = (self.now(), self.setting.one_way);
        // Nor does a receiver that stands still take more than what is under way.
        let silent = self.data_held_until(id, from.other()).max(self.silent_until()).unwrap_or(now);
        let pages = if let Message::Pages(pages) = &message { contents(pages) } else { 0 };
        let takes = self.setting.page_time.saturating_mul(u32::try_from(pages).unwrap_or(u32::MAX));
        let connection = self.network.connections.get_mut(id)?;
        if !connection.open[from.index()] {
            return None;
        }
        connection.busy_until = connection.busy_until.max(now).max(silent).after(takes);
        let taken = connection.busy_until;
        let to = from.other();
        let arrival = &mut connection.last_arrival[to.index()];
        // In order on each connection, in any order among them.
        *arrival = taken.after(one_way).after(jitter).max(arrival.after(Duration::from_nanos(1)));
        let at = *arrival;
        connection.pages_in_flight += pages;
        let in_flight = connection.pages_in_flight;
        self.gauge(Gauge::PagesInFlight, in_flight);
        self.clock.at(at, Event::Deliver(id, to, message));
        Some(taken)
    }

    /// A message is there, unless something came in between.
    pub(crate) fn deliver(&mut self, id: ConnectionId, to: Side, message: Message) {
        let held = self.silent_until().max(self.data_held_until(id, to));
        if let Some(until) = held {
            return self.clock.at(until, Event::Deliver(id, to, message));
        }
        let Some(connection) = self.network.connections.get_mut(id) else { return };
        if let Message::Pages(pages) = &message {
            connection.pages_in_flight = connection.pages_in_flight.saturating_sub(contents(pages));
            self.network.delivered_pages += pages.len() as u64;
        }
        if !connection.open[to.index()] {
            return;
        }
        match (connection.kind, message) {
            (Kind::Data(number), Message::Pages(pages)) => self.receive(number, &pages),
            (_, message) => self.tell(to, Inbound::Message(id, message)),
        }
    }

    /// Receivers are threads of their agent: if that stands, so do they.
    fn data_held_until(&self, id: ConnectionId, to: Side) -> Option<Instant> {
        let stalled = self.hosts[to.index()].stalled_until;
        let is_data = matches!(self.kind_of(id), Some(Kind::Data(_)));
        (is_data && stalled > self.now()).then_some(stalled)
    }

    /// An end closes; the other one learns it behind everything that was sent.
    pub(crate) fn close(&mut self, id: ConnectionId, side: Side, how: Closing) {
        let (now, silent, one_way) = (self.now(), self.network.silent_until, self.setting.one_way);
        let Some(connection) = self.network.connections.get_mut(id) else { return };
        if !std::mem::take(&mut connection.open[side.index()]) {
            return;
        }
        let arrival = &mut connection.last_arrival[side.other().index()];
        *arrival = now.max(silent).after(one_way).max(arrival.after(Duration::from_nanos(1)));
        let at = *arrival;
        self.clock.at(at, Event::Closed(id, side.other(), how));
    }

    /// An end closes all its connections for pages.
    pub(crate) fn close_data(&mut self, side: Side) {
        for id in 0..self.network.connections.len() {
            if matches!(self.kind_of(id), Some(Kind::Data(_))) {
                self.close(id, side, Closing::Broken);
            }
        }
    }

    /// An end learns that the connection is closed.
    pub(crate) fn closed(&mut self, id: ConnectionId, side: Side, how: Closing) {
        let Some(connection) = self.network.connections.get_mut(id) else { return };
        if !std::mem::take(&mut connection.open[side.index()]) {
            return;
        }
        match (connection.kind, side) {
            (Kind::Control, _) => self.tell(side, Inbound::Closed(id)),
            (Kind::Data(number), Side::Destination) => self.receiver_closed(number, how),
            // The worker that writes next sees it.
            (Kind::Data(_), Side::Source) => {}
        }
    }

    /// Resets connections: what was under way is lost.
    pub(crate) fn cut(&mut self, what: Cut) {
        for id in 0..self.network.connections.len() {
            let wanted = match (what, self.network.connections[id].kind) {
                (Cut::All, _) | (Cut::Control, Kind::Control) => true,
                (Cut::Data(wanted), Kind::Data(number)) => wanted == number,
                _ => false,
            };
            if wanted {
                self.break_off(id);
            }
        }
    }

    fn break_off(&mut self, id: ConnectionId) {
        for side in [Side::Source, Side::Destination] {
            let late = self.random.time(Duration::ZERO, self.setting.one_way);
            self.clock.after(late, Event::Closed(id, side, Closing::Broken));
        }
    }

    /// Nothing gets through for so long.
    pub(crate) fn fall_silent(&mut self, time: Duration) {
        let until = self.now().after(time);
        self.network.silent_until = self.network.silent_until.max(until);
        if time >= self.setting.link_timeout {
            let all = self.network.connections.len();
            self.clock.after(self.setting.link_timeout, Event::Break(all));
        }
    }

    /// The link time-out has passed for the connections that there were.
    pub(crate) fn time_out(&mut self, connections: usize) {
        for id in 0..connections {
            self.break_off(id);
        }
    }

    /// An agent is gone, and its ends of all connections with it.
    pub(crate) fn drop_ends_of(&mut self, side: Side, noticed_after: Duration) {
        for id in 0..self.network.connections.len() {
            let connection = &mut self.network.connections[id];
            if std::mem::take(&mut connection.open[side.index()]) {
                let other = side.other();
                let in_order = connection.last_arrival[other.index()].since(self.clock.now());
                let after = noticed_after.max(in_order).saturating_add(Duration::from_nanos(1));
                self.clock.after(after, Event::Closed(id, other, Closing::Broken));
            }
        }
    }
}
