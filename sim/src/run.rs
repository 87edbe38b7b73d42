//! A run: both agents, polled as their world goes on, until their jobs are over; then both are restarted once more, and
//! the oracles look at what is left.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use sterna_migration::destination::End;
use sterna_migration::outcome::OutcomeName;
use sterna_model::Instant;

use crate::disk::Crash;
use crate::faults::{Moment, Scenario, Side};
use crate::hands::Hands;
use crate::oracle::{Ended, Oracle, Violation};
use crate::plant::Plant;
use crate::trace::{Recording, Trace};
use crate::world::{Event, Inbound, World};
use crate::{destination, source};

/// A run ends within so much virtual time.
const TIME_LIMIT: Duration = Duration::from_secs(1800);
/// When the move is asked for.
const COMMAND_AT: Duration = Duration::from_millis(50);
/// A person looks after so long.
const HELP_AFTER: Duration = Duration::from_secs(900);
/// And within so many events.
const EVENT_LIMIT: u64 = 2_000_000;
/// When nothing is under way any more, so long is waited for what may still come.
const QUIET: Duration = Duration::from_secs(3);
/// At the last restart the agents are away so long.
const LAST_DOWN: Duration = Duration::from_millis(50);

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Run {
    /// What must not be, if it was.
    pub violation: Option<Violation>,
    /// How the job ended at the source, if it was known there.
    pub outcome: Option<OutcomeName>,
    /// How long the guest stood, at most, before it ran on at the source with nothing offered.
    pub stood: Duration,
    /// What became of a job whose links broke in the rounds, if they did.
    pub rounds: Option<Rounds>,
    /// What became of a guest that lacked pages at the destination, if one did.
    pub third_stage: Option<ThirdStage>,
    /// Events.
    pub events: u64,
    /// Virtual time.
    pub took: Duration,
    /// What happened.
    pub trace: Trace,
}

/// What became of a job whose links broke in the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounds {
    /// The source rejoined, and the move was done.
    Rejoined,
    /// The destination was not reached within the limit, and the guest runs on at the source.
    GivenUp,
    /// Something else ended it.
    EndedOtherwise,
}

/// What became of a guest that lacked pages at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThirdStage {
    /// It became whole.
    Whole,
    /// It became whole, and the source had to rejoin for that.
    Rejoined,
    /// It did not.
    Lacking,
}

/// How a run is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// A mistake to make.
    pub plant: Option<Plant>,
    /// Whether a trace is kept.
    pub recording: Recording,
    /// Only this oracle's complaints count.
    pub only: Option<Oracle>,
}

type Agent = Pin<Box<dyn Future<Output = ()>>>;

struct Running {
    world: Rc<RefCell<World>>,
    agents: [Option<Agent>; 2],
    events: u64,
    outcome: Option<OutcomeName>,
    rounds: Option<Rounds>,
    helped: bool,
}

/// Where a run is.
enum Stage {
    /// Both jobs are under way, or were a moment ago.
    First,
    /// Both agents have been restarted for the last time.
    Last,
}

/// Runs a scenario to its end.
#[must_use]
pub fn run(scenario: &Scenario, options: Options) -> Run {
    let world = World::new(scenario, options);
    let mut running = Running {
        world: Rc::new(RefCell::new(world)),
        agents: [None, None],
        events: 0,
        outcome: None,
        rounds: None,
        helped: false,
    };
    running.start(Side::Destination);
    // The user gives the command when both agents are there.
    running.make(Side::Source);
    running.world.borrow_mut().clock.after(COMMAND_AT, Event::Poll(Side::Source));
    running.go(scenario);
    let mut world = running.world.borrow_mut();
    Run {
        violation: world.oracles.violation().cloned(),
        outcome: running.outcome,
        stood: world.oracles.progress.stood,
        rounds: running.rounds,
        third_stage: world.third_stage(),
        events: running.events,
        took: world.now().since(Instant::default()),
        trace: std::mem::take(&mut world.trace),
    }
}

impl Running {
    fn go(&mut self, scenario: &Scenario) {
        let timed = scenario.faults.iter().filter_map(|fault| match fault.at {
            Moment::Time(at) => Some(at),
            _ => None,
        });
        let mut quiet_from = timed.max().unwrap_or_default();
        let mut stage = Stage::First;
        loop {
            let next = self.world.borrow_mut().clock.next();
            let Some(event) = next else {
                // Nobody waits for anything any more.
                if !self.is_settled() {
                    self.world.borrow_mut().blame_endless();
                    return;
                }
                match stage {
                    Stage::First => {
                        self.first_end();
                        self.restart_both();
                    }
                    Stage::Last => return self.world.borrow_mut().check_leftovers(),
                }
                stage = Stage::Last;
                continue;
            };
            self.events += 1;
            self.happen(event);
            if self.is_over() {
                return;
            }
            self.help();
            let now = self.world.borrow().now();
            if !self.is_settled() {
                quiet_from = quiet_from.max(now);
            } else if now >= quiet_from.after(QUIET) {
                match stage {
                    Stage::First => {
                        self.first_end();
                        self.restart_both();
                        stage = Stage::Last;
                        quiet_from = now;
                    }
                    Stage::Last => return self.world.borrow_mut().check_leftovers(),
                }
            }
        }
    }

