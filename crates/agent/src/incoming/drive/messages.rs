//! What the source says, and what happens on this host: turned into facts.

use std::time::{Duration, Instant};

use sterna_migration::destination::Fact;
use sterna_wire::limits::MAX_WANTED_PAGES;
use sterna_wire::message as wire;
use sterna_wire::post_copy;
use sterna_wire::{GuestState, Message};

use super::faulting::asked_file;
use super::handle::FromPeer;
use super::{Drive, Event};
use crate::incoming::qemu;
use crate::incoming::streams::StreamEvent;
use crate::journal::{Entry, JournalError, MemoryRecord};
use crate::link::{Inbound, Link};

/// Connections of a peer that asked and get answers, at most.
const MAX_ASKING: usize = 4;
/// A QEMU whose stream broke is known to have ended, and why, within this.
const REASON_TAKES: Duration = Duration::from_millis(200);

impl Drive {
    pub(super) async fn heard(&mut self, heard: FromPeer) {
        match heard {
            // A control connection that was replaced: what it says is of before.
            FromPeer::Inbound(number, _) if number != self.control => {}
            FromPeer::Inbound(_, Inbound::Message(message)) => self.message(*message).await,
            FromPeer::Inbound(_, Inbound::Tail(bytes)) => {
                if let Err(why) = self.streams.tail(&bytes) {
                    self.fact(Fact::Failed(why));
                }
            }
            FromPeer::Inbound(_, Inbound::Closed(why)) => {
                self.abandoned = true;
                self.lost(why);
            }
            FromPeer::Data(connection) => {
                if let Err(why) = self.streams.connect(*connection) {
                    self.not_connected(why);
                }
            }
            FromPeer::Asked(link) => self.asked(link),
            FromPeer::Rejoin(rejoin, link, number) => {
                self.control = number;
                self.rejoin(&rejoin, link).await;
            }
            FromPeer::Superseded(answer) => {
                let makes_room = self.may_be_discarded() && self.away.is_some();
                let _ = answer.send(makes_room);
                if makes_room {
                    self.fact(Fact::Abort("it has begun another job of this VM".into()));
                }
            }
            FromPeer::AgentEnds => {
                self.fact(Fact::Failed("the destination's agent is being ended".into()));
            }
        }
    }

    /// Somebody asks on a connection of its own, perhaps again. The newest few are answered.
    pub(super) fn asked(&mut self, link: Link) {
        self.links.retain(|known| !known.is(&link) && !known.is_closed());
        self.links.push(link);
        let too_many = self.links.len().saturating_sub(MAX_ASKING);
        self.links.drain(..too_many);
        self.fact(Fact::Asked);
    }

    pub(super) async fn event(&mut self, event: Event) {
        match event {
            Event::Stream(event) => self.stream(event).await,
            Event::QemuLoaded if self.streams.faulting().is_some() => self.placed(),
            Event::QemuLoaded => self.qemu_loaded(),
            Event::Resumed(Ok(())) => {
                if !std::mem::replace(&mut self.resumed, true) {
                    self.fact(Fact::Resumed { lacks_pages: true });
                }
            }
            Event::Resumed(Err(why)) if self.resumed => {
                tracing::error!(%why, "the guest is this host's and does not run yet");
            }
            Event::Resumed(Err(why)) => self.fact(Fact::ResumeFailed(why)),
            Event::StillBroken(why) => self.fact(Fact::Failed(why)),
            Event::RecoverAgain => self.recover_stream().await,
            Event::QemuDied(why) => self.fact(Fact::QemuDied(why)),
        }
    }

