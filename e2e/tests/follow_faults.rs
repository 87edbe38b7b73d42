//! A followed guest whose link breaks, or whose agents end: following goes on by itself, and sends what differs only.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use sterna_e2e::command::{signal, wait_for};
use sterna_e2e::{
    Error, Guest, HostSetup, MOVE_LIMIT, Move, Pair, Result, Setup, Side, Vm, expect_that, story,
};
use sterna_model::Rate;

/// The first copy and some epochs.
const COPY_LIMIT: Duration = Duration::from_secs(60);
/// A dead link is noticed, and a link that is back.
const NOTICE_LIMIT: Duration = Duration::from_secs(60);
/// What an agent says when it gives up its connections.
const AWAY: &str = "the destination is away";
/// Most of the first copy of a guest with 24 MiB of its own; its system's is more.
const FIRST_COPY_BYTES: u64 = 50_000_000;
/// What a broken link may cost: what was under way, and what the guest dirtied.
const AGAIN_BYTES: u64 = 6_000_000;
/// The first copy takes some seconds.
const SLOW: Rate = Rate { bytes_per_second: 6_250_000 };

/// The link is cut for longer than its connections live. The job goes on, and sends what was not acknowledged.
#[test]
fn a_broken_link_costs_what_was_under_way() -> Result<()> {
    story(&impatient(), |pair| {
        let mut vm = Vm::start(pair, &writer("linked"))?;
        follow(pair, &vm)?;
        let before = wait_for_epochs(pair, &vm, 2)?;
        let sent = sent(&before)?;
        expect_that(sent > FIRST_COPY_BYTES, "the first copy", FIRST_COPY_BYTES, sent)?;
        for _ in 0..2 {
            break_link(pair, &vm)?;
        }
        let epochs = before.pointer("/copy/epochs").and_then(Value::as_u64).unwrap_or(0);
        let after = wait_for_epochs(pair, &vm, epochs + 2)?;
        expect_that(after["job"] == before["job"], "the job", &before["job"], &after["job"])?;
        check_cheap(&before, &after)?;
        hand_over(pair, &mut vm)
    })
}

/// The same while all memory is copied for the first time.
#[test]
fn a_link_that_breaks_in_the_first_copy_loses_none_of_it() -> Result<()> {
    story(&impatient(), |pair| {
        let mut vm = Vm::start(pair, &writer("early"))?;
        pair.world().shape(SLOW)?;
        let counters = pair.world().counters(Side::Alpha)?;
        follow(pair, &vm)?;
        pair.world().wait_for_sent(Side::Alpha, counters, FIRST_COPY_BYTES / 2, NOTICE_LIMIT)?;
        break_link(pair, &vm)?;
        let status = wait_for_epochs(pair, &vm, 1)?;
        let (sent, most) = (sent(&status)?, 2 * FIRST_COPY_BYTES - AGAIN_BYTES);
        expect_that(sent < most, "background_bytes", most, sent)?;
        hand_over(pair, &mut vm)
    })
}

/// Asked for while the destination cannot be reached, the hand-over comes when it can.
#[test]
fn a_switch_waits_for_the_link() -> Result<()> {
    story(&impatient(), |pair| {
        let mut vm = Vm::start(pair, &writer("waiting"))?;
        follow(pair, &vm)?;
        wait_for_epochs(pair, &vm, 1)?;
        pair.world().cut()?;
        wait_for_log(pair, AWAY)?;
        let words = ["switch", vm.name(), "beta", "-o", "json"];
        let switch = pair.host(Side::Alpha).spawn(&words)?;
        thread::sleep(Duration::from_secs(1));
        pair.world().unshape()?;
        Move::of(switch.wait(MOVE_LIMIT)?)?.check_done()?;
        vm.arrived(pair)?;
        vm.check_works()
    })
}

