//! One blow in one move, and what must be so in the end, by law 1's table.

use std::thread;
use std::time::Duration;

use serde_json::Value;
use sterna_e2e::command::wait_for;
use sterna_e2e::{
    Blow, Error, Guest, Journals, MOVE_LIMIT, Pair, Phase, Result, Side, Vm, expect_that,
};
use sterna_model::Rate;

/// So that a move takes a second or two and its moments can be told apart.
const LINK: Rate = Rate { bytes_per_second: 12_500_000 };
/// Moves by pre-copy.
const CALM: &str = "uniform size=16M rate=1M sweep=30";
/// Writes at more than twice the link's rate: only post-copy moves it, and all that it writes to is lacking then.
const BUSY: &str = "uniform size=48M rate=30M sweep=30";
/// After a blow and its mending, all is settled within this: questions are asked every second, and connections that wait
/// for a lost packet do so for some time after a long cut.
const SETTLED_LIMIT: Duration = Duration::from_secs(100);
/// Four commands ask both hosts: more often, they would be the load that others suffer from.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The states that a job ends in, and none for one that never was.
const ENDS: [&str; 8] =
    ["done", "failed", "refused", "lost", "unknown", "running", "discarded", "none"];

/// Where the guest is in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    Source,
    Destination,
    /// Its only QEMU was killed, and that is said.
    Lost,
    /// The QEMU that was to run it was killed, and whether it had run is not known; that is said, and the other one waits.
    Unknown,
}

/// What one blow led to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) end: End,
    /// The moment came.
    pub(crate) struck: bool,
}

/// Strikes once each; a guest that survives is used again.
pub(crate) fn strike_all(
    pair: &mut Pair,
    blows: impl IntoIterator<Item = (Phase, Blow)>,
    mut then: impl FnMut(Phase, Blow, Ended) -> Result<()>,
) -> Result<()> {
    let mut vm: Option<(Kind, Vm)> = None;
    for (number, (phase, blow)) in blows.into_iter().enumerate() {
        let kind = Kind::of(phase);
        let mut guest = match vm.take() {
            Some((known, guest)) if known == kind => guest,
            other => {
                if let Some((_, guest)) = other {
                    guest.check_works()?;
                    end(pair, &guest)?;
                }
                Vm::start(pair, &kind.guest(&format!("heir{number}")))?
            }
        };
        let ended = strike(pair, &mut guest, phase, blow)
            .map_err(|error| Error::unexpected(format!("{blow:?} at {phase:?}"), "law 1", error))?;
        eprintln!("{blow:?} at {phase:?}: {ended:?}");
        then(phase, blow, ended)?;
        // Guests are started at alpha, so one that is to be used again goes back there.
        if ended.end != End::Lost {
            guest.migrate(pair, &[])?;
            if guest.at() == Side::Beta {
                guest.migrate(pair, &[])?;
            }
            vm = Some((kind, guest));
        }
    }
    vm.map_or(Ok(()), |(_, vm)| vm.check_works())
}

/// Its user ends it.
fn end(pair: &Pair, vm: &Vm) -> Result<()> {
    pair.host(vm.at()).run(&["vm", "stop", vm.name(), "--grace", "0"])?.success().map(drop)
}

/// How a guest is moved, and which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    PreCopy,
    PostCopy,
}

impl Kind {
    /// The one that has this moment.
    fn of(phase: Phase) -> Self {
        if Phase::OF_POST_COPY.contains(&phase) { Self::PostCopy } else { Self::PreCopy }
    }

    fn guest(self, name: &str) -> Guest {
        match self {
            Self::PreCopy => Guest::new(name).load(CALM),
            // Its network device touches guest memory from inside of QEMU.
            Self::PostCopy => Guest::new(name).tap().load(BUSY),
        }
    }

    const fn options(self) -> &'static [&'static str] {
        match self {
            Self::PreCopy => &[],
            Self::PostCopy => &["--strategy", "three-stage"],
        }
    }
}

/// A move, a blow, and what must be so in the end.
fn strike(pair: &mut Pair, vm: &mut Vm, phase: Phase, blow: Blow) -> Result<Ended> {
    let (from, held) = (vm.at(), vm.memory_is_a_file()?);
    pair.world().shape(LINK)?;
    let before = Journals::of(pair);
    let words = vm.migrate_words(Kind::of(phase).options());
    let mut command = pair.host(from).spawn(&words)?;
    let struck = phase.wait(pair, from, &before, &mut command)?;
    // Only a move that ends by post-copy has them, and this guest's does.
    expect_that(struck || Kind::of(phase) == Kind::PreCopy, "the moment", "that it came", struck)?;
    let wound = blow.strike(pair, vm)?;
    wound.mend(pair)?;
    let code = command.wait(MOVE_LIMIT)?.code;
    wound.clean_up(pair);
    // A cut took the shape with it.
    let _ = pair.world().unshape();
    let end = settle(pair, vm, from)?;
    check_allowed(phase, blow, held, end)?;
    check_told(pair, vm, phase, end, code)?;
    match end {
        End::Source => vm.check_works()?,
        End::Destination => {
            vm.arrived(pair)?;
            vm.check_works()?;
        }
        End::Unknown => resolve(pair, vm)?,
        End::Lost => {}
    }
    Ok(Ended { end, struck })
}

/// A person who has looked, and seen that it does not run at the destination, settles it on both hosts: it goes on.
fn resolve(pair: &Pair, vm: &Vm) -> Result<()> {
    for side in [vm.at(), vm.at().other()] {
        pair.host(side).json(&["resolve", vm.name(), "--guest-is", "source"])?;
    }
    vm.check_works()
}