    async fn stream(&mut self, event: StreamEvent) {
        match event {
            // The source makes its connections anew, and is told what is lacking.
            StreamEvent::Failed(why) if self.runs_here() => self.lost(why),
            StreamEvent::LinkLost(generation, _) if !self.streams.are_current(generation) => {}
            StreamEvent::LinkLost(_, why) => self.lost(why),
            StreamEvent::Broken(number, _) if !self.streams.is_current(number) => {}
            StreamEvent::Broken(_, why) if self.runs_here() => self.fact(Fact::StreamBroken(why)),
            StreamEvent::Failed(why) => self.fact(Fact::Failed(why)),
            // Its QEMU has ended, most likely, and why is on its way.
            StreamEvent::Broken(_, why) => {
                let events = self.events.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(REASON_TAKES).await;
                    let _ = events.send(Event::StillBroken(why));
                });
            }
            StreamEvent::Verified => self.memory_loaded(),
            StreamEvent::Ready => self.streams.let_in(),
            StreamEvent::Adopted => self.adopted(),
            StreamEvent::DevicesLoaded => self.devices_loaded().await,
            StreamEvent::Placed => self.placed(),
            StreamEvent::Wanted(pages) => {
                for pages in pages.chunks(MAX_WANTED_PAGES) {
                    self.send(&Message::Wanted(post_copy::Wanted { pages: pages.to_vec() })).await;
                }
            }
        }
    }

    /// Whether the guest runs here and lacks pages: then nothing but its QEMU's end ends the job.
    pub(super) fn runs_here(&self) -> bool {
        self.machine.as_ref().is_some_and(|machine| machine.phase() == "faulting")
    }

    /// QEMU has placed every page; it says so in two ways.
    pub(super) fn placed(&mut self) {
        if !std::mem::replace(&mut self.complete, true) {
            self.fact(Fact::MemoryComplete);
        }
    }

    async fn devices_loaded(&mut self) {
        let Some(waiting) = &self.waiting else { return };
        let left = match waiting.monitor() {
            Ok(qmp) => qemu::left_load(&qmp).await,
            Err(why) => Err(why),
        };
        match left {
            Ok(()) => self.qemu_loaded(),
            Err(why) => self.fact(Fact::Failed(why)),
        }
    }

    async fn message(&mut self, message: Message) {
        match message {
            Message::StreamHead(head) => {
                if let Err(why) = self.head(&head).await {
                    self.fact(Fact::Failed(why));
                }
            }
            Message::Final(last) => {
                self.guest = last.guest;
                if let Err(error) = self.note_run_state() {
                    return self.fact(Fact::JournalFailed(error.to_string()));
                }
                self.streams.last(last);
                self.progressed().await;
            }
            Message::Commit(commit) if commit.epoch == self.prepare.epoch => {
                self.commit_came = Some(Instant::now());
                self.watch_until = None;
                self.fact(Fact::Commit);
            }
            Message::Commit(commit) => {
                let why = format!(
                    "expected a commit of epoch {:?}, found {:?}",
                    self.prepare.epoch, commit.epoch
                );
                self.fact(Fact::Failed(why));
            }
            Message::Abort(abort) => {
                self.worth_keeping &= abort.keep;
                self.fact(Fact::Abort(abort.reason.to_string()));
            }
            Message::Inquire(_) => self.fact(Fact::Asked),
            Message::Ping(echo) => self.send(&Message::Pong(echo)).await,
            other => {
                self.fact(Fact::Failed(format!("the source sent {} out of turn", other.name())))
            }
        }
    }

    /// A restarted agent must not resume a guest that its user had paused.
    fn note_run_state(&mut self) -> Result<(), JournalError> {
        match self.guest {
            GuestState::Paused => self.journal.note(&Entry::GuestRan(false)),
            GuestState::Running => Ok(()),
        }
    }

    async fn head(&mut self, head: &wire::StreamHead) -> Result<(), String> {
        // Whether it had arrived is not known to a source whose connections broke.
        if std::mem::take(&mut self.head_may_repeat) && self.head.as_ref() == Some(head) {
            return Ok(());
        }
        let Some(waiting) = &mut self.waiting else {
            return Err("the source sent its stream's head before it was prepared for".into());
        };
        let shared = std::mem::take(&mut waiting.shared);
        let (qmp, post_copy) = (waiting.monitor()?, waiting.post_copy);
        let shared_blocks = shared.iter().map(|block| block.block().clone()).collect();
        self.streams.open(head, shared, self.agent.config.limits.memory_budget)?;
        if post_copy {
            self.streams.keep_asked(&asked_file(&waiting.vm))?;
        }
        self.head = Some(head.clone());
        let stream = qemu::begin_load(&qmp).await?;
        if post_copy || self.prepare.reuse {
            let stored = MemoryRecord {
                layout: head.layout.clone(),
                shared_blocks,
                ram_section: Some(head.ram_section),
                stream_inode: Some(qemu::keep_stream(&qmp, &stream).await?),
                keep_ms: self.prepare.keep_ms.filter(|_| self.prepare.reuse),
            };
            self.stored = Some(stored.clone());
            self.journal.note(&Entry::Memory(stored)).map_err(|error| error.to_string())?;
        }
        self.streams.load(head, stream)
    }

    /// Frames were applied: acknowledge, ask for what is missing, and see whether everything is here.
    pub(super) async fn progressed(&mut self) {
        for message in self.streams.answers() {
            self.send(&message).await;
        }
        if let Some(root) = self.streams.take_complete() {
            self.load_begun = Instant::now();
            self.fact(Fact::FinalReceived(root));
            if let Err(why) = self.streams.finish() {
                self.fact(Fact::Failed(why));
            }
        }
    }

    fn qemu_loaded(&mut self) {
        if self.streams.verify_full() {
            self.streams.sweep();
        } else {
            self.memory_loaded();
        }
    }

    fn memory_loaded(&mut self) {
        match self.streams.root() {
            Some(root) => self.fact(Fact::MemoryLoaded(root)),
            None => self.fact(Fact::Failed("QEMU loaded a stream that was not sent".into())),
        }
    }
}
