//! One run of following: two agents, a guest, `sterna follow`, half a minute of work, `sterna switch`.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use sterna_api::{FollowState, FollowView, Report};
use sterna_e2e::command::wait_for;
use sterna_e2e::{
    Error, GuestLog, HostSetup, MOVE_LIMIT, Move, Pair, Result, Setup, Side, Tick, Vm,
};

use crate::machine;
use crate::record::{Ending, Measured};
use crate::stage::{self, GUEST_NETWORK, SWEEP_LIMIT};
use crate::sterna::Observer;
use crate::tables::Cell;
use crate::watch::SETTLE;
use crate::watch::followed::{Collector, Followed, Slowdown};
use crate::watch::processes::{Processes, Usage};

/// The guest alone.
const BEFORE: Duration = Duration::from_secs(10);
/// The guest followed, once its memory was copied.
const FOLLOWED: Duration = Duration::from_secs(30);
/// 4 GiB over a gigabit take forty seconds.
const FIRST_COPY_LIMIT: Duration = Duration::from_secs(120);
/// How often the agent is asked; epochs are no shorter than twice that.
const LOOK: Duration = Duration::from_millis(500);

/// Boots the guest, follows it, has it handed over, gives what was measured.
///
/// # Errors
/// Something does not work at all.
pub(crate) fn run(cell: &Cell, without: &[&str]) -> Result<Measured> {
    let lab = without.iter().map(|part| format!("{part} = true")).collect();
    let alpha = HostSetup { lab, ..HostSetup::default() };
    let pair = Pair::start(&Setup { guest_network: GUEST_NETWORK, alpha, ..Setup::default() })?;
    let mut vm = Vm::start(&pair, &stage::guest(cell)?)?;
    stage::shape(pair.world(), cell.link)?;
    let observer = Observer::start(&pair, vm.name())?;
    thread::sleep(SETTLE);

    let mut measured = Measured::default();
    let (before, ticks_before) = watched(&pair, vm.log(), || {
        thread::sleep(BEFORE);
        Ok(())
    })?;
    let (ticks, mut followed) = follow(&pair, &vm, before)?;
    followed.slowdown = Slowdown::of(&ticks_before, &ticks);
    measured.followed = Some(followed);

    measured.start_unix_ms = Some(machine::unix_ms()?);
    let words = ["switch", vm.name(), Side::Beta.name(), "-o", "json"];
    let moved = Move::of(pair.host(Side::Alpha).spawn(&words)?.wait(MOVE_LIMIT)?)?;
    moved.check_done()?;
    vm.arrived(&pair)?;
    let report: Report = serde_json::from_value(moved.report)
        .map_err(|error| Error::unexpected("the report", "all its keys", error))?;
    measured.total_ms = Some(report.total_ms);
    measured.downtime_ms = Some(observer.downtime_ms()?);
    measured.destination_start_ms = Some(report.phases_ms.destination_qemu_start);
    measured.report = Some(report);
    vm.log().wait_for_sweep(vm.log().mark()?, SWEEP_LIMIT)?;
    measured.guest_swept = true;
    measured.ending = Ending::Completed;
    Ok(measured)
}

/// Follows until it has been watched long enough. Gives the guest's ticks since its memory was copied, too.
fn follow(pair: &Pair, vm: &Vm, before: (Usage, Duration)) -> Result<(Vec<Tick>, Followed)> {
    let host = pair.host(Side::Alpha);
    let asked = Instant::now();
    host.run(&["follow", vm.name(), Side::Beta.name()])?.success()?;
    let first = wait_for("a first copy of all memory", FIRST_COPY_LIMIT, || {
        thread::sleep(LOOK);
        Ok(Some(status(pair, vm)?).filter(|view| view.state == FollowState::Following))
    })?;
    let first_copy_ms = asked.elapsed().as_secs_f64() * 1e3;
    let nothing = || Error::unexpected("status", "figures of the copy", "none");
    let mut collector = Collector::begin(&first).ok_or_else(nothing)?;
    let mut last = first;
    let (meanwhile, ticks) = watched(pair, vm.log(), || {
        while collector.elapsed() < FOLLOWED {
            thread::sleep(LOOK);
            last = status(pair, vm)?;
            collector.look(&last);
        }
        Ok(())
    })?;
    Ok((ticks, collector.finish(last, first_copy_ms, [before, meanwhile])))
}

/// What processes use while something goes on, how long it takes, and the guest's ticks meanwhile.
fn watched(
    pair: &Pair,
    log: &GuestLog,
    mut goes_on: impl FnMut() -> Result<()>,
) -> Result<((Usage, Duration), Vec<Tick>)> {
    let since = log.last_tick()?.time_ms;
    let processes = Processes::watch(pair.world())?;
    let begun = Instant::now();
    goes_on()?;
    let time = begun.elapsed();
    let usage = processes.finish();
    let ticks = log.ticks()?.into_iter().filter(|tick| tick.time_ms >= since).collect();
    Ok(((usage, time), ticks))
}

fn status(pair: &Pair, vm: &Vm) -> Result<FollowView> {
    let told: Value = pair.host(Side::Alpha).json(&["status", vm.name()])?;
    serde_json::from_value(told).map_err(|error| Error::unexpected("status", "all its keys", error))
}
