//! The drive loop of a move that arrives: performs the destination machine's effects, turns what happens into facts.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sterna_host::qmp::Delivery;
use sterna_migration::destination::{Answer, Destination, Effect, End, Entitlement, Fact};
use sterna_migration::journal::{DestinationRecord, Subject};
use sterna_model::HostName;
use sterna_wire::message::{self as wire, Prepare};
use sterna_wire::{AnswerState, GuestState, Message, Text, Token};
use tokio::sync::mpsc;

use super::qemu::{self, Waiting};
use super::streams::{DataConnection, StreamEvent, Streams};
use crate::agent::Agent;
use crate::jobs::{Job, Role};
use crate::journal::{Entry, Journal, JournalError};
use crate::link::{Inbound, Link};
use crate::registry::Owner;
use crate::vm::{describe_exit, quote_log};

/// Pages of blocks that QEMU has to be fed go ahead this often.
const FEED_EVERY: Duration = Duration::from_millis(100);

/// QEMU leaves its load within this.
const CONT_DEADLINE: Duration = Duration::from_secs(5);

/// What others need to reach a job that arrives.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    /// Who sends.
    pub peer: HostName,
    /// What its data connections must show.
    pub token: Token,
    events: mpsc::UnboundedSender<Event>,
}

impl Handle {
    /// Gives the job a data connection.
    pub(crate) fn data(&self, connection: DataConnection) {
        let _ = self.events.send(Event::Data(Box::new(connection)));
    }

    /// Asks the job who owns the guest; the answer goes to `link`.
    pub(crate) fn ask(&self, link: Link) {
        let _ = self.events.send(Event::Asked(link));
    }

    /// Something came on the job's control connection.
    pub(crate) fn inbound(&self, inbound: Inbound) {
        let _ = self.events.send(Event::Inbound(inbound));
    }
}

enum Event {
    Inbound(Inbound),
    Data(Box<DataConnection>),
    Asked(Link),
    Stream(StreamEvent),
    QemuLoaded,
    QemuDied(String),
}

/// Begins a job that a peer asked for; its drive loop runs until the job is over.
///
/// # Errors
/// When there are no random bytes for its token.
pub(crate) fn begin(
    agent: &Arc<Agent>,
    peer: &HostName,
    prepare: Prepare,
    link: Link,
) -> std::io::Result<Handle> {
    let (events, inbox) = mpsc::unbounded_channel();
    let token = Token(crate::random::bytes()?);
    let job =
        agent.jobs.begin(prepare.job.clone(), prepare.vm.clone(), peer.clone(), Role::Destination);
    let drive = Drive::new(Arc::clone(agent), job, prepare, token, link, events.clone());
    tokio::spawn(drive.run(inbox));
    Ok(Handle { peer: peer.clone(), token, events })
}

struct Drive {
    agent: Arc<Agent>,
    job: Arc<Job>,
    prepare: Prepare,
    token: Token,
    /// Who gets answers: the control connection, and whoever asked since.
    links: Vec<Link>,
    events: mpsc::UnboundedSender<Event>,
    machine: Option<Destination>,
    effects: VecDeque<Effect>,
    journal: Option<Journal>,
    waiting: Option<Waiting>,
    streams: Streams,
    guest: GuestState,
    commit_came: Option<Instant>,
    load_begun: Instant,
    watch_until: Option<tokio::time::Instant>,
    /// The control connection is gone.
    abandoned: bool,
}

