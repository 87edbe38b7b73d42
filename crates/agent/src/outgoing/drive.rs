//! The drive loop of a move that leaves: performs the source machine's effects, turns what happens into facts.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sterna_migration::journal::{SourceRecord, Subject as JournalSubject};
use sterna_migration::outcome::Outcome;
use sterna_migration::policy::{Decision, Policy, Precopy, RoundFacts};
use sterna_migration::source::{DurableOffer, Effect, Fact, Limits, MayReturn, Source, Timer};
use sterna_model::{JobId, PAGE_BYTES, Rate};
use sterna_page_codec::{Effort, Level};
use sterna_wire::message as wire;
use sterna_wire::{
    AnswerState, Blob, FrameWriter, GuestState, Message, PageKey, Role, Sender as Side, Text,
    Verify,
};
use tokio::sync::mpsc;

use super::Move;
use super::bulk::{Bulk, RoundSum, Settings};
use super::gauge::{Ends, Gauge};
use super::preflight::{self, Subject};
use super::qemu::{SourceQemu, Stop};
use super::reader::{Counters, Head, Reader, StreamEvent, Tail};
use super::worker::Report as WorkerReport;
use crate::agent::Agent;
use crate::jobs::Job;
use crate::journal::{Entry, Journal, JournalError};
use crate::link::{Inbound, Link};
use crate::peer::{self, PeerError};
use crate::registry::Owner;
use crate::vm::{describe_exit, quote_log};

/// Pacing, progress and memory are looked at this often.
const TICK: Duration = Duration::from_millis(100);
/// The least that QEMU may write per second: it then syncs a few times a second even if nothing is dirty.
const MIN_PACE_BYTES_PER_SECOND: u64 = 256 << 10;
/// QEMU notices a new pace at the end of its 100 ms window; after this it has.
const PACE_DEADLINE: Duration = Duration::from_millis(150);
/// With the guest stopped, the destination is pinged this often: its silence is noticed within a second.
const PING_EVERY: Duration = Duration::from_millis(200);

/// What happens beside the machine's own steps.
enum Event {
    Inbound(Inbound),
    Stream(StreamEvent),
    Worker(usize, WorkerReport),
    QemuDied(String),
    Inquired(Result<Link, PeerError>),
}

/// Runs a job to its end.
pub(super) async fn run(agent: Arc<Agent>, job: Arc<Job>, wanted: Move, key: [u8; 32]) {
    let (events, inbox) = mpsc::unbounded_channel();
    let max_downtime = Duration::from_millis(wanted.options.max_downtime_ms);
    let policy = Box::new(Watched { policy: Precopy::new(max_downtime), decided: Arc::default() });
    let timeout = Duration::from_secs(wanted.options.timeout_seconds);
    let mut drive = Drive::new(agent, job, wanted, key, events);
    drive.decided = Arc::clone(&policy.decided);
    let limits = Limits { timeout, ..Limits::default() };
    let mut effects = Vec::new();
    drive.machine = Some(Source::begin(policy, limits, &mut effects));
    drive.effects.extend(effects);
    drive.run(inbox).await;
}

/// Takes a job up again that ended in *offered*.
pub(super) async fn resume(
    agent: Arc<Agent>,
    job: Arc<Job>,
    wanted: Move,
    journal: Journal,
    guest_ran: bool,
) {
    let (events, inbox) = mpsc::unbounded_channel();
    let mut drive = Drive::new(agent, job, wanted, [0; 32], events);
    drive.journal = Some(journal);
    drive.guest_ran = guest_ran;
    drive.resumed = true;
    let mut effects = Vec::new();
    drive.machine = Some(Source::resume_offered(Limits::default(), &mut effects));
    drive.effects.extend(effects);
    drive.run(inbox).await;
}

