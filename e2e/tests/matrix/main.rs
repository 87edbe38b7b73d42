//! Law 1 by its table: whatever strikes, at whatever moment, there is exactly one copy of the guest in the end, or the report
//! says that there is none, and why; nothing is left over; and the next attempt works.
//!
//! `make test` strikes once at each moment; with `STERNA_SOAK=1` everything strikes at every moment, again and again
//! ([`soak`]).

mod soak;
mod strike;
mod tally;

use sterna_e2e::{Blow, HostSetup, Phase, Result, Setup, StateDisk, Turn, story};

use strike::strike_all;

#[test]
fn one_blow_at_each_moment() -> Result<()> {
    let blows = [
        (Phase::Preparing, Blow::SourceAgent),
        (Phase::Starting, Blow::DestinationAgent),
        (Phase::Copying, Blow::DestinationQemu),
        (Phase::Stopping, Blow::SourceAgent),
        (Phase::Offered, Blow::DestinationAgent),
        (Phase::Entitled, Blow::SourceQemu),
        (Phase::Running, Blow::SourceAgent),
        (Phase::Gone, Blow::SourceAgent),
    ];
    story(&setup(), |pair| strike_all(pair, blows, |_, _, _| Ok(())))
}

#[test]
fn disks_that_fill_up_cost_no_guest() -> Result<()> {
    let blows = [
        (Phase::Copying, Blow::SourceDisk),
        (Phase::Copying, Blow::DestinationDisk),
        (Phase::Offered, Blow::DestinationDisk),
    ];
    story(&setup(), |pair| strike_all(pair, blows, |_, _, _| Ok(())))
}

#[test]
fn a_cut_and_a_hang_of_seconds() -> Result<()> {
    let blows = [
        (Phase::Copying, Blow::ShortCut),
        (Phase::Stopping, Blow::ShortCut),
        (Phase::Copying, Blow::SourceHangs),
        (Phase::Stopping, Blow::DestinationHangs),
    ];
    story(&setup(), |pair| strike_all(pair, blows, |_, _, _| Ok(())))
}

#[test]
fn the_only_qemu_that_holds_the_guest_dies() -> Result<()> {
    let blows = [(Phase::Copying, Blow::SourceQemu), (Phase::Running, Blow::DestinationQemu)];
    story(&setup(), |pair| strike_all(pair, blows, |_, _, _| Ok(())))
}

#[test]
fn everything_everywhere() -> Result<()> {
    if std::env::var_os("STERNA_SOAK").is_none_or(|value| value != "1") {
        eprintln!(
            "SKIPPED: hours of faults are for `make soak`; make test strikes once at each moment"
        );
        return Ok(());
    }
    soak::everything_everywhere(&Setup { turn: Turn::AtOnce, ..setup() })
}

fn setup() -> Setup {
    let host = HostSetup { state_disk: StateDisk::Small, ..HostSetup::default() };
    Setup { alpha: host.clone(), beta: host, ..Setup::default() }
}
