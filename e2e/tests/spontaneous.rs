//! A stream that QEMU ended by itself is never handed over (law 1): a user takes the agent's hold on QEMU away in the
//! middle of a move, QEMU completes with the guest stopped by itself, and the guest runs on at the source all the same.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use sterna_e2e::command::{Running, wait_for};
use sterna_e2e::{
    Guest, Journals, MOVE_LIMIT, Move, Pair, Phase, Qmp, Result, Setup, Side, Vm, expect_that,
    story,
};
use sterna_model::Rate;

/// Slow enough for the rounds to last.
const SLOW: Rate = Rate { bytes_per_second: 2_500_000 };
/// 100 Mbit/s: a guest that writes at 30 MB/s is handed over by post-copy.
const MEDIUM: Rate = Rate { bytes_per_second: 12_500_000 };
const UNDER_WAY_BYTES: u64 = 3_000_000;
/// Moves of which one at least is to be struck in time.
const ATTEMPTS: usize = 5;
const LIMIT: Duration = Duration::from_secs(60);
/// The most that QEMU accepts: with it everything seems to fit, whatever is pending.
const RELEASED_DOWNTIME_MS: u32 = 2_000_000;
const RELEASED_BANDWIDTH: u64 = 1 << 40;
/// From QEMU's stop of the guest to our resume, on a busy machine too.
const STOOD_LIMIT_MS: f64 = 2000.0;
/// A held and paced QEMU looks for dirty pages a few times a second, an unpaced one thousands of times.
const LOOKS_PER_SECOND: u64 = 100;

#[test]
fn a_guest_whose_stream_completed_by_itself_is_moved_by_another() -> Result<()> {
    story(&Setup::default(), |pair| {
        let (mut vm, mut qmp, command) = start_slow_move(pair)?;
        for _ in 0..3 {
            wait_for_rounds(&mut qmp)?;
            complete(&mut qmp, "completed", release)?;
            check_is_ours(pair, &vm, &mut qmp)?;
        }
        check_looks(&mut qmp)?;
        pair.world().unshape()?;
        Move::of(command.wait(MOVE_LIMIT)?)?.check_done()?;
        check_ended_by_stop(&mut qmp)?;
        vm.arrived(pair)?;
        vm.check_works()
    })
}

#[test]
fn a_move_is_cancelled_after_its_stream_completed_by_itself() -> Result<()> {
    story(&Setup::default(), |pair| {
        let (mut vm, mut qmp, command) = start_slow_move(pair)?;
        wait_for_rounds(&mut qmp)?;
        complete(&mut qmp, "completed", release)?;
        command.interrupt()?;
        Move::of(command.wait(LIMIT)?)?.check(130, "cancelled", "source")?;
        vm.check_still_here(pair)?;
        pair.world().unshape()?;
        vm.migrate(pair, &[])?;
        vm.check_works()
    })
}

/// The very command by which the agent lets QEMU go, given by somebody else while the guest runs.
#[test]
fn a_user_who_starts_post_copy_does_not_hand_the_guest_over() -> Result<()> {
    story(&Setup::default(), |pair| {
        let (mut vm, mut qmp, command) = start_slow_move(pair)?;
        wait_for_rounds(&mut qmp)?;
        complete(&mut qmp, "postcopy-active", |qmp| {
            qmp.command("migrate-start-postcopy")?;
            // More than the guest dirties at a time, less than what holds QEMU.
            let parameters = json!({"downtime-limit": 2000});
            qmp.command_with("migrate-set-parameters", &parameters).map(drop)
        })?;
        check_is_ours(pair, &vm, &mut qmp)?;
        pair.world().unshape()?;
        Move::of(command.wait(MOVE_LIMIT)?)?.check_done()?;
        check_ended_by_stop(&mut qmp)?;
        vm.arrived(pair)?;
        vm.check_works()
    })
}

