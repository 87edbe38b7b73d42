//! The drive loop of a move that leaves: performs the source machine's effects, turns what happens into facts.

mod away;
mod choice;
mod copying;
mod ending;
mod following;
mod handover;
mod inbox;
mod messages;
mod pacing;
mod plugging;
mod prepare;
mod rejoining;
mod reusing;
mod serving;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use sterna_host::usage::IdleShare;
use sterna_migration::journal::{SourceRecord, Subject as JournalSubject};
use sterna_migration::source::{Effect, Fact, Finish, Limits, Source, Timer};
use sterna_model::BlockName;
use sterna_page_codec::Processors;
use tokio::sync::mpsc;

use super::Move;
use super::bulk::Bulk;
use super::gauge::Gauge;
use super::links::Links;
use super::preflight::Subject;
use super::qemu::SourceQemu;
use super::reader::{Counters, Head, StreamEvent, Tail};
use super::worker::Report as WorkerReport;
use crate::agent::Agent;
use crate::jobs::Job;
use crate::journal::{Entry, JobJournal, Journal, MemoryRecord, Side, Story};
use crate::link::{Inbound, Link};
use crate::vm::{describe_exit, quote_log};
use away::Away;
use choice::{Choice, Decided};
use copying::Again;
use following::Epoch;
use inbox::{Event, Heard, Inbox, Queues, queues};
use pacing::Pace;
use plugging::Devices;
use rejoining::Rejoining;
use reusing::Reuse;

pub(super) use prepare::prepare_message;

/// A peer that closes its connections has said why before; on another connection that arrives within this.
const REASON_TAKES: Duration = Duration::from_millis(300);
/// Pacing, progress and memory are looked at this often.
const TICK: Duration = Duration::from_millis(100);
/// With `--verify full` the guest may stand so long.
const VERIFIED_STOP: Duration = Duration::from_secs(600);
/// With less than this share of the processors idle, whatever waits may be waiting for one.
const SHORT_OF_PROCESSORS: f64 = 0.1;
/// The destination is pinged this often while the guest runs.
const PING_CALMLY_EVERY: Duration = Duration::from_secs(1);
/// A destination that was not heard for so long is not stopped for.
const HEARD_LATELY: Duration = Duration::from_secs(4);
/// With the guest stopped, the destination is pinged this often: its silence is noticed within a second.
const PING_EVERY: Duration = Duration::from_millis(200);

/// Runs a job to its end.
pub(super) async fn run(agent: Arc<Agent>, job: Arc<Job>, wanted: Move, key: [u8; 32]) {
    let (queues, inbox) = queues();
    let follows = wanted.follow.as_ref().map(|follow| follow.hand_over_flag());
    let policy = Box::new(Choice::new(&wanted.options, follows));
    let limits = limits(&agent, &wanted);
    let wanted_strategy = wanted.options.strategy;
    let mut drive = Drive::new(agent, job, wanted, key, queues);
    (drive.decided, drive.post_copy) = policy.shared();
    drive.gauge.follows = drive.wanted.follow.is_some();
    drive.strategy = match drive.gauge.follows {
        true => choice::FOLLOW,
        false => choice::name(wanted_strategy, Finish::PreCopy),
    };
    let mut effects = Vec::new();
    drive.machine = Some(Source::begin(policy, limits, &mut effects));
    drive.effects.extend(effects);
    drive.run(inbox).await;
}

/// The bounds of a job.
fn limits(agent: &Agent, wanted: &Move) -> Limits {
    let options = &wanted.options;
    let longest = Duration::from_millis(options.max_downtime_ms).saturating_mul(2);
    // Reading all memory again takes its time with the guest stopped; it was asked for.
    let least = if options.verify_full { VERIFIED_STOP } else { Limits::default().stop };
    Limits {
        timeout: Duration::from_secs(options.timeout_seconds),
        stop: least.max(longest),
        // Whoever follows has time.
        away: match wanted.follow {
            Some(_) => Duration::MAX,
            None => agent.config.limits.link_timeout,
        },
        ..Limits::default()
    }
}

