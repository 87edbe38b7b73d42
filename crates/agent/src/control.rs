//! The control socket: clients of this host ask here. One connection, one request, answers until the last.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sterna_api::{ApiError, Request, Response};
use sterna_model::{JobId, VmName};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};

use crate::agent::Agent;
use crate::jobs::{Canceller, Ended, Job, Role};
use crate::{checkup, following, machines, outgoing};

/// Bytes in a request, at most: QEMU's arguments are the longest part.
const MAX_REQUEST_BYTES: u64 = 2 << 20;
/// A client has this long to say what it wants.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// Progress is told at most so often.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Binds the control socket, over one that a dead agent left.
///
/// # Errors
/// When another agent listens there, or the path cannot be used.
pub(crate) fn bind(path: &Path) -> std::io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::AddrInUse,
                "another agent listens there",
            ));
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Serves clients for as long as the agent runs.
pub(crate) async fn serve(agent: Arc<Agent>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let agent = Arc::clone(&agent);
                tokio::spawn(async move {
                    if let Err(error) = answer(&agent, client).await {
                        tracing::debug!(%error, "a client went away");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a client");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// A client that waits for answers.
pub(crate) struct Client {
    writer: OwnedWriteHalf,
}

impl Client {
    /// Writes one answer.
    ///
    /// # Errors
    /// When the client is gone.
    pub(crate) async fn tell(&mut self, response: &Response) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(response).map_err(std::io::Error::other)?;
        line.push(b'\n');
        self.writer.write_all(&line).await
    }
}

async fn answer(agent: &Arc<Agent>, client: UnixStream) -> std::io::Result<()> {
    let (reader, writer) = client.into_split();
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader.take(MAX_REQUEST_BYTES));
    let read = tokio::time::timeout(REQUEST_DEADLINE, reader.read_until(b'\n', &mut line)).await;
    read.map_err(std::io::Error::other)??;
    let mut client = Client { writer };
    let request = match serde_json::from_slice(&line) {
        Ok(request) => request,
        Err(error) => {
            let error =
                ApiError::usage(format!("the agent does not understand the request: {error}"));
            return client.tell(&Response::Error(error)).await;
        }
    };
    let response = match request {
        Request::Migrate(request) if !request.options.dry_run => {
            match outgoing::begin(agent, &request).await {
                Ok(job) if request.options.detach => {
                    Ok(Response::Started { job: job.id().clone() })
                }
                Ok(job) => return follow(&mut client, &job).await,
                Err(error) => Err(error),
            }
        }
        Request::Switch { name, destination } => {
            match following::switch(agent, &name, destination.as_deref()) {
                Ok(job) => return follow(&mut client, &job).await,
                Err(error) => Err(error),
            }
        }
        Request::Watch { job } => match job_of(agent, &job) {
            Ok(job) => return follow(&mut client, &job).await,
            Err(error) => Err(error),
        },
        other => once(agent, other).await,
    };
    client.tell(&response.unwrap_or_else(Response::Error)).await
}

/// Answers a request that has one answer.
async fn once(agent: &Arc<Agent>, request: Request) -> Result<Response, ApiError> {
    match request {
        Request::VmStart { name, argv, directory } => {
            machines::start(agent, name, argv, Path::new(&directory)).await.map(Response::Vm)
        }
        Request::VmAdopt { name, qmp, pid } => {
            machines::adopt(agent, name, Path::new(&qmp), pid).await.map(Response::Vm)
        }
        Request::VmList => Ok(Response::Vms(machines::list(agent).await)),
        Request::VmShow { name } => Ok(Response::Vm(vm_of(agent, &name)?.view().await)),
        Request::VmStop { name, grace_seconds } => {
            let vm = vm_of(agent, &name)?;
            machines::stop(agent, &vm, Duration::from_secs(grace_seconds)).await.map(Response::Vm)
        }
        Request::Migrate(request) => {
            outgoing::plan(agent, &request.name, &request.destination, &request.options)
                .await
                .map(Response::Plan)
        }
        Request::Follow(request) => {
            following::follow(agent, &request).await.map(|view| Response::Follow(Box::new(view)))
        }
        Request::Status { name } => {
            following::status(agent, &name).map(|view| Response::Follow(Box::new(view)))
        }
        Request::Unfollow { name, keep } => {
            following::unfollow(agent, &name, keep).await.map(Response::Text)
        }
        Request::Plan { name, destination, with_disks } => {
            let options = sterna_api::MigrateOptions { with_disks, ..Default::default() };
            outgoing::plan(agent, &name, &destination, &options).await.map(Response::Plan)
        }
        Request::Check { peer } => checkup::check(agent, &peer).await.map(Response::Check),
        Request::Jobs => {
            Ok(Response::Jobs(agent.jobs.all().iter().map(|job| job.view()).collect()))
        }
        Request::Cancel { job } => cancel(&*job_of(agent, &job)?),
        Request::Report { job } => report(&*job_of(agent, &job)?),
        Request::Resolve { job, guest_is } => {
            let resolved = crate::resolve::resolve(agent, &job, guest_is).await;
            resolved.map(|view| Response::Resolve(Box::new(view)))
        }
        Request::Watch { job } => {
            Err(ApiError::usage(format!("the job {job} cannot be watched here")))
        }
        Request::Switch { name, .. } => {
            Err(ApiError::usage(format!("{name} cannot be handed over here")))
        }
    }
}

fn job_of(agent: &Agent, id: &JobId) -> Result<Arc<Job>, ApiError> {
    let unknown =
        || ApiError::usage(format!("there is no job {id} on this host; `sterna jobs` lists them"));
    agent.jobs.get(id).ok_or_else(unknown)
}

/// The VM of this name.
///
/// # Errors
/// When there is none.
pub(crate) fn vm_of(agent: &Agent, name: &VmName) -> Result<Arc<crate::vm::Vm>, ApiError> {
    let unknown = || {
        ApiError::usage(format!("there is no VM {name} on this host; `sterna vm list` lists them"))
    };
    agent.registry.get(name).ok_or_else(unknown)
}

fn cancel(job: &Job) -> Result<Response, ApiError> {
    let status = job.watch().borrow().clone();
    if let Some(ended) = status.ended {
        return Err(ApiError::failed(format!(
            "the job {} is over already: {}",
            job.id(),
            ended.state
        )));
    }
    if job.role() == Role::Destination {
        let why = format!("the job {} is the source's: cancel it on {}", job.id(), job.peer());
        return Err(ApiError::failed(why));
    }
    if matches!(status.phase, "offering" | "offered") {
        let why = format!(
            "the guest of {} is handed over already; `sterna watch` tells how it ends",
            job.id()
        );
        return Err(ApiError::failed(why));
    }
    job.request_cancel(Canceller::User);
    Ok(Response::Text(format!("the job {} is being rolled back", job.id())))
}

fn report(job: &Job) -> Result<Response, ApiError> {
    let status = job.watch().borrow().clone();
    match (status.report, status.ended) {
        (Some(report), _) => Ok(Response::Report(report)),
        (None, None) => {
            Err(ApiError::failed(format!("the job {} is not over: {}", job.id(), status.phase)))
        }
        (None, Some(ended)) => {
            let why = match job.role() {
                Role::Destination => format!("its source, {}, has it", job.peer()),
                Role::Source => ended.error.unwrap_or_else(|| "the agent died in it".into()),
            };
            let id = job.id();
            Err(ApiError::failed(format!(
                "the job {id} has no report here ({}): {why}",
                ended.state
            )))
        }
    }
}

/// How a job ended whose report another host has, or that was cut off with its agent.
fn without_report(job: &Job, ended: &Ended) -> Response {
    let why = ended.error.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    let message = format!("the job {} has ended: {}{why}", job.id(), ended.state);
    let exit_code = match &*ended.state {
        "done" | "running" => return Response::Text(message),
        "refused" => 3,
        "unknown" => 4,
        "cancelled" => 130,
        _ => 1,
    };
    Response::Error(ApiError { exit_code, ..ApiError::failed(message) })
}

/// Tells a client how a job goes on, to its end. That the client goes away does not end the job.
async fn follow(client: &mut Client, job: &Job) -> std::io::Result<()> {
    client.tell(&Response::Started { job: job.id().clone() }).await?;
    let mut watch = job.watch();
    let mut told = (String::new(), tokio::time::Instant::now() - PROGRESS_EVERY);
    loop {
        let status = watch.borrow_and_update().clone();
        if let Some(ended) = status.ended {
            let response = match status.report {
                Some(report) => Response::Report(report),
                None => without_report(job, &ended),
            };
            return client.tell(&response).await;
        }
        if let Some(progress) = status.progress
            && (told.0 != progress.phase || told.1.elapsed() >= PROGRESS_EVERY)
        {
            told = (progress.phase.clone(), tokio::time::Instant::now());
            client.tell(&Response::Progress(progress)).await?;
        }
        if watch.changed().await.is_err() {
            return Ok(());
        }
    }
}