/// Whenever QEMU completes, also around our own stop: one copy that works is left, here or there.
#[test]
fn a_stream_that_completes_at_any_time_loses_nothing() -> Result<()> {
    story(&Setup::default(), |pair| {
        let guest = Guest::new("restless").load("uniform size=16M rate=2M sweep=30");
        let mut vm = Vm::start(pair, &guest)?;
        let mut completions = 0;
        for after_ms in [0, 100, 200, 300, 500, 800] {
            let mut qmp = observer(pair, &vm)?;
            let command = pair.host(vm.at()).spawn(&vm.migrate_words(&[]))?;
            qmp.wait_for_event(is_migration("active"))?;
            thread::sleep(Duration::from_millis(after_ms));
            // The move may be over by then, and QEMU gone.
            let released = release(&mut qmp);
            let seen = events_to_the_end(&mut qmp);
            let moved = Move::of(command.wait(MOVE_LIMIT)?)?;
            moved.check_done()?;
            let stood_ms = moved.number("/downtime_ms")?;
            let resumed = seen.iter().any(|event| event["event"] == "RESUME");
            eprintln!("{after_ms} ms: {released:?}, by itself: {resumed}, {stood_ms} ms");
            expect_that(stood_ms < STOOD_LIMIT_MS, "downtime_ms", STOOD_LIMIT_MS, stood_ms)?;
            completions += u32::from(resumed);
            vm.arrived(pair)?;
            vm.check_works()?;
        }
        expect_that(completions > 0, "completions by itself", "one at least", completions)
    })
}

/// Pages that follow in post-copy are marked just before the stop. When QEMU completes then, they are sent after all.
#[test]
fn a_stream_that_completes_just_before_the_stop_for_post_copy_loses_nothing() -> Result<()> {
    story(&Setup::default(), |pair| {
        let guest = Guest::new("restless").load("uniform size=48M rate=30M sweep=30");
        let mut vm = Vm::start(pair, &guest)?;
        let mut completions = 0;
        for _ in 0..ATTEMPTS {
            pair.world().shape(MEDIUM)?;
            let mut qmp = observer(pair, &vm)?;
            let (from, before) = (vm.at(), Journals::of(pair));
            let words = vm.migrate_words(&["--strategy", "three-stage"]);
            let mut command = pair.host(from).spawn(&words)?;
            Phase::Stopping.wait(pair, from, &before, &mut command)?;
            let released = release(&mut qmp);
            let seen = events_to_the_end(&mut qmp);
            let moved = Move::of(command.wait(MOVE_LIMIT)?)?;
            moved.check_done()?;
            let resumed = seen.iter().any(|event| event["event"] == "RESUME");
            eprintln!("{released:?}, by itself: {resumed}, {}", moved.report);
            completions += u32::from(resumed);
            vm.arrived(pair)?;
            vm.check_works()?;
            pair.world().unshape()?;
            if resumed {
                break;
            }
        }
        expect_that(completions > 0, "completions by itself", "one at least", completions)
    })
}

/// A guest in a move that goes on for half a minute, and its user's monitor.
fn start_slow_move(pair: &Pair) -> Result<(Vm, Qmp, Running)> {
    let vm = Vm::start(pair, &Guest::new("restless").load("uniform size=24M rate=1M sweep=30"))?;
    let qmp = observer(pair, &vm)?;
    pair.world().shape(SLOW)?;
    let command = vm.begin_move(pair, &[], UNDER_WAY_BYTES)?;
    Ok((vm, qmp, command))
}

/// A monitor that is told of every step of QEMU's migrations.
fn observer(pair: &Pair, vm: &Vm) -> Result<Qmp> {
    let mut qmp = vm.qmp(pair)?;
    let events = json!({"capabilities": [{"capability": "events", "state": true}]});
    qmp.command_with("migrate-set-capabilities", &events)?;
    Ok(qmp)
}

fn release(qmp: &mut Qmp) -> Result<()> {
    let parameters =
        json!({"downtime-limit": RELEASED_DOWNTIME_MS, "max-bandwidth": RELEASED_BANDWIDTH});
    qmp.command_with("migrate-set-parameters", &parameters).map(drop)
}

