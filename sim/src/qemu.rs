//! A QEMU: run state, migration out or in, the commands that the agent gives, as QEMU 7.2 was seen to behave.
//!
//! Going out it passes over all memory once, then looks for dirty pages again and again: a *look* takes the log of dirty
//! pages, and what is in it is reported to the reader in pieces. Told to let go, it reports what it has found already and
//! ends without one more look; released by its downtime limit, it looks once more. It may also complete by itself: it
//! then stops the guest, looks, reports and ends. Coming in it loads the devices when it has its stream; with pages absent
//! it goes on to take these from that stream (`postcopy`).

use sterna_model::{Instant, PageId};

use crate::guest::Guest;

/// Pages that are reported between two events.
const PIECE_PAGES: usize = 192;

/// The guest's run state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunState {
    /// Started for a guest that comes in.
    InMigrate,
    /// The guest runs.
    Running,
    /// It stands by a `stop`.
    Paused,
    /// It stands since a stream was completed.
    PostMigrate,
    /// It has shut down.
    Shutdown,
}

/// Where an outgoing stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// There was none.
    None,
    /// It goes on.
    Active,
    /// It was completed.
    Completed,
    /// It broke, or was cancelled.
    Ended,
}

/// How an active stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Not.
    Held,
    /// With what it has found.
    LetGo,
    /// With one more look.
    Released,
    /// The same, by itself.
    Spontaneous,
}

/// What an agent asks of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// query-status, query-migrate.
    Query,
    /// migrate.
    Migrate,
    /// migrate_cancel.
    Cancel,
    /// stop.
    Stop,
    /// migrate-start-postcopy.
    LetGo,
    /// migrate-set-parameters, with the longest downtime.
    Release,
    /// migrate-set-parameters, with another pace.
    Pace {
        /// As slow as it is useful.
        slow: bool,
    },
    /// cont.
    Cont,
    /// migrate-incoming.
    Incoming,
    /// migrate-recover: take absent pages by a new stream.
    Recover,
}

/// Where a load with pages absent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PostCopy {
    /// The number of the stream that pages are taken from.
    pub stream: u32,
    /// That stream is gone.
    pub broken: bool,
    /// Every page is placed and the stream came to its end.
    pub complete: bool,
}

/// What it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The run state.
    pub run: RunState,
    /// The outgoing stream.
    pub status: Status,
    /// Looks so far.
    pub looks: u64,
    /// Pages known to be dirty and not reported.
    pub remaining: u64,
}

/// Why a command came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommandError {
    /// It refuses.
    Refused,
    /// It does not answer.
    Timeout,
    /// It is gone.
    Closed,
}

/// What a piece of work gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Pages to report, and whether each is zero.
    pub pages: Vec<(PageId, bool)>,
    /// The first pass is over with these.
    pub first_pass_over: bool,
    /// The stream is complete: the devices' state.
    pub completed: Option<u64>,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Qemu {
    /// Its guest.
    pub guest: Guest,
    /// The run state.
    pub run: RunState,
    /// It is there.
    pub alive: bool,
    /// The outgoing stream.
    pub status: Status,
    /// Streams so far: the number of the current one.
    pub stream: u32,
    /// It is held to few looks.
    pub slow: bool,
    /// The load with pages absent, if it was one.
    pub postcopy: Option<PostCopy>,
    ending: Ending,
    looks: u64,
    first_pass: bool,
    found: Vec<PageId>,
}

impl Qemu {
    /// A QEMU with a guest in it.
    pub(crate) const fn new(guest: Guest, run: RunState) -> Self {
        Self {
            guest,
            run,
            alive: true,
            status: Status::None,
            stream: 0,
            slow: false,
            postcopy: None,
            ending: Ending::Held,
            looks: 0,
            first_pass: false,
            found: Vec::new(),
        }
    }

    /// Lets the guest have done until now what it does.
    pub(crate) fn until(&mut self, now: Instant) {
        if self.alive && self.run == RunState::Running {
            self.guest.run_until(now);
        } else {
            self.guest.stand_until(now);
        }
    }

    /// Does what it is told.
    pub(crate) fn execute(
        &mut self,
        command: Command,
        now: Instant,
    ) -> Result<Answer, CommandError> {
        if !self.alive {
            return Err(CommandError::Closed);
        }
        self.until(now);
        match command {
            Command::Query | Command::Incoming => {}
            Command::Migrate => self.migrate()?,
            Command::Recover => self.recover()?,
            Command::Cancel if self.status == Status::Active => self.status = Status::Ended,
            Command::Stop if self.run == RunState::Running => self.run = RunState::Paused,
            Command::LetGo if self.status == Status::Active => self.ending = Ending::LetGo,
            Command::Release if self.status == Status::Active => self.ending = Ending::Released,
            Command::Pace { slow } => self.slow = slow,
            Command::Cont if self.run == RunState::Shutdown => return Err(CommandError::Refused),
            Command::Cont => self.run = RunState::Running,
            Command::Cancel | Command::Stop | Command::LetGo | Command::Release => {}
        }
        Ok(Answer {
            run: self.run,
            status: self.status,
            looks: self.looks,
            remaining: (self.found.len() + self.guest.dirty_pages()) as u64,
        })
    }

