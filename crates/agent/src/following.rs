//! VMs that are followed: the words `follow`, `status`, `switch` and `unfollow`, and what they and the drive loop share.
//!
//! A job that follows its VM is a move whose rounds do not end before its hand-over is asked for. It goes on without the
//! command that began it. What ends otherwise than its user wants is begun anew: [`keeper`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use sterna_api::{
    ApiError, CopyView, EpochView, FollowState, FollowView, HindranceView, MigrateRequest,
};
use sterna_model::{Refusal, VmName};
use tokio::sync::Notify;

use crate::agent::Agent;
use crate::control::vm_of;
use crate::jobs::{Canceller, Job};
use crate::registry::FollowOrder;
use crate::{keeper, outgoing, peer};

/// The phase of a job that follows its VM and has begun to copy.
pub(crate) const FOLLOWING: &str = "following";

/// That of one that has not.
const PREPARING: &str = "preparing";

/// A VM that is followed.
#[derive(Debug)]
pub(crate) struct Following {
    job: Arc<Job>,
    /// The hand-over is asked for.
    asked: AtomicBool,
    ask: Notify,
    /// It has begun: the policy decides from here on.
    begun: Arc<AtomicBool>,
    seen: Mutex<Seen>,
    /// Ended by its user, the destination keeps its copy.
    keeps_copy: AtomicBool,
}

/// What the drive loop has last told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// All memory was copied once.
    pub copied_once: bool,
    /// Figures.
    pub copy: Option<CopyView>,
    /// The last epoch, and when it ended.
    pub epoch: Option<(Instant, EpochView)>,
    /// Since when the destination is not heard, and why.
    pub away: Option<(Instant, String)>,
}

impl Following {
    /// A VM that this job is to follow.
    #[must_use]
    pub(crate) fn new(job: Arc<Job>) -> Arc<Self> {
        let (asked, ask) = (AtomicBool::new(false), Notify::new());
        let (begun, seen, keeps_copy) = (Arc::default(), Mutex::default(), AtomicBool::new(false));
        Arc::new(Self { job, asked, ask, begun, seen, keeps_copy })
    }

    /// The job.
    #[must_use]
    pub(crate) const fn job(&self) -> &Arc<Job> {
        &self.job
    }

