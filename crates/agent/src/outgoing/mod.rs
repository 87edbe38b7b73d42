//! The source of a move: accepts the command, then performs what the source's machine asks for.
//!
//! ```text
//! QEMU --> reader --marks--> tracker --claims--> workers --pages--> data connections
//!            \--head, tail, end--> drive loop <--messages--> control connection
//! ```

mod bulk;
mod drive;
mod gauge;
mod harm;
mod limiter;
mod links;
mod looks;
mod memory;
mod pacer;
mod post_copy;
mod preflight;
mod qemu;
mod reader;
mod shared;
mod urgent;
mod worker;

pub(crate) use qemu::{RunStateBefore, give_back};

use std::sync::Arc;

use sterna_api::{ApiError, MigrateOptions, MigrateRequest, Plan};
use sterna_model::{JobId, NameError, Refusal, VmName};
use tracing::Instrument as _;

use crate::agent::Agent;
use crate::control::vm_of;
use crate::following::Following;
use crate::jobs::{Job, Role};
use crate::journal::{Journal, Story};
use crate::peer::{self, Destination};
use crate::registry::{Owner, Record};
use crate::vm::{Live, Vm};

/// Data connections of a job, at most.
const MAX_CONNECTIONS: u16 = 64;

/// A move that can be begun.
#[derive(Debug)]
pub(crate) struct Move {
    /// The VM.
    pub vm: Arc<Vm>,
    /// Its QEMU; none when a job is taken up again whose QEMU has ended meanwhile.
    pub live: Option<Live>,
    /// Where to.
    pub to: Destination,
    /// How.
    pub options: MigrateOptions,
    /// It is followed until its hand-over is asked for.
    pub follow: Option<Arc<Following>>,
}

impl Move {
    /// Its QEMU.
    ///
    /// # Errors
    /// When it has ended.
    fn live(&self) -> Result<&Live, String> {
        self.live.as_ref().ok_or_else(|| "the guest's QEMU has ended".to_owned())
    }

    /// Looks at the options and the VM before anything is touched.
    ///
    /// # Errors
    /// All reasons not to move it. Where this side has one, the destination has been asked for its own as well.
    async fn examine(
        &self,
        agent: &Arc<Agent>,
        record: &Record,
    ) -> Result<preflight::Subject, Vec<Refusal>> {
        let mut refusals = preflight::check_options(&self.options);
        let examined = match self.live() {
            Ok(live) => preflight::examine(record, live).await,
            Err(why) => {
                let gone = Refusal::new("qemu-gone", why, "start the VM again");
                preflight::Examined::refused(vec![gone])
            }
        };
        refusals.extend(examined.refusals);
        match examined.subject {
            Some(subject) if refusals.is_empty() => Ok(subject),
            Some(subject) => {
                refusals.extend(theirs(agent, self, record, &subject).await);
                Err(refusals)
            }
            None => Err(refusals),
        }
    }
}

/// Accepts a command to move a VM. What follows goes on without the client.
///
/// # Errors
/// When it was asked for wrongly; everything else becomes the job's report.
pub(crate) async fn begin(
    agent: &Arc<Agent>,
    request: &MigrateRequest,
) -> Result<Arc<Job>, ApiError> {
    begin_as(agent, request, Kind::Move).await
}

/// Accepts a command to follow a VM.
///
/// # Errors
/// As [`begin`].
pub(crate) async fn begin_to_follow(
    agent: &Arc<Agent>,
    request: &MigrateRequest,
) -> Result<Arc<Job>, ApiError> {
    begin_as(agent, request, Kind::Follow).await
}

/// Follows a VM again, after a job that did so has ended otherwise than its user wants.
///
/// # Errors
/// As [`begin`].
pub(crate) async fn follow_again(
    agent: &Arc<Agent>,
    request: &MigrateRequest,
) -> Result<Arc<Job>, ApiError> {
    begin_as(agent, request, Kind::FollowAgain).await
}

