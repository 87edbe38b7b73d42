//! A followed guest: its copy is kept nearly current, it is handed over at once when asked, or stays as if nothing had been.
//! What that takes is in `cost.rs`.

mod cost;

use std::thread;
use std::time::Duration;

use serde_json::Value;
use sterna_e2e::command::wait_for;
use sterna_e2e::{Guest, MOVE_LIMIT, Move, Pair, Result, Setup, Side, Vm, expect_that, story};
use sterna_model::Rate;

/// The first copy and some epochs.
const COPY_LIMIT: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_secs(20);
/// What the goal allows, three times over: the machines of tests are small and busy.
const SWITCH_LIMIT_MS: f64 = 3000.0;
/// 100 Mbit/s.
const LINK: Rate = Rate { bytes_per_second: 12_500_000 };

#[test]
fn a_followed_guest_is_handed_over_at_once() -> Result<()> {
    story(&Setup::default(), |pair| {
        let guest = Guest::new("followed").load("uniform size=24M rate=300K sweep=30");
        let mut vm = Vm::start(pair, &guest)?;
        for _ in 0..2 {
            let from = vm.at();
            follow(pair, &vm)?;
            let status = wait_for_epochs(pair, &vm, 3)?;
            check_status(pair, &vm, &status)?;
            let switched = switch(pair, &vm)?;
            switched.check_done()?;
            vm.arrived(pair)?;
            expect_that(vm.at() == from.other(), "the side", from.other().name(), vm.at().name())?;
            vm.check_works()?;
            check_report(&switched)?;
            let over = pair.host(from).run(&["status", vm.name()])?;
            expect_that(over.code == Some(3), "status afterwards", 3, format!("{over:?}"))?;
        }
        Ok(())
    })
}

/// Asked for while all memory is copied for the first time, the hand-over comes when that is done.
#[test]
fn a_switch_may_come_early() -> Result<()> {
    story(&Setup::default(), |pair| {
        let mut vm =
            Vm::start(pair, &Guest::new("hasty").load("uniform size=24M rate=300K sweep=30"))?;
        follow(pair, &vm)?;
        let switched = switch(pair, &vm)?;
        switched.check_done()?;
        vm.arrived(pair)?;
        vm.check_works()
    })
}

#[test]
fn nothing_is_left_of_following_that_was_ended() -> Result<()> {
    story(&Setup::default(), |pair| {
        let vm = Vm::start(pair, &Guest::new("left").load("idle size=16M sweep=30"))?;
        let host = pair.host(Side::Alpha);
        let no = host.run(&["switch", vm.name(), "-o", "json"])?;
        expect_that(no.code == Some(3), "a switch before", 3, format!("{no:?}"))?;
        expect_that(
            no.json()?["refusals"][0]["code"] == "not-followed",
            "refused",
            "so",
            &no.stdout,
        )?;
        follow(pair, &vm)?;
        for words in [["migrate", vm.name(), "beta"], ["follow", vm.name(), "beta"]] {
            let refused = host.run(&words)?;
            let is_so = refused.code == Some(3) && refused.words().contains("vm-followed");
            expect_that(is_so, words[0], "refused: vm-followed", format!("{refused:?}"))?;
            let remedies = ["sterna switch left", "sterna unfollow left"];
            let told = remedies.iter().all(|remedy| refused.words().contains(remedy));
            expect_that(told, "the remedies", remedies.join(", "), refused.words())?;
        }
        expect_that(host.vm_state(vm.name())? == "following", "state", "following", "another")?;
        wait_for_epochs(pair, &vm, 1)?;
        host.run(&["unfollow", vm.name()])?.success()?;
        vm.check_still_here(pair)?;
        wait_for("nothing of it at the destination", LIMIT, || {
            let qemus = pair.world().qemus(Side::Beta)?;
            let vms = pair.host(Side::Beta).json(&["vm", "list"])?;
            Ok((qemus.is_empty() && vms.as_array().is_some_and(Vec::is_empty)).then_some(()))
        })?;
        // And it can be moved as ever.
        let mut vm = vm;
        vm.migrate(pair, &[])?;
        vm.check_works()
    })
}

