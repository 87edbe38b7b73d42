//! Kinds of machines, and a guest that its user has paused.

use std::thread;
use std::time::Duration;

use sterna_e2e::{Guest, Result, Setup, Vm, expect_that, story};

const LOAD: &str = "uniform size=16M rate=4M sweep=30";

#[test]
fn a_pc_with_two_cpus_and_a_vga_moves() -> Result<()> {
    moves(&Guest::new("pc").cpus(2).vga().load(LOAD))
}

#[test]
fn a_q35_with_two_cpus_and_a_vga_moves() -> Result<()> {
    moves(&Guest::new("q35").machine("q35").cpus(2).vga().load(LOAD))
}

#[test]
fn a_paused_guest_stays_paused() -> Result<()> {
    story(&Setup::default(), |pair| {
        let socket = pair.shared_folder().join("guest.qmp");
        let mut vm = Vm::start(pair, &Guest::new("sleeper").load(LOAD).qmp(&socket))?;
        vm.qmp(pair)?.command("stop")?;
        vm.migrate(pair, &[])?;
        let view = pair.host(vm.at()).vm(vm.name())?;
        expect_that(view["state"] == "paused", "the VM's state", "paused", &view["state"])?;
        let mut qmp = vm.qmp(pair)?;
        let state = qmp.run_state()?;
        expect_that(state == "paused", "QEMU's run state", "paused", &state)?;
        let before = vm.log().mark()?;
        thread::sleep(Duration::from_secs(2));
        assert_eq!(vm.log().mark()?, before, "a paused guest prints nothing");
        qmp.command("cont")?;
        vm.check_works()
    })
}

fn moves(guest: &Guest) -> Result<()> {
    story(&Setup::default(), |pair| {
        let mut vm = Vm::start(pair, guest)?;
        vm.migrate(pair, &[])?;
        vm.check_works()
    })
}