/// Whether it is worth trying to follow a VM again: nothing here speaks against it, and its destination can be reached.
///
/// # Errors
/// In words, why not.
pub(crate) async fn may_follow_again(
    agent: &Arc<Agent>,
    request: &MigrateRequest,
) -> Result<(), String> {
    let wanted = wanted(agent, &request.name, &request.destination, &request.options);
    let wanted = wanted.map_err(|error| error.message)?;
    let examined = preflight::examine(&wanted.vm.record(), wanted.live()?).await;
    if !examined.refusals.is_empty() {
        let reasons: Vec<_> = examined.refusals.iter().map(ToString::to_string).collect();
        return Err(reasons.join("; "));
    }
    let (options, role) = (agent.link_options(), sterna_wire::Role::Check);
    let reached = peer::connect(&agent.identity, &wanted.to, role, options).await;
    reached.map(drop).map_err(|error| error.to_string())
}

/// What a job is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Move,
    Follow,
    FollowAgain,
}

async fn begin_as(
    agent: &Arc<Agent>,
    request: &MigrateRequest,
    kind: Kind,
) -> Result<Arc<Job>, ApiError> {
    let mut wanted = wanted(agent, &request.name, &request.destination, &request.options)?;
    if agent.jobs.are_closed() {
        return Err(ApiError::failed("the agent is being ended; start it again, and try again"));
    }
    if let Some(other) = wanted.vm.job() {
        return Err(ApiError::refused(vec![busy(&wanted.vm, &other)]));
    }
    if kind != Kind::FollowAgain && wanted.vm.waiting().is_some() {
        return Err(ApiError::refused(vec![is_followed(
            &request.name,
            "another host",
            "a new job",
        )]));
    }
    if let Some(refusal) = too_many_jobs(agent) {
        let refusals = refusals(agent, &wanted).await;
        return Err(ApiError::refused(std::iter::once(refusal).chain(refusals).collect()));
    }
    let no_random = |error: std::io::Error| ApiError::failed(format!("no random bytes: {error}"));
    let id = crate::random::job_id().map_err(no_random)?;
    let key = crate::random::bytes().map_err(no_random)?;
    if let Err(other) = wanted.vm.begin_job(&id) {
        return Err(ApiError::refused(vec![busy(&wanted.vm, &other)]));
    }
    let job = agent.jobs.begin(id, request.name.clone(), wanted.to.name.clone(), Role::Source);
    if kind != Kind::Move {
        let follow = Following::new(Arc::clone(&job));
        wanted.vm.follow(Arc::clone(&follow));
        wanted.follow = Some(follow);
    }
    let span = job.span();
    span.in_scope(|| tracing::info!(to = %wanted.to.name, ?kind, "a move begins"));
    let driven = drive::run(Arc::clone(agent), Arc::clone(&job), wanted, key);
    tokio::spawn(driven.instrument(span));
    Ok(job)
}

/// Takes a job up again whose journal ends in *offered* or *serving*: the destination is asked until it answers. Its address is the
/// one that the move went to, or what the configuration says by now.
pub(crate) fn resume_offered(
    agent: &Arc<Agent>,
    job: Arc<Job>,
    journal: Journal,
    story: &Story,
    vm: &Arc<Vm>,
) {
    let name = story.subject.peer.clone();
    let to = destination_of(agent, story)
        .unwrap_or_else(|| Destination { name, address: String::new() });
    if vm.begin_job(job.id()).is_ok() {
        let (vm, live) = (Arc::clone(vm), vm.live());
        let options = MigrateOptions::default();
        let wanted = Move { vm, live, to, options, follow: None };
        let span = job.span();
        let driven = drive::resume(Arc::clone(agent), job, wanted, journal, story.clone());
        tokio::spawn(driven.instrument(span));
    }
}

/// Where a job's destination was reached, or where it is by now.
pub(crate) fn destination_of(agent: &Agent, story: &Story) -> Option<Destination> {
    let name = story.subject.peer.clone();
    match &story.peer_address {
        Some(address) => Some(Destination { name, address: address.clone() }),
        None => peer::configured(agent, &name),
    }
}

