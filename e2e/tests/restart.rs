//! An agent is told to end while a move is under way, as at an upgrade: what was not offered is rolled back at once, and
//! the guest never waits for the next agent; an offer is kept for it.

use std::thread;
use std::time::Duration;

use sterna_e2e::command::Running;
use sterna_e2e::{Guest, MOVE_LIMIT, Move, Pair, Result, Setup, Side, Vm, expect_that, story};
use sterna_model::Rate;

/// Fast enough for a job to be well under way in a second or two.
const SLOW: Rate = Rate { bytes_per_second: 2_500_000 };
const UNDER_WAY_BYTES: u64 = 3_000_000;
const LIMIT: Duration = Duration::from_secs(60);
/// From the guest's stop at the source to the signal; the hand-over takes some 50 ms.
const DELAYS_MS: [u64; 4] = [0, 10, 30, 60];

#[test]
fn the_sources_agent_is_told_to_end() -> Result<()> {
    story(&Setup::default(), |pair| {
        let (mut vm, command) = start_slow_move(pair)?;
        pair.host_mut(Side::Alpha).terminate()?;
        // No agent is there: the guest runs on all the same, and nothing waits for it elsewhere.
        let moved = Move::of(command.wait(LIMIT)?)?;
        moved.check(130, "cancelled", "source")?;
        let why = moved.report["error"].to_string();
        expect_that(why.contains("agent is being ended"), "the error", "why", &why)?;
        vm.check_works()?;
        let left = pair.world().qemus(Side::Beta)?;
        expect_that(left.is_empty(), "QEMUs at the destination", "none", format!("{left:?}"))?;
        pair.host_mut(Side::Alpha).restart()?;
        vm.check_still_here(pair)?;
        pair.world().unshape()?;
        vm.migrate(pair, &[])?;
        vm.check_works()
    })
}

#[test]
fn the_destinations_agent_is_told_to_end() -> Result<()> {
    story(&Setup::default(), |pair| {
        let (mut vm, command) = start_slow_move(pair)?;
        pair.host_mut(Side::Beta).terminate()?;
        let left = pair.world().qemus(Side::Beta)?;
        expect_that(left.is_empty(), "QEMUs at the destination", "none", format!("{left:?}"))?;
        let moved = Move::of(command.wait(LIMIT)?)?;
        moved.check(1, "failed", "source")?;
        // The end of its connections may be noticed before the reason that it gives.
        let why = moved.report["error"].to_string();
        expect_that(why.contains("destination"), "the error", "that it was the destination", &why)?;
        vm.check_works()?;
        pair.host_mut(Side::Beta).restart()?;
        vm.check_still_here(pair)?;
        pair.world().unshape()?;
        vm.migrate(pair, &[])?;
        vm.check_works()
    })
}

#[test]
fn an_agent_is_told_to_end_in_the_hand_over() -> Result<()> {
    story(&Setup::default(), |pair| {
        let guest = Guest::new("heir").load("uniform size=16M rate=2M sweep=30");
        let mut vm = Vm::start(pair, &guest)?;
        for (number, delay) in DELAYS_MS.into_iter().enumerate() {
            let victim = if number % 2 == 0 { vm.at() } else { vm.at().other() };
            let mut qmp = vm.qmp(pair)?;
            let command = pair.host(vm.at()).spawn(&vm.migrate_words(&[]))?;
            while qmp.run_state().is_ok_and(|state| state == "running") {}
            drop(qmp);
            thread::sleep(Duration::from_millis(delay));
            pair.host_mut(victim).terminate()?;
            pair.host_mut(victim).restart()?;
            let code = command.wait(MOVE_LIMIT)?.code;
            let here = wait_for_owner(pair, &vm)?;
            eprintln!("{victim:?} told {delay} ms after the stop: exit code {code:?}, at {here:?}");
            if here != vm.at() {
                vm.arrived(pair)?;
            }
            vm.check_ticks()?;
        }
        vm.check_works()
    })
}

/// The host that runs the guest, once no other QEMU is left.
fn wait_for_owner(pair: &Pair, vm: &Vm) -> Result<Side> {
    sterna_e2e::command::wait_for("one running copy and no other QEMU", LIMIT, || {
        for side in Side::BOTH {
            let runs = pair.host(side).vm_state(vm.name())? == "running";
            let alone = pair.world().qemus(side.other())?.is_empty();
            if runs && alone {
                return Ok(Some(side));
            }
        }
        Ok(None)
    })
}

/// A guest whose move over a slow wire has begun and takes half a minute.
fn start_slow_move(pair: &Pair) -> Result<(Vm, Running)> {
    let vm = Vm::start(pair, &Guest::new("survivor").load("uniform size=24M rate=1M sweep=30"))?;
    pair.world().shape(SLOW)?;
    let command = vm.begin_move(pair, &[], UNDER_WAY_BYTES)?;
    Ok((vm, command))
}
