//! Following goes on. A VM that its user wants followed is so in its record; whatever else ends the job that follows it (a
//! link that stays away too long, either agent's restart, a device that is plugged in), another one is begun. The
//! destination keeps what had arrived, and the new job sends what differs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sterna_api::{ApiError, FollowState, FollowView, HindranceView, MigrateRequest};
use sterna_model::{JobId, VmName};
use tokio::sync::Notify;
use tracing::Instrument as _;

use crate::agent::Agent;
use crate::following::FOLLOWING;
use crate::jobs::{Canceller, Ended, Job};
use crate::outgoing;
use crate::registry::{FollowOrder, Owner};
use crate::vm::Vm;

/// Before the first attempt to begin anew; doubled with each that comes to nothing.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A job that lived so long was no attempt that came to nothing.
const WORKED: Duration = Duration::from_secs(60);
/// Whoever changes devices has so long for the next step.
const PAUSE: Duration = Duration::from_secs(10);

/// What keeps a VM from being followed, while that is begun anew.
#[derive(Debug)]
pub(crate) struct Waiting {
    destination: String,
    job: Option<JobId>,
    since: (Instant, String),
    state: FollowState,
    why: String,
    over: Notify,
}

impl Waiting {
    /// As users see it.
    pub(crate) fn view(&self, vm: VmName, no_job: JobId) -> FollowView {
        FollowView {
            vm,
            job: self.job.clone().unwrap_or(no_job),
            destination: self.destination.clone(),
            state: self.state,
            since: self.since.1.clone(),
            hindrance: Some(self.hindrance()),
            copy: None,
        }
    }

    /// Why, and since when.
    pub(crate) fn hindrance(&self) -> HindranceView {
        let ms = u64::try_from(self.since.0.elapsed().as_millis()).unwrap_or(u64::MAX);
        HindranceView { ms, why: self.why.clone() }
    }

    /// Whoever waits looks at once whether the VM is still to be followed.
    pub(crate) fn wake(&self) {
        self.over.notify_one();
    }
}

/// A VM is followed by this job from now on, and by others after it.
pub(crate) fn begin(agent: &Arc<Agent>, vm: &Arc<Vm>, order: FollowOrder, job: Arc<Job>) {
    agent.change(vm, |record| record.follow = Some(order));
    let keeper = Keeper::new(agent, vm, String::new());
    tokio::spawn(keeper.keep(Some(job)).in_current_span());
}

/// Goes on with all VMs that were followed when the agent ended.
pub(crate) fn resume(agent: &Arc<Agent>) {
    for vm in agent.registry.all() {
        let record = vm.record();
        if record.follow.is_none() {
            continue;
        }
        if record.owner != Owner::Here {
            agent.change(&vm, |record| record.follow = None);
            continue;
        }
        tracing::info!(vm = %record.name, "it was followed when the agent ended, and is again");
        let keeper = Keeper::new(agent, &vm, "this host's agent was started again".to_owned());
        // Seen as followed from the first moment on.
        keeper.wait_visibly();
        tokio::spawn(keeper.keep(None));
    }
}

struct Keeper {
    agent: Arc<Agent>,
    vm: Arc<Vm>,
    /// Why it is not followed.
    why: String,
    state: FollowState,
    since: (Instant, String),
    last: Option<JobId>,
    wait: Duration,
}

/// What is to be done when a job has ended.
enum Next {
    /// Begin another one.
    Again,
    /// Nothing more.
    Over,
    /// Nothing more by this agent; the next one goes on.
    Later,
}

impl Keeper {
    fn new(agent: &Arc<Agent>, vm: &Arc<Vm>, why: String) -> Self {
        Self {
            agent: Arc::clone(agent),
            vm: Arc::clone(vm),
            why,
            state: FollowState::Waiting,
            since: now(),
            last: None,
            wait: FIRST_WAIT,
        }
    }

