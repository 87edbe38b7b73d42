//! The stage of a run, the same whoever moves the guest: the networks, the guest, the link.

use std::time::Duration;

use sterna_e2e::{EmulatedLink, Error, Guest, GuestNetwork, Result, World, qemu10};
use sterna_model::Rate;

use crate::tables::{Cell, Link, Program, Shape, Version};

/// Under TCG on a busy machine; two to three seconds when it is idle.
pub(crate) const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// How long the guest may take to look at all its pages twice: whoever lost one did not complete.
pub(crate) const SWEEP_LIMIT: Duration = Duration::from_secs(60);

/// Every guest has a network card: a client talks to it through the move.
pub(crate) const GUEST_NETWORK: GuestNetwork = GuestNetwork::Bridged;
/// Decides which packets of an emulated link are lost.
const SEED: u64 = 1;
/// Milliseconds between the guest's reports of its work.
const REPORT: &str = "report=100";

/// The cell's guest.
///
/// # Errors
/// QEMU 10 cannot be had here.
pub(crate) fn guest(cell: &Cell) -> Result<Guest> {
    let guest = Guest::new("bench").with_memory_kib(cell.load.memory_kib).tap();
    let guest = match cell.load.program {
        Program::Pages(parameters) => guest.load(&format!("{parameters} {REPORT}")),
        Program::Application(application) => {
            guest.application(application).load(&format!("{} {REPORT}", application.name()))
        }
        Program::ApplicationWith(application, parameters) => guest
            .application(application)
            .load(&format!("{} {parameters} {REPORT}", application.name())),
    };
    Ok(match cell.qemu {
        Version::Installed => guest,
        Version::Ten => guest.program(&qemu10()?),
    })
}

/// The wire between the hosts.
///
/// # Errors
/// The table has no rate there.
pub(crate) fn wire(link: &Link) -> Result<sterna_e2e::Link> {
    let Shape::Emulated { rate, round_trip_ms, lost_per_million } = link.shape else {
        return Ok(sterna_e2e::Link::Plain);
    };
    let emulated =
        EmulatedLink::new(parse_rate(rate)?, Duration::from_millis(round_trip_ms.into()));
    Ok(sterna_e2e::Link::Emulated(emulated.losing(lost_per_million, SEED)))
}

/// Limits the wire as the link says, if it is not made so.
///
/// # Errors
/// `tc` fails, or the table has no rate there.
pub(crate) fn shape(world: &World, link: &Link) -> Result<()> {
    match link.shape {
        Shape::Rate(rate) => world.shape(parse_rate(rate)?),
        Shape::Unlimited | Shape::Emulated { .. } => Ok(()),
    }
}

/// The link's rate in each direction, if it has one.
///
/// # Errors
/// The table has no rate there.
pub(crate) fn rate(link: &Link) -> Result<Option<Rate>> {
    link.rate().map(parse_rate).transpose()
}

fn parse_rate(text: &str) -> Result<Rate> {
    text.parse::<Rate>().map_err(|error| Error::unexpected("the table of links", "a rate", error))
}
