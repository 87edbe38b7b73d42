//! Where the drive loop hears from: this host, the destination, and the clock.

use tokio::sync::mpsc;

use super::rejoining::Reached;
use super::serving::DataConnection;
use crate::link::{Inbound, Link, MAX_UNREAD};
use crate::outgoing::reader::StreamEvent;
use crate::outgoing::worker::Report as WorkerReport;
use crate::peer::PeerError;

/// What happens beside the machine's own steps, on this host. There are few of them; what the peer sends waits in a queue
/// of its own, which is bounded.
pub(super) enum Event {
    /// Of the stream of this number.
    Stream(u32, StreamEvent),
    /// Of the data connections of this number, and of them the worker of that one.
    Worker(u32, usize, WorkerReport),
    QemuDied(String),
    Inquired(Result<Link, PeerError>),
    /// A destination at which the guest runs is reached again, or not.
    Reached(Reached),
    /// The data connections of this attempt to join it again, or why there are none.
    Joined(u32, Result<Vec<DataConnection>, String>),
}

/// Where the drive loop hears from.
pub(super) struct Inbox {
    events: mpsc::UnboundedReceiver<Event>,
    /// What the peer sends, on whichever connection.
    peer: mpsc::Receiver<Inbound>,
}

pub(super) type Queues = (mpsc::UnboundedSender<Event>, mpsc::Sender<Inbound>);

pub(super) fn queues() -> (Queues, Inbox) {
    let (to_events, events) = mpsc::unbounded_channel();
    let (to_peer, peer) = mpsc::channel(MAX_UNREAD);
    ((to_events, to_peer), Inbox { events, peer })
}

/// Something that the drive loop hears of.
pub(super) enum Heard {
    Event(Event),
    Peer(Inbound),
    Tick,
}

impl Inbox {
    /// From here on the peer is heard by this; what earlier connections still bring is not heard any more.
    pub(super) fn replace_peer(&mut self, peer: mpsc::Receiver<Inbound>) {
        self.peer = peer;
    }

    /// The next of what there is, in fair turns: a peer that talks without end keeps nobody else from being heard. The
    /// drive loop keeps a sender of each queue, so both stay open.
    pub(super) async fn next(&mut self, tick: &mut tokio::time::Interval) -> Heard {
        tokio::select! {
            Some(event) = self.events.recv() => Heard::Event(event),
            Some(inbound) = self.peer.recv() => Heard::Peer(inbound),
            _ = tick.tick() => Heard::Tick,
        }
    }
}