    async fn keep(mut self, mut job: Option<Arc<Job>>) {
        loop {
            if let Some(job) = job.take() {
                match self.see_to_its_end(&job).await {
                    Next::Again => {}
                    Next::Over => return self.give_up(),
                    Next::Later => return,
                }
            }
            let Some(order) = self.order() else { return self.give_up() };
            self.wait_visibly();
            if let Some(waiting) = self.vm.waiting() {
                let pause = if self.state == FollowState::Paused { PAUSE } else { self.wait };
                let _ = tokio::time::timeout(pause, waiting.over.notified()).await;
            }
            self.wait = (self.wait * 2).min(LONGEST_WAIT);
            if self.order().is_none() {
                return self.give_up();
            }
            if self.agent.jobs.are_closed() {
                return;
            }
            let name = self.vm.record().name;
            let FollowOrder { destination, options } = order;
            let request = MigrateRequest { name, destination, options };
            // Each job leaves a journal: what comes to nothing at once is not begun.
            if let Err(why) = outgoing::may_follow_again(&self.agent, &request).await {
                self.why = why;
                continue;
            }
            match outgoing::follow_again(&self.agent, &request).await {
                Ok(begun) => job = Some(begun),
                Err(error) => self.why = error.message,
            }
        }
    }

    /// Waits until a job has ended, and says what then.
    async fn see_to_its_end(&mut self, job: &Arc<Job>) -> Next {
        self.last = Some(job.id().clone());
        let mut watch = job.watch();
        let begun = watch.wait_for(|status| status.phase == FOLLOWING || status.ended.is_some());
        let began = Instant::now();
        if begun.await.is_ok_and(|status| status.ended.is_none()) {
            self.vm.wait_to_follow(None);
            self.state = FollowState::Waiting;
        }
        let ended = watch.wait_for(|status| status.ended.is_some()).await;
        let Ended { state, error } =
            ended.ok().and_then(|status| status.ended.clone()).unwrap_or_default();
        if began.elapsed() >= WORKED {
            self.wait = FIRST_WAIT;
        }
        if self.vm.waiting().is_none() {
            self.since = now();
        }
        match (state.as_str(), job.cancelled_by()) {
            (_, Some(Canceller::User)) => Next::Over,
            (_, Some(Canceller::AgentEnds)) => Next::Later,
            ("failed" | "refused", None) => {
                self.why = error.unwrap_or(state);
                if job.is_paused() {
                    self.state = FollowState::Paused;
                }
                Next::Again
            }
            _ => Next::Over,
        }
    }

    /// The wish to have it followed, while it stands and can be fulfilled.
    fn order(&self) -> Option<FollowOrder> {
        let record = self.vm.record();
        let may_run = self.vm.live().is_some() || record.process.is_some();
        record.follow.filter(|_| record.owner == Owner::Here && may_run)
    }

    fn wait_visibly(&self) {
        let record = self.vm.record();
        let Some(order) = record.follow else { return };
        let destination = order.destination.split('=').next().unwrap_or_default().to_owned();
        tracing::warn!(vm = %record.name, why = %self.why, "following is begun anew");
        let (job, since) = (self.last.clone(), self.since.clone());
        let (state, why, over) = (self.state, self.why.clone(), Notify::new());
        let waiting = Waiting { destination, job, since, state, why, over };
        self.vm.wait_to_follow(Some(Arc::new(waiting)));
    }

    fn give_up(self) {
        self.vm.wait_to_follow(None);
        if self.vm.record().follow.is_some() {
            self.agent.change(&self.vm, |record| record.follow = None);
        }
    }
}

/// Takes back the wish to have a VM followed that waits for that.
pub(crate) fn take_back(agent: &Agent, vm: &Vm) {
    agent.change(vm, |record| record.follow = None);
    if let Some(waiting) = vm.waiting() {
        vm.wait_to_follow(None);
        waiting.wake();
    }
}

/// Why a VM that waits to be followed cannot be handed over.
pub(crate) fn not_current(name: &VmName, waiting: &Waiting) -> ApiError {
    let HindranceView { why, .. } = waiting.hindrance();
    ApiError::failed(format!(
        "{name} runs on here: its copy is not kept current, which is begun anew by itself: {why}; `sterna unfollow {name}` and \
         `sterna migrate` move it without"
    ))
}

fn now() -> (Instant, String) {
    (Instant::now(), sterna_host::clock::wall_time())
}