/// Takes a job up again that ended in *offered* or *serving*.
pub(super) async fn resume(
    agent: Arc<Agent>,
    job: Arc<Job>,
    wanted: Move,
    journal: Journal,
    story: Story,
) {
    let (queues, inbox) = queues();
    let mut drive = Drive::new(agent, job, wanted, [0; 32], queues);
    drive.journal = JobJournal::going_on(journal);
    drive.guest_ran = story.guest_ran;
    drive.stored = story.memory;
    drive.resumed = true;
    let (limits, mut effects) = (Limits::default(), Vec::new());
    drive.machine = Some(match story.side {
        Side::Source(SourceRecord::Serving) => Source::resume_serving(limits, &mut effects),
        _ => Source::resume_offered(limits, &mut effects),
    });
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
    inbound: mpsc::Sender<Inbound>,
    journal: JobJournal,
    timers: BTreeMap<Timer, tokio::time::Instant>,
    gauge: Gauge,
    decided: Decided,
    qemu: Option<SourceQemu>,
    subject: Option<Subject>,
    link: Option<Link>,
    links: Links,
    /// The destination's QEMU may run the guest before all its memory is there.
    post_copy: Arc<AtomicBool>,
    asked_for_post_copy: bool,
    /// Blocks that the destination's QEMU shares with its agent.
    shared_blocks: Vec<BlockName>,
    finish: Finish,
    /// A round is being ended before its time, since the guest stands.
    cuts_short: bool,
    rejoining: Rejoining,
    /// The destination keeps what it has over a broken link.
    keeps: bool,
    /// What it has from an earlier job.
    reuse: Reuse,
    /// Since when there is no connection while the guest runs here, and why.
    away: Option<Away>,
    /// It was away: the round that is to begin was broken off.
    was_away: bool,
    /// There is a connection for what the guest waits for in post-copy.
    has_urgent: bool,
    /// What is heard of the peer from the next connection on, for the inbox.
    next_peer: Option<mpsc::Receiver<Inbound>>,
    /// What the journal says of the guest's memory, after a restart.
    stored: Option<MemoryRecord>,
    bulk: Option<Bulk>,
    /// Counts the sets of data connections: what the workers of an earlier one still say is nothing about this one.
    connections: u32,
    /// Our QEMU has ended, and its guest's memory with it.
    memory_is_gone: bool,
    head: Option<Head>,
    /// Streams that were begun; the last one counts.
    streams: u32,
    again: Again,
    tail: Tail,
    counters: Arc<Counters>,
    idle: IdleShare,
    pace: Pace,
    /// Where following is.
    epoch: Epoch,
    /// What the followed machine consists of.
    devices: Devices,
    /// A data connection broke: when, and what is known of it.
    broken: Option<(Instant, String)>,
    /// The next round begins when there may be something to send.
    round_waits: bool,
    /// Everything was handed to the connections at least once.
    flushed: bool,
    pinged_at: Instant,
    /// When the destination was heard last.
    heard_at: Instant,
    /// The guest ran when the job began.
    guest_ran: bool,
    /// The job was taken up again after a restart.
    resumed: bool,
}

impl Drive {
    fn new(
        agent: Arc<Agent>,
        job: Arc<Job>,
        wanted: Move,
        key: [u8; 32],
        (events, inbound): Queues,
    ) -> Self {
        let journal = to_begin(&agent, &job, &wanted);
        let epoch = Epoch::new(agent.config.lab);
        Self {
            agent,
            job,
            wanted,
            strategy: "precopy",
            key,
            machine: None,
            effects: VecDeque::new(),
            events,
            inbound,
            journal,
            timers: BTreeMap::new(),
            gauge: Gauge::begin(),
            decided: Arc::default(),
            qemu: None,
            subject: None,
            link: None,
            links: Links::default(),
            post_copy: Arc::default(),
            asked_for_post_copy: false,
            shared_blocks: Vec::new(),
            finish: Finish::PreCopy,
            cuts_short: false,
            rejoining: Rejoining::default(),
            keeps: false,
            reuse: Reuse::default(),
            away: None,
            was_away: false,
            has_urgent: false,
            next_peer: None,
            stored: None,
            bulk: None,
            connections: 0,
            memory_is_gone: false,
            head: None,
            streams: 0,
            again: Again::default(),
            tail: Tail::default(),
            counters: Arc::default(),
            idle: IdleShare::default(),
            pace: Pace::default(),
            epoch,
            devices: Devices::default(),
            broken: None,
            round_waits: false,
            flushed: false,
            pinged_at: Instant::now(),
            heard_at: Instant::now(),
            guest_ran: true,
            resumed: false,
        }
    }

