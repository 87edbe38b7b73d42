//! The drive loop of a move that arrives: performs the destination machine's effects, turns what happens into facts.

mod answers;
mod faulting;
mod handle;
mod hands;
mod keeping;
mod messages;

pub(crate) use handle::{Handle, Left, begin, resume};

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sterna_migration::destination::{Destination, Effect, Fact};
use sterna_migration::journal::{DestinationRecord, Subject};
use sterna_wire::message::{Prepare, StreamHead};
use sterna_wire::{GuestState, Message, Token};
use tokio::sync::mpsc;

use super::qemu::{Checked, Waiting};
use super::streams::{StreamEvent, Streams};
use crate::agent::Agent;
use crate::incoming::memory::DestinationMemory;
use crate::jobs::Job;
use crate::journal::{Entry, JobJournal, MemoryRecord, Side};
use crate::link::{Inbound, Link};
use handle::FromPeer;

/// Pages of blocks that QEMU has to be fed go ahead this often.
const FEED_EVERY: Duration = Duration::from_millis(100);

/// A QEMU that was given a guest without all its pages has taken the locks of its images, which the source needs to go on:
/// it waits for the commit no longer than this.
const LOADED_FAULTING: Duration = Duration::from_secs(3);

/// What happens on this host. There is little of it; what peers send waits in a queue of its own, which is bounded.
enum Event {
    Stream(StreamEvent),
    QemuLoaded,
    QemuDied(String),
    /// A guest that lacks pages was resumed, or is being resumed for a while.
    Resumed(Result<(), String>),
    /// Time to try again to take QEMU's stream up.
    RecoverAgain,
    /// QEMU's stream broke, and nothing was heard since of QEMU's end.
    StillBroken(String),
}

/// Where the drive loop hears from.
struct Inbox {
    events: mpsc::UnboundedReceiver<Event>,
    peer: mpsc::Receiver<FromPeer>,
}

struct Drive {
    agent: Arc<Agent>,
    job: Arc<Job>,
    prepare: Prepare,
    /// What was found good, until QEMU is started.
    checked: Option<Checked>,
    token: Token,
    /// Who gets answers: the control connection, and whoever asked since.
    links: Vec<Link>,
    events: mpsc::UnboundedSender<Event>,
    machine: Option<Destination>,
    effects: VecDeque<Effect>,
    journal: JobJournal,
    waiting: Option<Waiting>,
    streams: Streams,
    guest: GuestState,
    commit_came: Option<Instant>,
    load_begun: Instant,
    watch_until: Option<tokio::time::Instant>,
    /// The control connection is gone.
    abandoned: bool,
    /// The number of the one that is heard.
    control: u64,
    /// All connections are gone, and the source may come back: for so long what is here is kept.
    away: Option<Duration>,
    /// What the source's stream began with.
    head: Option<StreamHead>,
    /// The source made its connections anew, and does not know whether it had arrived.
    head_may_repeat: bool,
    /// If the job comes to nothing, another one of the VM will follow.
    worth_keeping: bool,
    /// QEMU has placed every page.
    complete: bool,
    /// That the guest, which lacks pages, is resumed was told.
    resumed: bool,
    /// What the guest's memory consists of, where it may run without all of it.
    stored: Option<MemoryRecord>,
    /// QEMU's stream, as an earlier agent has left it.
    kept: Option<UnixStream>,
}

impl Drive {
    fn new(
        agent: Arc<Agent>,
        job: Arc<Job>,
        (prepare, checked): (Prepare, Checked),
        token: Token,
        link: Link,
        events: mpsc::UnboundedSender<Event>,
    ) -> Self {
        let to = events.clone();
        let mut streams = Streams::new(&prepare, move |event| drop(to.send(Event::Stream(event))));
        if prepare.reuse {
            let owner = (job.peer().clone(), prepare.uuid);
            streams.begin_with(agent.kept.take(&owner).unwrap_or_default());
        }
        let worth_keeping = prepare.reuse;
        let journal = to_begin(&agent, &job, &prepare);
        Self {
            agent,
            job,
            prepare,
            checked: Some(checked),
            token,
            links: vec![link],
            events,
            machine: None,
            effects: VecDeque::new(),
            journal,
            waiting: None,
            streams,
            guest: GuestState::Running,
            commit_came: None,
            load_begun: Instant::now(),
            watch_until: None,
            abandoned: false,
            control: 0,
            away: None,
            head: None,
            head_may_repeat: false,
            worth_keeping,
            complete: false,
            resumed: false,
            stored: None,
            kept: None,
        }
    }

