//! Agents that die in the middle, and users who change their minds: the guest runs on at the source
//! as if nothing had been, nothing is left at the destination, and the next attempt works.

use std::time::Duration;

use sterna_e2e::command::{Running, wait_for};
use sterna_e2e::{
    Guest, HostSetup, Journals, Move, Pair, Phase, Result, Setup, Side, Vm, connections,
    expect_that, story,
};
use sterna_model::Rate;

/// Fast enough for a job to be well under way in a second or two.
const SLOW: Rate = Rate { bytes_per_second: 2_500_000 };
const UNDER_WAY_BYTES: u64 = 3_000_000;
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn the_sources_agent_dies() -> Result<()> {
    story(&patient(), |pair| {
        let (mut vm, command) = start_slow_move(pair)?;
        pair.host_mut(Side::Alpha).kill9();
        let output = command.wait(LIMIT)?;
        assert!(matches!(output.code, Some(1 | 4)), "{output:?}");
        vm.check_works()?;
        pair.host_mut(Side::Alpha).restart()?;
        vm.check_still_here(pair)?;
        let state = job_state(pair, Side::Alpha)?;
        expect_that(state == "failed", "the job's state", "failed", state)?;
        again(pair, &mut vm)
    })
}

#[test]
fn the_destinations_agent_dies() -> Result<()> {
    story(&patient(), |pair| {
        let (mut vm, command) = start_slow_move(pair)?;
        pair.host_mut(Side::Beta).kill9();
        let moved = Move::of(command.wait(LIMIT)?)?;
        moved.check(1, "failed", "source")?;
        check_says_where(&moved)?;
        vm.check_works()?;
        pair.host_mut(Side::Beta).restart()?;
        vm.check_still_here(pair)?;
        again(pair, &mut vm)
    })
}

#[test]
fn a_cut_of_the_wire_is_not_the_end_of_the_guest() -> Result<()> {
    story(&patient(), |pair| {
        let (mut vm, command) = start_slow_move(pair)?;
        pair.world().cut()?;
        let moved = Move::of(command.wait(LIMIT)?)?;
        moved.check(1, "failed", "source")?;
        check_says_where(&moved)?;
        vm.check_still_here(pair)?;
        again(pair, &mut vm)
    })
}

/// While the guest runs here still, and when it runs there and lacks pages: the others of the move are whole.
#[test]
fn a_connection_that_breaks_alone_costs_no_move() -> Result<()> {
    story(&patient(), |pair| {
        let guest = Guest::new("survivor").load("uniform size=24M rate=6M sweep=30");
        let mut vm = Vm::start(pair, &guest)?;
        for moment in [Phase::Copying, Phase::Serving] {
            pair.world().shape(Rate { bytes_per_second: 8_000_000 })?;
            let (from, before) = (vm.at(), Journals::of(pair));
            let mut command = vm.begin_move(pair, &["--strategy", "three-stage"], 0)?;
            let comes = moment.wait(pair, from, &before, &mut command)?;
            expect_that(comes, "the moment", format!("{moment:?}"), comes)?;
            connections::break_busiest(pair.world(), from)?;
            let moved = Move::of(command.wait(LIMIT)?)?;
            moved.check(0, "done", "destination")?;
            vm.arrived(pair)?;
            vm.check_works()?;
            let log = pair.host(vm.at()).log();
            expect_that(
                log.contains("the source is back"),
                "the log",
                "a source that is back",
                log,
            )?;
        }
        Ok(())
    })
}

#[test]
fn the_user_interrupts_and_cancels() -> Result<()> {
    story(&patient(), |pair| {
        let (mut vm, command) = start_slow_move(pair)?;
        command.interrupt()?;
        Move::of(command.wait(LIMIT)?)?.check(130, "cancelled", "source")?;
        vm.check_still_here(pair)?;

        let command = vm.begin_move(pair, &[], UNDER_WAY_BYTES)?;
        let job = last_job(pair, Side::Alpha)?["job"].as_str().unwrap_or_default().to_owned();
        pair.host(Side::Alpha).run(&["cancel", &job])?.success()?;
        Move::of(command.wait(LIMIT)?)?.check(130, "cancelled", "source")?;
        vm.check_still_here(pair)?;

        let report = pair.host(Side::Alpha).run(&["report", &job, "-o", "json"])?.json()?;
        expect_that(report["outcome"] == "cancelled", "sterna report", "cancelled", &report)?;
        again(pair, &mut vm)
    })
}

#[test]
fn a_move_that_never_converges_ends_in_time() -> Result<()> {
    story(&patient(), |pair| {
        let guest = Guest::new("busy").load("uniform size=24M rate=16M sweep=20");
        let vm = Vm::start(pair, &guest)?;
        pair.world().shape(Rate { bytes_per_second: 6_250_000 })?;
        let moved = vm.try_migrate(pair, &["--strategy", "precopy", "--timeout", "6"])?;
        moved.check(1, "failed", "source")?;
        let total_ms = moved.number("/total_ms")?;
        assert!((5000.0..20_000.0).contains(&total_ms), "{total_ms}");
        check_says_where(&moved)?;
        vm.check_still_here(pair)
    })
}

/// A silent link is ridden out for some seconds only, so that the tests end.
fn patient() -> Setup {
    let host = HostSetup { limits: vec!["link_timeout = 5".to_owned()], ..HostSetup::default() };
    Setup { alpha: host.clone(), beta: host, ..Setup::default() }
}

/// A guest whose move over a slow wire has begun and takes half a minute.
fn start_slow_move(pair: &Pair) -> Result<(Vm, Running)> {
    let vm = Vm::start(pair, &Guest::new("survivor").load("uniform size=24M rate=1M sweep=30"))?;
    pair.world().shape(SLOW)?;
    let command = vm.begin_move(pair, &[], UNDER_WAY_BYTES)?;
    Ok((vm, command))
}

fn last_job(pair: &Pair, side: Side) -> Result<serde_json::Value> {
    let jobs = pair.host(side).json(&["jobs"])?;
    let last = jobs.as_array().and_then(|jobs| jobs.last()).cloned();
    Ok(last.unwrap_or_default())
}

/// A restarted agent may still be cleaning up when it answers first.
fn job_state(pair: &Pair, side: Side) -> Result<String> {
    wait_for("the end of the job", LIMIT, || {
        let job = last_job(pair, side)?;
        let state = job["state"].as_str().unwrap_or_default().to_owned();
        let is_over = ["done", "failed", "cancelled", "unknown", "lost"].contains(&state.as_str());
        Ok(is_over.then_some(state))
    })
}

fn check_says_where(moved: &Move) -> Result<()> {
    let words = format!("{} {}", moved.report["error"], moved.output.words());
    let says = ["alpha", "source"].iter().any(|word| words.contains(word));
    expect_that(says, "the message", "where the guest runs", words)
}

/// Over a whole and fast wire the next attempt works.
fn again(pair: &Pair, vm: &mut Vm) -> Result<()> {
    pair.world().unshape()?;
    vm.migrate(pair, &[])?;
    vm.check_works()
}
