//! The third stage: the guest runs here and lacks pages.
//!
//! Whatever breaks is answered in one way: all connections are dropped, so that the source rejoins and hears what is lacking,
//! as QEMU itself says. While QEMU has no stream to take pages by, the source is told to come again.

use std::time::Duration;

use sterna_migration::destination::Fact;
use sterna_model::PageId;

use super::drive::Drive;
use crate::faults::Side;
use crate::message::{Message, State};
use crate::network::{Closing, ConnectionId};
use crate::plant::Plant;
use crate::postcopy::Fed;
use crate::qemu::{Command, CommandError};
use crate::receiver::Receiver;

/// A QEMU that refuses a new stream is asked again after this.
const RECOVER_EVERY: Duration = Duration::from_secs(1);

impl Drive {
    /// Lets QEMU take absent pages by a new stream.
    pub(super) async fn recover_stream(&mut self) {
        self.recover_at = None;
        self.feeds = false;
        self.drop_links();
        match self.hands.qemu(Command::Recover).await {
            Ok(_) => self.stream_recovered(),
            // That is told as well.
            Err(CommandError::Closed) => {}
            Err(CommandError::Refused) if !self.hands.with(|world| world.is_lacking()) => {
                self.fact(Fact::MemoryComplete);
            }
            Err(_) => self.recover_at = Some(self.hands.now().after(RECOVER_EVERY)),
        }
    }

    fn stream_recovered(&mut self) {
        self.feeds = true;
        let (lacking, waits_for) = self.hands.with(|world| world.recovered());
        self.wanted.extend(waits_for);
        let forgets = self.hands.errs(Plant::FedIsPlaced);
        self.hands.with(|world| {
            let before = world.receiver.as_ref().map(|receiver| receiver.lacking().clone());
            let lacking = match before.filter(|_| forgets) {
                Some(unfed) => unfed,
                None => lacking.into_iter().collect(),
            };
            let is_whole = lacking.is_empty();
            let connections = world.setting.connections + 1;
            world.receiver = Some(Receiver::feeding(connections, lacking));
            if is_whole {
                world.feed(Fed::End);
            }
        });
    }

    /// The source comes again.
    pub(super) async fn joined_by(&mut self, link: ConnectionId) {
        if self.may_be_rejoined() {
            return self.rejoin_rounds(link).await;
        }
        if self.phase() != "faulting" {
            self.asked_by(link);
            return self.fact(Fact::Asked);
        }
        if !self.feeds {
            return self.hands.send(link, Message::Answer(State::Faulting)).await;
        }
        self.drop_links();
        self.control = link;
        self.links.push(link);
        self.abandoned = false;
        let lacking: Option<Vec<PageId>> = self.hands.with(|world| {
            let receiver = world.receiver.as_mut()?;
            receiver.join_again();
            let lacking: Vec<PageId> = receiver.lacking().iter().copied().collect();
            world.rejoin_begins(&lacking);
            Some(lacking)
        });
        let lacking = lacking.unwrap_or_default();
        self.wanted.retain(|page| lacking.contains(page));
        self.hands.send(link, Message::Rejoined(lacking)).await;
        if !self.wanted.is_empty() {
            let wanted = self.wanted.iter().copied().collect();
            self.hands.send(link, Message::Wanted(wanted)).await;
        }
    }

    /// QEMU's guest waits for a page.
    pub(super) async fn requested(&mut self, page: PageId) {
        let is_lacking = self.hands.with(|world| {
            world.receiver.as_ref().is_some_and(|receiver| receiver.lacking().contains(&page))
        });
        // Else it is in the pipe.
        if is_lacking {
            self.wanted.insert(page);
            self.answer_all(Message::Wanted(vec![page])).await;
        }
    }

    /// A connection for pages broke. What earlier ones still say is nothing about the present ones.
    pub(super) fn link_lost(&mut self, joins: u32, why: String) {
        let current = self.hands.with(|world| world.receiver.as_ref().map(|now| now.joins));
        if current != Some(joins) {
            return;
        }
        if self.phase() != "faulting" {
            return self.lost(why);
        }
        if !self.hands.errs(Plant::BrokenPushIsIgnored) {
            self.drop_links();
        }
    }

    /// A connection for pages brought what cannot be used.
    pub(super) fn stream_failed(&mut self, why: String) {
        if self.phase() != "faulting" {
            return self.fact(Fact::Failed(why));
        }
        self.drop_links();
    }

    /// The source sees that, and rejoins.
    pub(super) fn drop_links(&mut self) {
        self.abandoned = true;
        self.control = ConnectionId::MAX;
        let links = std::mem::take(&mut self.links);
        self.hands.with(|world| {
            for link in links {
                world.close(link, Side::Destination, Closing::Broken);
            }
            world.close_data(Side::Destination);
        });
    }
}