    /// For the policy: whether the hand-over has begun.
    #[must_use]
    pub(crate) fn hand_over_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.begun)
    }

    /// The drive loop begins the hand-over.
    pub(crate) fn begin_hand_over(&self) {
        self.begun.store(true, Ordering::Release);
    }

    /// Whether the hand-over is asked for.
    #[must_use]
    pub(crate) fn is_switching(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    fn ask_for_hand_over(&self) {
        self.asked.store(true, Ordering::Release);
        self.ask.notify_one();
    }

    /// Waits until the hand-over is asked for.
    pub(crate) async fn hand_over_asked(&self) {
        while !self.is_switching() {
            self.ask.notified().await;
        }
    }

    /// Whether another job is to follow the VM after this one, from what the destination keeps.
    pub(crate) fn goes_on(&self) -> bool {
        self.keeps_copy.load(Ordering::Acquire) || self.job.cancelled_by() != Some(Canceller::User)
    }

    /// What is seen of it from here on.
    pub(crate) fn tell(&self, seen: Seen) {
        *self.lock() = seen;
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn view(&self) -> FollowView {
        let seen = self.lock().clone();
        let state = if self.is_switching() {
            FollowState::Switching
        } else if self.job.phase() != FOLLOWING {
            FollowState::Preparing
        } else if seen.away.is_some() {
            FollowState::Reconnecting
        } else if seen.copied_once {
            FollowState::Following
        } else {
            FollowState::Copying
        };
        let last_epoch = seen.epoch.map(|(ended, epoch)| {
            let ended_ms_ago = u64::try_from(ended.elapsed().as_millis()).unwrap_or(u64::MAX);
            EpochView { ended_ms_ago, ..epoch }
        });
        FollowView {
            vm: self.job.vm().clone(),
            job: self.job.id().clone(),
            destination: self.job.peer().to_string(),
            state,
            since: self.job.started_at().to_owned(),
            hindrance: seen.away.map(|(since, why)| HindranceView {
                ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
                why,
            }),
            copy: seen.copy.map(|copy| CopyView { last_epoch, ..copy }),
        }
    }
}

/// Begins to follow a VM; answers when the destination is prepared and copying has begun.
///
/// # Errors
/// It is refused or does not come to that; the guest is untouched.
pub(crate) async fn follow(
    agent: &Arc<Agent>,
    request: &MigrateRequest,
) -> Result<FollowView, ApiError> {
    let job = outgoing::begin_to_follow(agent, request).await?;
    let vm = vm_of(agent, &request.name)?;
    let mut watch = job.watch();
    let begun = watch.wait_for(|status| status.phase != PREPARING || status.ended.is_some()).await;
    let status = begun.map_err(|error| ApiError::failed(error.to_string()))?.clone();
    if let Some(ended) = status.ended {
        let refusals = status.report.map(|report| report.refusals).unwrap_or_default();
        if !refusals.is_empty() {
            return Err(ApiError::refused(refusals));
        }
        let why = ended.error.unwrap_or(ended.state);
        let name = &request.name;
        return Err(ApiError::failed(format!("{name} is not followed, and runs on here: {why}")));
    }
    let view = vm.followed().map(|follow| follow.view());
    let order =
        FollowOrder { destination: request.destination.clone(), options: request.options.clone() };
    keeper::begin(agent, &vm, order, job);
    view.ok_or_else(|| not_followed(&request.name))
}

/// How current a followed VM's copy is.
///
/// # Errors
/// There is no such VM, or it is not followed.
pub(crate) fn status(agent: &Agent, name: &VmName) -> Result<FollowView, ApiError> {
    let vm = vm_of(agent, name)?;
    match (vm.followed(), vm.waiting()) {
        (Some(follow), waiting) => {
            let mut view = follow.view();
            if view.state == FollowState::Preparing {
                // Not for the first time.
                view.hindrance = waiting.map(|waiting| waiting.hindrance());
            }
            Ok(view)
        }
        (None, Some(waiting)) => {
            let no_job = "none".parse().map_err(|_| not_followed(name))?;
            Ok(waiting.view(name.clone(), no_job))
        }
        (None, None) => Err(not_followed(name)),
    }
}

/// Hands a followed VM over; gives the job, which ends when the guest runs there, or here.
///
/// # Errors
/// It is not followed, or to another host.
pub(crate) fn switch(
    agent: &Agent,
    name: &VmName,
    destination: Option<&str>,
) -> Result<Arc<Job>, ApiError> {
    let vm = vm_of(agent, name)?;
    if let (None, Some(waiting)) = (vm.followed(), vm.waiting()) {
        return Err(keeper::not_current(name, &waiting));
    }
    let follow = followed(agent, name)?;
    if let Some(destination) = destination {
        let to = peer::destination(agent, destination)
            .map_err(|refusal| ApiError::refused(vec![refusal]))?;
        let is = follow.job.peer();
        if to.name != *is {
            let reason = format!("{name} is followed to {is}, not to {}", to.name);
            let remedy = format!("`sterna switch {name} {is}`, or `sterna unfollow {name}` first");
            let refusal = Refusal::new("followed-elsewhere", reason, remedy);
            return Err(ApiError::refused(vec![refusal]));
        }
    }
    follow.ask_for_hand_over();
    Ok(Arc::clone(&follow.job))
}

/// Ends following; answers when the guest is as it was, and the destination was told.
///
/// # Errors
/// It is not followed, or handed over already.
pub(crate) async fn unfollow(agent: &Agent, name: &VmName, keep: bool) -> Result<String, ApiError> {
    let vm = vm_of(agent, name)?;
    let follow = match (vm.followed(), vm.waiting()) {
        (Some(follow), _) => follow,
        (None, Some(_)) => {
            keeper::take_back(agent, &vm);
            return Ok(format!("{name} is not followed any more, and runs on here"));
        }
        (None, None) => return Err(not_followed(name)),
    };
    follow.keeps_copy.store(keep, Ordering::Release);
    if follow.is_switching() {
        let id = follow.job.id();
        let why = format!("{name} is being handed over by {id}; `sterna cancel {id}` rolls back");
        return Err(ApiError::failed(why));
    }
    follow.job.request_cancel(Canceller::User);
    let mut watch = follow.job.watch();
    let ended = watch.wait_for(|status| status.ended.is_some()).await;
    let status = ended.map_err(|error| ApiError::failed(error.to_string()))?.clone();
    let ended = status.ended.unwrap_or_default();
    if ended.state == "cancelled" {
        return Ok(format!("{name} is not followed any more, and runs on here"));
    }
    let why = ended.error.map(|why| format!(": {why}")).unwrap_or_default();
    Err(ApiError::failed(format!("following {name} has ended otherwise: {}{why}", ended.state)))
}

fn followed(agent: &Agent, name: &VmName) -> Result<Arc<Following>, ApiError> {
    vm_of(agent, name)?.followed().ok_or_else(|| not_followed(name))
}

fn not_followed(name: &VmName) -> ApiError {
    let reason = format!("{name} is not followed");
    let remedy = format!("`sterna follow {name} DEST` begins it; `sterna jobs` tells how it ended");
    ApiError::refused(vec![Refusal::new("not-followed", reason, remedy)])
}
