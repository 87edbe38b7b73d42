//! The three-stage copy: the guest is handed over before all its memory is there, and no page is sent more than twice.

use std::time::Duration;

use sterna_e2e::command::wait_for;
use sterna_e2e::{
    Blow, Error, Guest, GuestNetwork, Journals, MOVE_LIMIT, Move, Pair, Phase, Result, Setup, Side,
    Vm, expect_that, story,
};
use sterna_model::Rate;

/// 100 Mbit/s.
const LINK: Rate = Rate { bytes_per_second: 12_500_000 };
/// After a blow all is settled within this.
const LIMIT: Duration = Duration::from_secs(100);
/// Writes at more than twice the link's rate: pre-copy never ends.
const BUSY: &str = "uniform size=48M rate=30M sweep=30";

#[test]
fn a_guest_that_writes_faster_than_the_link_moves() -> Result<()> {
    story(&setup(), |pair| {
        let mut vm = Vm::start(pair, &Guest::new("busy").load(BUSY))?;
        pair.world().shape(LINK)?;
        let moved = vm.migrate(pair, &["--strategy", "three-stage"])?;
        check_three_stage(&moved)?;
        expect_that(moved.number("/requests")? > 0.0, "requests", "some", &moved.report)?;
        vm.check_works()?;
        again(pair, &mut vm)
    })
}

/// What is left fits into the downtime: no guest has to wait for pages then.
#[test]
fn an_idle_guest_needs_no_third_stage() -> Result<()> {
    story(&setup(), |pair| {
        let mut vm = Vm::start(pair, &Guest::new("calm").load("idle size=16M sweep=30"))?;
        let moved = vm.migrate(pair, &["--strategy", "three-stage"])?;
        check_three_stage(&moved)?;
        expect_that(moved.report["requests"].is_null(), "requests", "none", &moved.report)?;
        vm.check_works()
    })
}

/// `--strategy auto` prepares for it, and ends like that when the time is over; in the middle of the first round too.
#[test]
fn a_time_out_ends_by_post_copy() -> Result<()> {
    story(&setup(), |pair| {
        let mut vm = Vm::start(pair, &Guest::new("late").load(BUSY))?;
        for seconds in ["2", "9"] {
            pair.world().shape(LINK)?;
            let moved = vm.migrate(pair, &["--timeout", seconds])?;
            expect_that(moved.report["strategy"] == "auto", "strategy", "auto", &moved.report)?;
            expect_that(moved.number("/requests")? > 0.0, "requests", "some", &moved.report)?;
            vm.check_works()?;
            again(pair, &mut vm)?;
        }
        Ok(())
    })
}

/// Agents die while the guest runs at the destination and its pages are still at the source: restarted, they go on.
#[test]
fn agents_die_while_pages_are_lacking() -> Result<()> {
    story(&setup(), |pair| {
        for (phase, blow) in [
            (Phase::Serving, Blow::SourceAgent),
            (Phase::Serving, Blow::DestinationAgent),
            (Phase::Faulting, Blow::DestinationAgent),
        ] {
            let mut vm = Vm::start(
                pair,
                &Guest::new(&format!("heir-{blow:?}-{phase:?}").to_lowercase()).load(BUSY),
            )?;
            let struck = strike(pair, &vm, phase, blow)?;
            eprintln!("{blow:?} at {phase:?}: {struck:?}");
            arrives(pair, &mut vm)?;
            again(pair, &mut vm)?;
            pair.host(vm.at()).run(&["vm", "stop", vm.name(), "--grace", "0"])?.success()?;
        }
        Ok(())
    })
}

/// Nothing passes the link for some seconds: the guest waits for pages, and goes on.
#[test]
fn a_cut_while_pages_are_lacking() -> Result<()> {
    story(&setup(), |pair| {
        let mut vm = Vm::start(pair, &Guest::new("patient").load(BUSY))?;
        let code = strike(pair, &vm, Phase::Serving, Blow::ShortCut)?;
        expect_that(code == Some(0), "the exit code", 0, format!("{code:?}"))?;
        arrives(pair, &mut vm)?;
        again(pair, &mut vm)
    })
}