    /// Begins to load with pages absent; the devices are loaded already.
    pub(crate) fn begin_postcopy(
        &mut self,
        program: &Guest,
        absent: impl IntoIterator<Item = PageId>,
    ) {
        self.guest.take_over(program, absent);
        self.postcopy = Some(PostCopy { stream: 1, broken: false, complete: false });
    }

    /// Whether the guest here lacks pages, or the end of its stream.
    pub(crate) fn is_lacking(&self) -> bool {
        self.postcopy.is_some_and(|postcopy| !postcopy.complete)
    }

    /// It has every page.
    pub(crate) fn end_postcopy(&mut self) {
        if let Some(postcopy) = self.postcopy.as_mut() {
            postcopy.complete = true;
        }
    }

    /// The stream that absent pages come by is gone.
    pub(crate) fn break_feed(&mut self) {
        if let Some(postcopy) = self.postcopy.as_mut().filter(|postcopy| !postcopy.complete) {
            postcopy.broken = true;
        }
    }

    /// A new stream for absent pages. What was on its way in the old one is lost.
    fn recover(&mut self) -> Result<(), CommandError> {
        match self.postcopy.as_mut() {
            Some(postcopy) if !postcopy.complete => {
                postcopy.stream += 1;
                postcopy.broken = false;
                Ok(())
            }
            _ => Err(CommandError::Refused),
        }
    }

    fn migrate(&mut self) -> Result<(), CommandError> {
        if self.status == Status::Active || self.run == RunState::PostMigrate {
            return Err(CommandError::Refused);
        }
        self.status = Status::Active;
        self.ending = Ending::Held;
        self.stream += 1;
        self.slow = false;
        self.looks = 1;
        self.first_pass = true;
        self.guest.take_dirty();
        self.found = (0..self.guest.memory.len())
            .rev()
            .filter_map(|page| u32::try_from(page).ok().map(PageId))
            .collect();
        Ok(())
    }

    /// Nothing holds it in its iterations any more.
    pub(crate) fn complete_by_itself(&mut self) {
        if self.status == Status::Active && self.ending == Ending::Held {
            self.ending = Ending::Spontaneous;
        }
    }

    /// Its stream's other end is gone.
    pub(crate) fn lose_reader(&mut self, now: Instant, keeps_reading_end: bool) {
        self.until(now);
        if self.status != Status::Active {
            return;
        }
        // It wrote to its own buffer: it completes, and nobody resumes it but an agent.
        let completes = keeps_reading_end && self.ending != Ending::Held;
        self.status = if completes { Status::Completed } else { Status::Ended };
        if completes && matches!(self.run, RunState::Running | RunState::Paused) {
            self.run = RunState::PostMigrate;
        }
    }

    /// Goes on with its stream; gives what the reader sees.
    pub(crate) fn work(&mut self, now: Instant) -> Piece {
        self.until(now);
        match self.ending {
            Ending::Held => self.iterate(),
            Ending::LetGo => self.complete(),
            Ending::Released | Ending::Spontaneous => {
                self.look();
                self.complete()
            }
        }
    }

    fn iterate(&mut self) -> Piece {
        let rest = self.found.len().saturating_sub(PIECE_PAGES);
        let pages = self.report(rest);
        let mut first_pass_over = false;
        if self.found.is_empty() {
            first_pass_over = std::mem::take(&mut self.first_pass);
            self.look();
        }
        Piece { pages, first_pass_over, completed: None }
    }

    fn look(&mut self) {
        self.looks += 1;
        let dirty = self.guest.take_dirty();
        self.found.extend(dirty.into_iter().rev());
    }

    fn complete(&mut self) -> Piece {
        let pages = self.report(0);
        self.status = Status::Completed;
        if matches!(self.run, RunState::Running | RunState::Paused) {
            self.run = RunState::PostMigrate;
        }
        let first_pass_over = std::mem::take(&mut self.first_pass);
        Piece { pages, first_pass_over, completed: Some(self.guest.device) }
    }

    fn report(&mut self, rest: usize) -> Vec<(PageId, bool)> {
        let found = self.found.split_off(rest);
        found.into_iter().rev().map(|page| (page, self.guest.read(page) == 0)).collect()
    }
}
