//! `sterna migrate --all`: every VM of this host that runs or is paused, a few at a time.
//!
//! ```text
//! waiting --begin--> under way (a task and a connection each) --report--> ended
//!    |   <--too many jobs, while others are under way--   |
//!    +- no more are begun after an unknown outcome or an interrupt; those under way go on, or are rolled back
//! ```

mod ending;
mod moving;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use sterna_api::{MigrateRequest, Request, Response, VmState, VmView};
use sterna_model::{JobId, VmName};
use tokio::sync::mpsc;

use crate::answer;
use crate::client::{Client, ClientError};
use crate::console::Console;
use crate::failure::{FAILED, Failure};
use crate::task::{Drain, DrainRequest};

use super::cancel;
use super::interrupts::Interrupts;
use super::progress::DrainView;
use ending::{Ended, How, NotBegun, Summary};
use moving::{Heard, Said};

/// What moves say waits here, at most.
const MAX_SAID: usize = 64;

/// A VM that was refused for others' jobs is tried again after this, and so often.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
const MAX_ATTEMPTS: u32 = 20;

/// Moves all VMs, prints a report of each; returns the exit code.
///
/// # Errors
/// The agent was not reached, or does not tell which VMs there are; nothing was begun then.
pub(crate) fn run(client: Client, drain: &Drain, console: &mut Console) -> Result<u8, Failure> {
    let runtime = answer::runtime()?;
    runtime.block_on(async {
        let vms = list(&client).await?;
        let (say, said) = mpsc::channel(MAX_SAID);
        let mut draining = Draining::of(client, drain, vms, say, console);
        draining.run(said).await?;
        Ok(draining.summary().conclude(console))
    })
}

async fn list(client: &Client) -> Result<Vec<VmView>, Failure> {
    let failed = |error: ClientError| Failure::Client { error, code: FAILED };
    match client.ask(&Request::VmList).await.map_err(failed)? {
        Response::Vms(vms) => Ok(vms),
        Response::Error(error) => Err(Failure::Api(error)),
        _ => Err(Failure::WrongAnswer),
    }
}

/// A drain while it goes on.
struct Draining<'a> {
    client: Client,
    drain: &'a Drain,
    console: &'a mut Console,
    view: DrainView,
    say: mpsc::Sender<Said>,
    waiting: VecDeque<VmName>,
    /// Those under way, with their jobs once the agent has named them.
    under_way: BTreeMap<VmName, Option<JobId>>,
    ended: Vec<Ended>,
    not_begun: Vec<NotBegun>,
    /// So many at a time.
    parallel: usize,
    /// How often each was refused for the sake of jobs that are not ours.
    attempts: BTreeMap<VmName, u32>,
    begins: Begins,
}

/// Whether more moves are begun.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Begins {
    Yes,
    /// An outcome is not known.
    NotAfterUnknown,
    /// The user does not want to.
    Interrupted,
    /// The user does not even want to wait.
    Left,
}

impl<'a> Draining<'a> {
    fn of(
        client: Client,
        drain: &'a Drain,
        vms: Vec<VmView>,
        say: mpsc::Sender<Said>,
        console: &'a mut Console,
    ) -> Self {
        let mut not_begun = Vec::new();
        let mut waiting = VecDeque::new();
        for vm in vms {
            match vm.state {
                VmState::Running | VmState::Paused | VmState::Following => {
                    waiting.push_back(vm.name);
                }
                VmState::Unknown => not_begun.push(NotBegun::of_unknown(&vm)),
                VmState::Incoming => {
                    not_begun.push(NotBegun::new(vm.name, "it is being moved here"));
                }
                VmState::Migrated | VmState::Stopped | VmState::Lost => {}
            }
        }
        let (view, parallel) = (DrainView::new(console.format()), drain.parallel);
        Self {
            client,
            drain,
            console,
            view,
            say,
            waiting,
            under_way: BTreeMap::new(),
            ended: Vec::new(),
            not_begun,
            parallel,
            attempts: BTreeMap::new(),
            begins: Begins::Yes,
        }
    }