/// A guest that writes faster than the link carries: what is stale never fits, and follows when it runs at the destination.
#[test]
fn a_rest_that_does_not_fit_follows_after_the_hand_over() -> Result<()> {
    story(&Setup::default(), |pair| {
        let guest = Guest::new("busy").load("uniform size=48M rate=30M sweep=30");
        let mut vm = Vm::start(pair, &guest)?;
        pair.world().shape(LINK)?;
        follow(pair, &vm)?;
        wait_for_epochs(pair, &vm, 2)?;
        let switched = switch(pair, &vm)?;
        switched.check_done()?;
        eprintln!("{}, rounds {}", switched.report["wire_bytes"], switched.report["rounds"]);
        let (switch_ms, downtime_ms) =
            (switched.number("/switch_ms")?, switched.number("/downtime_ms")?);
        eprintln!("switch {switch_ms} ms, downtime {downtime_ms} ms");
        let after = switched.number("/wire_bytes/postcopy")?;
        expect_that(after > 0.0, "wire_bytes.postcopy", "some", after)?;
        let total_ms = switched.number("/total_ms")?;
        expect_that(switch_ms < total_ms, "switch_ms", total_ms, switch_ms)?;
        vm.arrived(pair)?;
        pair.world().unshape()?;
        vm.check_works()
    })
}

fn follow(pair: &Pair, vm: &Vm) -> Result<()> {
    let view = pair.host(vm.at()).json(&["follow", vm.name(), vm.at().other().name()])?;
    let is_so = view["state"] == "copying" || view["state"] == "following";
    expect_that(is_so, "the state after follow", "copying", &view)
}

fn switch(pair: &Pair, vm: &Vm) -> Result<Move> {
    let words = ["switch", vm.name(), vm.at().other().name(), "-o", "json"];
    Move::of(pair.host(vm.at()).spawn(&words)?.wait(MOVE_LIMIT)?)
}

fn wait_for_epochs(pair: &Pair, vm: &Vm, epochs: u64) -> Result<Value> {
    wait_for("epochs of following", COPY_LIMIT, || {
        thread::sleep(Duration::from_millis(200));
        let status = pair.host(vm.at()).json(&["status", vm.name()])?;
        let seen = status.pointer("/copy/epochs").and_then(Value::as_u64);
        Ok(seen.is_some_and(|seen| seen >= epochs).then_some(status))
    })
}

fn check_status(pair: &Pair, vm: &Vm, status: &Value) -> Result<()> {
    eprintln!("{status:#}");
    expect_that(status["state"] == "following", "state", "following", status)?;
    let to = vm.at().other();
    expect_that(status["destination"] == to.name(), "destination", to.name(), status)?;
    let copy = &status["copy"];
    let memory = copy["memory_bytes"].as_u64().unwrap_or(0);
    let stale = copy["stale_bytes"].as_u64().unwrap_or(u64::MAX);
    // The writer changes 24 MiB of 256.
    expect_that(stale < memory / 4, "stale_bytes", format!("far below {memory}"), stale)?;
    let sent = copy["background_bytes"].as_u64().unwrap_or(0);
    expect_that(sent > 1 << 20, "background_bytes", "the first copy", sent)?;
    let predicted = copy["predicted_switch_ms"].as_f64();
    expect_that(predicted.is_some_and(|ms| ms > 0.0), "predicted_switch_ms", "some", copy)?;
    let here = pair.host(vm.at()).vm_state(vm.name())?;
    expect_that(here == "following", "the state here", "following", here)?;
    let there = pair.host(to).vm_state(vm.name())?;
    expect_that(there == "incoming", "the state there", "incoming", there)
}

fn check_report(switched: &Move) -> Result<()> {
    let report = &switched.report;
    expect_that(report["strategy"] == "follow", "strategy", "follow", &report["strategy"])?;
    let switch_ms = switched.number("/switch_ms")?;
    let downtime_ms = switched.number("/downtime_ms")?;
    eprintln!("switch {switch_ms} ms, downtime {downtime_ms} ms, {}", report["wire_bytes"]);
    eprintln!("rounds {}", report["rounds"]);
    let is_so = switch_ms > downtime_ms && switch_ms < SWITCH_LIMIT_MS;
    expect_that(is_so, "switch_ms", SWITCH_LIMIT_MS, switch_ms)?;
    let background = switched.number("/wire_bytes/background")?;
    let precopy = switched.number("/wire_bytes/precopy")?;
    expect_that(background > precopy, "wire_bytes.background", "most of it", background)?;
    let agree = &report["verify"]["roots_match"];
    expect_that(agree == true, "verify.roots_match", true, agree)
}
