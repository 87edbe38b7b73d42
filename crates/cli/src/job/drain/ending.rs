//! How a drain's moves ended, what is printed of that, and the exit code.

use serde::{Serialize, Serializer};
use sterna_api::{ApiError, MigrateRequest, Report, VmView};
use sterna_migration::outcome::{GuestIs, OutcomeName};
use sterna_model::{JobId, Refusal, VmName};

use crate::args::Format;
use crate::client::ClientError;
use crate::console::Console;
use crate::failure::{FAILED, REFUSED, UNKNOWN, error_code};
use crate::job::end::NoReport;
use crate::job::progress::Event;
use crate::render;

/// A move that could have been begun had there been fewer others.
const TOO_MANY: &str = "too-many-jobs";
/// Interrupted, and rolled back.
const INTERRUPTED: u8 = 130;

/// How a move ended.
pub(super) enum How {
    Reported(Box<Report>),
    Refused(ApiError),
    Unheard(ClientError),
    WrongAnswer,
    /// The user did not want to wait.
    Left,
}

/// A move that has ended.
pub(super) struct Ended {
    pub(super) request: MigrateRequest,
    pub(super) job: Option<JobId>,
    pub(super) how: How,
}

/// A VM that was not moved, nor tried to be.
#[derive(Debug, Serialize)]
pub(super) struct NotBegun {
    vm: VmName,
    why: String,
    #[serde(skip)]
    is_unknown: bool,
}

/// All that came of a drain; as JSON the document that is printed.
#[derive(Serialize)]
pub(super) struct Summary {
    pub(super) destination: String,
    #[serde(rename = "reports", serialize_with = "as_reports")]
    pub(super) ended: Vec<Ended>,
    pub(super) not_begun: Vec<NotBegun>,
    #[serde(skip)]
    pub(super) is_interrupted: bool,
}

impl How {
    /// Whether it was refused for other jobs' sake, here or there.
    pub(super) fn is_too_many(&self) -> bool {
        let refusals: &[Refusal] = match self {
            Self::Reported(report) if report.outcome == OutcomeName::Refused => &report.refusals,
            Self::Refused(error) => &error.refusals,
            _ => return false,
        };
        !refusals.is_empty() && refusals.iter().all(|refusal| *refusal.code == *TOO_MANY)
    }
}

impl Ended {
    /// Whether nobody knows where its guest is.
    pub(super) fn is_unknown(&self) -> bool {
        self.code() == UNKNOWN
    }

    /// The exit code that a single `migrate` would have had; wrong usage is a VM that has ended meanwhile.
    fn code(&self) -> u8 {
        match &self.how {
            How::Reported(report) => report.exit_code(),
            How::Refused(error) if error.exit_code == 2 => REFUSED,
            How::Refused(error) => error_code(error),
            How::Unheard(ClientError::NotReached { .. }) => FAILED,
            How::Unheard(_) | How::WrongAnswer | How::Left => UNKNOWN,
        }
    }

    /// Prints how it ended: its report where results go line by line, and what went wrong.
    pub(super) fn print(&self, console: &mut Console) {
        match (&self.how, console.format()) {
            (How::Reported(report), Format::Text) if report.outcome != OutcomeName::Refused => {
                console.value(&**report, || render::report(report));
            }
            (How::Reported(report), Format::Jsonl) => {
                console.value(&Event::Report(report), String::new);
            }
            (_, Format::Jsonl) => {
                let error = self.error();
                console.value(&Event::NoReport(&self.no_report(&error)), String::new);
            }
            (_, Format::Text | Format::Json) => {}
        }
        match &self.how {
            How::Reported(report) => {
                if let Some(message) = render::outcome(report) {
                    console.note(&message);
                }
            }
            How::Refused(error) => {
                console.note(&format!("{}: {}", self.request.name, render::error(error)));
            }
            How::Unheard(_) | How::WrongAnswer | How::Left => {
                console.note(&format!("{}: {}", self.request.name, self.error()));
            }
        }
    }

    fn error(&self) -> String {
        match &self.how {
            How::Reported(report) => report.error.clone().unwrap_or_default(),
            How::Refused(error) => error.message.clone(),
            How::Unheard(error) => error.to_string(),
            How::WrongAnswer => "the agent's answer is not understood".to_owned(),
            How::Left => "not waited for; `sterna jobs` tells how it goes on".to_owned(),
        }
    }

    fn no_report<'a>(&'a self, error: &'a str) -> NoReport<'a> {
        let outcome = match self.code() {
            REFUSED => OutcomeName::Refused,
            UNKNOWN => OutcomeName::Unknown,
            _ => OutcomeName::Failed,
        };
        let refusals = match &self.how {
            How::Refused(error) => &error.refusals[..],
            _ => &[],
        };
        // Only of a job that never came to be is it known here that nothing was touched.
        let is_untouched = self.job.is_none() && outcome != OutcomeName::Unknown;
        NoReport {
            job: self.job.as_ref(),
            vm: Some(&self.request.name),
            strategy: Some(self.request.options.strategy),
            source: None,
            destination: Some(&self.request.destination),
            started_at: None,
            outcome,
            guest_is: is_untouched.then_some(GuestIs::Source),
            error,
            refusals,
        }
    }
}

impl NotBegun {
    /// A VM, and why it was not begun.
    pub(super) fn new(vm: VmName, why: impl Into<String>) -> Self {
        Self { vm, why: why.into(), is_unknown: false }
    }