    /// A job that a restarted agent goes on with.
    fn again(
        agent: Arc<Agent>,
        left: Left,
        (prepare, memory): (Prepare, DestinationMemory),
        token: Token,
        events: mpsc::UnboundedSender<Event>,
    ) -> Self {
        let Left { job, journal, story, vm, process, kept } = left;
        let to = events.clone();
        let mut streams = Streams::new(&prepare, move |event| drop(to.send(Event::Stream(event))));
        streams.adopt(memory);
        let mut effects = Vec::new();
        // Entitled, and its memory lacking: it may run already, and QEMU may stand until it is given pages.
        let machine = Destination::resume_faulting(&mut effects);
        let is_entitled = story.side == Side::Destination(DestinationRecord::Entitled);
        let drive = Self {
            agent,
            job,
            prepare,
            checked: None,
            token,
            links: Vec::new(),
            events,
            machine: Some(machine),
            effects: effects.into(),
            journal: JobJournal::going_on(journal),
            waiting: Some(Waiting::found(vm, process)),
            streams,
            guest: if story.guest_ran { GuestState::Running } else { GuestState::Paused },
            commit_came: None,
            load_begun: Instant::now(),
            watch_until: None,
            abandoned: false,
            control: 0,
            away: None,
            head: None,
            head_may_repeat: false,
            worth_keeping: false,
            complete: false,
            resumed: true,
            stored: story.memory,
            kept,
        };
        if let Some(waiting) = &drive.waiting {
            drive.watch_qemu(waiting);
        }
        if is_entitled {
            drive.resume_when_it_answers();
        }
        drive
    }

    async fn run(mut self, mut inbox: Inbox) {
        if self.machine.is_none() {
            let mut first = Vec::new();
            self.machine = Some(Destination::begin(&mut first));
            self.effects.extend(first);
        }
        let mut tick = tokio::time::interval(FEED_EVERY);
        let progress = self.streams.progress();
        loop {
            self.perform().await;
            if self.machine.as_ref().is_none_or(|machine| machine.end().is_some()) {
                break;
            }
            let until = self.watch_until;
            tokio::select! {
                biased;
                // A commit that waits to be heard comes before the end of the wait for it, and the reason why a source
                // gives up before what its closed connections look like. One that talks without end holds up only its
                // own job.
                Some(heard) = inbox.peer.recv() => self.heard(heard).await,
                () = sleep_until(until) => {
                    self.watch_until = None;
                    let why = match self.away {
                        Some(keep) => format!("it did not come back within {} s", keep.as_secs()),
                        None => "it fell silent".to_owned(),
                    };
                    self.fact(Fact::PeerLost(why));
                }
                Some(event) = inbox.events.recv() => self.event(event).await,
                _ = tick.tick() => {
                    self.agent.anonymous.sample();
                    self.streams.feed();
                }
                () = progress.notified() => self.progressed().await,
            }
        }
        self.streams.close();
        self.answer_latecomers(inbox.peer).await;
        self.agent.forget_incoming(&self.prepare.job);
    }

    /// A job that is over still answers whoever asks on its connections.
    async fn answer_latecomers(&mut self, mut peer: mpsc::Receiver<FromPeer>) {
        while !self.abandoned {
            let Some(heard) = peer.recv().await else { return };
            match heard {
                FromPeer::Inbound(number, _) if number != self.control => {}
                FromPeer::Inbound(_, Inbound::Closed(_)) => self.abandoned = true,
                FromPeer::Inbound(_, Inbound::Message(message)) => {
                    if matches!(*message, Message::Commit(_) | Message::Inquire(_)) {
                        self.fact(Fact::Asked);
                    }
                }
                FromPeer::Rejoin(_, link, number) => {
                    self.control = number;
                    self.asked(link);
                }
                FromPeer::Asked(link) => self.asked(link),
                FromPeer::Inbound(_, Inbound::Tail(_))
                | FromPeer::Data(_)
                | FromPeer::AgentEnds
                | FromPeer::Superseded(_) => {}
            }
            self.perform().await;
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
                Effect::RecoverStream => self.recover_stream().await,
                Effect::WatchSource(limit) => {
                    let faulting = self.streams.faulting().is_some();
                    let limit = if faulting { limit.min(LOADED_FAULTING) } else { limit };
                    self.watch_until = Some(tokio::time::Instant::now() + limit);
                }
                Effect::End(end) => self.end(&end),
            }
        }
    }
}

/// The job's journal, which begins with the first state. Its subject stands for *prepared*.
fn to_begin(agent: &Agent, job: &Job, prepare: &Prepare) -> JobJournal {
    let subject = Subject {
        job: prepare.job.clone(),
        vm: prepare.vm.clone(),
        uuid: prepare.uuid,
        epoch: prepare.epoch,
        peer: job.peer().clone(),
    };
    let opening = vec![Entry::DestinationOf(subject, job.started_at().to_owned())];
    JobJournal::to_begin(agent.config.state_dir.clone(), opening)
}

async fn sleep_until(until: Option<tokio::time::Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
