//! Jobs: what this host moves, in either direction, as clients see it. The drive loops write here, clients look.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use sterna_api::{JobView, Progress, Report};
use sterna_host::clock;
use sterna_model::{HostName, JobId, Refusal, VmName};
use tokio::sync::{Notify, watch};

use crate::journal::MAX_JOURNALS;

/// Jobs that are remembered after their end, at most: as many as have journals.
const MAX_ENDED: usize = MAX_JOURNALS;

/// What this host is in a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It sends.
    Source,
    /// It receives.
    Destination,
}

/// Who asks a job to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Canceller {
    /// Its user.
    User,
    /// This agent, which is being ended.
    AgentEnds,
}

/// One job.
#[derive(Debug)]
pub(crate) struct Job {
    id: JobId,
    vm: VmName,
    peer: HostName,
    role: Role,
    started_at: String,
    status: watch::Sender<Status>,
    cancelled: OnceLock<Canceller>,
    cancel: Notify,
    given_up: AtomicBool,
    paused: AtomicBool,
    give_up: Notify,
}

/// Where a job is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Status {
    /// The machine's state.
    pub phase: &'static str,
    /// Figures, at the source.
    pub progress: Option<Progress>,
    /// How it ended.
    pub ended: Option<Ended>,
    /// The report, at the source.
    pub report: Option<Box<Report>>,
}

/// How a job ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    /// In a word.
    pub state: String,
    /// Why, if it did not go well.
    pub error: Option<String>,
}

/// Why a job that a peer asks for is not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotBegun {
    /// There is or was one of its id.
    Known,
    /// So many are running already.
    TooMany(usize),
}

impl NotBegun {
    /// In the words that the peer gets.
    #[must_use]
    pub(crate) fn to_refusal(self, id: &JobId) -> Refusal {
        match self {
            Self::Known => {
                let reason = format!("the job {id} is known here already");
                Refusal::new("job-known", reason, "begin the move again")
            }
            Self::TooMany(most) => {
                let reason = format!("expected fewer than {most} jobs at a time, found {most}");
                let remedy = "wait, or raise limits.jobs at the destination";
                Refusal::new("too-many-jobs", reason, remedy)
            }
        }
    }
}

impl Job {
    /// A job that has just been accepted, or that is taken up again after a restart.
    #[must_use]
    pub(crate) fn new(
        id: JobId,
        vm: VmName,
        peer: HostName,
        role: Role,
        started_at: String,
    ) -> Arc<Self> {
        let status = watch::Sender::new(Status { phase: "preparing", ..Status::default() });
        let cancel = Notify::new();
        Arc::new(Self {
            id,
            vm,
            peer,
            role,
            started_at,
            status,
            cancelled: OnceLock::new(),
            cancel,
            given_up: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            give_up: Notify::new(),
        })
    }

    /// Its id.
    #[must_use]
    pub(crate) const fn id(&self) -> &JobId {
        &self.id
    }

    /// The other host.
    #[must_use]
    pub(crate) const fn peer(&self) -> &HostName {
        &self.peer
    }

    /// The VM.
    #[must_use]
    pub(crate) const fn vm(&self) -> &VmName {
        &self.vm
    }

    /// What is logged of it is logged in here, so that each line has the job and its VM. Of the highest level, so that no
    /// filter takes it away from a line that it lets through. It has to be entered: to the journal, an event that only names
    /// it as its parent is without them.
    #[must_use]
    pub(crate) fn span(&self) -> tracing::Span {
        tracing::error_span!("move", job = %self.id, vm = %self.vm)
    }

    /// What this host is in it.
    #[must_use]
    pub(crate) const fn role(&self) -> Role {
        self.role
    }

    /// When it began, RFC 3339.
    #[must_use]
    pub(crate) fn started_at(&self) -> &str {
        &self.started_at
    }

