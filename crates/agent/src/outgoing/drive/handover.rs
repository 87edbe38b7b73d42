//! With the guest stopped: QEMU's last pass, the last pages, the commit, and asking what became of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sterna_migration::source::{DurableOffer, Fact, Finish};
use sterna_wire::message as wire;
use sterna_wire::{AnswerState, Blob, GuestState, Message, Role, Sender as Side, Text};

use super::{Drive, Event};
use crate::journal::{Entry, JournalError};
use crate::link::Link;
use crate::outgoing::bulk::RoundSum;
use crate::outgoing::qemu::{Guest, Stop};
use crate::peer::{self, Destination};

/// So long the link may take for what was written before the stop: more than buffers hold at any rate worth moving over.
const LINK_DRAINS: Duration = Duration::from_secs(2);
/// From here until the guest stands and QEMU is paced no more.
const STOP_TAKES: Duration = Duration::from_millis(8);

impl Drive {
    /// Stops the guest, and lets QEMU make its last pass.
    pub(super) async fn stop_guest(&mut self, finish: Finish) {
        // After a time-out a round may still be going on.
        if let Some(bulk) = self.bulk.as_ref().filter(|bulk| !bulk.is_idle()) {
            bulk.cut_short();
        }
        if finish == Finish::PostCopy {
            self.mark_ahead().await;
        }
        let keeps_up = finish != Finish::PostCopy || self.catch_up().await;
        self.clear_the_way().await;
        let Some(qemu) = &mut self.qemu else { return };
        if let Err(error) = qemu.keep_reading_end().await {
            return self.fact(Fact::QemuFailed(error.to_string()));
        }
        if !keeps_up {
            self.wait_for_a_look().await;
        } else if self.pace.bytes_per_second.is_some() {
            self.wait_for_the_end_of_a_window().await;
        }
        let Some(qemu) = &mut self.qemu else { return };
        let guest_ran = match qemu.observe_guest().await {
            Ok(Guest::Runs) => true,
            Ok(Guest::Paused) => false,
            // As below, only earlier.
            Ok(Guest::StoppedByQemu) => return,
            Err(error) => return self.fact(Fact::QemuFailed(error.to_string())),
        };
        if let Err(error) = self.note_run_state(guest_ran) {
            return self.fact(Fact::JournalFailed(error.to_string()));
        }
        let Some(qemu) = &mut self.qemu else { return };
        self.gauge.marks.stop_sent = Some(Instant::now());
        let stopped = qemu.stop().await;
        self.gauge.marks.stopped = Some(Instant::now());
        match stopped {
            Ok(Stop::Ours { syncs }) => {
                // Takes effect at the end of QEMU's window; with the guest stopped there is no race.
                if self.pace.bytes_per_second.is_some()
                    && let Err(error) = qemu.pace(None).await
                {
                    tracing::warn!(%error, "QEMU stays paced");
                }
                let finished = qemu.finish(syncs).await;
                self.fact(Fact::GuestStopped);
                if let Err(error) = finished {
                    self.fact(Fact::QemuFailed(error.to_string()));
                }
            }
            // The end of that stream is, or will be, reported by its reader.
            Ok(Stop::TooLate) => {}
            Err(error) => self.fact(Fact::QemuFailed(error.to_string())),
        }
    }

