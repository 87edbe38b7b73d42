//! A QEMU that somebody else started is taken by the agent and moved like any other, or refused as it is.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use sterna_e2e::command::{Output, Running, is_alive, wait_for};
use sterna_e2e::{Guest, Move, Pair, QEMU, Qmp, Result, Setup, Side, Vm, expect_that, story};
use sterna_model::Rate;

const SLOW: Rate = Rate { bytes_per_second: 2_500_000 };
const UNDER_WAY_BYTES: u64 = 3_000_000;
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn an_adopted_guest_moves() -> Result<()> {
    story(&Setup::default(), |pair| {
        let qemu = start_qemu(pair, "foundling", QEMU)?;
        let mut vm = adopt(pair, &qemu, &[])?;
        check_moves(pair, &mut vm)
    })
}

/// As a shell starts it: the first argument is no path.
#[test]
fn an_adopted_guest_moves_whose_pid_is_given() -> Result<()> {
    story(&Setup::default(), |pair| {
        let qemu = start_qemu(pair, "foundling", "qemu-system-x86_64")?;
        let pid = qemu.process.pid().to_string();
        let mut vm = adopt(pair, &qemu, &["--pid", &pid])?;
        check_moves(pair, &mut vm)
    })
}

#[test]
fn an_adopted_guest_stays_when_its_move_is_cancelled() -> Result<()> {
    story(&Setup::default(), |pair| {
        let qemu = start_qemu(pair, "foundling", QEMU)?;
        let mut vm = adopt(pair, &qemu, &[])?;
        pair.world().shape(SLOW)?;
        let command = vm.begin_move(pair, &[], UNDER_WAY_BYTES)?;
        command.interrupt()?;
        Move::of(command.wait(LIMIT)?)?.check(130, "cancelled", "source")?;
        vm.check_still_here(pair)?;
        pair.host_mut(Side::Alpha).restart()?;
        vm.check_still_here(pair)?;
        pair.world().unshape()?;
        check_moves(pair, &mut vm)
    })
}

#[test]
fn what_cannot_be_adopted_is_refused_and_left_alone() -> Result<()> {
    story(&Setup::default(), |pair| {
        let vm = Vm::start(pair, &Guest::new("taken").load("idle size=4M"))?;
        let qemu = start_qemu(pair, "foundling", QEMU)?;
        let before = pair.host(Side::Alpha).json(&["vm", "list"])?;
        let own = before[0]["qmp"].as_str().unwrap_or_default().to_owned();
        let (socket, nobody) = (&*qemu.socket, &*format!("{}.absent", qemu.socket));
        let (other, no_process) = (&*std::process::id().to_string(), "4194304");
        let try_as = |name: &str, words: &[&str]| try_adopt(pair, name, words);
        for (output, words) in [
            (try_as("foundling", &["--qmp", nobody])?, "foundling.qmp.absent"),
            (try_as("taken", &["--qmp", socket])?, "taken runs here already"),
            (try_as("foundling", &["--qmp", socket, "--pid", other])?, "is not the qemu behind"),
            (try_as("foundling", &["--qmp", socket, "--pid", no_process])?, "no process 4194304"),
            (try_as("again", &["--qmp", &own])?, "is the vm taken here already"),
        ] {
            let is_so = output.code == Some(1) && output.words().contains(words);
            expect_that(is_so, "vm adopt", format!("exit code 1: {words}"), format!("{output:?}"))?;
            let after = pair.host(Side::Alpha).json(&["vm", "list"])?;
            expect_that(after == before, "vm list", &before, &after)?;
        }
        vm.check_still_here(pair)?;
        expect_that(is_alive(qemu.process.pid()), "the other QEMU", "that it runs", "its end")?;
        // Nobody holds its monitor: it can still be had.
        Qmp::connect(&PathBuf::from(&qemu.socket)).map(drop)?;
        adopt(pair, &qemu, &[])?.check_works()
    })
}

/// A QEMU that no agent started.
struct Qemu {
    name: String,
    socket: String,
    process: Running,
}

fn start_qemu(pair: &Pair, name: &str, program: &str) -> Result<Qemu> {
    let folder = pair.host(Side::Alpha).folder();
    let socket = folder.join(format!("{name}.qmp"));
    let guest = Guest::new(name).program(program.as_ref()).qmp(&socket);
    let argv = guest.load("uniform size=16M rate=1M sweep=30");
    let argv = argv.argv(&folder.join(format!("{name}.serial")))?;
    let mut command = pair.world().command_at(Side::Alpha, argv[0].as_ref());
    let process = Running::start(command.args(&argv[1..]).current_dir(folder))?;
    wait_for("QEMU's monitor", LIMIT, || Ok(socket.exists().then_some(())))?;
    Ok(Qemu { name: name.to_owned(), socket: socket.to_string_lossy().into_owned(), process })
}

fn try_adopt(pair: &Pair, name: &str, words: &[&str]) -> Result<Output> {
    pair.host(Side::Alpha).run(&[&["vm", "adopt", name], words].concat())
}

/// The agent has it from now on, as it runs.
fn adopt(pair: &Pair, qemu: &Qemu, options: &[&str]) -> Result<Vm> {
    let host = pair.host(Side::Alpha);
    let words = [&["vm", "adopt", &qemu.name, "--qmp", &qemu.socket], options].concat();
    let view = host.json(&words)?;
    expect_that(view["state"] == "running", "the VM's state", "running", &view)?;
    expect_that(view["pid"] == qemu.process.pid(), "the VM's pid", qemu.process.pid(), &view)?;
    let shown = host.vm(&qemu.name)?;
    expect_that(shown == view, "vm show", &view, &shown)?;
    let list = host.json(&["vm", "list"])?;
    let is_listed = list.as_array().is_some_and(|list| list.contains(&view));
    expect_that(is_listed, "vm list", &view, &list)?;
    Vm::of(pair, &qemu.name)
}

/// It moves there, works there, and its first QEMU has ended.
fn check_moves(pair: &Pair, vm: &mut Vm) -> Result<()> {
    vm.check_ticks()?;
    vm.migrate(pair, &[])?;
    vm.check_works()?;
    let left = pair.world().qemus(Side::Alpha)?;
    expect_that(left.is_empty(), "QEMUs at the source", "none", format!("{left:?}"))?;
    let view = pair.host(Side::Beta).vm(vm.name())?;
    expect_that(view["qmp"] != Value::Null, "vm show at the destination", "a qmp path", &view)
}
