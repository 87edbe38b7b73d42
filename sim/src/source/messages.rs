//! Reaching the destination, getting both sides ready, and what the destination says.

use sterna_migration::source::{Fact, Limits, Timer};

use super::Drive;
use crate::disk::Entry;
use crate::message::{Message, State};
use crate::network::Kind;
use crate::qemu::{Command, RunState};

impl Drive {
    pub(super) async fn prepare(&mut self) {
        match self.hands.connect(Kind::Control).await {
            Some(link) => self.link = Some(link),
            None => {
                return self.fact(Fact::PeerFailed("the destination cannot be reached".into()));
            }
        }
        self.send(Message::Prepare).await;
        if let Err(why) = self.prepare_qemu().await {
            self.fact(Fact::QemuFailed(why));
        }
    }

    async fn prepare_qemu(&mut self) -> Result<(), String> {
        let answer = self.hands.qemu(Command::Query).await;
        let answer = answer.map_err(|error| format!("{error:?}"))?;
        self.guest_ran = answer.run == RunState::Running;
        self.hands.append(Entry::GuestRan(self.guest_ran)).await?;
        self.qemu_prepared = true;
        Ok(())
    }

    async fn prepared(&mut self) {
        let connections = self.hands.with(|world| world.setting.connections);
        for number in 0..connections {
            match self.hands.connect(Kind::Data(number)).await {
                Some(connection) => self.data.push(connection),
                None => {
                    let why = "a data connection cannot be made";
                    return self.fact(Fact::PeerFailed(why.into()));
                }
            }
        }
        if self.hands.with(|world| world.setting.post_copy) {
            self.urgent = self.hands.connect(Kind::Data(connections)).await;
            if self.urgent.is_none() {
                let why = "the connection for absent pages cannot be made";
                return self.fact(Fact::PeerFailed(why.into()));
            }
        }
        self.has_urgent = self.urgent.is_some();
        self.ping().await;
        self.fact(Fact::PeerPrepared);
    }

    pub(super) async fn message(&mut self, message: Message) {
        self.heard_at = self.hands.now();
        self.peer_lives();
        match message {
            Message::Prepared => self.prepared().await,
            Message::Refused => self.fact(Fact::PeerRefused(Vec::new())),
            Message::Missing(pages) => {
                let idle = self.hands.with(|world| {
                    let bulk = world.bulk.as_mut()?;
                    bulk.request(&pages);
                    Some(bulk.is_idle())
                });
                // A last round that is still going on is looked at when it ends.
                if self.flushed && idle == Some(true) {
                    self.begin_last();
                }
            }
            Message::Applied(frames) => self.hands.with(|world| {
                if let Some(bulk) = world.bulk.as_mut() {
                    bulk.confirm(&frames);
                }
            }),
            Message::Loaded(root) => self.fact(Fact::PeerLoaded(root)),
            Message::Failed(why) => {
                self.fact(Fact::PeerFailed(format!("at the destination: {why}")))
            }
            Message::Running { lacks_pages } => self.runs_there(lacks_pages),
            Message::Complete => self.fact(Fact::PeerComplete),
            Message::Vanished(why) => self.fact(Fact::PeerVanished(why)),
            Message::Wanted(pages) => self.hands.with(|world| world.want(&pages)),
            Message::Discarded => self.fact(Fact::PeerDiscarded),
            Message::Answer(state) => self.answered(state),
            Message::Pong => {
                let now = self.hands.now();
                self.gauge.pong(now.since(self.pinged_at));
            }
            other => {
                let why = format!("the destination sent {} out of turn", other.name());
                self.fact(Fact::PeerFailed(why));
            }
        }
    }

    /// A sign of life: with the guest stopped, its silence begins anew.
    pub(super) fn peer_lives(&mut self) {
        if let Some(silence) = self.timers.get_mut(&Timer::Silence) {
            *silence = self.hands.now().after(Limits::default().stopped_silence);
        }
    }

    fn answered(&mut self, state: State) {
        // To a rejoin as well: it cannot go on yet.
        self.rejoin_failed();
        match state {
            State::Running => self.fact(Fact::PeerRunning { lacks_pages: false }),
            State::Faulting => self.runs_there(true),
            State::Vanished => self.fact(Fact::PeerVanished("by its journal".into())),
            State::Discarded => self.fact(Fact::PeerDiscarded),
            State::Unknown => {
                self.fact(Fact::PeerUnknown("the destination does not know".into()));
            }
            // It is at it; it will be asked again.
            State::Prepared | State::Entitled => {}
        }
    }
}