/// Whichever agent ends, and however: following goes on by itself with what the destination has.
#[test]
fn an_agent_that_is_restarted_costs_what_differs() -> Result<()> {
    story(&Setup::default(), |pair| {
        let mut vm = Vm::start(pair, &writer("restarted"))?;
        follow(pair, &vm)?;
        wait_for_epochs(pair, &vm, 2)?;
        for side in Side::BOTH {
            for kill in [true, false] {
                let before = status(pair, &vm)?;
                if kill {
                    pair.host_mut(side).kill9();
                } else {
                    pair.host_mut(side).terminate()?;
                }
                thread::sleep(Duration::from_millis(500));
                pair.host_mut(side).restart()?;
                eprintln!("{} was {}", side.name(), if kill { "killed" } else { "ended" });
                let after = wait_for_another_job(pair, &vm, &before)?;
                let again = sent(&after)?;
                eprintln!("{again} bytes again");
                expect_that(again < AGAIN_BYTES, "sent again", AGAIN_BYTES, again)?;
                vm.check_ticks()?;
            }
        }
        hand_over(pair, &mut vm)
    })
}

/// The destination has nothing any more: following goes on by itself, with all pages.
#[test]
fn a_destination_that_lost_its_copy_is_sent_all_again() -> Result<()> {
    story(&Setup::default(), |pair| {
        let mut vm = Vm::start(pair, &writer("bereft"))?;
        follow(pair, &vm)?;
        let before = wait_for_epochs(pair, &vm, 1)?;
        pair.host_mut(Side::Beta).kill9();
        for pid in pair.world().qemus(Side::Beta)? {
            signal(pid, "KILL")?;
        }
        pair.host_mut(Side::Beta).restart()?;
        let after = wait_for_another_job(pair, &vm, &before)?;
        let again = sent(&after)?;
        expect_that(again > FIRST_COPY_BYTES, "sent again", FIRST_COPY_BYTES, again)?;
        hand_over(pair, &mut vm)
    })
}

/// Following that its user interrupts goes on from the copy that is kept.
#[test]
fn a_copy_that_is_kept_is_gone_on_from() -> Result<()> {
    story(&Setup::default(), |pair| {
        let mut vm = Vm::start(pair, &writer("interrupted"))?;
        follow(pair, &vm)?;
        let before = wait_for_epochs(pair, &vm, 1)?;
        pair.host(Side::Alpha).run(&["unfollow", vm.name(), "--keep"])?.success()?;
        vm.check_still_here(pair)?;
        follow(pair, &vm)?;
        let after = wait_for_another_job(pair, &vm, &before)?;
        let again = sent(&after)?;
        expect_that(again < AGAIN_BYTES, "sent again", AGAIN_BYTES, again)?;
        // Without the word nothing is kept.
        pair.host(Side::Alpha).run(&["unfollow", vm.name()])?.success()?;
        follow(pair, &vm)?;
        let anew = wait_for_another_job(pair, &vm, &after)?;
        let again = sent(&anew)?;
        expect_that(again > FIRST_COPY_BYTES, "sent anew", FIRST_COPY_BYTES, again)?;
        hand_over(pair, &mut vm)
    })
}

/// QEMU plugs nothing while it is followed. What comes before is noticed, and following makes room until it is undone.
#[test]
fn plugging_pauses_following() -> Result<()> {
    story(&Setup::default(), |pair| {
        let mut vm = Vm::start(pair, &writer("plugged"))?;
        follow(pair, &vm)?;
        let before = wait_for_epochs(pair, &vm, 1)?;
        // What was there at first is looked at two seconds later.
        thread::sleep(Duration::from_secs(3));
        let mut qmp = vm.qmp(pair)?;
        let object = json!({"qom-type": "rng-builtin", "id": "plugged"});
        let device = json!({"driver": "virtio-rng-pci", "id": "late", "rng": "plugged"});
        qmp.command_with("object-add", &object)?;
        let early = qmp.command_with("device_add", &device);
        expect_that(early.is_err(), "device_add while followed", "refused", "taken")?;
        let paused = wait_for_state(pair, &vm, &["paused"])?;
        eprintln!("{}", paused["hindrance"]);
        let why = paused["hindrance"]["why"].as_str().unwrap_or_default();
        expect_that(why.contains("object plugged"), "why", "object plugged", why)?;
        let here = pair.host(Side::Alpha).vm_state(vm.name())?;
        expect_that(here == "following", "the state", "following", here)?;
        let moved = pair.host(Side::Alpha).run(&["migrate", vm.name(), "beta"])?;
        expect_that(
            moved.words().contains("vm-followed"),
            "a move",
            "vm-followed",
            format!("{moved:?}"),
        )?;
        qmp.command_with("object-del", &json!({"id": "plugged"}))?;
        let after = wait_for_another_job(pair, &vm, &before)?;
        let again = sent(&after)?;
        eprintln!("{again} bytes again");
        expect_that(again < AGAIN_BYTES, "sent again", AGAIN_BYTES, again)?;
        hand_over(pair, &mut vm)
    })
}

