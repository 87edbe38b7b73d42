//! One input, watched: panics, time, memory.
//!
//! A panic is caught with its message and its place, also one in a task of an async runtime that runs on this thread. A
//! stack overflow and an abort end the process: `run --trail FILE` keeps the input that was running.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo};
use std::sync::Once;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

use crate::{Outcome, Target, Verdict};

/// One input takes at most so long, on a machine that is busy with other things as well.
const TIME_LIMIT: Duration = Duration::from_secs(5);
/// One input raises the process's peak memory by at most so much.
const GROWTH_LIMIT_KIB: i64 = 64 << 10;

/// What is wrong with how an input was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// What happened.
    pub what: String,
    /// Where in the code, or which rule: complaints of the same place count as one.
    pub place: String,
}

impl std::fmt::Display for Complaint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// The place of complaints about memory, which do not come again within one process: a peak is raised once.
pub const GROWTH: &str = "memory";

thread_local! {
    static WATCHING: Cell<bool> = const { Cell::new(false) };
    static CAUGHT: RefCell<Option<Complaint>> = const { RefCell::new(None) };
}

/// Feeds an input to a target. `expected` is what the target has to say to it, if that is known.
///
/// # Errors
/// When it panics, takes too long or too much memory, or says something else than expected.
pub fn examine(
    target: &Target,
    input: &[u8],
    expected: Option<Verdict>,
) -> Result<Outcome, Complaint> {
    install_hook();
    let before = (processor_time(), peak_kib());
    WATCHING.set(true);
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    WATCHING.set(false);
    let caught = CAUGHT.take();
    let outcome = match (result, caught) {
        (Ok(outcome), None) => outcome,
        (_, Some(complaint)) => return Err(complaint),
        (Err(_), None) => return Err(rule("panic", "a panic that no hook saw".into())),
    };
    let (took, grew_kib) = (processor_time().saturating_sub(before.0), peak_kib() - before.1);
    if took > TIME_LIMIT {
        return Err(rule("time", format!("expected at most {TIME_LIMIT:?}, took {took:?}")));
    }
    if grew_kib > GROWTH_LIMIT_KIB {
        let what =
            format!("expected to grow by at most {GROWTH_LIMIT_KIB} KiB, grew by {grew_kib}");
        return Err(rule(GROWTH, what));
    }
    match expected {
        Some(expected) if expected != outcome.verdict => {
            let what = format!("expected {expected:?}, found {}", outcome.signature);
            Err(rule("grammar", what))
        }
        _ => Ok(outcome),
    }
}

fn rule(place: &str, what: String) -> Complaint {
    Complaint { what, place: place.into() }
}

fn peak_kib() -> i64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.max_rss())
}

/// Panics of watched threads are kept and not printed; all others go where they went before.
fn install_hook() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if WATCHING.get() {
                let complaint = complaint_of(info);
                // The first panic is the cause; what fails after it is its consequence.
                CAUGHT.with_borrow_mut(|caught| _ = caught.get_or_insert(complaint));
            } else {
                before(info);
            }
        }));
    });
}

fn complaint_of(info: &PanicHookInfo<'_>) -> Complaint {
    let what = info.payload_as_str().unwrap_or("a panic without words").to_owned();
    let place = info.location().map(|place| format!("{}:{}", place.file(), place.line()));
    Complaint { what, place: place.unwrap_or_else(|| "somewhere".into()) }
}

/// What this thread has taken of a processor: on a busy machine an input may wait for one longer than it may take.
fn processor_time() -> Duration {
    let taken =
        getrusage(UsageWho::RUSAGE_THREAD).map(|usage| usage.user_time() + usage.system_time());
    let micros = taken.map_or(0, |taken| u64::try_from(taken.num_microseconds()).unwrap_or(0));
    Duration::from_micros(micros)
}
