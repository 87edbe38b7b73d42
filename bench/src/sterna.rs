//! One run of Sterna: two agents, a guest, `sterna migrate`.

use std::thread;
use std::time::{Duration, Instant};

use sterna_api::Report;
use sterna_e2e::{Error, Guest, Pair, Result, Setup, Side, Vm};

use crate::cells::Cell;
use crate::record::{Ending, Measured, wire_bytes};
use crate::stock::link_rate;

/// Under TCG on a busy machine; two to three seconds when it is idle.
pub(crate) const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// What boot has left to do is done by then.
pub(crate) const SETTLE: Duration = Duration::from_secs(1);
/// The guest says every second that it lives.
pub(crate) const TICK_LIMIT: Duration = Duration::from_secs(20);

/// Boots the guest, moves it, gives what was measured.
///
/// # Errors
/// Something does not work at all.
pub(crate) fn run(cell: &Cell, options: &[&str]) -> Result<Measured> {
    let pair = Pair::start(&Setup::default())?;
    let mut vm = Vm::start(&pair, &Guest::new("bench").load(cell.load))?;
    if let Some(rate) = link_rate(cell)? {
        pair.world().shape(rate)?;
    }
    thread::sleep(SETTLE);

    let counted = pair.world().counters(Side::Alpha)?;
    let start = Instant::now();
    let moved = vm.try_migrate(&pair, options)?;
    let command_ms = start.elapsed().as_secs_f64() * 1e3;
    let bytes = wire_bytes(pair.world(), counted)?;
    moved.check_done()?;
    vm.arrived(&pair)?;
    vm.check_ticks()?;

    let report: Report = serde_json::from_value(moved.report)
        .map_err(|error| Error::unexpected("the report", "all its keys", error))?;
    Ok(Measured {
        ending: Ending::Completed,
        total_ms: Some(report.total_ms),
        downtime_ms: Some(report.downtime_ms),
        bytes: Some(bytes),
        destination_start_ms: Some(report.phases_ms.destination_qemu_start),
        command_ms: Some(command_ms),
        report: Some(report),
        ..Measured::default()
    })
}