/// A device that was plugged in cannot be followed: that is said, for as long as it is so.
#[test]
fn a_plugged_device_keeps_following_paused() -> Result<()> {
    story(&Setup::default(), |pair| {
        let vm = Vm::start(pair, &writer("grown"))?;
        follow(pair, &vm)?;
        wait_for_epochs(pair, &vm, 1)?;
        thread::sleep(Duration::from_secs(3));
        let mut qmp = vm.qmp(pair)?;
        let object = json!({"qom-type": "rng-builtin", "id": "plugged"});
        qmp.command_with("object-add", &object)?;
        wait_for_state(pair, &vm, &["paused"])?;
        let device = json!({"driver": "virtio-rng-pci", "id": "late", "rng": "plugged"});
        qmp.command_with("device_add", &device)?;
        let why = wait_for("what keeps it paused", NOTICE_LIMIT, || {
            thread::sleep(Duration::from_millis(200));
            let status = status(pair, &vm)?;
            let why = status["hindrance"]["why"].as_str().unwrap_or_default().to_owned();
            Ok((status["state"] == "paused" && why.contains("device late")).then_some(why))
        })?;
        eprintln!("{why}");
        pair.host(Side::Alpha).run(&["unfollow", vm.name()])?.success()?;
        let over = pair.host(Side::Alpha).run(&["status", vm.name()])?;
        expect_that(over.code == Some(3), "status afterwards", 3, format!("{over:?}"))?;
        vm.check_still_here(pair)
    })
}

/// A move without following goes on as well, where the link is back in time.
#[test]
fn a_move_outlives_its_connections() -> Result<()> {
    story(&impatient(), |pair| {
        let mut vm = Vm::start(pair, &writer("moving"))?;
        pair.world().shape(SLOW)?;
        let counters = pair.world().counters(Side::Alpha)?;
        let command = pair.host(Side::Alpha).spawn(&vm.migrate_words(&[]))?;
        pair.world().wait_for_sent(Side::Alpha, counters, FIRST_COPY_BYTES / 2, NOTICE_LIMIT)?;
        pair.world().cut()?;
        wait_for_log(pair, AWAY)?;
        pair.world().unshape()?;
        let moved = Move::of(command.wait(MOVE_LIMIT)?)?;
        moved.check_done()?;
        let bytes = moved.number("/wire_bytes/total")?;
        eprintln!("{}", moved.report["wire_bytes"]);
        let most = 2.0 * 50e6;
        expect_that(bytes < most, "wire_bytes.total", most, bytes)?;
        vm.arrived(pair)?;
        vm.check_works()
    })
}

/// Connections are given up after some seconds of silence.
fn impatient() -> Setup {
    let host = HostSetup { limits: vec!["link_timeout = 5".to_owned()], ..HostSetup::default() };
    Setup { alpha: host.clone(), beta: host, ..Setup::default() }
}

fn writer(name: &str) -> Guest {
    Guest::new(name).load("uniform size=24M rate=300K sweep=30")
}

