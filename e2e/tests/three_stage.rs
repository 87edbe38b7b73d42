//! The three-stage copy: the guest is handed over before all its memory is there, and no page is sent more than twice. What
//! strikes while pages are lacking is in `matrix/`.

use sterna_e2e::{Guest, GuestNetwork, Move, Pair, Result, Setup, Vm, expect_that, story};
use sterna_model::Rate;

/// 100 Mbit/s.
const LINK: Rate = Rate { bytes_per_second: 12_500_000 };
/// Writes at more than twice the link's rate: pre-copy never ends.
const BUSY: &str = "uniform size=48M rate=30M sweep=30";

#[test]
fn a_guest_that_writes_faster_than_the_link_moves() -> Result<()> {
    story(&setup(), |pair| {
        let mut vm = Vm::start(pair, &Guest::new("busy").tap().load(BUSY))?;
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