/// QEMU iterates, and has looked for dirty pages after its first pass.
fn wait_for_rounds(qmp: &mut Qmp) -> Result<()> {
    wait_for("rounds after the first", LIMIT, || {
        let migration = qmp.command("query-migrate")?;
        Ok((migration["status"] == "active" && looks(&migration) >= 3).then_some(()))
    })
}

fn looks(migration: &Value) -> u64 {
    migration["ram"]["dirty-sync-count"].as_u64().unwrap_or_default()
}

/// Takes the hold away and sees QEMU stop the guest and end its stream, by this status, and the guest resumed.
fn complete(qmp: &mut Qmp, status: &str, let_go: impl Fn(&mut Qmp) -> Result<()>) -> Result<()> {
    while qmp.take_event().is_some() {}
    let before = qmp.run_state()?;
    expect_that(before == "running", "the guest before", "running", before)?;
    let_go(qmp)?;
    let mut seen = Vec::new();
    while seen.last().is_none_or(|event: &Value| event["event"] != "RESUME") {
        seen.push(qmp.event()?);
    }
    let stopped = seen.iter().find(|event| event["event"] == "STOP");
    let stood_ms =
        stopped.map(|stopped| milliseconds(&seen[seen.len() - 1]) - milliseconds(stopped));
    eprintln!("QEMU completed by itself; the guest stood for {stood_ms:?} ms");
    let is_so =
        seen.iter().any(is_migration(status)) && stood_ms.is_some_and(|ms| ms < STOOD_LIMIT_MS);
    let expected = format!("STOP, {status}, RESUME in {STOOD_LIMIT_MS} ms");
    expect_that(is_so, "QEMU's events", expected, format!("{seen:?}"))
}

/// The move goes on with a new stream, and the guest is nobody else's.
fn check_is_ours(pair: &Pair, vm: &Vm, qmp: &mut Qmp) -> Result<()> {
    qmp.wait_for_event(is_migration("active"))?;
    let (here, there) = (pair.host(Side::Alpha), pair.host(Side::Beta));
    let state = here.vm_state(vm.name())?;
    expect_that(state == "running", "the VM's state at the source", "running", state)?;
    let state = there.vm_state(vm.name())?;
    expect_that(state == "incoming", "the VM's state at the destination", "incoming", state)?;
    let jobs = here.json(&["jobs"])?;
    expect_that(jobs[0]["state"] == "copying", "the job's state", "copying", &jobs)?;
    vm.check_ticks()
}

/// The new stream is paced as the first was.
fn check_looks(qmp: &mut Qmp) -> Result<()> {
    thread::sleep(Duration::from_secs(1));
    let before = looks(&qmp.command("query-migrate")?);
    thread::sleep(Duration::from_secs(1));
    let found = looks(&qmp.command("query-migrate")?) - before;
    expect_that(found <= LOOKS_PER_SECOND, "looks for dirty pages", LOOKS_PER_SECOND, found)
}

/// The stream that was handed over came to its end after our stop, with the guest never resumed since.
fn check_ended_by_stop(qmp: &mut Qmp) -> Result<()> {
    let seen = events_to_the_end(qmp);
    let last = |name: &str| seen.iter().rposition(|event| event["event"] == name);
    let is_so = last("STOP").is_some() && last("RESUME") < last("STOP");
    expect_that(is_so, "the last events", "STOP, no RESUME", format!("{seen:?}"))
}

fn events_to_the_end(qmp: &mut Qmp) -> Vec<Value> {
    std::iter::from_fn(|| qmp.event().ok()).collect()
}

fn is_migration(status: &str) -> impl Fn(&Value) -> bool {
    let status = Value::from(status);
    move |event: &Value| event["event"] == "MIGRATION" && event["data"]["status"] == status
}

fn milliseconds(event: &Value) -> f64 {
    let number = |key: &str| event["timestamp"][key].as_f64().unwrap_or_default();
    number("seconds") * 1000.0 + number("microseconds") / 1000.0
}
