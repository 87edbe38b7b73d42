//! Moves to and among newer QEMUs. From 7.2 to 7.2 is what all other tests do.

use std::path::PathBuf;

use sterna_e2e::{
    Guest, HostSetup, QEMU, Result, Setup, Vm, can_run_here, expect_that, qemu10, story,
};
use sterna_model::Rate;

const LOAD: &str = "uniform size=16M rate=4M sweep=30";

/// Writes at more than twice the rate of [`LINK`]: only post-copy ends.
const BUSY: &str = "uniform size=48M rate=30M sweep=30";
/// 100 Mbit/s.
const LINK: Rate = Rate { bytes_per_second: 12_500_000 };
/// A machine type that both have.
const OLD_MACHINE: &str = "pc-i440fx-7.2";

#[test]
fn from_qemu_7_2_to_10() -> Result<()> {
    let Some(newer) = newer_qemu()? else { return Ok(()) };
    let paths = vec![(PathBuf::from(QEMU), newer)];
    let setup = Setup { beta: HostSetup { paths, ..HostSetup::default() }, ..Setup::default() };
    story(&setup, |pair| {
        let mut vm = Vm::start(pair, &Guest::new("upgrade").machine(OLD_MACHINE).load(LOAD))?;
        vm.migrate(pair, &[])?;
        let argv = pair.host(vm.at()).vm(vm.name())?["argv"].to_string();
        assert!(argv.contains("qemu10"), "{argv}");
        vm.check_works()
    })
}

#[test]
fn from_qemu_10_to_10_with_its_own_machines() -> Result<()> {
    let Some(newer) = newer_qemu()? else { return Ok(()) };
    // A program outside the destination's search path needs a mapping there, be it to the same path.
    let paths = vec![(newer.clone(), newer.clone())];
    let setup = Setup { beta: HostSetup { paths, ..HostSetup::default() }, ..Setup::default() };
    story(&setup, |pair| {
        for machine in ["pc", "q35"] {
            let guest = Guest::new(machine).program(&newer).machine(machine).load(LOAD);
            let mut vm = Vm::start(pair, &guest)?;
            vm.migrate(pair, &[])?;
            vm.check_works()?;
        }
        Ok(())
    })
}

/// The guest is handed over before all its memory is there, from an old QEMU to a new one and among new ones.
#[test]
fn post_copy_to_and_among_qemu_10() -> Result<()> {
    let Some(newer) = newer_qemu()? else { return Ok(()) };
    for (program, machine) in [(PathBuf::from(QEMU), OLD_MACHINE), (newer.clone(), "pc")] {
        let paths = vec![(program.clone(), newer.clone())];
        let setup = Setup { beta: HostSetup { paths, ..HostSetup::default() }, ..Setup::default() };
        story(&setup, |pair| {
            let guest = Guest::new("busy").program(&program).machine(machine).load(BUSY);
            let mut vm = Vm::start(pair, &guest)?;
            pair.world().shape(LINK)?;
            let moved = vm.migrate(pair, &["--strategy", "three-stage"])?;
            expect_that(moved.number("/requests")? > 0.0, "requests", "some", &moved.report)?;
            let sends = moved.number("/max_sends_per_page")?;
            expect_that(sends <= 2.0, "max_sends_per_page", "at most 2", sends)?;
            vm.check_works()
        })?;
    }
    Ok(())
}

/// QEMU 10 where it can be had. It comes through the network, so that even CI only tries.
fn newer_qemu() -> Result<Option<PathBuf>> {
    if !can_run_here()? {
        return Ok(None);
    }
    match qemu10() {
        Ok(path) => Ok(Some(path)),
        Err(reason) => {
            eprintln!("SKIPPED: no QEMU 10: {reason}");
            Ok(None)
        }
    }
}