/// Cuts the link until the source has given up its connections, and waits until it follows again.
fn break_link(pair: &Pair, vm: &Vm) -> Result<()> {
    pair.world().cut()?;
    let reconnecting = wait_for_state(pair, vm, &["reconnecting"])?;
    eprintln!("{}", reconnecting["hindrance"]);
    let since = reconnecting.pointer("/hindrance/ms").and_then(Value::as_u64);
    expect_that(since.is_some(), "hindrance", "for how long", &reconnecting)?;
    let seen = count_in_log(pair, AWAY);
    wait_for("the end of the connections", NOTICE_LIMIT, || {
        Ok((count_in_log(pair, AWAY) > seen).then_some(()))
    })?;
    pair.world().unshape()?;
    wait_for_state(pair, vm, &["copying", "following"]).map(drop)
}

fn check_cheap(before: &Value, after: &Value) -> Result<()> {
    let again = sent(after)?.saturating_sub(sent(before)?);
    eprintln!("{} bytes, then {again} more", sent(before)?);
    expect_that(again < AGAIN_BYTES, "sent since", AGAIN_BYTES, again)
}

fn hand_over(pair: &Pair, vm: &mut Vm) -> Result<()> {
    let words = ["switch", vm.name(), "beta", "-o", "json"];
    let switched = Move::of(pair.host(Side::Alpha).spawn(&words)?.wait(MOVE_LIMIT)?)?;
    switched.check_done()?;
    let agree = &switched.report["verify"]["roots_match"];
    expect_that(agree == true, "verify.roots_match", true, agree)?;
    vm.arrived(pair)?;
    vm.check_works()
}

fn status(pair: &Pair, vm: &Vm) -> Result<Value> {
    pair.host(Side::Alpha).json(&["status", vm.name()])
}

/// Waits until another job follows the VM, and has copied all that differs.
fn wait_for_another_job(pair: &Pair, vm: &Vm, before: &Value) -> Result<Value> {
    wait_for("another job that follows", COPY_LIMIT, || {
        thread::sleep(Duration::from_millis(200));
        let status = status(pair, vm)?;
        let is_another = status["job"] != before["job"] && status["state"] == "following";
        Ok(is_another.then_some(status))
    })
}

fn follow(pair: &Pair, vm: &Vm) -> Result<()> {
    let view = pair.host(Side::Alpha).json(&["follow", vm.name(), "beta"])?;
    let is_so = view["state"] == "copying" || view["state"] == "following";
    expect_that(is_so, "the state after follow", "copying", &view)
}

fn sent(status: &Value) -> Result<u64> {
    let sent = status.pointer("/copy/background_bytes").and_then(Value::as_u64);
    sent.ok_or_else(|| Error::unexpected("background_bytes", "a number", status))
}

fn wait_for_epochs(pair: &Pair, vm: &Vm, epochs: u64) -> Result<Value> {
    wait_for("epochs of following", COPY_LIMIT, || {
        thread::sleep(Duration::from_millis(200));
        let status = pair.host(Side::Alpha).json(&["status", vm.name()])?;
        let seen = status.pointer("/copy/epochs").and_then(Value::as_u64);
        Ok(seen.is_some_and(|seen| seen >= epochs).then_some(status))
    })
}

fn wait_for_state(pair: &Pair, vm: &Vm, states: &[&str]) -> Result<Value> {
    wait_for("a state of following", NOTICE_LIMIT, || {
        thread::sleep(Duration::from_millis(100));
        let status = pair.host(Side::Alpha).json(&["status", vm.name()])?;
        let is_so = states.iter().any(|state| status["state"] == *state);
        Ok(is_so.then_some(status))
    })
}

fn wait_for_log(pair: &Pair, words: &str) -> Result<()> {
    wait_for("words in the agent's log", NOTICE_LIMIT, || {
        Ok((count_in_log(pair, words) > 0).then_some(()))
    })
}

fn count_in_log(pair: &Pair, words: &str) -> usize {
    pair.host(Side::Alpha).log().matches(words).count()
}