/// Without either QEMU the guest is lost: it is said, and nothing is left over.
#[test]
fn either_qemu_dies_while_pages_are_lacking() -> Result<()> {
    story(&setup(), |pair| {
        for blow in [Blow::SourceQemu, Blow::DestinationQemu] {
            let vm = Vm::start(
                pair,
                &Guest::new(&format!("doomed-{blow:?}").to_lowercase()).load(BUSY),
            )?;
            let code = strike(pair, &vm, Phase::Serving, blow)?;
            expect_that(code == Some(1), "the exit code", 1, format!("{code:?}"))?;
            let mut seen = String::new();
            let settled = wait_for("the guest to be lost, and nothing left over", LIMIT, || {
                let states =
                    [Side::Alpha, Side::Beta].map(|side| pair.host(side).vm_state(vm.name()));
                let [here, there] = states;
                let qemus =
                    pair.world().qemus(Side::Alpha)?.len() + pair.world().qemus(Side::Beta)?.len();
                seen =
                    format!("{here:?} at the source, {there:?} at the destination, {qemus} QEMUs");
                Ok((here? == "lost" && there? == "lost" && qemus == 0).then_some(()))
            });
            settled.map_err(|error| {
                Error::unexpected("the end", "lost on both hosts", format!("{error}: {seen}"))
            })?;
        }
        Ok(())
    })
}

/// A move, a blow in it, and how the command ended.
fn strike(pair: &mut Pair, vm: &Vm, phase: Phase, blow: Blow) -> Result<Option<i32>> {
    pair.world().shape(LINK)?;
    let before = Journals::of(pair);
    let words = vm.migrate_words(&["--strategy", "three-stage"]);
    let mut command = pair.host(vm.at()).spawn(&words)?;
    let struck = phase.wait(pair, vm.at(), &before, &mut command)?;
    expect_that(struck, "the moment", format!("{phase:?}"), "the end of the move")?;
    blow.strike(pair, vm)?.mend(pair)?;
    let code = command.wait(MOVE_LIMIT)?.code;
    let _ = pair.world().unshape();
    Ok(code)
}

/// The guest ends up at the destination, whole.
fn arrives(pair: &Pair, vm: &mut Vm) -> Result<()> {
    let from = vm.at();
    wait_for("the guest at the destination and nothing at the source", LIMIT, || {
        let there = pair.host(from.other()).vm_state(vm.name())?;
        let gone = pair.world().qemus(from)?.is_empty();
        let jobs = pair.host(from.other()).json(&["jobs"])?;
        let over =
            jobs.as_array().is_some_and(|jobs| jobs.iter().any(|job| job["state"] == "running"));
        Ok((there == "running" && gone && over).then_some(()))
    })?;
    vm.arrived(pair)?;
    vm.check_works()
}

/// Guests have a network: its devices touch guest memory from inside of QEMU.
fn setup() -> Setup {
    Setup { guest_network: GuestNetwork::Bridged, ..Setup::default() }
}

fn check_three_stage(moved: &Move) -> Result<()> {
    let strategy = &moved.report["strategy"];
    expect_that(strategy == "three-stage", "strategy", "three-stage", strategy)?;
    let sends = moved.number("/max_sends_per_page")?;
    expect_that(sends <= 2.0, "max_sends_per_page", "at most 2", sends)?;
    let agree = &moved.report["verify"]["roots_match"];
    expect_that(agree == true, "verify.roots_match", true, agree)
}

/// The way back, by pre-copy: nothing of post-copy is left over.
fn again(pair: &Pair, vm: &mut Vm) -> Result<()> {
    let _ = pair.world().unshape();
    vm.migrate(pair, &["--strategy", "three-stage"])?;
    vm.check_works()
}
