//! Law 1 by its table: whatever strikes, at whatever moment, there is exactly one copy of the guest in the end, or the report
//! says that there is none, and why; nothing is left over; and the next attempt works.
//!
//! The last moments are those of post-copy, in which the guest is moved by `--strategy three-stage`, faster than the link
//! carries what it writes.
//!
//! `make test` strikes once at each moment; with `STERNA_SOAK=1` everything strikes at every moment, again and again
//! ([`soak`]).

mod soak;
mod strike;
mod tally;

use sterna_e2e::{Blow, GuestNetwork, HostSetup, Phase, Result, Setup, StateDisk, Turn, story};

use strike::strike_all;

#[test]
fn one_blow_at_each_moment() -> Result<()> {
    strike(&[
        (Phase::Preparing, Blow::SourceAgent),
        (Phase::Starting, Blow::DestinationAgent),
        (Phase::Copying, Blow::DestinationQemu),
        (Phase::Stopping, Blow::SourceAgent),
        (Phase::Offered, Blow::DestinationAgent),
        (Phase::Entitled, Blow::SourceQemu),
        (Phase::Running, Blow::SourceAgent),
        (Phase::Gone, Blow::SourceAgent),
    ])
}

#[test]
fn disks_that_fill_up_cost_no_guest() -> Result<()> {
    strike(&[
        (Phase::Copying, Blow::SourceDisk),
        (Phase::Copying, Blow::DestinationDisk),
        (Phase::Offered, Blow::DestinationDisk),
    ])
}

#[test]
fn a_cut_and_a_hang_of_seconds() -> Result<()> {
    strike(&[
        (Phase::Copying, Blow::ShortCut),
        (Phase::Stopping, Blow::ShortCut),
        (Phase::Copying, Blow::SourceHangs),
        (Phase::Stopping, Blow::DestinationHangs),
    ])
}

#[test]
fn the_only_qemu_that_holds_the_guest_dies() -> Result<()> {
    strike(&[(Phase::Copying, Blow::SourceQemu), (Phase::Running, Blow::DestinationQemu)])
}

#[test]
fn a_guest_that_lacks_pages_outlives_agents_and_links() -> Result<()> {
    strike(&[
        (Phase::Serving, Blow::SourceAgent),
        (Phase::Serving, Blow::DestinationAgent),
        (Phase::Faulting, Blow::DestinationAgent),
        (Phase::Serving, Blow::ShortCut),
        (Phase::Faulting, Blow::DestinationDisk),
        // It has been moved: what it has is in files by now, which outlive a QEMU.
        (Phase::Serving, Blow::SourceQemu),
        (Phase::Faulting, Blow::SourceQemu),
    ])
}

#[test]
fn a_guest_that_lacks_pages_is_lost_with_either_qemu() -> Result<()> {
    strike(&[
        (Phase::Serving, Blow::SourceQemu),
        (Phase::Faulting, Blow::DestinationQemu),
        (Phase::Serving, Blow::SourceHost),
    ])
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

/// Once each, in one world.
fn strike(blows: &[(Phase, Blow)]) -> Result<()> {
    story(&setup(), |pair| strike_all(pair, blows.iter().copied(), |_, _, _| Ok(())))
}

fn setup() -> Setup {
    let host = HostSetup { state_disk: StateDisk::Small, ..HostSetup::default() };
    let guest_network = GuestNetwork::Bridged;
    Setup { alpha: host.clone(), beta: host, guest_network, ..Setup::default() }
}