    /// A destination that said *unknown* of a guest whose QEMU is there goes on when a person restarts its agent.
    fn help(&mut self) {
        let waits = {
            let world = self.world.borrow();
            let late = world.now() > Instant::default().after(HELP_AFTER);
            let ended = world.oracles.progress.how_ended(Side::Destination);
            let unknown = matches!(ended, Some(Ended::Destination(End::Unknown(_))));
            late && unknown && !self.helped && world.hosts[Side::Destination.index()].up
        };
        if waits && !self.is_settled() {
            self.helped = true;
            self.end(Side::Destination, Crash::Process, LAST_DOWN);
        }
    }

    /// A violation ends a run, and so does a run without end.
    fn is_over(&self) -> bool {
        let mut world = self.world.borrow_mut();
        let late = world.now() > Instant::default().after(TIME_LIMIT);
        let is_endless = late || self.events > EVENT_LIMIT;
        if is_endless {
            world.blame_endless();
        }
        // Also when that oracle is silenced.
        is_endless || world.oracles.violation().is_some()
    }

    fn is_settled(&self) -> bool {
        let world = self.world.borrow();
        let is_settled = world.oracles.progress.is_settled() || world.waits_for_a_person();
        is_settled && world.hosts.iter().all(|host| host.up)
    }

    fn first_end(&mut self) {
        let mut world = self.world.borrow_mut();
        world.check_success();
        world.check_rejoining();
        self.rounds = world.rounds();
        if let Some(Ended::Source(name)) = world.oracles.progress.how_ended(Side::Source) {
            self.outcome = Some(*name);
        }
    }

    fn restart_both(&mut self) {
        for side in [Side::Source, Side::Destination] {
            self.end(side, Crash::Process, LAST_DOWN);
        }
    }

    fn start(&mut self, side: Side) {
        self.make(side);
        self.world.borrow_mut().poll(side);
    }

    fn make(&mut self, side: Side) {
        let hands = Hands::new(Rc::clone(&self.world), side);
        let agent: Agent = match side {
            Side::Source => Box::pin(source::agent(hands)),
            Side::Destination => Box::pin(destination::agent(hands)),
        };
        self.agents[side.index()] = Some(agent);
    }

    fn end(&mut self, side: Side, how: Crash, down: Duration) {
        self.agents[side.index()] = None;
        let mut world = self.world.borrow_mut();
        world.crash(side, how, down);
        world.oracles.progress.restarted(side);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Poll(side) => self.poll(side),
            Event::Restart(side) => {
                let mut world = self.world.borrow_mut();
                (world.host(side).up, world.host(side).powered) = (true, true);
                drop(world);
                self.start(side);
            }
            other => happen_in(&mut self.world.borrow_mut(), other),
        }
        for side in [Side::Source, Side::Destination] {
            let crash = {
                let mut world = self.world.borrow_mut();
                let host = world.host(side);
                host.crash.take().filter(|_| host.up)
            };
            if let Some((how, down)) = crash {
                self.end(side, how, down);
            }
        }
    }

    fn poll(&mut self, side: Side) {
        if !self.world.borrow_mut().may_poll(side) {
            return;
        }
        let Some(agent) = &mut self.agents[side.index()] else { return };
        let mut context = Context::from_waker(Waker::noop());
        if agent.as_mut().poll(&mut context).is_ready() {
            self.agents[side.index()] = None;
        }
    }
}

fn happen_in(world: &mut World, event: Event) {
    match event {
        Event::Deliver(id, to, message) => world.deliver(id, to, message),
        Event::Closed(id, side, how) => world.closed(id, side, how),
        Event::Break(connections) => world.time_out(connections),
        Event::Dialed(life) => {
            if world.host(Side::Source).lives == life {
                let reached = world.reach(crate::network::Kind::Control);
                world.tell(Side::Source, Inbound::Dialed(reached));
            }
        }
        Event::Joined(life, attempt, count) => world.joined(life, attempt, count),
        Event::Work(number, worker) => world.work(number, worker),
        Event::Stream(turn) => world.stream(turn),
        Event::Loaded => world.loaded(),
        Event::Serve(number, worker) => world.serve_next(number, worker),
        Event::Fed(stream, fed) => world.fed(stream, fed),
        Event::Look(turn, waited) => world.look(turn, waited),
        Event::Fault(number) => world.strike(number),
        Event::Poll(_) | Event::Restart(_) => {}
    }
}
