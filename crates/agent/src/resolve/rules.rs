//! Which decisions what is known forbids, and what each of them does. Facts in, words out.
//!
//! What the other host says counts more than what a person says: it may have the guest. What QEMU's run state says
//! counts too: a guest that runs is not ended here, one that has not arrived whole is not begun. Everything else is the
//! person's to decide.

use sterna_api::Decision;
use sterna_host::qmp::RunState;
use sterna_model::Refusal;
use sterna_wire::AnswerState;

use crate::jobs::Role;
use crate::journal::Side;

/// What decides about decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// What this host is in the job.
    pub role: Role,
    /// What the other host says, if it says anything.
    pub answer: Option<AnswerState>,
    /// Whether it is known which host the other one is.
    pub peer_is_known: bool,
    /// The QEMU here.
    pub qemu: QemuIs,
    /// By its journal, this host has what the guest may lack at the destination.
    pub can_serve: bool,
    /// By its journal, the guest ran at the destination with pages that this host still has.
    pub served: bool,
}

/// How the QEMU here is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QemuIs {
    /// There is none.
    Absent,
    /// It is there, and does not answer.
    Silent,
    /// The guest runs in it.
    Running,
    /// The guest is whole in it, and stands.
    Standing,
    /// It waits for a guest that has not come, or not whole.
    Waiting,
}

impl QemuIs {
    /// By its run state.
    pub(super) const fn by(running: bool, state: &RunState) -> Self {
        match state {
            _ if running => Self::Running,
            RunState::InMigrate | RunState::Unsaid | RunState::Other(_) => Self::Waiting,
            _ => Self::Standing,
        }
    }
}

/// Where the other host says that the guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PeerHas {
    /// There: it runs, or is about to.
    It,
    /// There, whole, and standing until it is told what became of it here.
    ItPaused,
    /// Not there.
    Nothing,
    /// It does not say.
    Unsaid,
}

impl Known {
    fn peer_has(&self) -> PeerHas {
        match self.answer {
            Some(
                AnswerState::Running
                | AnswerState::Faulting
                | AnswerState::Entitled
                | AnswerState::Copying
                | AnswerState::Stopping
                | AnswerState::Returned,
            ) => PeerHas::It,
            Some(AnswerState::Offered) => PeerHas::ItPaused,
            Some(
                AnswerState::Discarded
                | AnswerState::Prepared
                | AnswerState::Serving
                | AnswerState::Gone
                | AnswerState::Lost,
            ) => PeerHas::Nothing,
            Some(AnswerState::Unknown) | None => PeerHas::Unsaid,
        }
    }
}

/// Whether a decision lets the job go on instead of ending anything here: the guest is the destination's, and may lack pages
/// that only the QEMU here has. If that is gone, the destination has to be told.
#[must_use]
pub(super) fn goes_on(known: &Known, decision: Decision) -> bool {
    let asks = matches!(known.answer, Some(AnswerState::Faulting | AnswerState::Entitled));
    let there = (known.role, decision) == (Role::Source, Decision::Destination);
    there && asks && known.can_serve
}

/// Where a decision leaves the guest, seen from this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Here.
    Here,
    /// At the other host.
    There,
    /// Nowhere.
    Lost,
}

/// What a decision means on this host.
#[must_use]
pub(super) const fn outcome_of(role: Role, decision: Decision) -> Outcome {
    match (role, decision) {
        (_, Decision::Lost) => Outcome::Lost,
        (Role::Source, Decision::Source) | (Role::Destination, Decision::Destination) => {
            Outcome::Here
        }
        (Role::Source, Decision::Destination) | (Role::Destination, Decision::Source) => {
            Outcome::There
        }
    }
}

