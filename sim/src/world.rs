//! The world that both agents live in: time, hosts, disks, QEMUs, network, and what goes wrong in it.
//!
//! Everything happens on one thread, in the order of the [clock](crate::clock). Agents are futures that the
//! [run](crate::run) polls; they reach the world through their [hands](crate::hands), and a crash drops the future at
//! whatever it was waiting for.

use std::rc::Rc;
use std::time::Duration;

use sterna_migration::tracker::Tracker;
use sterna_model::{Instant, PageId};

use crate::bulk::{Bulk, RoundSum};
use crate::clock::Clock;
use crate::disk::{Crash, Owner, Record};
use crate::faults::{Fault, Moment, Scenario, Setting, Side, What};
use crate::guest::Guest;
pub(crate) use crate::host::Fate;
use crate::host::Host;
use crate::message::Message;
use crate::network::{Closing, ConnectionId, Network, Reached};
use crate::oracle::{Gauge, Oracle, Oracles};
use crate::plant::Plant;
use crate::postcopy::{Fed, Pipe};
use crate::qemu::{Qemu, RunState, Status};
use crate::random::Random;
use crate::receiver::Receiver;
use crate::run::Options;
use crate::serving::Server;
use crate::trace::Trace;

/// What happens at its time.
#[derive(Debug)]
pub(crate) enum Event {
    /// An agent may go on.
    Poll(Side),
    /// A message arrives.
    Deliver(ConnectionId, Side, Message),
    /// An end learns that its connection is closed.
    Closed(ConnectionId, Side, Closing),
    /// The connections up to here have been silent for too long.
    Break(usize),
    /// A connection that was asked for in the background is there, or not; of an agent's life of this number.
    Dialed(u32),
    /// So many connections for pages, of this attempt to rejoin, are there, or not; of an agent's life of this number.
    Joined(u32, u32, usize),
    /// A worker goes on; of a set of connections of this number.
    Work(u32, usize),
    /// The source's QEMU goes on with its stream, if its turn is this.
    Stream(u64),
    /// The destination's QEMU has loaded, or not.
    Loaded,
    /// A worker sends absent pages; of a set of connections of this number.
    Serve(u32, usize),
    /// The destination's QEMU reads this from its stream of this number.
    Fed(u32, Fed),
    /// The destination's guest is looked at, if its turn is this, after so long.
    Look(u64, Duration),
    /// A fault is due.
    Fault(usize),
    /// A host or an agent is back.
    Restart(Side),
}

/// What an agent's loop hears.
#[derive(Clone, Debug)]
pub(crate) enum Inbound {
    /// A message on a connection for messages.
    Message(ConnectionId, Message),
    /// Such a connection is gone.
    Closed(ConnectionId),
    /// A connection that was asked for in the background.
    Dialed(Reached),
    /// The connections for pages of this attempt to rejoin.
    Joined(u32, Option<Vec<ConnectionId>>),
    /// Of the source's stream of this number.
    Stream(u32, StreamEvent),
    /// All workers of a set of connections of this number are through with a round.
    Round(u32, RoundSum),
    /// One of its workers cannot go on.
    WorkerFailed(u32, String),
    /// Frames were applied.
    Progress,
    /// One of the connections for pages that were made so often anew broke.
    LinkLost(u32, String),
    /// One came that is not awaited.
    Unawaited(String),
    /// What came on one cannot be used.
    StreamFailed(String),
    /// The destination's QEMU has loaded.
    QemuLoaded,
    /// Its guest waits for an absent page.
    Requested(PageId),
    /// It takes no more absent pages by this stream.
    FeedBroken,
    /// It has every page.
    QemuComplete,
    /// The QEMU is gone.
    QemuDied(String),
    /// The user ends the job.
    Cancel,
}

/// What the reader of QEMU's stream tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamEvent {
    /// It has begun.
    Head,
    /// All memory was reported once.
    FirstPassOver,
    /// It came to its end, with this device state.
    Completed(u64),
    /// It broke.
    Broken,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct World {
    pub clock: Clock<Event>,
    pub random: Random,
    pub setting: Setting,
    pub plant: Option<Plant>,
    pub hosts: [Host; 2],
    pub network: Network,
    pub oracles: Oracles,
    pub trace: Trace,
    /// The source's page tracker, workers; part of its agent.
    pub tracker: Option<Rc<Tracker>>,
    pub bulk: Option<Bulk>,
    /// The destination's memory table and receivers; part of its agent.
    pub receiver: Option<Receiver>,
    /// The source's workers for absent pages; part of its agent.
    pub server: Option<Server>,
    /// Sets of connections for pages that the source has made: the last one counts.
    pub links: u32,
    /// The attempt to rejoin whose connections for pages are awaited; part of the source's agent.
    pub joining: Option<u32>,
    /// Where the source's machine is.
    pub source_phase: &'static str,
    /// The destination's stream into its QEMU.
    pub pipe: Pipe,
    pub look_turn: u64,
    /// The guest runs at the destination and lacks pages since then.
    pub lacking_since: Option<Instant>,
    /// The move was asked for.
    pub job_begun: bool,
    pub load_fails: bool,
    pub refuses: bool,
    pub base_missing: bool,
    pub decode_fails: bool,
    pub faults: Vec<(Fault, bool)>,
    pub stream_turn: u64,
    pub head_told: u32,
}

