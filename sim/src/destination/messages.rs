//! What the source says, and what it is told.

use sterna_migration::destination::{Answer, Fact};

use super::drive::Drive;
use crate::disk::Entry;
use crate::message::{Final, Message, State};
use crate::network::ConnectionId;
use crate::oracle::Gauge;

/// Connections that asked and get answers, at most.
const MAX_ASKING: usize = 4;

impl Drive {
    pub(super) async fn message(&mut self, link: ConnectionId, message: Message) {
        match message {
            // What a connection that was replaced has brought is of before.
            Message::StreamHead
            | Message::Tail(_)
            | Message::Final(_)
            | Message::Commit
            | Message::Abort(_)
                if link != self.control => {}
            Message::StreamHead => {
                if let Err(why) = self.open().await {
                    self.fact(Fact::Failed(why));
                }
            }
            Message::Tail(device) => {
                self.hands.with(|world| {
                    if let Some(receiver) = world.receiver.as_mut() {
                        receiver.tail = Some(device);
                    }
                });
                self.progressed().await;
            }
            Message::Final(last) => self.last(last).await,
            Message::Commit => {
                self.watch_until = None;
                self.fact(Fact::Commit);
            }
            Message::Abort(why) => self.fact(Fact::Abort(why)),
            Message::Inquire => {
                self.asked_by(link);
                self.fact(Fact::Asked);
            }
            Message::Rejoin => self.joined_by(link).await,
            Message::Ping => self.hands.send(link, Message::Pong).await,
            Message::Prepare => self.hands.send(link, Message::Refused).await,
            other => {
                let why = format!("the source sent {} out of turn", other.name());
                self.fact(Fact::Failed(why));
            }
        }
    }

    async fn last(&mut self, last: Final) {
        self.guest_ran = last.guest_ran;
        if !self.guest_ran
            && let Err(why) = self.hands.append(Entry::GuestRan(false)).await
        {
            return self.fact(Fact::JournalFailed(why));
        }
        self.hands.with(|world| {
            if let Some(receiver) = world.receiver.as_mut() {
                receiver.last = Some(last);
            }
        });
        self.progressed().await;
    }

    /// Frames were applied: ask for what is missing, and see whether everything is here.
    pub(super) async fn progressed(&mut self) {
        let asked = self.hands.with(|world| world.receiver.as_mut().map(|all| all.take_asked()));
        if let Some(asked) = asked.filter(|asked| !asked.is_empty()) {
            self.answer_all(Message::Missing(asked)).await;
        }
        self.acknowledge();
        let complete = self.hands.with(|world| world.receiver.as_mut()?.take_complete());
        if let Some(root) = complete {
            self.fact(Fact::FinalReceived(root));
            self.load();
        }
    }

    pub(super) async fn answer(&mut self, answer: Answer) {
        let message = match answer {
            Answer::Prepared => Message::Prepared,
            Answer::Refused(_) => Message::Refused,
            Answer::Loaded(root) => Message::Loaded(root),
            Answer::Failed(why) => Message::Failed(why),
            Answer::Running { lacks_pages } => Message::Running { lacks_pages },
            Answer::Complete => Message::Complete,
            Answer::Vanished(why) => Message::Vanished(why),
            Answer::Discarded => {
                self.hands.with(|world| world.discard_is_said());
                Message::Discarded
            }
            Answer::Unknown(_) => {
                self.hands.with(|world| world.doubt_is_said());
                Message::Answer(State::Unknown)
            }
        };
        self.answer_all(message).await;
    }

    pub(super) async fn answer_all(&mut self, message: Message) {
        for link in self.links.clone() {
            self.hands.send(link, message.clone()).await;
        }
    }

    pub(super) fn asked_by(&mut self, link: ConnectionId) {
        // The newest few are answered.
        self.links.retain(|known| *known != link);
        self.links.push(link);
        let too_many = self.links.len().saturating_sub(MAX_ASKING);
        self.links.drain(..too_many);
        let askers = self.links.len();
        self.hands.with(|world| world.gauge(Gauge::Askers, askers));
    }

    pub(super) fn forget(&mut self, link: ConnectionId) {
        self.abandoned |= link == self.control;
        self.links.retain(|other| *other != link);
    }
}