    /// What is stale now and may follow is marked while the guest runs: the destination throws it away, which takes longer
    /// than marking, and with the guest stopped only what it has dirtied since is left.
    async fn mark_ahead(&mut self) {
        let Some(bulk) = &mut self.bulk else { return };
        bulk.begin_to_mark();
        let begun = Instant::now();
        while bulk.is_marking() && begun.elapsed() < LINK_DRAINS {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// What was written already is ahead of the last pages, in buffers and in the link's queues. It arrives while the guest
    /// still runs; what the guest dirties meanwhile is less, or the rounds would not have come to their end.
    pub(super) async fn wait_for_the_link(&self) {
        let Some(bulk) = &self.bulk else { return };
        let begun = Instant::now();
        while bulk.unacknowledged_bytes() > 0 && begun.elapsed() < LINK_DRAINS {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// A QEMU that is paced sleeps in between, and notices only then that it is paced no more. The guest runs on until
    /// shortly before, instead of standing all that time.
    async fn wait_for_the_end_of_a_window(&self) {
        if let Some(next) = self.counters.next_window(STOP_TAKES) {
            tokio::time::sleep_until((next - STOP_TAKES).into()).await;
        }
    }

    /// The guest's user paused it, or let it run, since the job began: that is what is restored, here or there.
    fn note_run_state(&mut self, guest_ran: bool) -> Result<(), JournalError> {
        if guest_ran == self.guest_ran {
            return Ok(());
        }
        self.guest_ran = guest_ran;
        self.journal.note(&Entry::GuestRan(guest_ran))
    }

    pub(super) async fn flush(&mut self, finish: Finish) {
        self.finish = finish;
        if let Some(bulk) = &mut self.bulk {
            if bulk.is_idle() {
                bulk.begin_last(finish);
            } else {
                // The time-out came in a round.
                self.cuts_short = true;
                bulk.cut_short();
            }
        }
        let Some(link) = &self.link else { return };
        if link.capabilities().contains(wire::PACKED_STATE) {
            self.tail.pack();
        }
        if let Err(error) = link.send_tail(&self.tail.bytes).await {
            self.fact(Fact::PeerLost(error.to_string()));
        }
    }

    pub(super) async fn send_final(&mut self, round: &RoundSum) {
        let commands = self.tail.commands.iter().filter_map(|command| {
            let (command, data) = command.parts();
            Some(wire::StreamCommand { command, data: Blob::new(data)? })
        });
        let message = Message::Final(wire::Final {
            root: round.sum.root,
            frames_per_connection: round.frames.clone(),
            tail_bytes: self.tail.bytes.len() as u64,
            state_bytes: self.tail.packed_from_bytes,
            guest: if self.guest_ran { GuestState::Running } else { GuestState::Paused },
            commands: commands.collect(),
        });
        self.send(&message).await;
        self.gauge.marks.flushed = Some(Instant::now());
        self.flushed = true;
        self.fact(Fact::Flushed(round.sum.root));
    }

    pub(super) async fn commit(&mut self, _offer: DurableOffer) {
        self.gauge.roots_match = true;
        self.gauge.marks.committed = Some(Instant::now());
        let epoch = self.wanted.vm.record().epoch.next();
        self.send(&Message::Commit(wire::Commit { epoch })).await;
    }

    pub(super) async fn abort(&mut self, why: &str) {
        let keep = self.wanted.follow.as_ref().is_some_and(|follow| follow.goes_on());
        let abort = Message::Abort(wire::Abort { reason: Text::new(why), keep });
        let for_peer = self.link.as_ref().map(|link| abort.for_peer(link.capabilities()));
        if let Some(abort) = for_peer {
            self.send(&abort).await;
        }
    }

    /// Asks who owns the guest: on the connection that there is, or on a new one.
    pub(super) async fn inquire(&mut self) {
        if self.link.is_some() {
            let record = self.wanted.vm.record();
            let inquire = wire::Inquire {
                job: self.job.id().clone(),
                uuid: record.uuid,
                epoch: record.epoch.next(),
            };
            return self.send(&Message::Inquire(inquire)).await;
        }
        let (agent, to) = (Arc::clone(&self.agent), self.known_addresses());
        if to.is_empty() {
            let peer = &self.wanted.to.name;
            tracing::warn!(%peer, "no address of the destination is known; add [peers.{peer}] to the configuration and restart the agent");
        }
        let (events, inbound) = (self.events.clone(), self.inbound.clone());
        tokio::spawn(async move {
            let options = agent.link_options();
            for to in to {
                let connected = peer::connect(&agent.identity, &to, Role::Control, options).await;
                let link = connected
                    .map(|(greeted, _)| Link::start(greeted, Side::Destination, inbound.clone()));
                let found = link.is_ok();
                let _ = events.send(Event::Inquired(link));
                if found {
                    return;
                }
            }
        });
    }

    /// Where the destination may be: where the move went to, and where the configuration says, which may be newer.
    pub(super) fn known_addresses(&self) -> Vec<Destination> {
        let first = self.wanted.to.clone();
        let second = peer::configured(&self.agent, &first.name).filter(|other| *other != first);
        std::iter::once(first).chain(second).filter(|to| !to.address.is_empty()).collect()
    }

    pub(super) fn answered(&mut self, state: AnswerState) {
        // To a rejoin as well: it cannot go on yet.
        self.rejoining.has_failed();
        match state {
            AnswerState::Running => self.fact(Fact::PeerRunning { lacks_pages: false }),
            AnswerState::Faulting => self.fact(Fact::PeerRunning { lacks_pages: true }),
            AnswerState::Discarded => self.fact(Fact::PeerDiscarded),
            AnswerState::Lost => {
                self.fact(Fact::PeerVanished("its QEMU ended while pages were lacking".into()));
            }
            AnswerState::Unknown => {
                let why = "the destination does not know what became of the guest; look there before resuming it here";
                self.fact(Fact::PeerUnknown(why.into()));
            }
            // It is at it; it will be asked again.
            _ => {}
        }
    }
}
