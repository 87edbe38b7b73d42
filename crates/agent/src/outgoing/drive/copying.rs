//! While the guest runs: the stream and the rounds.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use sterna_host::usage::IdleShare;
use sterna_migration::policy::Decision;
use sterna_migration::source::Fact;
use sterna_model::{PAGE_BYTES, Rate};
use sterna_page_codec::{Effort, Known, Level};
use sterna_wire::message as wire;
use sterna_wire::{Blob, Message};

use super::pacing::Pace;
use super::{Drive, Event, HEARD_LATELY};
use crate::outgoing::bulk::{Bulk, RoundSum};
use crate::outgoing::memory::SourceMemory;
use crate::outgoing::preflight;
use crate::outgoing::reader::{Head, Prepare, Reader};

impl Drive {
    /// The stream has begun: the destination is told, the workers start. A stream that was begun anew changes nothing.
    pub(super) async fn head(&mut self, head: Head) -> Result<(), String> {
        if self.bulk.is_some() || self.reuse.is_under_way() {
            return Ok(());
        }
        let layout = head.memory.layout().clone();
        // Pages that only this agent holds would not outlive it: post-copy needs them in QEMU's memory.
        let readable =
            |name| layout.block_named(name).is_some_and(|block| head.memory.is_readable(block));
        if !self.shared_blocks.iter().all(readable) {
            self.post_copy.store(false, Ordering::Relaxed);
        }
        if self.post_copy.load(Ordering::Relaxed) {
            self.note_layout(&layout)?;
        }
        self.gauge.memory = sterna_model::ByteCount(u64::from(layout.pages()) * PAGE_BYTES as u64);
        let message = Self::stream_head(&head)?;
        self.send(&message).await;
        if self.reuse.is_awaited {
            self.await_hashes(head);
            return Ok(());
        }
        self.start_bulk(head, None)
    }

    /// Starts the workers, and the first round; `known` is what the destination has, if it is not nothing.
    pub(super) fn start_bulk(&mut self, head: Head, known: Option<Known>) -> Result<(), String> {
        let (settings, reports) = (self.settings(head.memory.layout()), self.reports());
        let (memory, tracker) = (Arc::clone(&head.memory), Arc::clone(&head.tracker));
        let known = known.unwrap_or_else(|| Known::new(memory.layout().pages()));
        let links = std::mem::take(&mut self.links);
        let mut bulk = Bulk::start(known, links, memory, tracker, &settings, &reports)?;
        bulk.begin_round();
        self.bulk = Some(bulk);
        // What the start of two QEMUs took from the processors says nothing of what copying leaves.
        self.idle = IdleShare::default();
        self.head = Some(head);
        Ok(())
    }

    /// What the destination is told of the stream's beginning.
    pub(super) fn stream_head(head: &Head) -> Result<Message, String> {
        let configuration = Blob::new(head.configuration.bytes().to_vec());
        Ok(Message::StreamHead(wire::StreamHead {
            configuration: configuration.ok_or("QEMU's configuration section is too long")?,
            layout: head.memory.layout().clone(),
            ram_section: wire::RamSection {
                section: head.ram.section_id,
                instance: head.ram.instance_id,
            },
        }))
    }

    pub(super) fn effort(&self) -> Option<Effort> {
        match self.wanted.options.compress {
            sterna_api::Compress::Auto => None,
            sterna_api::Compress::None => Some(Effort::Raw),
            sterna_api::Compress::Level(level) => {
                let level = i8::try_from(level).ok().and_then(Level::new);
                Some(Effort::Zstd(level.unwrap_or(Level::NORMAL)))
            }
        }
    }

    pub(super) fn rate(&self) -> Option<Rate> {
        let limits = [self.wanted.options.bandwidth, self.agent.config.limits.bandwidth];
        limits.into_iter().flatten().min()
    }

    pub(super) async fn round_done(&mut self, round: RoundSum) {
        if matches!(self.phase(), "offering" | "offered" | "serving") {
            return self.pushed(&round);
        }
        let flushing = self.phase() == "flushing";
        if self.phase() == "stopping" {
            // It was cut short: what it left is for the last one.
            return;
        }
        let Some(bulk) = &mut self.bulk else { return };
        if !flushing && self.again.withholds() {
            let facts = if self.again.rounds == 1 {
                self.gauge.round_over_known(&round, bulk)
            } else {
                self.gauge.round_ended(&round, bulk)
            };
            self.gauge.decided(&facts, &Decision::NextRound);
            if self.again.begins_round() {
                bulk.begin_round();
            }
            return;
        }
        if flushing && std::mem::take(&mut self.cuts_short) {
            return bulk.begin_last(self.finish);
        }
        if flushing {
            self.gauge.flushed(&round, self.tail.bytes.len() as u64);
            // The destination may have asked for pages that the round had passed by then.
            if bulk.waiting_pages() == round.sum.absent {
                return self.send_final(&round).await;
            }
            return bulk.begin_last(self.finish);
        }
        if self.is_following() {
            return self.background_round_done(&round);
        }
        let Some(all_again) = self.reread() else { return };
        let Some(bulk) = &self.bulk else { return };
        let mut facts = if all_again {
            self.gauge.reread_round_ended(&round, bulk)
        } else {
            self.gauge.round_ended(&round, bulk)
        };
        if self.heard_at.elapsed() > HEARD_LATELY {
            // The link is cut, most likely. Stopped now, the guest would only stand until that is noticed; so it runs, and
            // what it writes is sent, until the destination is heard again or its connection is given up.
            self.gauge.decided(&facts, &Decision::NextRound);
            self.round_waits = true;
            return;
        }
        self.look_closer(&mut facts).await;
        self.fact(Fact::RoundEnded(facts));
    }