impl Drive {
    fn new(
        agent: Arc<Agent>,
        job: Arc<Job>,
        prepare: Prepare,
        token: Token,
        link: Link,
        events: mpsc::UnboundedSender<Event>,
    ) -> Self {
        let to = events.clone();
        let streams = Streams::new(&prepare, move |event| drop(to.send(Event::Stream(event))));
        Self {
            agent,
            job,
            prepare,
            token,
            links: vec![link],
            events,
            machine: None,
            effects: VecDeque::new(),
            journal: None,
            waiting: None,
            streams,
            guest: GuestState::Running,
            commit_came: None,
            load_begun: Instant::now(),
            watch_until: None,
            abandoned: false,
        }
    }

    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Event>) {
        let mut first = Vec::new();
        self.machine = Some(Destination::begin(&mut first));
        self.effects.extend(first);
        let mut tick = tokio::time::interval(FEED_EVERY);
        let progress = self.streams.progress();
        loop {
            self.perform().await;
            if self.machine.as_ref().is_none_or(|machine| machine.end().is_some()) {
                break;
            }
            let until = self.watch_until;
            tokio::select! {
                event = inbox.recv() => match event {
                    Some(event) => self.event(event).await,
                    None => break,
                },
                () = progress.notified() => self.progressed().await,
                () = sleep_until(until) => {
                    self.watch_until = None;
                    self.fact(Fact::PeerLost("it fell silent".into()));
                }
                _ = tick.tick() => {
                    self.agent.anonymous.sample();
                    self.streams.feed();
                }
            }
        }
        self.streams.close();
        self.answer_latecomers(inbox).await;
        self.agent.forget_incoming(&self.prepare.job);
    }

    /// A job that is over still answers whoever asks on its connections.
    async fn answer_latecomers(&mut self, mut inbox: mpsc::UnboundedReceiver<Event>) {
        while !self.abandoned {
            let Some(event) = inbox.recv().await else { return };
            match event {
                Event::Inbound(Inbound::Closed(_)) => self.abandoned = true,
                Event::Inbound(Inbound::Message(message)) => {
                    if matches!(*message, Message::Commit(_) | Message::Inquire(_)) {
                        self.fact(Fact::Asked);
                    }
                }
                Event::Asked(link) => {
                    self.links.push(link);
                    self.fact(Fact::Asked);
                }
                _ => {}
            }
            self.perform().await;
        }
    }

    async fn event(&mut self, event: Event) {
        match event {
            Event::Inbound(Inbound::Message(message)) => self.message(*message).await,
            Event::Inbound(Inbound::Tail(bytes)) => {
                if let Err(why) = self.streams.tail(&bytes) {
                    self.fact(Fact::Failed(why));
                }
            }
            Event::Inbound(Inbound::Closed(why)) => {
                self.abandoned = true;
                self.fact(Fact::PeerLost(why));
            }
            Event::Data(connection) => {
                if let Err(why) = self.streams.connect(*connection) {
                    self.fact(Fact::Failed(why));
                }
            }
            Event::Asked(link) => {
                self.links.push(link);
                self.fact(Fact::Asked);
            }
            Event::Stream(StreamEvent::Failed(why)) => self.fact(Fact::Failed(why)),
            Event::Stream(StreamEvent::Verified) => self.memory_loaded(),
            Event::QemuLoaded => self.qemu_loaded(),
            Event::QemuDied(why) => self.fact(Fact::QemuDied(why)),
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
            Message::Abort(abort) => self.fact(Fact::Abort(abort.reason.to_string())),
            Message::Inquire(_) => self.fact(Fact::Asked),
            Message::Ping(echo) => self.send(&Message::Pong(echo)).await,
            other => {
                self.fact(Fact::Failed(format!("the source sent {} out of turn", other.name())))
            }
        }
    }

    /// A restarted agent must not resume a guest that its user had paused.
    fn note_run_state(&mut self) -> Result<(), JournalError> {
        match &mut self.journal {
            Some(journal) if self.guest == GuestState::Paused => {
                journal.append(&Entry::GuestRan(false))
            }
            _ => Ok(()),
        }
    }

    async fn head(&mut self, head: &wire::StreamHead) -> Result<(), String> {
        let Some(waiting) = &mut self.waiting else {
            return Err("the source sent its stream's head before it was prepared for".into());
        };
        let shared = std::mem::take(&mut waiting.shared);
        self.streams.open(head, shared, self.agent.config.limits.memory_budget)?;
        let stream = qemu::begin_load(&waiting.live.qmp).await?;
        self.streams.load(head, stream)
    }

    /// Frames were applied: acknowledge, ask for what is missing, and see whether everything is here.
    async fn progressed(&mut self) {
        for message in self.streams.answers() {
            self.send(&message).await;
        }
        if let Some(root) = self.streams.take_complete() {
            self.load_begun = Instant::now();
            self.fact(Fact::FinalReceived(root));
            self.streams.finish();
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

    fn fact(&mut self, fact: Fact) {
        let Some(machine) = self.machine.take() else { return };
        let mut effects = Vec::new();
        let machine = machine.handle(fact, &mut effects);
        self.job.set_phase(machine.phase());
        self.machine = Some(machine);
        self.effects.extend(effects);
    }

    async fn perform(&mut self) {
        while let Some(effect) = self.effects.pop_front() {
            match effect {
                Effect::StartQemu => self.start_qemu().await,
                Effect::Journal(record) => self.journal(record),
                Effect::Answer(answer) => self.answer(answer).await,
                Effect::Resume(entitlement) => self.resume(entitlement).await,
                Effect::KillQemu => self.kill().await,
                Effect::WatchSource(limit) => {
                    self.watch_until = Some(tokio::time::Instant::now() + limit);
                }
                Effect::End(end) => self.end(&end),
            }
        }
    }

    fn journal(&mut self, record: DestinationRecord) {
        let written = tokio::task::block_in_place(|| match &mut self.journal {
            Some(journal) => journal.append(&Entry::Destination(record)),
            None => self.open_journal(),
        });
        self.fact(match written {
            Ok(()) => Fact::Journaled(record),
            Err(error) => Fact::JournalFailed(error.to_string()),
        });
    }

    /// The journal's first entry is its subject, which stands for *prepared*.
    fn open_journal(&mut self) -> Result<(), JournalError> {
        let subject = Subject {
            job: self.prepare.job.clone(),
            vm: self.prepare.vm.clone(),
            uuid: self.prepare.uuid,
            epoch: self.prepare.epoch,
            peer: self.job.peer().clone(),
        };
        let first = Entry::DestinationOf(subject, self.job.started_at().to_owned());
        self.journal =
            Some(Journal::begin(&self.agent.config.state_dir, &self.prepare.job, &first)?);
        Ok(())
    }

    async fn start_qemu(&mut self) {
        let started = match qemu::check(&self.agent, &self.prepare) {
            Ok(checked) => checked.start(&self.agent, &self.prepare).await,
            Err(refusals) => Err(refusals),
        };
        match started {
            Ok(waiting) => {
                self.watch_qemu(&waiting);
                self.waiting = Some(waiting);
                self.fact(Fact::QemuStarted);
            }
            Err(refusals) => self.fact(Fact::StartRefused(refusals)),
        }
    }

    /// Tells when QEMU has loaded its stream, and when it is gone.
    fn watch_qemu(&self, waiting: &Waiting) {
        let (loaded, died) = (self.events.clone(), self.events.clone());
        let mut qemu_events = waiting.live.qmp.subscribe();
        tokio::spawn(async move {
            while let Delivery::Event(event) = qemu_events.next().await {
                if event.name == "MIGRATION" && event.data["status"] == "completed" {
                    let _ = loaded.send(Event::QemuLoaded);
                }
            }
        });
        let (process, log) = (Arc::clone(&waiting.live.process), waiting.vm.record().log);
        tokio::spawn(async move {
            // Not to be able to watch is not to see it end.
            if let Ok(exit) = process.exited().await {
                let _ = died.send(Event::QemuDied(describe_exit(Some(exit)) + &quote_log(&log)));
            }
        });
    }

    async fn answer(&mut self, answer: Answer) {
        let message = match answer {
            Answer::Prepared => self.prepared(),
            Answer::Refused(refusals) => Message::Refused(wire::Refused::new(&refusals)),
            Answer::Loaded(root) => Message::Loaded(wire::Loaded {
                root,
                pages_hashed: self.streams.pages_hashed(),
                load_ms: u64::try_from(self.load_begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            }),
            Answer::Failed(why) => Message::Failed(wire::Failed { error: Text::new(&why) }),
            Answer::Running => {
                let since = self.commit_came.map_or(Duration::ZERO, |came| came.elapsed());
                Message::Running(wire::Running {
                    commit_to_resume_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
                    peak_anonymous_bytes: self.agent.anonymous.peak().0,
                })
            }
            Answer::Discarded => {
                let (job, epoch) = (self.prepare.job.clone(), self.prepare.epoch);
                Message::Discarded(wire::Discarded { job, epoch })
            }
            Answer::Unknown(_) => {
                let (job, state) = (self.prepare.job.clone(), AnswerState::Unknown);
                Message::Answer(wire::Answer { job, state })
            }
        };
        self.send(&message).await;
    }

    fn prepared(&self) -> Message {
        let waiting = self.waiting.as_ref();
        let shared = waiting
            .map(|waiting| waiting.shared.iter().map(|block| block.block().clone()).collect());
        let start_time = waiting.map_or(Duration::ZERO, |waiting| waiting.start_time);
        Message::Prepared(wire::Prepared {
            token: self.token,
            shared_blocks: shared.unwrap_or_default(),
            qemu_version: waiting.map(|waiting| waiting.version.clone()).unwrap_or_default(),
            start_ms: u64::try_from(start_time.as_millis()).unwrap_or(u64::MAX),
        })
    }

    async fn send(&mut self, message: &Message) {
        for link in &self.links {
            if let Err(error) = link.send(message).await {
                tracing::debug!(job = %self.prepare.job, %error, "an answer could not be sent");
            }
        }
    }

    /// Resumes the guest. Only whoever holds the entitlement may.
    async fn resume(&mut self, _entitlement: Entitlement) {
        let Some(waiting) = &self.waiting else {
            return self.fact(Fact::ResumeFailed("its QEMU is gone".into()));
        };
        let qmp = waiting.live.qmp.clone();
        if self.guest == GuestState::Running
            && let Err(error) = qmp.cont_after_migration(CONT_DEADLINE).await
        {
            return self.fact(Fact::ResumeFailed(error.to_string()));
        }
        self.fact(Fact::Resumed);
        // Not in the downtime: the announcement repeats itself and QEMU does it in the background.
        tokio::spawn(async move {
            if let Err(error) = qmp.announce_self().await {
                tracing::warn!(%error, "the guest could not be announced on its network");
            }
        });
    }

    async fn kill(&mut self) {
        self.streams.close();
        if let Some(waiting) = self.waiting.take() {
            if let Err(error) = waiting.live.kill().await {
                // It must be known dead before anyone says so: the guest stays paused at the source until then.
                tracing::error!(job = %self.prepare.job, %error, "the QEMU to be discarded does not end");
                self.waiting = Some(waiting);
                return;
            }
            self.agent.put_back(&waiting.vm, waiting.previous);
        }
        self.fact(Fact::Killed);
    }

    fn end(&mut self, end: &End) {
        let (state, error) = match end {
            End::Running => ("running", None),
            End::Discarded(why) => ("discarded", Some(why.clone())),
            End::Unknown(why) => ("unknown", Some(why.clone())),
        };
        if let Some(waiting) = &self.waiting {
            let job = self.prepare.job.clone();
            let owner = if *end == End::Running { Owner::Here } else { Owner::Unknown { job } };
            self.agent.change(&waiting.vm, |record| record.owner = owner);
            if *end == End::Running {
                self.agent.watch(&waiting.vm);
            }
        }
        if let (Some(journal), Some(why)) = (&mut self.journal, &error)
            && let Err(error) = journal.append(&Entry::Ended(why.clone()))
        {
            tracing::warn!(job = %self.prepare.job, %error, "the journal lacks its last line");
        }
        tracing::info!(job = %self.prepare.job, vm = %self.prepare.vm, state, error, "the job has ended here");
        self.job.end(state, error, None);
    }
}

async fn sleep_until(until: Option<tokio::time::Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