    async fn run(mut self, mut inbox: Inbox) {
        self.watch_qemu();
        let job = Arc::clone(&self.job);
        let follow = self.wanted.follow.clone();
        let mut cancelled = false;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.perform().await;
            if self.machine.as_ref().is_none_or(|machine| machine.outcome().is_some()) {
                return;
            }
            if let Some(peer) = self.next_peer.take() {
                inbox.replace_peer(peer);
            }
            let next =
                self.timers.iter().min_by_key(|(_, at)| **at).map(|(timer, at)| (*timer, *at));
            tokio::select! {
                biased;
                // Deadlines and the user come before a peer that talks without end.
                timer = fire(next) => {
                    self.timers.remove(&timer);
                    self.fact(Fact::TimerFired(timer));
                }
                () = job.cancel_requested(), if !cancelled => {
                    cancelled = true;
                    self.fact(Fact::CancelRequested);
                }
                () = following::hand_over_asked(follow.as_ref()), if self.is_following() => {
                    self.hand_over().await;
                }
                // A person settles an offer that nobody answers; the VM is theirs from here on.
                () = job.give_up_requested() => return self.wanted.vm.end_job(),
                heard = inbox.next(&mut tick) => match heard {
                    Heard::Event(event) => self.event(event).await,
                    Heard::Peer(inbound) => self.inbound(inbound).await,
                    Heard::Tick => self.tick().await,
                },
            }
        }
    }

    fn fact(&mut self, fact: Fact) {
        let Some(machine) = self.machine.take() else { return };
        let mut effects = Vec::new();
        let machine = machine.handle(fact, &mut effects);
        self.job.set_phase(self.shown_phase(machine.phase()));
        self.machine = Some(machine);
        self.effects.extend(effects);
        self.note_decision();
    }

    fn phase(&self) -> &'static str {
        self.machine.as_ref().map_or("ended", Source::phase)
    }

    async fn event(&mut self, event: Event) {
        match event {
            // What an earlier stream still says, when it is ended, is nothing about this one.
            Event::Stream(stream, event) if stream == self.streams => self.stream(event).await,
            Event::Stream(..) => {}
            Event::Worker(connections, ..) if connections != self.connections => {}
            Event::Worker(_, number, WorkerReport::RoundDone(done)) => {
                if let Some(round) =
                    self.bulk.as_mut().and_then(|bulk| bulk.worker_done(number, done))
                {
                    self.round_done(round).await;
                }
            }
            Event::Worker(_, _, WorkerReport::Unusable(why)) if self.phase() != "serving" => {
                self.fact(Fact::QemuFailed(why));
            }
            // What broke it is most likely on its way, on the control connection.
            Event::Worker(_, _, WorkerReport::Failed(why) | WorkerReport::Unusable(why)) => {
                self.broken.get_or_insert((Instant::now(), why));
            }
            Event::QemuDied(why) => self.qemu_died(why),
            Event::Inquired(Ok(link)) => {
                self.leave_link();
                self.heard_at = Instant::now();
                self.link = Some(link);
                self.inquire().await;
            }
            Event::Inquired(Err(error)) => {
                tracing::warn!(%error, "the destination cannot be asked")
            }
            Event::Reached(reached) => self.reached(reached).await,
            Event::Joined(attempt, data) => self.joined(attempt, data).await,
        }
    }

    async fn stream(&mut self, event: StreamEvent) {
        match event {
            StreamEvent::Head(head) => {
                if let Err(why) = self.head(*head).await {
                    self.fact(Fact::QemuFailed(why));
                }
            }
            StreamEvent::FirstPassOver => self.first_pass_over().await,
            StreamEvent::Completed(tail) => {
                self.gauge.marks.drained = Some(Instant::now());
                self.tail = *tail;
                self.fact(Fact::StreamCompleted);
            }
            StreamEvent::Broken(why) => self.fact(Fact::QemuFailed(why)),
        }
    }

    async fn perform(&mut self) {
        while let Some(effect) = self.effects.pop_front() {
            tracing::trace!(?effect, "performs");
            match effect {
                Effect::Prepare => self.prepare().await,
                Effect::Journal(record) => self.journal(record),
                Effect::BeginCopy => self.begin_stream().await,
                Effect::BeginRound => self.begin_round(),
                Effect::RestartStream => self.restart_stream().await,
                Effect::StopGuest(finish) => self.stop_guest(finish).await,
                Effect::Flush(finish) => self.flush(finish).await,
                Effect::Serve => self.serve(),
                Effect::Rejoin => self.rejoin(),
                Effect::Commit(offer) => self.commit(offer).await,
                Effect::Abort(why) => self.abort(&why).await,
                Effect::Inquire => self.inquire().await,
                Effect::ReturnGuest(may_return) => self.return_guest(may_return).await,
                Effect::DestroyGuest => self.destroy_guest().await,
                Effect::SetTimer(timer, after) => {
                    let after = self.patience(timer, after);
                    // A time-out beyond what a clock can count is none.
                    if let Some(at) = tokio::time::Instant::now().checked_add(after) {
                        self.timers.insert(timer, at);
                    }
                }
                Effect::ClearTimer(timer) => drop(self.timers.remove(&timer)),
                Effect::End(outcome) => self.end(&outcome).await,
            }
        }
    }

    fn journal(&mut self, record: SourceRecord) {
        let entry = Entry::Source(record);
        let written = tokio::task::block_in_place(|| self.journal.record(&entry));
        self.fact(match written {
            Ok(()) => Fact::Journaled(record),
            Err(error) => Fact::JournalFailed(error.to_string()),
        });
    }

    async fn tick(&mut self) {
        self.agent.anonymous.sample();
        if self.broken.as_ref().is_some_and(|(since, _)| since.elapsed() >= REASON_TAKES)
            && let Some((_, why)) = self.broken.take()
        {
            return self.lost(why);
        }
        self.look_for_silence();
        self.look_at_processors();
        let stopped = self.timers.contains_key(&Timer::Silence);
        let every = if stopped { PING_EVERY } else { PING_CALMLY_EVERY };
        if self.pinged_at.elapsed() >= every {
            self.ping().await;
        }
        // An answer may queue behind pages on a slow link; that they arrive is a sign of life as well.
        if self.bulk.as_mut().is_some_and(Bulk::has_delivered_more) {
            self.peer_lives();
        }
        if std::mem::take(&mut self.round_waits)
            && let Some(bulk) = self.bulk.as_mut().filter(|bulk| bulk.is_linked())
        {
            bulk.begin_round();
        }
        self.pace().await;
        self.look_at_harm().await;
        self.look_at_epoch();
        self.look_at_devices().await;
        let progress = self.gauge.progress(&self.job, self.phase(), self.bulk.as_ref());
        self.job.set_progress(progress);
    }

    fn look_at_processors(&mut self) {
        let (Some(idle), Some(bulk)) = (self.idle.look(), &self.bulk) else { return };
        let all_taken = idle < SHORT_OF_PROCESSORS;
        bulk.note_processors(if all_taken { Processors::Taken } else { Processors::Idle });
    }

    fn watch_qemu(&self) {
        let events = self.events.clone();
        let Some(live) = &self.wanted.live else {
            let _ = events.send(Event::QemuDied("it ended while the agent was away".into()));
            return;
        };
        let (process, log) = (Arc::clone(&live.process), self.wanted.vm.record().log);
        tokio::spawn(async move {
            // Not to be able to watch is not to see it end.
            // A QEMU can outlive many moves; nobody hears of its end once this one is over.
            let exited = tokio::select! {
                exited = process.exited() => exited,
                () = events.closed() => return,
            };
            if let Ok(exit) = exited {
                let _ = events.send(Event::QemuDied(describe_exit(Some(exit)) + &quote_log(&log)));
            }
        });
    }
}

/// The job's journal, which begins with the first state. Its subject stands for *copying*.
fn to_begin(agent: &Agent, job: &Job, wanted: &Move) -> JobJournal {
    let record = wanted.vm.record();
    let subject = JournalSubject {
        job: job.id().clone(),
        vm: record.name,
        uuid: record.uuid,
        epoch: record.epoch.next(),
        peer: wanted.to.name.clone(),
    };
    let opening = vec![
        Entry::SourceOf(subject, job.started_at().to_owned()),
        Entry::PeerAddress(wanted.to.address.clone()),
    ];
    JobJournal::to_begin(agent.config.state_dir.clone(), opening)
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