struct Drive {
    agent: Arc<Agent>,
    job: Arc<Job>,
    wanted: Move,
    strategy: &'static str,
    key: [u8; 32],
    machine: Option<Source>,
    effects: VecDeque<Effect>,
    events: mpsc::UnboundedSender<Event>,
    journal: Option<Journal>,
    timers: BTreeMap<Timer, tokio::time::Instant>,
    gauge: Gauge,
    decided: Decided,
    qemu: Option<SourceQemu>,
    subject: Option<Subject>,
    link: Option<Link>,
    data: Vec<(sterna_host::tls::DataStream, FrameWriter)>,
    bulk: Option<Bulk>,
    head: Option<Head>,
    tail: Tail,
    counters: Arc<Counters>,
    pace: Pace,
    /// Everything was handed to the connections at least once.
    flushed: bool,
    pinged_at: Instant,
    /// The guest ran when the job began.
    guest_ran: bool,
    /// The job was taken up again after a restart.
    resumed: bool,
}

/// How fast QEMU may write, and what it wrote when that was last looked at.
#[derive(Debug)]
struct Pace {
    bytes_per_second: Option<u64>,
    seen_pages: u64,
    seen_at: Instant,
}

impl Default for Pace {
    fn default() -> Self {
        Self { bytes_per_second: None, seen_pages: 0, seen_at: Instant::now() }
    }
}

