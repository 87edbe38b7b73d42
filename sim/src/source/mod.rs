//! The source's agent: the drive loop around the real machine, as the agent's `outgoing/drive` performs it.
//!
//! One thing at a time: while an effect is performed, what happens waits in the inbox. Left out: the pre-flight's
//! refusals (the destination refuses instead), progress, pacing by measured rates, the report's numbers.

mod away;
mod copying;
mod ending;
mod gauge;
mod handover;
mod messages;
mod recovery;
mod rejoining;
mod serving;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use sterna_migration::journal::SourceRecord;
use sterna_migration::policy::{Policy, Precopy, ThreeStage};
use sterna_migration::source::{Effect, Fact, Limits, Source, Timer};
use sterna_model::{Instant, PageId};

use crate::bulk::Order;
use crate::disk::{Entry, Owner, Record};
use crate::faults::{Setting, Side, Strategy};
use crate::hands::Hands;
use crate::message::Message;
use crate::network::{ConnectionId, Reached};
use crate::oracle::{Ended, Gauge as Bound};
use crate::plant::Plant;
use crate::world::{Inbound, StreamEvent, World};
use copying::Again;
use gauge::Gauge;
use rejoining::Rejoin;
use serving::Joined;

/// With the guest stopped, the destination is pinged this often.
const PING_EVERY: Duration = Duration::from_millis(200);
/// And this often while the guest runs and is copied.
const PING_CALMLY_EVERY: Duration = Duration::from_secs(1);

/// The agent, from its start to its end.
pub(crate) async fn agent(hands: Hands) {
    hands.step("the agent starts").await;
    let begun = hands.with(|world| std::mem::replace(&mut world.job_begun, true));
    if begun {
        recovery::recover(&hands).await;
    } else {
        hands.with(|world| world.oracles.progress.begun(Side::Source));
        if !hands.with(|world| world.is_alive(Side::Source)) {
            // A VM that does not run is not moved.
            return hands.with(|world| world.job_ended(Side::Source, Ended::Forgotten));
        }
        let setting = hands.with(|world| world.setting.clone());
        let (timeout, away) = (setting.timeout, setting.link_timeout);
        let limits = Limits { timeout, away, ..Limits::default() };
        let mut drive = Drive::new(hands);
        let mut effects = Vec::new();
        drive.machine = Some(Source::begin(policy(&setting), limits, &mut effects));
        drive.effects.extend(effects);
        drive.run().await;
    }
}

fn policy(setting: &Setting) -> Box<dyn Policy> {
    let (max_downtime, possible) = (setting.max_downtime, setting.post_copy);
    match setting.strategy {
        Strategy::Precopy => Box::new(Precopy::new(max_downtime)),
        Strategy::Auto => Box::new(Precopy::with_post_copy(max_downtime, possible)),
        Strategy::ThreeStage => Box::new(ThreeStage::new(max_downtime, possible)),
    }
}

pub(super) struct Drive {
    hands: Hands,
    machine: Option<Source>,
    effects: VecDeque<Effect>,
    timers: BTreeMap<Timer, Instant>,
    journal_is_open: bool,
    link: Option<ConnectionId>,
    data: Vec<ConnectionId>,
    /// For pages that are asked for while they are absent.
    urgent: Option<ConnectionId>,
    /// There is one, if the connections are made anew.
    has_urgent: bool,
    rejoin: Rejoin,
    /// Counts the attempts to rejoin.
    attempt: u32,
    /// What the destination lacks, as it says while the connections for pages are being made.
    lacking: Vec<PageId>,
    /// The same, and the connections that it is served on.
    joined: Option<Joined>,
    /// While the guest runs here, there is no connection.
    is_away: bool,
    /// It was so: the round that is to begin was broken off.
    was_away: bool,
    /// A connection for pages broke: when, and why.
    broken: Option<(Instant, String)>,
    /// When the destination was heard last.
    heard_at: Instant,
    has_tried_to_rejoin: bool,
    gauge: Gauge,
    streams: u32,
    again: Again,
    tail: Option<u64>,
    flushed: bool,
    /// How what is left goes over.
    last_order: Order,
    pinged_at: Instant,
    /// The next round begins when there may be something to send.
    round_waits_until: Option<Instant>,
    delivered_pages: u64,
    guest_ran: bool,
    stop_sent: bool,
    /// Something was done to QEMU.
    qemu_prepared: bool,
    /// The job was taken up again after a restart.
    resumed: bool,
    /// Nothing was offered before that restart.
    unoffered: bool,
    record: Record,
}