    /// Begins the next round. A paced QEMU knows of more than it has told, so there may be nothing to send yet: after a round
    /// over nothing the next one waits for the next tick, instead of being over at once as well.
    pub(super) fn begin_round(&mut self) {
        if std::mem::take(&mut self.was_away) {
            return self.go_on();
        }
        if self.is_following() {
            return;
        }
        let Some(bulk) = &mut self.bulk else { return };
        if bulk.sent_nothing() && bulk.waiting_pages() == 0 {
            self.round_waits = true;
        } else {
            bulk.begin_round();
        }
    }

    /// The first pass is over: QEMU would now look for dirty pages some ten thousand times a second.
    pub(super) async fn first_pass_over(&mut self) {
        self.begin_to_pace().await;
        if !std::mem::take(&mut self.again.in_first_pass) {
            return;
        }
        // A round that goes on may have passed what was reported meanwhile; so may not the next one.
        self.again.rounds = 2;
        if let Some(bulk) = self.bulk.as_mut().filter(|bulk| bulk.is_idle() && bulk.is_linked()) {
            self.again.rounds = 1;
            bulk.begin_round();
        }
    }

    /// The policy's last decision goes into the report.
    pub(super) fn note_decision(&mut self) {
        let decided = self.decided.lock().ok().and_then(|mut decided| decided.take());
        let Some((facts, decision)) = decided else { return };
        if matches!(decision, Decision::Stop | Decision::StopForPostCopy) {
            self.gauge.marks.decided = Some(Instant::now());
        }
        tracing::debug!(?facts, ?decision, "a round has ended");
        if self.is_following() && facts.number > 1 {
            // Hours of them: what they were together is `background`.
            return;
        }
        self.gauge.decided(&facts, &decision);
    }

    /// What an earlier stream has begun with.
    fn known_head(&self) -> Option<Head> {
        self.head.clone().or_else(|| self.reuse.head().cloned())
    }

    pub(super) async fn begin_stream(&mut self) {
        let before = self.known_head();
        let (Some(qemu), Some(subject), Some(live)) =
            (&mut self.qemu, &self.subject, &self.wanted.live)
        else {
            return self.fact(Fact::QemuFailed("QEMU was not prepared".into()));
        };
        let budget_bytes = self.agent.config.limits.memory_budget.0;
        let mut readable = Some(preflight::open_memory(live, subject).await);
        let workers = usize::from(self.wanted.options.connections);
        let prepare: Prepare = Box::new(move |layout| {
            if let Some(head) = &before {
                if head.memory.layout() != layout {
                    return Err(std::io::Error::other(
                        "the guest's memory blocks changed during the move",
                    ));
                }
                return Ok((Arc::clone(&head.memory), Arc::clone(&head.tracker)));
            }
            let readable = readable.take().unwrap_or_default();
            let memory = SourceMemory::open(layout, readable, budget_bytes)?;
            let tracker = sterna_migration::tracker::Tracker::new(layout.pages(), workers);
            Ok((Arc::new(memory), Arc::new(tracker)))
        });
        match qemu.begin().await {
            Ok(stream) => {
                self.pace = Pace::default();
                self.streams += 1;
                let (counters, to, number) =
                    (Arc::clone(&self.counters), self.events.clone(), self.streams);
                let events = Box::new(move |event| drop(to.send(Event::Stream(number, event))));
                let reader = Reader { stream, prepare, counters, events };
                let spawned = std::thread::Builder::new()
                    .name("sterna-reader".into())
                    .spawn(move || reader.run());
                if let Err(error) = spawned {
                    self.fact(Fact::QemuFailed(format!("cannot start a thread: {error}")));
                }
            }
            Err(error) => self.fact(Fact::QemuFailed(error.to_string())),
        }
    }

    pub(super) async fn restart_stream(&mut self) {
        tracing::warn!("QEMU completed by itself; the guest goes on, and so does the move");
        self.again = Again { in_first_pass: true, rounds: 0 };
        let resumed = match &self.qemu {
            Some(qemu) => qemu.resume_after_completion().await.map_err(|error| error.to_string()),
            None => Err("QEMU was not prepared".into()),
        };
        match resumed {
            Ok(()) => self.begin_stream().await,
            Err(why) => self.fact(Fact::QemuFailed(why)),
        }
    }

    pub(super) fn missing(&mut self, missing: &wire::Missing) {
        self.gauge.requested += missing.pages.len() as u64;
        let Some(bulk) = &mut self.bulk else { return };
        bulk.request(&missing.pages);
        // A last round that is still going on is looked at when it ends.
        if self.flushed && bulk.is_idle() {
            bulk.begin_last(self.finish);
        }
    }
}

/// A stream that was begun anew reports all memory once more, and nearly all of that costs nothing. Until it has been gone
/// through, a round's end tells nothing of what is left: the policy would stop the guest for as long as that takes.
#[derive(Debug, Default)]
pub(super) struct Again {
    /// QEMU's first pass is not over.
    in_first_pass: bool,
    /// Rounds whose end is not told; the last of them is the one over all memory.
    rounds: u32,
}

impl Again {
    /// Whether the end of a round is not to be told.
    pub(super) const fn withholds(&self) -> bool {
        self.in_first_pass || self.rounds > 0
    }

    /// Counts a round whose end was not told; says whether the next one begins now.
    const fn begins_round(&mut self) -> bool {
        self.rounds = self.rounds.saturating_sub(1);
        !self.in_first_pass
    }
}