impl Drive {
    fn new(
        agent: Arc<Agent>,
        job: Arc<Job>,
        wanted: Move,
        key: [u8; 32],
        events: mpsc::UnboundedSender<Event>,
    ) -> Self {
        Self {
            agent,
            job,
            wanted,
            strategy: "precopy",
            key,
            machine: None,
            effects: VecDeque::new(),
            events,
            journal: None,
            timers: BTreeMap::new(),
            gauge: Gauge::begin(),
            decided: Arc::default(),
            qemu: None,
            subject: None,
            link: None,
            data: Vec::new(),
            bulk: None,
            head: None,
            tail: Tail::default(),
            counters: Arc::default(),
            pace: Pace::default(),
            flushed: false,
            pinged_at: Instant::now(),
            guest_ran: true,
            resumed: false,
        }
    }

    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Event>) {
        self.watch_qemu();
        let job = Arc::clone(&self.job);
        let mut cancelled = false;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.perform().await;
            if self.machine.as_ref().is_none_or(|machine| machine.outcome().is_some()) {
                return;
            }
            let next =
                self.timers.iter().min_by_key(|(_, at)| **at).map(|(timer, at)| (*timer, *at));
            tokio::select! {
                biased;
                Some(event) = inbox.recv() => self.event(event).await,
                timer = fire(next) => {
                    self.timers.remove(&timer);
                    self.fact(Fact::TimerFired(timer));
                }
                () = job.cancel_requested(), if !cancelled => {
                    cancelled = true;
                    self.fact(Fact::CancelRequested);
                }
                _ = tick.tick() => self.tick().await,
            }
        }
    }

    fn fact(&mut self, fact: Fact) {
        let Some(machine) = self.machine.take() else { return };
        let mut effects = Vec::new();
        let machine = machine.handle(fact, &mut effects);
        self.job.set_phase(machine.phase());
        self.machine = Some(machine);
        self.effects.extend(effects);
        self.note_decision();
    }

    fn phase(&self) -> &'static str {
        self.machine.as_ref().map_or("ended", Source::phase)
    }

    async fn event(&mut self, event: Event) {
        match event {
            Event::Inbound(Inbound::Message(message)) => self.message(*message).await,
            Event::Inbound(Inbound::Tail(_)) => {
                self.fact(Fact::PeerFailed("the destination sent device state".into()))
            }
            Event::Inbound(Inbound::Closed(why)) => {
                self.link = None;
                self.fact(Fact::PeerLost(why));
            }
            Event::Stream(event) => self.stream(event).await,
            Event::Worker(number, WorkerReport::RoundDone(done)) => {
                if let Some(round) =
                    self.bulk.as_mut().and_then(|bulk| bulk.worker_done(number, done))
                {
                    self.round_done(round).await;
                }
            }
            Event::Worker(_, WorkerReport::Failed(why)) => self.fact(Fact::PeerLost(why)),
            Event::QemuDied(why) => self.fact(Fact::QemuDied(why)),
            Event::Inquired(Ok(link)) => {
                self.link = Some(link);
                self.inquire().await;
            }
            Event::Inquired(Err(error)) => {
                tracing::warn!(job = %self.job.id(), %error, "the destination cannot be asked")
            }
        }
    }

    async fn message(&mut self, message: Message) {
        if self.timers.contains_key(&Timer::Silence) {
            let limit = Limits::default().stopped_silence;
            self.timers.insert(Timer::Silence, tokio::time::Instant::now() + limit);
        }
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
                self.fact(Fact::PeerRunning);
            }
            Message::Discarded(_) => self.fact(Fact::PeerDiscarded),
            Message::Answer(answer) if answer.job == *self.job.id() => self.answered(answer.state),
            Message::Pong(echo) => self.pong(echo),
            Message::Ping(echo) => self.send(&Message::Pong(echo)).await,
            other => self.fact(Fact::PeerFailed(format!(
                "the destination sent {} out of turn",
                other.name()
            ))),
        }
    }

    fn answered(&mut self, state: AnswerState) {
        match state {
            AnswerState::Running => self.fact(Fact::PeerRunning),
            AnswerState::Discarded => self.fact(Fact::PeerDiscarded),
            AnswerState::Unknown => {
                let why = "the destination does not know what became of the guest; look there before resuming it here";
                self.fact(Fact::PeerUnknown(why.into()));
            }
            // It is at it; it will be asked again.
            _ => {}
        }
    }

    fn pong(&mut self, echo: wire::Echo) {
        let now = sterna_host::clock::now();
        let took = now.since(sterna_model::Instant { nanos: echo.sent_ns });
        // The fastest counts: others waited for something else, such as the start of the destination's QEMU.
        self.gauge.round_trip = Some(self.gauge.round_trip.map_or(took, |best| best.min(took)));
    }

    fn missing(&mut self, missing: &wire::Missing) {
        self.gauge.requested += missing.pages.len() as u64;
        let Some(bulk) = &mut self.bulk else { return };
        bulk.request(&missing.pages);
        if self.flushed {
            bulk.begin_last();
        }
    }

    async fn stream(&mut self, event: StreamEvent) {
        match event {
            StreamEvent::Head(head) => {
                if let Err(why) = self.head(*head).await {
                    self.fact(Fact::QemuFailed(why));
                }
            }
            StreamEvent::Completed(tail) => {
                self.gauge.marks.drained = Some(Instant::now());
                self.tail = *tail;
                self.fact(Fact::StreamCompleted);
            }
            StreamEvent::Broken(why) => self.fact(Fact::QemuFailed(why)),
        }
    }

    /// The stream has begun: the destination is told, the workers start. A stream that was begun anew changes nothing.
    async fn head(&mut self, head: Head) -> Result<(), String> {
        if self.bulk.is_some() {
            return Ok(());
        }
        let layout = head.memory.layout().clone();
        self.gauge.memory = sterna_model::ByteCount(u64::from(layout.pages()) * PAGE_BYTES as u64);
        let configuration = Blob::new(head.configuration.bytes().to_vec());
        let message = Message::StreamHead(wire::StreamHead {
            configuration: configuration.ok_or("QEMU's configuration section is too long")?,
            layout,
            ram_section: wire::RamSection {
                section: head.ram.section_id,
                instance: head.ram.instance_id,
            },
        });
        self.send(&message).await;
        let to = self.events.clone();
        let reports: super::bulk::Reports =
            Arc::new(move |number, report| drop(to.send(Event::Worker(number, report))));
        let settings = Settings { key: self.key, effort: self.effort(), rate: self.rate() };
        let (memory, tracker) = (Arc::clone(&head.memory), Arc::clone(&head.tracker));
        let mut bulk =
            Bulk::start(std::mem::take(&mut self.data), memory, tracker, &settings, &reports)?;
        bulk.begin_round();
        self.bulk = Some(bulk);
        self.head = Some(head);
        Ok(())
    }

    fn effort(&self) -> Option<Effort> {
        match self.wanted.options.compress {
            sterna_api::Compress::Auto => None,
            sterna_api::Compress::None => Some(Effort::Raw),
            sterna_api::Compress::Level(level) => {
                let level = i8::try_from(level).ok().and_then(Level::new);
                Some(Effort::Zstd(level.unwrap_or(Level::NORMAL)))
            }
        }
    }

    fn rate(&self) -> Option<Rate> {
        let limits = [self.wanted.options.bandwidth, self.agent.config.limits.bandwidth];
        limits.into_iter().flatten().min()
    }

    async fn round_done(&mut self, round: RoundSum) {
        let Some(bulk) = &self.bulk else { return };
        if matches!(self.phase(), "flushing") {
            self.gauge.flushed(&round, self.tail.bytes.len() as u64);
            return self.send_final(&round).await;
        }
        let facts = self.gauge.round_ended(&round, bulk);
        self.fact(Fact::RoundEnded(facts));
    }

    /// The policy's last decision goes into the report.
    fn note_decision(&mut self) {
        let decided = self.decided.lock().ok().and_then(|mut decided| decided.take());
        let Some((facts, decision)) = decided else { return };
        if decision == Decision::Stop {
            self.gauge.marks.decided = Some(Instant::now());
        }
        tracing::debug!(job = %self.job.id(), ?facts, ?decision, "a round has ended");
        self.gauge.decided(&facts, &decision);
    }

    async fn send_final(&mut self, round: &RoundSum) {
        let commands = self.tail.commands.iter().filter_map(|command| {
            let (command, data) = command.parts();
            Some(wire::StreamCommand { command, data: Blob::new(data)? })
        });
        let message = Message::Final(wire::Final {
            root: round.sum.root,
            frames_per_connection: round.frames.clone(),
            tail_bytes: self.tail.bytes.len() as u64,
            guest: if self.guest_ran { GuestState::Running } else { GuestState::Paused },
            commands: commands.collect(),
        });
        self.send(&message).await;
        self.gauge.marks.flushed = Some(Instant::now());
        self.flushed = true;
        self.fact(Fact::Flushed(round.sum.root));
    }

    async fn perform(&mut self) {
        while let Some(effect) = self.effects.pop_front() {
            match effect {
                Effect::Prepare => self.prepare().await,
                Effect::Journal(record) => self.journal(record),
                Effect::BeginCopy => self.begin_stream().await,
                Effect::BeginRound => {
                    if let Some(bulk) = &mut self.bulk {
                        bulk.begin_round();
                    }
                }
                Effect::RestartStream => self.restart_stream().await,
                Effect::StopGuest => self.stop_guest().await,
                Effect::Flush => self.flush().await,
                Effect::Commit(offer) => self.commit(offer).await,
                Effect::Abort(why) => self.abort(&why).await,
                Effect::Inquire => self.inquire().await,
                Effect::ReturnGuest(may_return) => self.return_guest(may_return).await,
                Effect::DestroyGuest => self.destroy_guest().await,
                Effect::SetTimer(timer, after) => {
                    self.timers.insert(timer, tokio::time::Instant::now() + after);
                }
                Effect::ClearTimer(timer) => drop(self.timers.remove(&timer)),
                Effect::End(outcome) => self.end(&outcome),
            }
        }
    }

    /// Looks at the VM, reaches the destination, and lets it get ready while we do too.
    async fn prepare(&mut self) {
        let mut refusals = preflight::check_options(&self.wanted.options);
        let record = self.wanted.vm.record();
        match preflight::examine(&record, &self.wanted.live).await {
            Ok(subject) if refusals.is_empty() => {
                self.gauge.memory = subject.ram_bytes;
                self.subject = Some(subject);
            }
            Ok(_) => {}
            Err(more) => refusals.extend(more),
        }
        let Some(subject) = self.subject.as_ref().filter(|_| refusals.is_empty()) else {
            return self.fact(Fact::PeerRefused(refusals));
        };
        let message = match prepare_message(
            self.job.id(),
            &record,
            subject,
            &self.wanted,
            self.key,
            &self.agent,
        ) {
            Ok(message) => message,
            Err(refusal) => return self.fact(Fact::PeerRefused(vec![refusal])),
        };
        match self.connect().await {
            Ok(link) => self.link = Some(link),
            Err(error) if is_refusal(&error) => {
                return self.fact(Fact::PeerRefused(vec![error.to_refusal()]));
            }
            Err(error) => return self.fact(Fact::PeerFailed(error.to_string())),
        }
        self.send(&message).await;
        if let Err(why) = self.prepare_qemu().await {
            self.fact(Fact::QemuFailed(why));
        }
    }

    async fn connect(&self) -> Result<Link, PeerError> {
        let options = self.agent.link_options();
        let (greeted, _) =
            peer::connect(&self.agent.identity, &self.wanted.to, Role::Control, options).await?;
        let to = self.events.clone();
        Ok(Link::start(greeted, Side::Destination, move |inbound| {
            drop(to.send(Event::Inbound(inbound)))
        }))
    }

    async fn prepare_qemu(&mut self) -> Result<(), String> {
        let qmp = self.wanted.live.qmp.clone();
        let schema = self.wanted.live.schema().await.map_err(|error| error.to_string())?;
        let qemu = SourceQemu::prepare(qmp, &schema).await.map_err(|error| error.to_string())?;
        self.guest_ran = qemu.guest_ran();
        if let Some(journal) = &mut self.journal {
            let ran = Entry::GuestRan(self.guest_ran);
            journal.append(&ran).map_err(|error| error.to_string())?;
        }
        self.qemu = Some(qemu);
        Ok(())
    }

    /// The destination is ready: its data connections are made.
    async fn prepared(&mut self, prepared: wire::Prepared) {
        self.gauge.destination_start = Duration::from_millis(prepared.start_ms);
        let options = self.agent.link_options();
        let connects = (0..self.wanted.options.connections).map(|connection| {
            let (job, token) = (self.job.id().clone(), prepared.token);
            let role = Role::Data { job, token, connection };
            let (agent, to) = (Arc::clone(&self.agent), self.wanted.to.clone());
            tokio::spawn(async move { peer::connect(&agent.identity, &to, role, options).await })
        });
        let connects: Vec<_> = connects.collect();
        for connect in connects {
            let blocking = match connect.await {
                Ok(Ok((greeted, _))) => {
                    greeted.connection.into_blocking().map(|link| (link, greeted.writer))
                }
                Ok(Err(error)) => return self.fact(Fact::PeerFailed(error.to_string())),
                Err(error) => return self.fact(Fact::PeerFailed(error.to_string())),
            };
            match blocking {
                Ok(data) => self.data.push(data),
                Err(error) => return self.fact(Fact::PeerFailed(error.to_string())),
            }
        }
        self.gauge.marks.prepared = Some(Instant::now());
        self.ping().await;
        self.fact(Fact::PeerPrepared);
    }

    fn journal(&mut self, record: SourceRecord) {
        let written = tokio::task::block_in_place(|| match &mut self.journal {
            Some(journal) => journal.append(&Entry::Source(record)),
            None => self.open_journal(),
        });
        self.fact(match written {
            Ok(()) => Fact::Journaled(record),
            Err(error) => Fact::JournalFailed(error.to_string()),
        });
    }

    /// The journal's first entry is its subject, which stands for *copying*.
    fn open_journal(&mut self) -> Result<(), JournalError> {
        let record = self.wanted.vm.record();
        let subject = JournalSubject {
            job: self.job.id().clone(),
            vm: record.name,
            uuid: record.uuid,
            epoch: record.epoch.next(),
            peer: self.wanted.to.name.clone(),
        };
        let first = Entry::SourceOf(subject, self.job.started_at().to_owned());
        self.journal = Some(Journal::begin(&self.agent.config.state_dir, self.job.id(), &first)?);
        Ok(())
    }

    async fn begin_stream(&mut self) {
        let (Some(qemu), Some(subject)) = (&mut self.qemu, &self.subject) else {
            return self.fact(Fact::QemuFailed("QEMU was not prepared".into()));
        };
        let budget_bytes = self.agent.config.limits.memory_budget.0;
        let mut readable = Some(preflight::open_memory(&self.wanted.live, subject).await);
        let (workers, before) = (usize::from(self.wanted.options.connections), self.head.clone());
        let prepare: super::reader::Prepare = Box::new(move |layout| {
            if let Some(head) = before.as_ref().filter(|head| head.memory.layout() == layout) {
                return Ok((Arc::clone(&head.memory), Arc::clone(&head.tracker)));
            }
            let readable = readable.take().unwrap_or_default();
            let memory = super::memory::SourceMemory::open(layout, readable, budget_bytes)?;
            let tracker = sterna_migration::tracker::Tracker::new(layout.pages(), workers);
            Ok((Arc::new(memory), Arc::new(tracker)))
        });
        match qemu.begin().await {
            Ok(stream) => {
                let (counters, to) = (Arc::clone(&self.counters), self.events.clone());
                let events = Box::new(move |event| drop(to.send(Event::Stream(event))));
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

    async fn restart_stream(&mut self) {
        tracing::warn!(job = %self.job.id(), "QEMU completed by itself; the guest goes on, and so does the move");
        self.pace = Pace::default();
        let resumed = match &self.qemu {
            Some(qemu) => qemu.resume_after_completion().await.map_err(|error| error.to_string()),
            None => Err("QEMU was not prepared".into()),
        };
        match resumed {
            Ok(()) => {
                self.begin_stream().await;
                if let Some(bulk) = &mut self.bulk {
                    bulk.begin_round();
                }
            }
            Err(why) => self.fact(Fact::QemuFailed(why)),
        }
    }

    /// Stops the guest, and lets QEMU make its last pass.
    async fn stop_guest(&mut self) {
        if let Err(error) = self.before_stop().await {
            return self.fact(Fact::QemuFailed(error.to_string()));
        }
        let Some(qemu) = &self.qemu else { return };
        self.gauge.marks.stop_sent = Some(Instant::now());
        let stopped = qemu.stop().await;
        self.gauge.marks.stopped = Some(Instant::now());
        match stopped {
            Ok(Stop::Ours { syncs }) => {
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

    /// What can be done while the guest still runs. QEMU's pace is raised: it notices that only at the end of a window.
    async fn before_stop(&mut self) -> Result<(), sterna_host::qmp::QmpError> {
        let Some(qemu) = &mut self.qemu else { return Ok(()) };
        qemu.keep_reading_end().await?;
        if self.pace.bytes_per_second.take().is_some() {
            qemu.pace(None).await?;
            self.counters.wait_for_idle(PACE_DEADLINE).await;
        }
        Ok(())
    }

    async fn flush(&mut self) {
        if let Some(bulk) = &mut self.bulk {
            bulk.begin_last();
        }
        if let Some(link) = &self.link
            && let Err(error) = link.send_tail(&self.tail.bytes).await
        {
            self.fact(Fact::PeerLost(error.to_string()));
        }
    }

    async fn commit(&mut self, _offer: DurableOffer) {
        self.gauge.roots_match = true;
        self.gauge.marks.committed = Some(Instant::now());
        let epoch = self.wanted.vm.record().epoch.next();
        self.send(&Message::Commit(wire::Commit { epoch })).await;
    }

    async fn abort(&mut self, why: &str) {
        self.send(&Message::Abort(wire::Abort { reason: Text::new(why) })).await;
    }

    /// Asks who owns the guest: on the connection that there is, or on a new one.
    async fn inquire(&mut self) {
        if self.link.is_some() {
            let record = self.wanted.vm.record();
            let inquire = wire::Inquire {
                job: self.job.id().clone(),
                uuid: record.uuid,
                epoch: record.epoch.next(),
            };
            return self.send(&Message::Inquire(inquire)).await;
        }
        let (agent, to, events) =
            (Arc::clone(&self.agent), self.wanted.to.clone(), self.events.clone());
        tokio::spawn(async move {
            let options = agent.link_options();
            let connected = peer::connect(&agent.identity, &to, Role::Control, options).await;
            let link = connected.map(|(greeted, _)| {
                let inbound = events.clone();
                Link::start(greeted, Side::Destination, move |event| {
                    drop(inbound.send(Event::Inbound(event)))
                })
            });
            let _ = events.send(Event::Inquired(link));
        });
    }

    async fn return_guest(&mut self, _may_return: MayReturn) {
        if let Some(bulk) = &mut self.bulk {
            bulk.abandon();
        }
        self.data.clear();
        let returned = match &self.qemu {
            Some(qemu) => qemu.give_back().await,
            // Taken up again after a restart: the guest stands. Otherwise nothing was done to it.
            None if self.resumed => {
                super::qemu::give_back(&self.wanted.live.qmp, self.guest_ran).await
            }
            None => Ok(()),
        };
        self.gauge.marks.running = Some(Instant::now());
        self.fact(match returned {
            Ok(()) => Fact::GuestReturned,
            Err(error) => {
                Fact::ReturnFailed(format!("the guest could not be resumed at the source: {error}"))
            }
        });
    }

    async fn destroy_guest(&mut self) {
        self.gauge.marks.over = Some(Instant::now());
        if let Some(bulk) = &mut self.bulk {
            bulk.finish();
        }
        let (host, job) = (self.wanted.to.name.clone(), self.job.id().clone());
        self.agent.change(&self.wanted.vm, |record| {
            record.epoch = record.epoch.next();
            record.owner = Owner::MovedTo { host, job };
        });
        if let Err(error) = self.wanted.live.quit().await {
            tracing::error!(job = %self.job.id(), %error, "the source's QEMU does not end; its guest is the destination's");
        }
        self.wanted.vm.ended(Owner::clone);
        self.agent.remember(&self.wanted.vm);
    }

    fn end(&mut self, outcome: &Outcome) {
        self.wanted.vm.end_job();
        match outcome {
            Outcome::Lost(_) => {
                self.agent.change(&self.wanted.vm, |record| record.owner = Owner::Lost)
            }
            Outcome::Unknown(_) => {
                let job = self.job.id().clone();
                self.agent.change(&self.wanted.vm, |record| record.owner = Owner::Unknown { job });
            }
            _ => {}
        }
        let ends = Ends {
            job: &self.job,
            strategy: self.strategy,
            source: self.agent.config.name.as_str(),
            link: self.link.as_ref(),
            peak_memory: self.agent.anonymous.peak(),
        };
        let report = Box::new(self.gauge.report(&ends, outcome, self.bulk.as_ref()));
        if let Some(journal) = &mut self.journal
            && let Err(error) = journal.append(&Entry::Report(report.clone()))
        {
            tracing::warn!(job = %self.job.id(), %error, "the journal lacks the report");
        }
        let state = serde_json::to_value(report.outcome).ok();
        let state = state.as_ref().and_then(serde_json::Value::as_str).unwrap_or("ended");
        tracing::info!(job = %self.job.id(), vm = %self.job.vm(), state, error = report.error, "the job has ended");
        self.job.end(state, report.error.clone(), Some(report));
    }

    async fn send(&mut self, message: &Message) {
        // A connection that is gone reports so itself.
        if let Some(link) = &self.link
            && let Err(error) = link.send(message).await
        {
            tracing::debug!(job = %self.job.id(), %error, message = message.name(), "a message could not be sent");
        }
    }

    async fn ping(&mut self) {
        self.pinged_at = Instant::now();
        let echo = wire::Echo { nonce: 0, sent_ns: sterna_host::clock::now().nanos };
        self.send(&Message::Ping(echo)).await;
    }

    async fn tick(&mut self) {
        self.agent.anonymous.sample();
        let stopped = self.timers.contains_key(&Timer::Silence);
        let every = if stopped { PING_EVERY } else { Duration::from_secs(1) };
        if self.pinged_at.elapsed() >= every {
            self.ping().await;
        }
        self.pace().await;
        let progress = self.gauge.progress(&self.job, self.phase(), self.bulk.as_ref());
        self.job.set_progress(progress);
    }

    /// Lets QEMU write a little more than the guest dirties, so that it looks a few times a second and no more.
    async fn pace(&mut self) {
        let over = self.bulk.as_ref().is_some_and(|bulk| bulk.tracker().first_pass_over());
        let Some(qemu) = self.qemu.as_ref().filter(|_| over && self.phase() == "copying") else {
            return;
        };
        let pages = self.counters.pages.load(Ordering::Relaxed);
        let elapsed = self.pace.seen_at.elapsed();
        let dirty = (pages - self.pace.seen_pages) * PAGE_BYTES as u64;
        let first = self.pace.seen_pages == 0;
        (self.pace.seen_pages, self.pace.seen_at) = (pages, Instant::now());
        if first {
            return;
        }
        let rate = Rate::of(sterna_model::ByteCount(dirty), elapsed);
        self.gauge.dirty_rate = rate;
        let wanted = (rate.bytes_per_second * 3 / 2).max(MIN_PACE_BYTES_PER_SECOND);
        let close = self.pace.bytes_per_second.is_some_and(|now| wanted.abs_diff(now) <= now / 4);
        if close {
            return;
        }
        match qemu.pace(Some(wanted)).await {
            Ok(()) => self.pace.bytes_per_second = Some(wanted),
            Err(error) => tracing::debug!(%error, "QEMU could not be paced"),
        }
    }

    fn watch_qemu(&self) {
        let (process, events) = (Arc::clone(&self.wanted.live.process), self.events.clone());
        let log = self.wanted.vm.record().log;
        tokio::spawn(async move {
            let exit = process.exited().await.ok();
            let _ = events.send(Event::QemuDied(describe_exit(exit) + &quote_log(&log)));
        });
    }
}

/// A policy whose decisions are kept for the report.
struct Watched {
    policy: Precopy,
    decided: Decided,
}

type Decided = Arc<std::sync::Mutex<Option<(RoundFacts, Decision)>>>;

impl Policy for Watched {
    fn name(&self) -> &'static str {
        self.policy.name()
    }

    fn round_ended(&mut self, facts: &RoundFacts) -> Decision {
        let decision = self.policy.round_ended(facts);
        if let Ok(mut decided) = self.decided.lock() {
            *decided = Some((facts.clone(), decision.clone()));
        }
        decision
    }
}

/// What a move begins with at the destination.
pub(super) fn prepare_message(
    job: &JobId,
    record: &crate::registry::Record,
    subject: &Subject,
    wanted: &Move,
    key: [u8; 32],
    agent: &Agent,
) -> Result<Message, sterna_model::Refusal> {
    let link_timeout = agent.config.limits.link_timeout.as_millis();
    Ok(Message::Prepare(wire::Prepare {
        job: job.clone(),
        vm: record.name.clone(),
        uuid: record.uuid,
        epoch: record.epoch.next(),
        description: preflight::describe(&subject.description)?,
        page_key: PageKey(key),
        connections: wanted.options.connections,
        verify: if wanted.options.verify_full { Verify::Full } else { Verify::Roots },
        link_timeout_ms: u64::try_from(link_timeout).unwrap_or(u64::MAX),
    }))
}

/// Whether a peer's no is a decision (exit code 3), or something that may pass.
fn is_refusal(error: &PeerError) -> bool {
    match error {
        PeerError::Tls(error) => !error.is_transient(),
        PeerError::Refused { .. } => true,
        _ => false,
    }
}

async fn fire(next: Option<(Timer, tokio::time::Instant)>) -> Timer {
    match next {
        Some((timer, at)) => {
            tokio::time::sleep_until(at).await;
            timer
        }
        None => std::future::pending().await,
    }
}
