//! What the destination says, and what it is told.

use std::time::Instant;

use sterna_migration::source::{Fact, Limits, Timer};
use sterna_wire::Message;
use sterna_wire::message as wire;

use super::Drive;
use crate::link::Inbound;

impl Drive {
    pub(super) async fn inbound(&mut self, inbound: Inbound) {
        match inbound {
            Inbound::Message(message) => self.message(*message).await,
            Inbound::Tail(_) => {
                self.fact(Fact::PeerFailed("the destination sent device state".into()))
            }
            Inbound::Closed(why) => {
                self.link = None;
                self.lost(why);
            }
        }
    }

    async fn message(&mut self, message: Message) {
        self.heard_at = Instant::now();
        self.peer_lives();
        match message {
            Message::Prepared(prepared) => self.prepared(prepared).await,
            Message::Refused(refused) => self.fact(Fact::PeerRefused(refused.refusals)),
            Message::Applied(applied) => {
                if let Some(bulk) = &self.bulk {
                    bulk.confirm(&applied.frames_per_connection);
                }
            }
            Message::Missing(missing) => self.missing(&missing),
            Message::Loaded(loaded) => {
                self.gauge.marks.loaded = Some(Instant::now());
                self.gauge.pages_hashed = loaded.pages_hashed;
                self.fact(Fact::PeerLoaded(loaded.root));
            }
            Message::Failed(failed) => {
                self.fact(Fact::PeerFailed(format!("at the destination: {}", failed.error)))
            }
            Message::Running(running) => {
                self.gauge.marks.running = Some(Instant::now());
                self.gauge.destination_memory =
                    sterna_model::ByteCount(running.peak_anonymous_bytes);
                // It could not be joined while it was resumed: that is tried again.
                self.rejoining.has_failed();
                self.fact(Fact::PeerRunning { lacks_pages: running.lacks_pages > 0 });
            }
            Message::Wanted(wanted) => self.wanted_pages(wanted),
            Message::Complete(complete) => self.complete(&complete),
            Message::Vanished(vanished) => {
                self.fact(Fact::PeerVanished(vanished.reason.to_string()));
            }
            Message::Rejoined(rejoined) => self.rejoined(&rejoined),
            Message::Lacking(lacking) => self.lacking(lacking),
            Message::Hashes(hashes) => self.hashes(&hashes),
            Message::Discarded(of) if of.job == *self.job.id() => self.fact(Fact::PeerDiscarded),
            Message::Answer(answer) if answer.job == *self.job.id() => self.answered(answer.state),
            Message::Pong(echo) => self.pong(echo),
            Message::Ping(echo) => self.send(&Message::Pong(echo)).await,
            other => self.fact(Fact::PeerFailed(format!(
                "the destination sent {} out of turn",
                other.name()
            ))),
        }
    }

    /// A sign of life: with the guest stopped, its silence begins anew.
    pub(super) fn peer_lives(&mut self) {
        if let Some(silence) = self.timers.get_mut(&Timer::Silence) {
            *silence = tokio::time::Instant::now() + Limits::default().stopped_silence;
        }
    }

    fn pong(&mut self, echo: wire::Echo) {
        let now = sterna_host::clock::now();
        let took = now.since(sterna_model::Instant { nanos: echo.sent_ns });
        self.gauge.last_round_trip = Some(took);
        // The fastest counts: others waited for something else, such as the start of the destination's QEMU.
        self.gauge.round_trip = Some(self.gauge.round_trip.map_or(took, |best| best.min(took)));
    }

    pub(super) async fn send(&mut self, message: &Message) {
        // A connection that is gone reports so itself.
        if let Some(link) = &self.link
            && let Err(error) = link.send(message).await
        {
            tracing::debug!(%error, message = message.name(), "a message could not be sent");
        }
    }

    pub(super) async fn ping(&mut self) {
        self.pinged_at = Instant::now();
        let echo = wire::Echo { nonce: 0, sent_ns: sterna_host::clock::now().nanos };
        self.send(&Message::Ping(echo)).await;
    }
}
