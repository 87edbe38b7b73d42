//! How following a job ended: what is printed of it, and the exit code.

use serde::Serialize;
use sterna_api::{ApiError, Plan, Report, Strategy};
use sterna_migration::outcome::{GuestIs, OutcomeName};
use sterna_model::{JobId, Refusal, VmName};

use crate::answer;
use crate::args::Format;
use crate::client::ClientError;
use crate::console::Console;
use crate::failure::{FAILED, REFUSED, UNKNOWN, error_code};
use crate::render;
use crate::task::Errand;

use super::progress::Event;

/// How following a job ended.
pub(super) enum How {
    /// With the job's report.
    Reported(Box<Report>),
    /// Well, and another host has its report.
    Told(String),
    /// There was only a plan to make.
    Planned(Plan),
    /// The job goes on, as was asked.
    Detached,
    /// The agent said no.
    Refused(ApiError),
    /// The agent was not reached or went away.
    Unheard(ClientError),
    /// The agent answered something else.
    WrongAnswer,
    /// The user did not want to wait.
    Left,
}

/// How following a job ended, and what it was.
pub(super) struct Ending<'a> {
    pub(super) how: How,
    pub(super) errand: &'a Errand,
    pub(super) job: Option<JobId>,
    pub(super) is_interrupted: bool,
}

/// What stands in for a report where there is none: no job came to be, or its end was not seen. The keys are those of
/// [`Report`]; what is not known is null.
#[derive(Debug, Serialize)]
pub(super) struct NoReport<'a> {
    pub(super) job: Option<&'a JobId>,
    pub(super) vm: Option<&'a VmName>,
    pub(super) strategy: Option<Strategy>,
    /// The agent knows its host's name; without a report it is not told.
    pub(super) source: Option<&'a str>,
    pub(super) destination: Option<&'a str>,
    pub(super) started_at: Option<&'a str>,
    pub(super) outcome: OutcomeName,
    pub(super) guest_is: Option<GuestIs>,
    pub(super) error: &'a str,
    pub(super) refusals: &'a [Refusal],
}

/// A job that goes on, as JSON.
#[derive(Serialize)]
struct Detached<'a> {
    job: Option<&'a JobId>,
}

/// Prints how it ended; returns the exit code.
pub(super) fn conclude(ending: &Ending<'_>, console: &mut Console) -> u8 {
    match &ending.how {
        How::Reported(report) => reported(report, ending.is_interrupted, console),
        How::Told(message) => {
            answer::print_message(message, console);
            0
        }
        How::Planned(plan) => answer::print_plan(plan, console),
        How::Detached => detached(ending.job.as_ref(), console),
        How::Refused(error) => {
            ending.no_report(&error.message, &error.refusals, error_code(error), console);
            console.note(&render::error(error));
            error_code(error)
        }
        How::Unheard(error @ ClientError::NotReached { .. }) => {
            ending.lost_sight(&error.to_string(), FAILED, console)
        }
        How::Unheard(error) => {
            let message = format!("{error}. {}", ending.where_to_look());
            ending.lost_sight(&message, UNKNOWN, console)
        }
        How::WrongAnswer => {
            let message = format!(
                "expected a job's progress or report from the agent, found another answer. {}",
                ending.where_to_look()
            );
            ending.lost_sight(&message, UNKNOWN, console)
        }
        How::Left => {
            let message = format!("not waiting for the roll-back. {}", ending.where_to_look());
            ending.lost_sight(&message, UNKNOWN, console)
        }
    }
}

fn reported(report: &Report, is_interrupted: bool, console: &mut Console) -> u8 {
    match console.format() {
        Format::Jsonl => console.value(&Event::Report(report), String::new),
        // The message below says all there is to say.
        Format::Text if report.outcome == OutcomeName::Refused => {}
        Format::Text | Format::Json => console.value(report, || render::report(report)),
    }
    if let Some(message) = render::outcome(report) {
        console.note(&message);
    } else if is_interrupted {
        let Report { vm, destination, .. } = report;
        console.note(&format!(
            "the interrupt came too late to roll back: {vm} had been handed over and runs on {destination}"
        ));
    }
    report.exit_code()
}

fn detached(job: Option<&JobId>, console: &mut Console) -> u8 {
    match console.format() {
        // The event was printed when the job began.
        Format::Jsonl => {}
        Format::Text | Format::Json => {
            let text = || job.map(ToString::to_string).unwrap_or_default();
            console.value(&Detached { job }, text);
        }
    }
    0
}

impl Ending<'_> {
    /// The end was not seen.
    fn lost_sight(&self, message: &str, code: u8, console: &mut Console) -> u8 {
        self.no_report(message, &[], code, console);
        console.note(message);
        code
    }

    fn where_to_look(&self) -> String {
        match &self.job {
            Some(job) => format!(
                "The job {job} goes on in the agent, or is ended by it when it starts again; its state is in \
                 `sterna jobs`, and `sterna watch {job}` follows it"
            ),
            None => "The job may have begun; look with `sterna jobs`".to_owned(),
        }
    }

    /// Prints what stands in for the report, where a report is what is printed.
    fn no_report(&self, error: &str, refusals: &[Refusal], code: u8, console: &mut Console) {
        let (vm, destination, strategy) = match self.errand {
            Errand::Migrate(request) => {
                let destination = Some(request.destination.as_str());
                (Some(&request.name), destination, Some(request.options.strategy))
            }
            Errand::Switch { name, destination } => (Some(name), destination.as_deref(), None),
            Errand::Watch(_) => (None, None, None),
        };
        let outcome = match code {
            REFUSED => OutcomeName::Refused,
            UNKNOWN => OutcomeName::Unknown,
            _ => OutcomeName::Failed,
        };
        // Only of a job that never came to be is it known here that nothing was touched.
        let is_untouched = vm.is_some() && self.job.is_none() && code != UNKNOWN;
        let no_report = NoReport {
            job: self.job.as_ref(),
            vm,
            strategy,
            source: None,
            destination,
            started_at: None,
            outcome,
            guest_is: is_untouched.then_some(GuestIs::Source),
            error,
            refusals,
        };
        match console.format() {
            Format::Text => {}
            Format::Json => console.value(&no_report, String::new),
            Format::Jsonl => console.value(&Event::NoReport(&no_report), String::new),
        }
    }
}
