//! What went wrong, where the guest is, and what to do now.

use sterna_api::{ApiError, Report};
use sterna_migration::outcome::{GuestIs, OutcomeName};
use sterna_model::Refusal;

/// An agent's error, each reason with its remedy.
#[must_use]
pub(crate) fn error(error: &ApiError) -> String {
    if error.refusals.is_empty() {
        return error.message.clone();
    }
    // The message repeats the reasons in one line; they are read better one by one.
    refusals(&error.refusals).join("\n")
}

/// How a job ended that did not succeed: why, where the guest is, what to do. Nothing for one that did.
#[must_use]
pub(crate) fn outcome(report: &Report) -> Option<String> {
    let Report { vm, source, destination, job, .. } = report;
    let why = report.error.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    let what = match report.outcome {
        OutcomeName::Done => return None,
        OutcomeName::Refused if !report.refusals.is_empty() => {
            format!("{vm} was not moved\n{}", refusals(&report.refusals).join("\n"))
        }
        OutcomeName::Refused => format!("{vm} was not moved: refused{why}"),
        OutcomeName::Failed => format!("{vm} was not moved: the job {job} failed{why}"),
        OutcomeName::Cancelled => format!("the job {job} was cancelled and rolled back{why}"),
        OutcomeName::Unknown => format!("the outcome of the job {job} is not known{why}"),
        OutcomeName::Lost => format!("{vm} was lost with its QEMU{why}"),
    };
    let next = match report.guest_is {
        GuestIs::Source => format!("{vm} is on {source}, as it was before"),
        GuestIs::Destination => format!("{vm} runs on {destination}; do not start it on {source}"),
        GuestIs::Paused => format!(
            "{vm} stands still on {source} until both hosts agree who has it; they go on asking each other. \
             Look now, with `sterna jobs` on {source} and on {destination}; do not start {vm} anywhere by hand"
        ),
        GuestIs::Lost => format!("{vm} runs nowhere; start it again from its disks"),
    };
    Some(format!("{what}\n{next}"))
}

/// Reasons and remedies, under a line that counts them; nothing without any.
pub(super) fn refusals(refusals: &[Refusal]) -> Vec<String> {
    if refusals.is_empty() {
        return Vec::new();
    }
    let noun = if refusals.len() == 1 { "reason" } else { "reasons" };
    let mut out = vec![format!("refused, for {} {noun}:", refusals.len())];
    for Refusal { code, reason, remedy } in refusals {
        out.push(format!("  {code}: {reason}"));
        out.push(format!("    remedy: {remedy}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::done_report;
    use super::*;

    fn ended(outcome: OutcomeName, guest_is: GuestIs, error: &str) -> Report {
        Report { outcome, guest_is, error: Some(error.to_owned()), ..done_report() }
    }

    #[test]
    fn a_failure_tells_where_the_guest_is() {
        let failed = ended(OutcomeName::Failed, GuestIs::Source, "the link was cut");
        assert_eq!(
            outcome(&failed).unwrap(),
            "web was not moved: the job j1 failed: the link was cut\nweb is on alpha, as it was before"
        );
        let lost = ended(OutcomeName::Lost, GuestIs::Lost, "QEMU was killed");
        assert_eq!(
            outcome(&lost).unwrap(),
            "web was lost with its QEMU: QEMU was killed\nweb runs nowhere; start it again from its disks"
        );
        assert_eq!(outcome(&done_report()), None);
    }

    #[test]
    fn an_unknown_outcome_tells_what_not_to_do() {
        let unknown = ended(OutcomeName::Unknown, GuestIs::Paused, "no answer to the offer");
        assert_eq!(
            outcome(&unknown).unwrap(),
            "the outcome of the job j1 is not known: no answer to the offer\n\
             web stands still on alpha until both hosts agree who has it; they go on asking each other. \
             Look now, with `sterna jobs` on alpha and on beta; do not start web anywhere by hand"
        );
    }

    #[test]
    fn each_refusal_comes_with_its_remedy() {
        let reasons = vec![
            Refusal::new("no-such-peer", "beta is not configured", "add [peers.beta]"),
            Refusal::new("vm-not-found", "there is no VM web", "see `sterna vm list`"),
        ];
        assert_eq!(
            error(&ApiError::refused(reasons)),
            "refused, for 2 reasons:\n  no-such-peer: beta is not configured\n    remedy: add [peers.beta]\n  \
             vm-not-found: there is no VM web\n    remedy: see `sterna vm list`"
        );
        assert_eq!(error(&ApiError::failed("no such job: j9")), "no such job: j9");
    }
}
