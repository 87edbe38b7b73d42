//! An agent's hands: everything that it can do to the world, as futures that take virtual time.
//!
//! Each step that others can see is a moment at which a fault may strike. An agent that is to crash there never goes on:
//! the run drops its future.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use sterna_model::Instant;

use crate::disk::{Entry, Record};
use crate::faults::Side;
use crate::message::Message;
use crate::network::{ConnectionId, Kind};
use crate::oracle::Gauge;
use crate::plant::Plant;
use crate::qemu::{Answer, Command, CommandError, RunState};
use crate::world::{Event, Fate, Inbound, World};

/// A command to a QEMU that does not answer is given up after this.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Hands {
    world: Rc<RefCell<World>>,
    pub side: Side,
}

impl Hands {
    pub(crate) const fn new(world: Rc<RefCell<World>>, side: Side) -> Self {
        Self { world, side }
    }

    /// Looks at the world, or changes it, without time passing.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        act(&mut self.world.borrow_mut())
    }

    pub(crate) fn now(&self) -> Instant {
        self.with(|world| world.now())
    }

    pub(crate) fn errs(&self, plant: Plant) -> bool {
        self.with(|world| world.errs(plant))
    }

    /// Waits until something is there. Never goes on when the agent is to crash, not before the end of a standstill.
    async fn until<T>(&self, mut ready: impl FnMut(&mut World) -> Option<T>) -> T {
        poll_fn(|_| {
            let world = &mut *self.world.borrow_mut();
            let (now, host) = (world.now(), world.host(self.side));
            if host.crash.is_some() {
                return Poll::Pending;
            }
            if host.stalled_until > now {
                let until = host.stalled_until;
                world.clock.at(until, Event::Poll(self.side));
                return Poll::Pending;
            }
            ready(world).map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Lets time pass.
    pub(crate) async fn sleep(&self, time: Duration) {
        let until = self.with(|world| {
            let until = world.now().after(time);
            world.clock.at(until, Event::Poll(self.side));
            until
        });
        self.until(|world| (world.now() >= until).then_some(())).await;
    }

    /// A step that others can see.
    pub(crate) async fn step(&self, what: &str) {
        self.with(|world| world.step(self.side, what));
        self.until(|_| Some(())).await;
    }

    /// What the agent's loop hears next, or none at `deadline`.
    pub(crate) async fn hear(&self, deadline: Option<Instant>) -> Option<Inbound> {
        if let Some(deadline) = deadline {
            self.with(|world| world.clock.at(deadline, Event::Poll(self.side)));
        }
        self.until(|world| {
            let due = deadline.is_some_and(|deadline| world.now() >= deadline);
            // Deadlines come before a peer that talks without end.
            if due {
                return Some(None);
            }
            world.host(self.side).inbox.pop_front().map(Some)
        })
        .await
    }

    /// Gives the QEMU a command.
    pub(crate) async fn qemu(&self, command: Command) -> Result<Answer, CommandError> {
        self.step(&format!("-> {command:?}")).await;
        let (fate, takes) = self.with(|world| {
            let takes = Duration::from_micros(world.random.between(30, 400));
            (world.host(self.side).fate.take(), takes)
        });
        self.sleep(takes).await;
        let alive = self.with(|world| world.is_alive(self.side));
        let answer = match fate.filter(|_| alive) {
            Some(Fate::Refused) => Err(CommandError::Refused),
            Some(Fate::Hangs) => Err(self.hang(command).await),
            None => self.with(|world| world.execute(self.side, command)),
        };
        if command != Command::Query || answer.is_err() {
            self.step(&format!("<- {command:?}: {answer:?}")).await;
        }
        answer
    }

    /// A command without an answer, obeyed or not.
    async fn hang(&self, command: Command) -> CommandError {
        if self.with(|world| world.random.chance(500)) {
            let _ = self.with(|world| world.execute(self.side, command));
        }
        let deadline = self.now().after(COMMAND_TIMEOUT);
        self.with(|world| world.clock.at(deadline, Event::Poll(self.side)));
        self.until(|world| {
            let closed = !world.is_alive(self.side);
            let late = world.now() >= deadline;
            closed.then_some(CommandError::Closed).or(late.then_some(CommandError::Timeout))
        })
        .await
    }

    /// Makes an entry of the journal durable.
    pub(crate) async fn append(&self, entry: Entry) -> Result<(), String> {
        let name = format!("journals {entry:?}");
        self.with(|world| world.begin_append(self.side, &name));
        self.until(|_| Some(())).await;
        let (written, takes) = self.with(|world| {
            let (now, usual) = (world.now(), world.setting.sync_time);
            let host = world.host(self.side);
            let written = host.disk.write(entry, now);
            let entries = host.disk.entries();
            let takes = host.slow_sync.take().unwrap_or(usual);
            world.gauge(Gauge::JournalEntries, entries);
            (written, takes)
        });
        if let Err(why) = written {
            self.step(&format!("{name}: {why}")).await;
            return Err(why);
        }
        self.step("has begun to write").await;
        self.with(|world| world.host(self.side).disk.written());
        self.step("has written").await;
        let forgets = match self.side {
            Side::Source => Plant::SourceForgetsSync,
            Side::Destination => Plant::DestinationForgetsSync,
        };
        if self.errs(forgets) {
            return Ok(());
        }
        self.sleep(takes).await;
        let synced = self.with(|world| {
            let now = world.now();
            world.host(self.side).disk.sync(now)
        });
        self.step(&format!("{name}: {synced:?}")).await;
        synced
    }

    /// Makes the VM's record durable; a disk that does not take it is logged.
    pub(crate) async fn store(&self, record: Option<Record>) {
        self.step(&format!("stores {record:?}")).await;
        self.sleep(self.with(|world| world.setting.sync_time)).await;
        let failed = self.with(|world| {
            let now = world.now();
            let disk = &mut world.host(self.side).disk;
            let ailment = disk.ailment(now);
            if ailment.is_none() {
                disk.record = record;
            }
            ailment
        });
        self.step(&failed.map_or_else(|| "stored".into(), |how| format!("not stored: {how:?}")))
            .await;
    }

    /// Sends a message; a connection that is gone reports so itself.
    pub(crate) async fn send(&self, to: ConnectionId, message: Message) {
        self.step(&format!("sends {} on {to}", message.name())).await;
        self.with(|world| world.send(to, self.side, message));
    }

    /// Connects to the destination, and waits for that.
    pub(crate) async fn connect(&self, kind: Kind) -> Option<ConnectionId> {
        self.step(&format!("connects ({kind:?})")).await;
        self.sleep(self.with(|world| world.connecting_takes())).await;
        // What was lost in a silence that began meanwhile is sent again.
        if self.with(|world| world.silent_until().is_some()) {
            self.sleep(self.with(|world| world.connecting_takes())).await;
        }
        self.with(|world| match kind {
            Kind::Control => world.connect(kind),
            Kind::Data(number) => {
                let taken = world.receiver.as_mut().is_some_and(|receiver| receiver.attach(number));
                taken.then(|| world.connect(kind)).flatten()
            }
        })
    }
}

impl World {
    fn execute(&mut self, side: Side, command: Command) -> Result<Answer, CommandError> {
        let now = self.now();
        let qemu = self.host(side).qemu.as_mut().ok_or(CommandError::Closed)?;
        let ran = qemu.run == RunState::Running;
        let answer = qemu.execute(command, now)?;
        match command {
            Command::Stop if side == Side::Source => self.guest_is_stopped(),
            Command::Cont if !ran => self.guest_runs(side),
            _ => {}
        }
        if matches!(command, Command::Migrate | Command::LetGo | Command::Release) {
            self.stream_goes_on(Duration::from_micros(50));
        }
        Ok(answer)
    }
}
