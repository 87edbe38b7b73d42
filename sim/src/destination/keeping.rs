//! While the guest runs at the source: connections may break, and what is here is kept for a source that makes them anew, as
//! the agent's `incoming/drive/keeping`.

use std::time::Duration;

use sterna_migration::destination::Fact;

use super::drive::Drive;
use crate::faults::Side;
use crate::hands::Hands;
use crate::message::Message;
use crate::network::ConnectionId;
use crate::plant::Plant;
use crate::receiver::Receiver;

/// Acknowledgements are sent at most so often.
const ACKNOWLEDGE_EVERY: Duration = Duration::from_millis(5);

impl Drive {
    /// The planted bug: a restarted agent goes on to receive, and knows of nothing that has come.
    pub(super) fn as_though_nothing_had_been(hands: &Hands) -> Self {
        let keep = hands.with(|world| {
            let (pages, post_copy) = (world.setting.pages, world.setting.post_copy);
            let connections = world.setting.connections + usize::from(post_copy);
            world.receiver = Some(Receiver::new(pages, connections));
            world.setting.link_timeout
        });
        let mut drive = Self::again(hands.clone(), true, true);
        (drive.away, drive.watch_until) = (Some(keep), Some(hands.now().after(keep)));
        drive.receives();
        drive
    }

    /// Whether the source may make connections anew, with the guest still running there.
    pub(super) fn may_be_rejoined(&self) -> bool {
        let has_last = |receiver: &Receiver| receiver.last.is_some();
        let ends = self.hands.with(|world| world.receiver.as_ref().is_none_or(has_last));
        self.phase() == "receiving" && !ends
    }

    /// A connection for pages came that is not awaited: of an attempt that the source gave up, and that took long. It, or one
    /// before it, has taken a present one's place, so all are made anew once more.
    pub(super) fn not_connected(&mut self, why: String) {
        if self.hands.errs(Plant::FoundLateConnectionFails) {
            return self.fact(Fact::Failed(why));
        }
        match self.phase() {
            "faulting" => self.drop_links(),
            _ => self.lost(why),
        }
    }

    /// A connection to the source broke.
    pub(super) fn lost(&mut self, why: String) {
        if !self.may_be_rejoined() || self.hands.errs(Plant::AwayDiscards) {
            return self.fact(Fact::PeerLost(why));
        }
        if self.away.is_some() {
            return;
        }
        let keep = self.hands.with(|world| world.setting.link_timeout);
        self.away = Some(keep);
        self.abandoned = true;
        // All of them, so that the source notices too. What it has said before is still heard.
        let links = std::mem::take(&mut self.links);
        self.hands.with(|world| {
            world.keeping_begins();
            links.iter().for_each(|link| world.shut(*link, Side::Destination));
            world.leave_receiver();
        });
        self.fact(Fact::PeerAway(why, keep));
    }

    /// The source makes its connections anew. What it has not heard to be applied it sends again.
    pub(super) async fn rejoin_rounds(&mut self, link: ConnectionId) {
        (self.abandoned, self.away, self.watch_until) = (false, None, None);
        (self.head_may_repeat, self.acknowledged_at) = (true, None);
        (self.links, self.control) = (vec![link], link);
        let missing = self.hands.with(|world| {
            world.keeping_ends();
            world.leave_receiver();
            world.receiver.as_ref().map(Receiver::missing).unwrap_or_default()
        });
        self.hands.send(link, Message::Rejoined(Vec::new())).await;
        if !missing.is_empty() {
            self.hands.send(link, Message::Missing(missing)).await;
        }
    }

    /// Tells the source what was applied, now and then, until it has said what its last frames are.
    pub(super) fn acknowledge(&mut self) {
        let now = self.hands.now();
        let due = self.acknowledged_at.is_none_or(|at| now.since(at) >= ACKNOWLEDGE_EVERY);
        let frames = self.hands.with(|world| {
            let receiver = world.receiver.as_ref().filter(|receiver| receiver.last.is_none());
            receiver.map(Receiver::frames)
        });
        let Some(frames) = frames.filter(|_| due && self.phase() == "receiving") else { return };
        self.acknowledged_at = Some(now);
        for link in self.links.clone() {
            let applied = Message::Applied(frames.clone());
            self.hands.with(|world| world.send(link, Side::Destination, applied));
        }
    }
}