impl Drive {
    fn new(hands: Hands) -> Self {
        let pinged_at = hands.now();
        Self {
            machine: None,
            effects: VecDeque::new(),
            timers: BTreeMap::new(),
            journal_is_open: false,
            link: None,
            data: Vec::new(),
            urgent: None,
            has_urgent: false,
            rejoin: Rejoin::Idle,
            attempt: 0,
            lacking: Vec::new(),
            joined: None,
            is_away: false,
            was_away: false,
            broken: None,
            heard_at: pinged_at,
            has_tried_to_rejoin: false,
            gauge: Gauge::default(),
            streams: 0,
            again: Again::default(),
            tail: None,
            flushed: false,
            last_order: Order::Last,
            pinged_at,
            round_waits_until: None,
            delivered_pages: 0,
            guest_ran: true,
            stop_sent: false,
            qemu_prepared: false,
            resumed: false,
            unoffered: false,
            record: Record { owner: Owner::Here, process: true },
            hands,
        }
    }

    async fn run(mut self) {
        loop {
            self.perform().await;
            if self.machine.as_ref().is_none_or(|machine| machine.outcome().is_some()) {
                return;
            }
            let deadline = self.timers.iter().map(|(timer, at)| (*at, *timer)).min();
            let (ping, lost) = (self.ping_at(), self.broken_until());
            let others = [ping, lost, self.round_waits_until].into_iter().flatten();
            let until = deadline.map(|(at, _)| at).into_iter().chain(others).min();
            match self.hands.hear(until).await {
                Some(inbound) => self.inbound(inbound).await,
                None => match deadline.filter(|(at, _)| *at <= self.hands.now()) {
                    Some((_, timer)) => {
                        self.timers.remove(&timer);
                        self.fact(Fact::TimerFired(timer));
                    }
                    None if ping.is_some_and(|at| at <= self.hands.now()) => self.ping().await,
                    None if lost.is_some_and(|at| at <= self.hands.now()) => {
                        if let Some((_, why)) = self.broken.take() {
                            self.lost(why);
                        }
                    }
                    None => {
                        self.round_waits_until = None;
                        self.begin_waiting_round();
                    }
                },
            }
        }
    }

    /// When the destination is pinged next.
    fn ping_at(&self) -> Option<Instant> {
        if self.timers.contains_key(&Timer::Silence) {
            return Some(self.pinged_at.after(PING_EVERY));
        }
        let copies = self.phase() == "copying" && self.link.is_some();
        copies.then(|| self.pinged_at.after(PING_CALMLY_EVERY))
    }

    pub(super) fn fact(&mut self, fact: Fact) {
        let Some(machine) = self.machine.take() else { return };
        self.look_at_loss(machine.phase(), &fact);
        self.hands.with(|world| world.note(|| format!("Source in {}: {fact:?}", machine.phase())));
        let mut effects = Vec::new();
        let machine = machine.handle(fact, &mut effects);
        let phase = machine.phase();
        self.machine = Some(machine);
        self.effects.extend(effects);
        self.hands.with(|world| world.source_phase = phase);
        let waiting = self.effects.len();
        self.hands.with(|world| world.gauge(Bound::Effects, waiting));
    }