    /// Where it is, now and from now on.
    #[must_use]
    pub(crate) fn watch(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// It has come to this phase.
    pub(crate) fn set_phase(&self, phase: &'static str) {
        self.status.send_if_modified(|status| std::mem::replace(&mut status.phase, phase) != phase);
    }

    /// It has come this far.
    pub(crate) fn set_progress(&self, progress: Progress) {
        self.status.send_modify(|status| status.progress = Some(progress));
    }

    /// It is over.
    pub(crate) fn end(&self, state: &str, error: Option<String>, report: Option<Box<Report>>) {
        let ended = Some(Ended { state: state.to_owned(), error });
        self.status.send_modify(|status| {
            status.ended = ended;
            status.report = report;
        });
    }

    /// Asks it to end. Who asks first is who ended it.
    pub(crate) fn request_cancel(&self, by: Canceller) {
        let _ = self.cancelled.set(by);
        self.cancel.notify_one();
    }

    /// It ends so that the guest's devices can be changed.
    pub(crate) fn pause(&self) {
        self.paused.store(true, Ordering::Release);
    }

    /// Whether it ended so that the guest's devices can be changed.
    #[must_use]
    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    /// Who asked it to end, if anybody did.
    #[must_use]
    pub(crate) fn cancelled_by(&self) -> Option<Canceller> {
        self.cancelled.get().copied()
    }

    /// Waits until it is asked to end.
    pub(crate) async fn cancel_requested(&self) {
        while self.cancelled.get().is_none() {
            self.cancel.notified().await;
        }
    }

    /// Why it was cancelled, for its report.
    #[must_use]
    pub(crate) fn cancelled_because(&self) -> &'static str {
        match self.cancelled.get() {
            Some(Canceller::User) => "cancelled by the user",
            Some(Canceller::AgentEnds) => {
                "the source's agent is being ended; begin the move again when it is back"
            }
            None => "cancelled",
        }
    }

    /// The word for how it ended, if it did.
    #[must_use]
    pub(crate) fn ended_in(&self) -> Option<String> {
        self.status.borrow().ended.as_ref().map(|ended| ended.state.clone())
    }

    /// A person settles what it waits for: its drive loop is to leave everything as it is.
    pub(crate) fn request_give_up(&self) {
        self.given_up.store(true, Ordering::Release);
        self.give_up.notify_one();
    }

    /// Waits until it is to be left as it is.
    pub(crate) async fn give_up_requested(&self) {
        while !self.given_up.load(Ordering::Acquire) {
            self.give_up.notified().await;
        }
    }

    /// How `jobs` lists it.
    #[must_use]
    pub(crate) fn view(&self) -> JobView {
        let status = self.status.borrow();
        let role = match self.role {
            Role::Source => "source",
            Role::Destination => "destination",
        };
        let state = status.ended.as_ref().map_or(status.phase, |ended| &ended.state);
        JobView {
            job: self.id.clone(),
            vm: self.vm.clone(),
            peer: self.peer.to_string(),
            role: role.into(),
            state: state.into(),
            started_at: self.started_at.clone(),
            error: status.ended.as_ref().and_then(|ended| ended.error.clone()),
        }
    }

    /// The machine's state.
    #[must_use]
    pub(crate) fn phase(&self) -> &'static str {
        self.status.borrow().phase
    }

    /// Whether it has ended.
    #[must_use]
    pub(crate) fn is_over(&self) -> bool {
        self.status.borrow().ended.is_some()
    }
}

/// All jobs that are remembered.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    known: Mutex<BTreeMap<JobId, Arc<Job>>>,
    closed: AtomicBool,
}

impl Jobs {
    /// A new job.
    pub(crate) fn begin(&self, id: JobId, vm: VmName, peer: HostName, role: Role) -> Arc<Job> {
        let job = Job::new(id, vm, peer, role, clock::wall_time());
        self.insert(Arc::clone(&job));
        job
    }

    /// A new job that a peer has named. Looked at and begun in one step: peers may ask for two at the same time.
    ///
    /// # Errors
    /// When the id is known, or `most` jobs are running.
    pub(crate) fn begin_at_most(
        &self,
        most: usize,
        (id, vm): (JobId, VmName),
        peer: HostName,
        role: Role,
    ) -> Result<Arc<Job>, NotBegun> {
        let mut jobs = self.lock();
        if let Some(hindrance) = hindrance(&jobs, &id, most) {
            return Err(hindrance);
        }
        let job = Job::new(id, vm, peer, role, clock::wall_time());
        insert(&mut jobs, Arc::clone(&job));
        Ok(job)
    }

