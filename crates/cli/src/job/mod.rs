//! A job, followed to its end: `migrate`, `switch` and `watch`; and many of them, when a host is drained.
//!
//! ```text
//! send the request --> answers: Started, Progress..., then an End
//!       first Ctrl-C or SIGTERM: ask the agent, on a second connection, to roll back; go on listening
//!       second one: leave the job to the agent
//! ```

mod drain;
mod end;
mod interrupts;
mod progress;

use sterna_api::{Request, Response};
use sterna_model::JobId;
use tokio::sync::mpsc;

use crate::answer;
use crate::client::{Client, ClientError, Connection};
use crate::console::Console;
use crate::failure::Failure;
use crate::task::Errand;

pub(crate) use drain::run as run_drain;

use end::{Ending, How};
use interrupts::Interrupts;
use progress::{Event, ProgressView};

/// Follows the job, prints how it ended, returns the exit code.
///
/// # Errors
/// The client's own machinery does not start; nothing was asked then.
pub(crate) fn run(client: Client, errand: &Errand, console: &mut Console) -> Result<u8, Failure> {
    let runtime = answer::runtime()?;
    let view = ProgressView::new(console.format());
    let job = match errand {
        Errand::Migrate(_) | Errand::Switch { .. } => None,
        Errand::Watch(job) => Some(job.clone()),
    };
    let mut follower =
        Follower { client, errand, console, view, job, rollback: Rollback::NotAsked };
    let how = runtime.block_on(follower.follow())?;
    let Follower { console, view, job, rollback, .. } = follower;
    view.clear();
    let is_interrupted = rollback != Rollback::NotAsked;
    Ok(end::conclude(&Ending { how, errand, job, is_interrupted }, console))
}

/// What is known of the job while it goes on.
struct Follower<'a> {
    client: Client,
    errand: &'a Errand,
    console: &'a mut Console,
    view: ProgressView,
    /// The job, once the agent has named it.
    job: Option<JobId>,
    rollback: Rollback,
}

/// Whether the user wants the job to be rolled back.
#[derive(PartialEq, Eq)]
enum Rollback {
    NotAsked,
    /// As soon as the job has a name.
    Wanted,
    /// The agent was asked.
    Asked,
}

impl Follower<'_> {
    async fn follow(&mut self) -> Result<How, Failure> {
        let mut interrupts = Interrupts::new().map_err(Failure::EventLoop)?;
        let mut connection = match self.begin().await {
            Ok(connection) => connection,
            Err(error) => return Ok(How::Unheard(error)),
        };
        let (say, mut said) = mpsc::channel::<String>(1);
        loop {
            let end = tokio::select! {
                response = connection.next() => match response {
                    Ok(response) => self.heard(response),
                    Err(error) => Some(How::Unheard(error)),
                },
                () = interrupts.next() => self.interrupted(),
                Some(message) = said.recv() => self.note(&message),
            };
            if let Some(how) = end {
                return Ok(how);
            }
            self.roll_back_if_wanted(&say);
        }
    }

    async fn begin(&self) -> Result<Connection, ClientError> {
        let request = match self.errand {
            Errand::Migrate(request) => Request::Migrate(request.clone()),
            Errand::Watch(job) => Request::Watch { job: job.clone() },
            Errand::Switch { name, destination } => {
                Request::Switch { name: name.clone(), destination: destination.clone() }
            }
        };
        let mut connection = self.client.connect().await?;
        connection.send(&request).await?;
        Ok(connection)
    }

    /// Takes an answer; some are the end.
    fn heard(&mut self, response: Response) -> Option<How> {
        match response {
            Response::Started { job } => {
                self.view.event(&Event::Started { job: &job }, self.console);
                let is_detached = matches!(self.errand, Errand::Migrate(it) if it.options.detach);
                self.job = Some(job);
                is_detached.then_some(How::Detached)
            }
            Response::Progress(progress) => {
                self.view.show(&progress, self.console);
                None
            }
            Response::Report(report) => Some(How::Reported(report)),
            Response::Plan(plan) => Some(How::Planned(plan)),
            Response::Text(message) if matches!(self.errand, Errand::Watch(_)) => {
                Some(How::Told(message))
            }
            Response::Error(error) => Some(How::Refused(error)),
            _ => Some(How::WrongAnswer),
        }
    }

    fn interrupted(&mut self) -> Option<How> {
        if self.rollback != Rollback::NotAsked {
            return Some(How::Left);
        }
        self.rollback = Rollback::Wanted;
        self.note("interrupted: rolling back; interrupt again to leave the job to the agent")
    }

    fn note(&self, message: &str) -> Option<How> {
        self.view.note(message, self.console);
        None
    }

    fn roll_back_if_wanted(&mut self, say: &mpsc::Sender<String>) {
        let (Rollback::Wanted, Some(job)) = (&self.rollback, &self.job) else { return };
        tokio::spawn(cancel(self.client.clone(), job.clone(), say.clone()));
        self.rollback = Rollback::Asked;
    }
}

/// Asks the agent to roll a job back; tells what it answers.
async fn cancel(client: Client, job: JobId, say: mpsc::Sender<String>) {
    let message = match client.ask(&Request::Cancel { job }).await {
        Ok(Response::Error(error)) => format!("the agent does not roll back: {}", error.message),
        Ok(Response::Text(message)) => message,
        Ok(_) => "the agent's answer to the wish to roll back is not understood".to_owned(),
        Err(error) => format!("the agent could not be asked to roll back: {error}"),
    };
    // If nobody listens any more, the job has ended.
    let _ = say.send(message).await;
}