    /// A VM that is unknown here: it may still be this host's.
    pub(super) fn of_unknown(vm: &VmView) -> Self {
        let subject = vm.resolve.as_deref().unwrap_or(vm.name.as_str());
        let why = format!("whose it is is not known; see `sterna resolve {subject}`");
        Self { vm: vm.name.clone(), why, is_unknown: true }
    }
}

impl Summary {
    /// Prints the rest; returns the exit code: the worst of all moves'.
    pub(super) fn conclude(&self, console: &mut Console) -> u8 {
        for NotBegun { vm, why, .. } in &self.not_begun {
            console.note(&format!("{vm} was not moved: {why}"));
        }
        match console.format() {
            Format::Json => console.value(self, String::new),
            Format::Jsonl => console.value(&Drained::of(self), String::new),
            Format::Text => console.text(&self.headline()),
        }
        self.code()
    }

    fn headline(&self) -> String {
        let moved = self.ended.iter().filter(|ended| ended.code() == 0).count();
        let all = self.ended.len() + self.not_begun.len();
        format!("{moved} of {all} VMs moved to {}", self.destination)
    }

    fn code(&self) -> u8 {
        let of_moves = self.ended.iter().map(Ended::code);
        let of_unknown = self.not_begun.iter().filter(|vm| vm.is_unknown).map(|_| UNKNOWN);
        let of_interrupt = self.is_interrupted.then_some(INTERRUPTED);
        let all = of_moves.chain(of_unknown).chain(of_interrupt);
        all.max_by_key(|code| severity(*code)).unwrap_or(0)
    }
}

/// Which of two exit codes is to be told.
fn severity(code: u8) -> u8 {
    match code {
        0 => 0,
        REFUSED => 1,
        INTERRUPTED => 2,
        UNKNOWN => 4,
        _ => 3,
    }
}

/// The last line of `-o jsonl`.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Drained<'a> {
    Drained { destination: &'a str, not_begun: &'a [NotBegun] },
}

impl<'a> Drained<'a> {
    fn of(summary: &'a Summary) -> Self {
        Self::Drained { destination: &summary.destination, not_begun: &summary.not_begun }
    }
}

fn as_reports<S: Serializer>(ended: &[Ended], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Printed<'a> {
        Report(&'a Report),
        NoReport(NoReport<'a>),
    }
    let errors: Vec<String> = ended.iter().map(Ended::error).collect();
    serializer.collect_seq(ended.iter().zip(&errors).map(|(ended, error)| match &ended.how {
        How::Reported(report) => Printed::Report(report),
        _ => Printed::NoReport(ended.no_report(error)),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: &str) -> How {
        How::Refused(ApiError::refused(vec![Refusal::new(code, "why", "what")]))
    }

    fn ended(how: How) -> Ended {
        let request = MigrateRequest {
            name: "web".parse().unwrap(),
            destination: "beta".to_owned(),
            options: sterna_api::MigrateOptions::default(),
        };
        Ended { request, job: None, how }
    }

    fn reported(outcome: OutcomeName) -> How {
        let report = crate::render::done_report();
        How::Reported(Box::new(Report { outcome, ..report }))
    }

    fn code(hows: Vec<How>, is_interrupted: bool) -> u8 {
        let ended = hows.into_iter().map(ended).collect();
        let destination = "beta".to_owned();
        Summary { destination, ended, not_begun: Vec::new(), is_interrupted }.code()
    }

    #[test]
    fn the_exit_code_is_the_worst_of_all() {
        let failed = || reported(OutcomeName::Failed);
        let unknown = || reported(OutcomeName::Unknown);
        let done = || reported(OutcomeName::Done);
        assert_eq!(code(vec![], false), 0);
        assert_eq!(code(vec![done(), done()], false), 0);
        assert_eq!(code(vec![done(), refused("vm-busy")], false), 3);
        assert_eq!(code(vec![refused("vm-busy"), failed(), done()], false), 1);
        assert_eq!(code(vec![failed(), unknown(), refused("vm-busy")], false), 4);
        assert_eq!(code(vec![done()], true), 130);
        assert_eq!(code(vec![failed()], true), 1);
    }

    #[test]
    fn what_waits_for_other_jobs_is_told_from_what_is_refused() {
        assert!(refused("too-many-jobs").is_too_many());
        assert!(!refused("vm-busy").is_too_many());
        assert!(!reported(OutcomeName::Refused).is_too_many());
    }

    #[test]
    fn a_vm_that_is_unknown_keeps_a_host_from_being_drained() {
        let vm: VmView = serde_json::from_value(serde_json::json!({
            "name": "web", "uuid": "", "state": "unknown", "pid": null, "qmp": null,
            "serial": null, "argv": [], "resolve": "job-1"
        }))
        .unwrap();
        let not_begun = vec![NotBegun::of_unknown(&vm)];
        let (destination, ended) = ("beta".to_owned(), vec![ended(reported(OutcomeName::Done))]);
        let summary = Summary { destination, ended, not_begun, is_interrupted: false };
        assert_eq!(summary.code(), 4);
        let printed = serde_json::to_value(&summary).unwrap();
        assert_eq!(printed["reports"][0]["outcome"], "done");
        assert!(printed["not_begun"][0]["why"].as_str().unwrap().contains("sterna resolve job-1"));
    }
}