impl World {
    pub(crate) fn new(scenario: &Scenario, options: Options) -> Self {
        let setting = scenario.setting.clone();
        let guest = Guest::new(
            setting.pages,
            setting.zero_percent,
            setting.write_every,
            setting.working_set,
            scenario.seed,
        );
        let run = if setting.paused { RunState::Paused } else { RunState::Running };
        let mut source = Host::new(Some(Qemu::new(guest, run)));
        source.disk.record = Some(Record { owner: Owner::Here, process: true });
        let mut world = Self {
            clock: Clock::default(),
            random: Random::new(scenario.seed ^ 0x5151_5151),
            oracles: Oracles::new(scenario, options.only),
            setting,
            plant: options.plant,
            hosts: [source, Host::new(None)],
            network: Network::default(),
            trace: Trace::new(options.recording),
            tracker: None,
            bulk: None,
            receiver: None,
            server: None,
            links: 0,
            joining: None,
            source_phase: "",
            pipe: Pipe::default(),
            look_turn: 0,
            lacking_since: None,
            job_begun: false,
            load_fails: false,
            refuses: false,
            base_missing: false,
            decode_fails: false,
            faults: scenario.faults.iter().map(|fault| (fault.clone(), false)).collect(),
            stream_turn: 0,
            head_told: 0,
        };
        for (number, fault) in scenario.faults.iter().enumerate() {
            if let Moment::Time(at) = fault.at {
                world.clock.at(at, Event::Fault(number));
            }
        }
        world
    }

    /// The time.
    pub(crate) const fn now(&self) -> Instant {
        self.clock.now()
    }

    pub(crate) fn host(&mut self, side: Side) -> &mut Host {
        &mut self.hosts[side.index()]
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        self.trace.note(self.clock.now(), line);
    }

    /// Whether this mistake is to be made.
    pub(crate) fn errs(&self, plant: Plant) -> bool {
        self.plant == Some(plant)
    }

    pub(crate) fn blame(&mut self, oracle: Oracle, why: impl Into<String>) {
        let (now, why) = (self.now(), why.into());
        self.note(|| format!("VIOLATION {oracle:?}: {why}"));
        self.oracles.blame(oracle, now, why);
    }

    pub(crate) fn gauge(&mut self, gauge: Gauge, value: usize) {
        if let Some(why) = self.oracles.bounds.gauge(gauge, value) {
            self.blame(Oracle::Bounds, why);
        }
    }

    /// Puts something into an agent's inbox.
    pub(crate) fn tell(&mut self, side: Side, what: Inbound) {
        let host = self.host(side);
        if !host.up {
            return;
        }
        // A later acknowledgement says all that an earlier one has said.
        let acknowledges =
            |inbound: &Inbound| matches!(inbound, Inbound::Message(_, Message::Applied(_)));
        if acknowledges(&what) {
            host.inbox.retain(|inbound| !acknowledges(inbound));
        }
        host.inbox.push_back(what);
        let length = host.inbox.len();
        self.gauge(Gauge::Inbox, length);
        self.poll(side);
    }

    /// Lets an agent go on now.
    pub(crate) fn poll(&mut self, side: Side) {
        if !std::mem::replace(&mut self.host(side).poll_pending, true) {
            self.clock.after(Duration::ZERO, Event::Poll(side));
        }
    }

    /// Whether an agent that is due may go on; if it stands still, later.
    pub(crate) fn may_poll(&mut self, side: Side) -> bool {
        let now = self.now();
        let host = self.host(side);
        host.poll_pending = false;
        let until = host.stalled_until;
        if until > now {
            self.clock.at(until, Event::Poll(side));
            return false;
        }
        host.up
    }

    /// An agent does something that others can see: the moment at which faults strike.
    pub(crate) fn step(&mut self, side: Side, what: &str) {
        let host = self.host(side);
        host.steps += 1;
        host.steps_since_append += 1;
        let (step, append, since) = (host.steps, host.appends, host.steps_since_append);
        self.note(|| format!("{side:?} [{step}] {what}"));
        for number in 0..self.faults.len() {
            let due = match self.faults[number].0.at {
                Moment::Time(_) | Moment::Lacking(_) | Moment::Copying(_) | Moment::Away(_) => {
                    false
                }
                Moment::Step(of, wanted) => of == side && wanted == step,
                Moment::Append(of, wanted, steps) => {
                    of == side && append > 0 && append - 1 == wanted && since == steps
                }
            };
            if due {
                self.strike(number);
            }
        }
    }

    /// A record is begun.
    pub(crate) fn begin_append(&mut self, side: Side, what: &str) {
        let host = self.host(side);
        host.appends += 1;
        host.steps_since_append = 0;
        self.step(side, what);
    }