/// Waits until the guest is in one place and nothing else is left, or both hosts say that it is nowhere.
fn settle(pair: &Pair, vm: &Vm, from: Side) -> Result<End> {
    let mut seen = String::new();
    let end = wait_for("one copy of the guest and nothing else", SETTLED_LIMIT, || {
        let found = |side| -> Result<(String, usize)> {
            Ok((pair.host(side).vm_state(vm.name())?, pair.world().qemus(side)?.len()))
        };
        let (here, there) = (found(from)?, found(from.other())?);
        seen = format!("(state, QEMUs) {here:?} at the source, {there:?} at the destination");
        let nothing = |found: &(String, usize)| {
            matches!(&*found.0, "absent" | "migrated" | "stopped") && found.1 == 0
        };
        let runs = |found: &(String, usize)| found.0 == "running" && found.1 == 1;
        let end = match () {
            () if runs(&here) && nothing(&there) => Some(End::Source),
            () if nothing(&here) && runs(&there) => Some(End::Destination),
            () if here.0 == "lost" && here.1 == 0 && nothing(&there) => Some(End::Lost),
            // With pages lacking, neither has all of it: both say so.
            () if here.0 == "lost" && there.0 == "lost" && here.1 + there.1 == 0 => Some(End::Lost),
            // It had arrived, and ended there like any guest whose QEMU is killed.
            () if here.0 == "migrated" && there.0 == "stopped" && here.1 + there.1 == 0 => {
                Some(End::Lost)
            }
            () if here == ("unknown".to_owned(), 1) && there == ("unknown".to_owned(), 0) => {
                Some(End::Unknown)
            }
            () => None,
        };
        if end.is_none() {
            thread::sleep(LOOK_EVERY);
        }
        Ok(end)
    });
    end.map_err(|_| Error::unexpected("the copies of the guest", "one, or a word why not", seen))
}

/// What DESIGN.md's table allows. A fault strikes some hundred microseconds behind the record, so the step that the record
/// announces may be done.
fn check_allowed(phase: Phase, blow: Blow, held: bool, end: End) -> Result<()> {
    let copied = phase <= Phase::Copying;
    let allowed: &[End] = match blow {
        // It is the destination's, and waits for what it lacks, however long that takes; without either QEMU it is lost, unless
        // what the source's one had is a file that the agent there has open.
        Blow::SourceQemu if held && Kind::of(phase) == Kind::PostCopy => &[End::Destination],
        Blow::SourceQemu | Blow::SourceHost | Blow::DestinationQemu
            if Kind::of(phase) == Kind::PostCopy =>
        {
            &[End::Lost]
        }
        _ if Kind::of(phase) == Kind::PostCopy => &[End::Destination],
        // Nothing was offered, and the guest was not even stopped.
        Blow::SourceAgent | Blow::DestinationAgent if copied => &[End::Source],
        Blow::SourceDisk | Blow::DestinationDisk if copied => &[End::Source, End::Destination],
        Blow::DestinationQemu if copied => &[End::Source, End::Destination],
        // Ridden out, or not even connected.
        Blow::ShortCut | Blow::LongCut if phase == Phase::Copying => &[End::Destination],
        Blow::SourceQemu | Blow::SourceHost if copied => &[End::Lost],
        // Until everything is sent it holds the only copy, and from then on the other one does not need it.
        Blow::SourceQemu | Blow::SourceHost => &[End::Destination, End::Lost],
        Blow::DestinationQemu if phase >= Phase::Running => &[End::Lost],
        Blow::DestinationQemu => &[End::Source, End::Unknown, End::Lost],
        _ => &[End::Source, End::Destination],
    };
    expect_that(allowed.contains(&end), "the end", format!("{allowed:?}"), format!("{end:?}"))
}

/// The exit code, and what both hosts' lists of jobs say.
fn check_told(pair: &Pair, vm: &Vm, phase: Phase, end: End, code: Option<i32>) -> Result<()> {
    let from = vm.at();
    let states = |side| -> Result<String> {
        wait_for("the end of the job", SETTLED_LIMIT, || {
            let jobs = pair.host(side).json(&["jobs"])?;
            let of_vm = |job: &&Value| job["vm"] == vm.name();
            let last = jobs.as_array().and_then(|jobs| jobs.iter().rfind(of_vm)).cloned();
            let state = last.unwrap_or_default()["state"].as_str().unwrap_or("none").to_owned();
            Ok(ENDS.contains(&state.as_str()).then_some(state))
        })
    };
    let (ours, theirs) = (states(from)?, states(from.other())?);
    let told = match end {
        // A QEMU that ends as it starts is a reason to refuse.
        End::Source => matches!(&*ours, "failed" | "refused") && theirs != "running",
        End::Destination => ours == "done" && theirs == "running",
        End::Lost if Kind::of(phase) == Kind::PostCopy => ours == "lost" && theirs == "lost",
        End::Lost => matches!(&*ours, "lost" | "done"),
        End::Unknown => ours == "unknown" && theirs == "unknown",
    };
    expect_that(told, "the jobs", format!("{end:?}"), format!("{ours} and {theirs}"))?;
    // 4 is also what a client says whose agent went away.
    let fits = match end {
        End::Source if ours == "refused" => code == Some(3),
        End::Source => matches!(code, Some(1 | 4)),
        End::Destination => matches!(code, Some(0 | 4)),
        End::Lost => matches!(code, Some(0 | 1 | 4)),
        End::Unknown => code == Some(4),
    };
    expect_that(fits, "the exit code", format!("{end:?}"), format!("{code:?}"))
}