/// Tells what keeps a VM from being moved. Predictions come with the strategies that need them.
///
/// # Errors
/// When it was asked for wrongly.
pub(crate) async fn plan(
    agent: &Arc<Agent>,
    name: &VmName,
    destination: &str,
    options: &MigrateOptions,
) -> Result<Plan, ApiError> {
    let wanted = wanted(agent, name, destination, options)?;
    // What another job does to it would look like reasons of its own.
    let refusals = match wanted.vm.job() {
        Some(other) => vec![busy(&wanted.vm, &other)],
        None => {
            let mut all: Vec<Refusal> = too_many_jobs(agent).into_iter().collect();
            all.extend(refusals(agent, &wanted).await);
            all
        }
    };
    // Predictions, and with them a choice among strategies, come with more than one strategy.
    Ok(Plan { strategies: Vec::new(), recommended: None, refusals })
}

/// Everything that both sides have against a move, without anything being begun.
async fn refusals(agent: &Arc<Agent>, wanted: &Move) -> Vec<Refusal> {
    let record = wanted.vm.record();
    match wanted.examine(agent, &record).await {
        Err(refusals) => refusals,
        Ok(subject) => theirs(agent, wanted, &record, &subject).await,
    }
}

fn too_many_jobs(agent: &Agent) -> Option<Refusal> {
    let most = agent.config.limits.jobs;
    let reason = format!("expected fewer than {most} jobs at a time");
    let remedy = "wait for one to end, or raise limits.jobs";
    (agent.jobs.running() >= most).then(|| Refusal::new("too-many-jobs", reason, remedy))
}

fn busy(vm: &Vm, job: &JobId) -> Refusal {
    let name = vm.record().name;
    if let Some(follow) = vm.followed() {
        return is_followed(&name, follow.job().peer().as_str(), job.as_str());
    }
    let reason = format!("{name} is being moved by {job} already");
    Refusal::new("vm-busy", reason, "wait for that job, or cancel it")
}

fn is_followed(name: &VmName, to: &str, by: &str) -> Refusal {
    let reason = format!("{name} is followed to {to} by {by}");
    let remedy =
        format!("`sterna switch {name}` hands it over, `sterna unfollow {name}` ends that");
    Refusal::new("vm-followed", reason, remedy)
}

/// What the destination has against a VM, without anything being begun there.
async fn theirs(
    agent: &Arc<Agent>,
    wanted: &Move,
    record: &Record,
    subject: &preflight::Subject,
) -> Vec<Refusal> {
    let job: Result<_, NameError> = "plan".parse();
    let asked = match job {
        Ok(job) => drive::prepare_message(&job, record, subject, wanted, [0; 32], agent),
        Err(error) => Err(Refusal::new("internal", error.to_string(), "report this")),
    };
    match asked {
        Ok(prepare) => match crate::checkup::would_take(agent, &wanted.to, &prepare).await {
            Ok(refusals) => refusals,
            Err(error) => vec![error.to_refusal()],
        },
        Err(refusal) => vec![refusal],
    }
}

/// What was asked for, if it makes sense.
fn wanted(
    agent: &Agent,
    name: &VmName,
    destination: &str,
    options: &MigrateOptions,
) -> Result<Move, ApiError> {
    let vm = vm_of(agent, name)?;
    match vm.record().owner {
        Owner::MovedTo { host, .. } => {
            return Err(ApiError::usage(format!("{name} was moved to {host}; ask there")));
        }
        owner @ Owner::Unknown { .. } => {
            let why = owner.unknown_because().unwrap_or_default();
            return Err(ApiError { exit_code: 4, ..ApiError::failed(format!("{name}: {why}")) });
        }
        Owner::Incoming { job } => {
            return Err(ApiError::usage(format!(
                "{name} is being moved here by {job}; wait for that"
            )));
        }
        Owner::Here | Owner::Ended | Owner::Lost => {}
    }
    let Some(live) = vm.live() else {
        return Err(ApiError::usage(format!("{name} does not run; start it first")));
    };
    let to = peer::destination(agent, destination)
        .map_err(|refusal| ApiError::refused(vec![refusal]))?;
    if to.name == agent.config.name {
        return Err(ApiError::usage(format!("{name} is on {} already", to.name)));
    }
    if !(1..=MAX_CONNECTIONS).contains(&options.connections) {
        let found = options.connections;
        return Err(ApiError::usage(format!(
            "expected 1 to {MAX_CONNECTIONS} connections, found {found}"
        )));
    }
    Ok(Move { vm, live: Some(live), to, options: options.clone(), follow: None })
}