    /// A fault strikes, once.
    pub(crate) fn strike(&mut self, number: usize) {
        let (copying, away) = (self.source_phase == "copying", self.is_away());
        let lacking = self.is_lacking();
        let Some((fault, struck)) = self.faults.get_mut(number) else { return };
        let is_time = match fault.at {
            Moment::Lacking(_) => lacking,
            Moment::Copying(_) => copying,
            Moment::Away(_) => away,
            Moment::Time(_) | Moment::Step(..) | Moment::Append(..) => true,
        };
        if !is_time {
            return;
        }
        if std::mem::replace(struck, true) {
            return;
        }
        let what = fault.what;
        self.note(|| format!("FAULT {what:?}"));
        self.oracles.struck(what);
        self.suffer(what);
    }

    fn suffer(&mut self, what: What) {
        let now = self.now();
        match what {
            What::Crash(side, how, time) => self.host(side).crash = Some((how, time)),
            What::Disk(side, how, time) => self.host(side).disk.ail(how, now.after(time)),
            What::SlowSync(side, time) => self.host(side).slow_sync = Some(time),
            What::Cut(which) => self.cut(which),
            What::Silence(time) => self.fall_silent(time),
            What::QemuDies(side) => self.qemu_dies(side, "it was ended by signal 9"),
            What::CommandRefused(side) => self.host(side).fate = Some(Fate::Refused),
            What::CommandHangs(side) => self.host(side).fate = Some(Fate::Hangs),
            What::StreamBreaks => self.stream_breaks(),
            What::FeedBreaks => self.feed_breaks(),
            What::Completes => {
                self.source_qemu(Qemu::complete_by_itself);
            }
            What::LoadFails => self.load_fails = true,
            What::Refuses => self.refuses = true,
            What::BaseMissing => self.base_missing = true,
            What::DecodeFails => self.decode_fails = true,
            What::Cancel => self.tell(Side::Source, Inbound::Cancel),
            What::UserPauses => self.user_stops(RunState::Paused),
            What::Shutdown => self.user_stops(RunState::Shutdown),
            What::Stalls(side, time) => self.host(side).stalled_until = now.after(time),
        }
    }

    /// Lets faults that wait for a moment of this kind, which is now, strike so long after it.
    pub(crate) fn moment_comes(&mut self, after: impl Fn(Moment) -> Option<Duration>) {
        for number in 0..self.faults.len() {
            if let Some(after) = after(self.faults[number].0.at) {
                self.clock.after(after, Event::Fault(number));
            }
        }
    }

    fn user_stops(&mut self, to: RunState) {
        for side in [Side::Source, Side::Destination] {
            let now = self.now();
            let Some(qemu) = self.host(side).qemu.as_mut() else { continue };
            if qemu.alive && qemu.run == RunState::Running {
                qemu.until(now);
                qemu.run = to;
            }
        }
    }

    pub(crate) fn source_qemu<T>(&mut self, act: impl FnOnce(&mut Qemu) -> T) -> Option<T> {
        self.host(Side::Source).qemu.as_mut().map(act)
    }

    /// A QEMU is gone by itself.
    pub(crate) fn qemu_dies(&mut self, side: Side, why: &str) {
        let now = self.now();
        let Some(qemu) = self.host(side).qemu.as_mut().filter(|qemu| qemu.alive) else { return };
        qemu.until(now);
        qemu.alive = false;
        let (streams, stream) = (qemu.status == Status::Active, qemu.stream);
        qemu.status = Status::Ended;
        self.note(|| format!("{side:?}'s QEMU dies"));
        self.saw_death(side);
        let broken = Inbound::Stream(stream, StreamEvent::Broken);
        let first = self.random.chance(500);
        if streams && side == Side::Source && first {
            self.tell(side, broken.clone());
        }
        self.tell(side, Inbound::QemuDied(why.into()));
        if streams && side == Side::Source && !first {
            self.tell(side, broken);
        }
    }

    /// An agent, or its whole host, is gone. Its future is dropped by the caller.
    pub(crate) fn crash(&mut self, side: Side, how: Crash, down: Duration) {
        let now = self.now();
        let mut random = self.random.clone();
        let host = self.host(side);
        host.up = false;
        host.listening = false;
        host.powered = how == Crash::Process;
        host.lives += 1;
        host.inbox.clear();
        host.crash = None;
        host.fate = None;
        let lost = host.disk.crash(how, &mut random);
        self.random = random;
        self.note(|| format!("{side:?} CRASHES ({how:?}); {lost} records are lost"));
        let noticed = match how {
            Crash::Process => self.setting.one_way,
            // Nobody is left to say that the connections are gone.
            Crash::Power => self.setting.link_timeout,
        };
        self.drop_ends_of(side, noticed);
        match side {
            Side::Source => {
                self.tracker = None;
                self.bulk = None;
                self.server = None;
                self.joining = None;
                self.source_phase = "";
                let keeps = self.random.chance(700);
                self.source_qemu(|qemu| qemu.lose_reader(now, keeps));
            }
            Side::Destination => {
                self.receiver = None;
                if let Some(qemu) = self.host(Side::Destination).qemu.as_mut() {
                    qemu.break_feed();
                }
            }
        }
        if how == Crash::Power {
            self.qemu_dies(side, "power");
        }
        self.clock.after(down, Event::Restart(side));
    }
}
