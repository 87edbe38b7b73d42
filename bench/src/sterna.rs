//! One run of Sterna: two agents, a guest, `sterna migrate`.
//!
//! An observer listens at both QEMUs' QMP sockets for users: the downtime is seen from outside too.

use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sterna_api::Report;
use sterna_e2e::{Error, Guest, Pair, Result, Setup, Side, Vm};

use crate::cells::Cell;
use crate::events::Events;
use crate::record::{Ending, Measured, wire_bytes};
use crate::stock::link_rate;

/// Under TCG on a busy machine; two to three seconds when it is idle.
pub(crate) const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// What boot has left to do is done by then.
pub(crate) const SETTLE: Duration = Duration::from_secs(1);
/// How long the guest may take to look at all its pages twice: whoever lost one did not complete.
pub(crate) const SWEEP_LIMIT: Duration = Duration::from_secs(60);

/// How often the destination's socket is looked for.
const LOOK: Duration = Duration::from_millis(5);

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
    let observer = Observer::start(&pair, vm.name())?;
    let start = Instant::now();
    let moved = vm.try_migrate(&pair, options)?;
    let command_ms = start.elapsed().as_secs_f64() * 1e3;
    let bytes = wire_bytes(pair.world(), counted)?;
    moved.check_done()?;
    vm.arrived(&pair)?;
    vm.log().wait_for_sweep(vm.log().mark()?, SWEEP_LIMIT)?;

    let report: Report = serde_json::from_value(moved.report)
        .map_err(|error| Error::unexpected("the report", "all its keys", error))?;
    Ok(Measured {
        ending: Ending::Completed,
        total_ms: Some(report.total_ms),
        downtime_ms: Some(report.downtime_ms),
        bytes: Some(bytes),
        destination_start_ms: Some(report.phases_ms.destination_qemu_start),
        command_ms: Some(command_ms),
        guest_swept: true,
        observed_downtime_ms: observer.downtime_ms(),
        report: Some(report),
        ..Measured::default()
    })
}

/// Sees the guest stop at one host and run at the other.
#[derive(Debug)]
struct Observer {
    source: Events,
    destination: JoinHandle<Option<Events>>,
}

impl Observer {
    /// The destination's QEMU does not exist yet: its socket is looked for until it does. Both hosts
    /// have their sockets at the same place below their folders.
    fn start(pair: &Pair, name: &str) -> Result<Self> {
        let [source, destination] = Side::BOTH.map(|side| pair.host(side).folder());
        let view = pair.host(Side::Alpha).vm(name)?;
        let socket = PathBuf::from(view["qmp"].as_str().unwrap_or_default());
        let below = socket.strip_prefix(source);
        let below = below.map_err(|error| {
            Error::unexpected("the VM's QMP socket", "a path below the host's folder", error)
        })?;
        let awaited = destination.join(below);
        let destination = thread::spawn(move || {
            let start = Instant::now();
            while start.elapsed() < BOOT_LIMIT {
                if let Ok(events) = Events::listen(&awaited) {
                    return Some(events);
                }
                thread::sleep(LOOK);
            }
            None
        });
        Ok(Self { source: Events::listen(&socket)?, destination })
    }

    /// From STOP to RESUME, if both were seen.
    fn downtime_ms(mut self) -> Option<f64> {
        let stopped = self.source.last("STOP")?.unix_ms;
        let mut destination = self.destination.join().ok()??;
        let resumed = destination.wait_for(LOOK, |event| event.name == "RESUME")?;
        Some(resumed.unix_ms - stopped)
    }
}