    async fn run(&mut self, mut said: mpsc::Receiver<Said>) -> Result<(), Failure> {
        let mut interrupts = Interrupts::new().map_err(Failure::EventLoop)?;
        loop {
            self.begin_more();
            if self.under_way.is_empty() || self.begins == Begins::Left {
                break;
            }
            tokio::select! {
                Some(said) = said.recv() => self.heard(said),
                () = interrupts.next() => self.interrupted(),
            }
        }
        for (vm, job) in std::mem::take(&mut self.under_way) {
            self.ended.push(Ended { request: self.request(&vm), job, how: How::Left });
        }
        let why = match self.begins {
            Begins::Yes => return Ok(()),
            Begins::NotAfterUnknown => "the outcome of a move before is not known",
            Begins::Interrupted | Begins::Left => "interrupted",
        };
        let rest = self.waiting.drain(..).map(|vm| NotBegun::new(vm, why));
        self.not_begun.extend(rest);
        Ok(())
    }

    fn begin_more(&mut self) {
        while self.begins == Begins::Yes && self.under_way.len() < self.parallel {
            let Some(vm) = self.waiting.pop_front() else { return };
            let request = self.request(&vm);
            let begun = moving::follow(self.client.clone(), request, self.say.clone());
            let after = if self.attempts.contains_key(&vm) { AGAIN_AFTER } else { Duration::ZERO };
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                begun.await;
            });
            self.under_way.insert(vm, None);
        }
    }

    fn request(&self, vm: &VmName) -> MigrateRequest {
        let DrainRequest { destination, options } = self.drain.request.clone();
        MigrateRequest { name: vm.clone(), destination, options }
    }

    fn heard(&mut self, said: Said) {
        let (vm, heard) = match said {
            Said::Of(vm, heard) => (vm, heard),
            Said::Note(message) => return self.console.note(&message),
        };
        match heard {
            Heard::Started(job) => {
                self.view.started(&vm, &job, self.console);
                if self.begins == Begins::Interrupted {
                    self.roll_back(job.clone());
                }
                self.under_way.insert(vm, Some(job));
            }
            Heard::Progress(progress) => self.view.show(&vm, &progress, self.console),
            Heard::End(how) => self.ended(vm, how),
        }
    }

    fn ended(&mut self, vm: VmName, how: How) {
        let job = self.under_way.remove(&vm).flatten();
        if how.is_too_many() && self.begins == Begins::Yes && self.may_try_again(&vm) {
            // As many as the hosts take: this one waits for another one's end.
            self.parallel = self.under_way.len().max(1);
            return self.waiting.push_front(vm);
        }
        let ended = Ended { request: self.request(&vm), job, how };
        if ended.is_unknown() && self.begins == Begins::Yes {
            self.begins = Begins::NotAfterUnknown;
        }
        ended.print(self.console);
        self.ended.push(ended);
    }

    /// While ours are under way, as soon as one has ended; for others' jobs it waits for some seconds.
    fn may_try_again(&mut self, vm: &VmName) -> bool {
        if !self.under_way.is_empty() {
            return true;
        }
        let attempts = self.attempts.entry(vm.clone()).or_default();
        *attempts += 1;
        *attempts <= MAX_ATTEMPTS
    }

    fn interrupted(&mut self) {
        if self.begins >= Begins::Interrupted {
            self.begins = Begins::Left;
            return;
        }
        self.begins = Begins::Interrupted;
        self.console.note(
            "interrupted: no more moves are begun, and those under way are rolled back; interrupt again to leave them to the agent",
        );
        let jobs: Vec<JobId> = self.under_way.values().flatten().cloned().collect();
        jobs.into_iter().for_each(|job| self.roll_back(job));
    }

    fn roll_back(&self, job: JobId) {
        let (client, say) = (self.client.clone(), self.say.clone());
        tokio::spawn(async move {
            let (tell, mut told) = mpsc::channel(1);
            cancel(client, job, tell).await;
            if let Some(message) = told.recv().await {
                let _ = say.send(Said::Note(message)).await;
            }
        });
    }

    fn summary(&mut self) -> Summary {
        Summary {
            destination: self.drain.request.destination.clone(),
            ended: std::mem::take(&mut self.ended),
            not_begun: std::mem::take(&mut self.not_begun),
            is_interrupted: self.begins >= Begins::Interrupted,
        }
    }
}