/// Why a decision cannot be what is so, if it cannot.
#[must_use]
pub(super) fn objection(known: &Known, decision: Decision) -> Option<Refusal> {
    let peer_has = known.peer_has();
    match outcome_of(known.role, decision) {
        Outcome::Here => match (peer_has, known.qemu) {
            (PeerHas::It, _) => Some(peer_has_it(known)),
            _ if known.served => Some(Refusal::new(
                "guest-ran-there",
                "the guest ran at the other host after it had left this one: what is here is of before, and its disks are not",
                "bring the other host back; if it never comes back, decide `--guest-is lost`",
            )),
            (_, QemuIs::Absent) => Some(Refusal::new(
                "no-qemu-here",
                "expected a QEMU here that holds the guest, found none",
                "decide otherwise; a guest that is lost can be started again from its disks",
            )),
            (_, QemuIs::Silent) => Some(Refusal::new(
                "qemu-silent",
                "expected a QEMU here whose monitor answers, found one that does not",
                "free its monitor from other clients, or decide otherwise",
            )),
            (_, QemuIs::Waiting) => Some(Refusal::new(
                "guest-not-whole",
                "expected a QEMU here that holds the whole guest, found one that still waits for it",
                "decide otherwise",
            )),
            (_, QemuIs::Running | QemuIs::Standing) => None,
        },
        Outcome::There => match (peer_has, known.qemu) {
            (PeerHas::Nothing, _) => Some(Refusal::new(
                "peer-has-not",
                "the other host says that it does not have the guest",
                "decide otherwise",
            )),
            (PeerHas::Unsaid | PeerHas::ItPaused, QemuIs::Running) => Some(runs_here()),
            _ if goes_on(known, decision) && known.qemu == QemuIs::Silent => Some(Refusal::new(
                "qemu-silent",
                "expected a QEMU here whose monitor answers, found one that does not",
                "free its monitor from other clients; the guest at the other host may need its pages",
            )),
            _ if known.answer == Some(AnswerState::Faulting)
                && known.role == Role::Source
                && !known.can_serve =>
            {
                Some(Refusal::new(
                    "pages-needed",
                    "the guest runs at the other host and waits for pages of the QEMU here, and no journal here tells how to send them",
                    "end the guest there with `sterna vm stop`, and decide `--guest-is lost` here",
                ))
            }
            (PeerHas::Unsaid, _) if known.served => Some(Refusal::new(
                "pages-needed",
                "the guest may wait at the other host for pages of the QEMU here, which are sent when that host is reached",
                "bring the other host back; if it never comes back, decide `--guest-is lost`",
            )),
            _ if known.role == Role::Source && !known.peer_is_known => Some(Refusal::new(
                "peer-unnamed",
                "expected to know which host the guest went to, found no journal that tells and no host that says so",
                "start the agent of the host that has it, so that it can be asked",
            )),
            _ => None,
        },
        Outcome::Lost => match (peer_has, known.qemu) {
            (PeerHas::It | PeerHas::ItPaused, _) => Some(peer_has_it(known)),
            (_, QemuIs::Running) => Some(runs_here()),
            _ => None,
        },
    }
}

fn peer_has_it(known: &Known) -> Refusal {
    let there = match known.role {
        Role::Source => Decision::Destination,
        Role::Destination => Decision::Source,
    };
    Refusal::new(
        "peer-has-guest",
        "the other host says that it has the guest",
        format!("decide `--guest-is {there}`"),
    )
}

fn runs_here() -> Refusal {
    Refusal::new(
        "guest-runs-here",
        "the guest runs in the QEMU here, and the other host does not say that it has it",
        "decide that it is here, and stop it with `sterna vm stop` if it must not run",
    )
}

/// What a decision does, in words. `here` and `peer` are the hosts' names.
#[must_use]
pub(super) fn consequence(known: &Known, decision: Decision, here: &str, peer: &str) -> String {
    let qemu_ends = match known.qemu {
        QemuIs::Absent => String::new(),
        _ => format!("the QEMU on {here} is ended, with what it holds of the guest; "),
    };
    match outcome_of(known.role, decision) {
        Outcome::Here if known.qemu == QemuIs::Running => {
            format!(
                "{here} owns the guest, which runs on there; make sure that it does not run on {peer}"
            )
        }
        Outcome::Here => {
            format!(
                "the guest is resumed on {here}, which owns it; make sure that it does not run on {peer}"
            )
        }
        Outcome::There if goes_on(known, decision) => {
            format!(
                "the job goes on: the guest on {peer} gets the pages that it lacks from {here}, whose QEMU is ended when it lacks none"
            )
        }
        Outcome::There if known.role == Role::Source => {
            format!("{qemu_ends}{here} has the guest as moved to {peer}")
        }
        Outcome::There => {
            format!(
                "{qemu_ends}{peer} is told, when it asks, that the guest is its own: one that it offered is resumed there"
            )
        }
        Outcome::Lost => format!(
            "{qemu_ends}the guest is lost, and can be started again from its disks; decide the same on {peer} if it is unknown there"
        ),
    }
}

/// How a job that a person has settled is listed.
#[must_use]
pub(crate) const fn word_of(side: Side, decision: Decision) -> &'static str {
    match (side, decision) {
        (_, Decision::Lost) => "lost",
        (Side::Source(_), Decision::Source) => "failed",
        (Side::Source(_), Decision::Destination) => "done",
        (Side::Destination(_), Decision::Source) => "discarded",
        (Side::Destination(_), Decision::Destination) => "running",
    }
}

/// A run state, as QEMU says it.
#[must_use]
pub(super) fn run_state_word(state: &RunState) -> String {
    let word = match state {
        RunState::Running => "running",
        RunState::Paused => "paused",
        RunState::Prelaunch => "prelaunch",
        RunState::InMigrate => "inmigrate",
        RunState::FinishMigrate => "finish-migrate",
        RunState::PostMigrate => "postmigrate",
        RunState::Shutdown => "shutdown",
        RunState::Suspended => "suspended",
        RunState::GuestPanicked => "guest-panicked",
        RunState::IoError => "io-error",
        RunState::InternalError => "internal-error",
        RunState::Watchdog => "watchdog",
        RunState::Other(name) => name,
        RunState::Unsaid => "unsaid",
    };
    word.to_owned()
}