    fn phase(&self) -> &'static str {
        self.machine.as_ref().map_or("ended", Source::phase)
    }

    async fn inbound(&mut self, inbound: Inbound) {
        match inbound {
            Inbound::Message(link, Message::Rejoined(lacking)) => {
                self.rejoined(link, lacking);
            }
            // An older one, given up before.
            Inbound::Message(link, _) | Inbound::Closed(link) if self.link != Some(link) => {}
            Inbound::Message(_, message) => self.message(message).await,
            Inbound::Closed(_) => {
                self.link = None;
                self.lost("the connection is closed".into());
            }
            Inbound::Dialed(reached) if self.is_serving() || self.rejoin == Rejoin::Dialing => {
                self.dialed(reached).await;
            }
            Inbound::Dialed(Reached::Link(link)) => {
                self.link = Some(link);
                self.inquire().await;
            }
            Inbound::Joined(attempt, data) => self.joined(attempt, data).await,
            Inbound::Stream(stream, event) if stream == self.streams => self.stream(event).await,
            Inbound::Round(of, _) | Inbound::WorkerFailed(of, _)
                if !self.hands.with(|world| world.are_current(of)) => {}
            Inbound::Round(_, round) => self.round_done(round).await,
            // What broke it is most likely on its way, on the control connection.
            Inbound::WorkerFailed(_, why) => {
                self.broken.get_or_insert((self.hands.now(), why));
            }
            Inbound::QemuDied(why) => self.qemu_died(why),
            Inbound::Cancel => self.fact(Fact::CancelRequested),
            // What an earlier stream or connection still says, or what only a destination hears.
            _ => {}
        }
    }

    async fn stream(&mut self, event: StreamEvent) {
        match event {
            StreamEvent::Head => self.head().await,
            StreamEvent::FirstPassOver => self.first_pass_over().await,
            StreamEvent::Completed(device) => {
                self.tail = Some(device);
                self.fact(Fact::StreamCompleted);
            }
            StreamEvent::Broken => self.fact(Fact::QemuFailed("QEMU's stream broke".into())),
        }
    }

    async fn perform(&mut self) {
        while let Some(effect) = self.effects.pop_front() {
            match effect {
                Effect::Prepare => self.prepare().await,
                Effect::Journal(record) => self.journal(record).await,
                Effect::BeginCopy => self.begin_stream().await,
                Effect::BeginRound => self.next_round(),
                Effect::RestartStream => self.restart_stream().await,
                Effect::StopGuest(_) => self.stop_guest().await,
                Effect::Flush(finish) => self.flush(finish).await,
                Effect::Commit(offer) => self.commit(offer).await,
                Effect::Abort(_) if self.is_serving() && self.hands.errs(Plant::DeathIsNotTold) => {
                }
                Effect::Abort(why) => {
                    if self.is_serving() {
                        self.hands.with(World::nothing_is_left_to_serve);
                    }
                    self.send(Message::Abort(why)).await;
                }
                Effect::Inquire => self.inquire().await,
                Effect::ReturnGuest(may_return) => self.return_guest(may_return).await,
                Effect::Serve => self.serve(),
                Effect::Rejoin => self.rejoin().await,
                Effect::DestroyGuest => self.destroy_guest().await,
                Effect::SetTimer(Timer::Inquiry, _) if self.hands.errs(Plant::NeverAsksAgain) => {}
                Effect::SetTimer(timer, after) => {
                    self.timers.insert(timer, self.hands.now().after(after));
                }
                Effect::ClearTimer(timer) => drop(self.timers.remove(&timer)),
                Effect::End(outcome) => self.end(&outcome).await,
            }
        }
    }

    async fn journal(&mut self, record: SourceRecord) {
        if record == SourceRecord::Offered {
            self.hands.with(|world| world.stand_is_theirs());
        }
        if record == SourceRecord::Offered && self.hands.errs(Plant::CommitBeforeOffered) {
            self.fact(Fact::Journaled(record));
            return self.perform_commit_early(record).await;
        }
        let written = self.write_down(record).await;
        self.fact(match written {
            Ok(()) => Fact::Journaled(record),
            Err(why) => Fact::JournalFailed(why),
        });
    }

    /// A journal begins with the first state that is to be durable; its subject stands for *copying*.
    async fn write_down(&mut self, record: SourceRecord) -> Result<(), String> {
        if !self.journal_is_open {
            self.hands.with(|world| world.host(Side::Source).disk.begin_again())?;
            self.hands.append(Entry::SourceOf).await?;
            self.journal_is_open = true;
            if record == SourceRecord::Copying {
                return Ok(());
            }
        }
        self.hands.append(Entry::Source(record)).await
    }

    /// The planted bug: the commit goes first.
    async fn perform_commit_early(&mut self, record: SourceRecord) {
        self.send(Message::Commit).await;
        let _ = self.hands.append(Entry::Source(record)).await;
    }

    pub(super) async fn send(&self, message: Message) {
        if let Some(link) = self.link {
            self.hands.send(link, message).await;
        }
    }

    async fn ping(&mut self) {
        self.pinged_at = self.hands.now();
        // An answer may queue behind pages; that they arrive is a sign of life as well.
        let delivered = self.hands.with(|world| world.delivered_pages());
        if std::mem::replace(&mut self.delivered_pages, delivered) < delivered {
            self.peer_lives();
        }
        if let Some(link) = self.link {
            self.hands.with(|world| world.send(link, Side::Source, Message::Ping));
        }
    }
}