    /// Why a job of this id would not be begun, if it would not.
    #[must_use]
    pub(crate) fn hindrance(&self, id: &JobId, most: usize) -> Option<NotBegun> {
        hindrance(&self.lock(), id, most)
    }

    /// Remembers a job; forgets the oldest that are over when there are too many.
    pub(crate) fn insert(&self, job: Arc<Job>) {
        insert(&mut self.lock(), job);
    }

    /// The job of this id.
    #[must_use]
    pub(crate) fn get(&self, id: &JobId) -> Option<Arc<Job>> {
        self.lock().get(id).cloned()
    }

    /// All, oldest first.
    #[must_use]
    pub(crate) fn all(&self) -> Vec<Arc<Job>> {
        let mut jobs: Vec<_> = self.lock().values().cloned().collect();
        jobs.sort_by(|one, other| one.started_at.cmp(&other.started_at));
        jobs
    }

    /// No more are begun: the agent ends. Gives those that are not over.
    pub(crate) fn close(&self) -> Vec<Arc<Job>> {
        self.closed.store(true, Ordering::Release);
        self.lock().values().filter(|job| !job.is_over()).cloned().collect()
    }

    /// Whether no more are begun.
    #[must_use]
    pub(crate) fn are_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Jobs that are not over.
    #[must_use]
    pub(crate) fn running(&self) -> usize {
        running(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<JobId, Arc<Job>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Remembered = BTreeMap<JobId, Arc<Job>>;

fn running(jobs: &Remembered) -> usize {
    jobs.values().filter(|job| !job.is_over()).count()
}

fn hindrance(jobs: &Remembered, id: &JobId, most: usize) -> Option<NotBegun> {
    match (jobs.contains_key(id), running(jobs)) {
        (true, _) => Some(NotBegun::Known),
        (false, running) if running >= most => Some(NotBegun::TooMany(most)),
        _ => None,
    }
}

fn insert(jobs: &mut Remembered, job: Arc<Job>) {
    jobs.insert(job.id.clone(), job);
    let over = jobs.values().filter(|job| job.is_over());
    let mut over: Vec<_> = over.map(|job| (job.started_at.clone(), job.id.clone())).collect();
    if over.len() > MAX_ENDED {
        over.sort();
        over.iter().take(over.len() - MAX_ENDED).for_each(|(_, id)| drop(jobs.remove(id)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_asks_first_is_who_ended_it() {
        let jobs = Jobs::default();
        let begin = |id: &str| {
            let (vm, peer) = ("web".parse().unwrap(), "beta".parse().unwrap());
            jobs.begin(id.parse().unwrap(), vm, peer, Role::Source)
        };
        let (one, other) = (begin("job-1"), begin("job-2"));
        one.request_cancel(Canceller::AgentEnds);
        other.request_cancel(Canceller::User);
        other.request_cancel(Canceller::AgentEnds);
        one.cancel_requested().await;
        other.cancel_requested().await;
        let why = one.cancelled_because();
        assert!(why.contains("agent is being ended"), "{why}");
        assert_eq!(other.cancelled_because(), "cancelled by the user");
    }

    #[test]
    fn jobs_that_are_asked_for_at_the_same_time_stay_within_the_limit() {
        let jobs = Jobs::default();
        let begin = |id: &str| {
            let job = (id.parse().unwrap(), "web".parse().unwrap());
            jobs.begin_at_most(3, job, "alpha".parse().unwrap(), Role::Destination)
        };
        let begun = std::thread::scope(|scope| {
            let asked: Vec<_> = (0..32)
                .map(|number| scope.spawn(move || begin(&format!("job-{}", number % 8)).is_ok()))
                .collect();
            asked.into_iter().map(|it| it.join().unwrap()).filter(|ok| *ok).count()
        });
        assert_eq!((begun, jobs.running()), (3, 3));
        jobs.all()[0].end("discarded", None, None);
        let known = jobs.all()[0].id().clone();
        assert_eq!(begin(known.as_str()).unwrap_err(), NotBegun::Known, "also when it is over");
        assert!(begin("job-9").is_ok());
        assert_eq!(begin("job-10").unwrap_err(), NotBegun::TooMany(3));
    }
}
