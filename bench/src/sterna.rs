//! One run of Sterna: two agents, a guest, `sterna migrate`.
//!
//! An observer listens at both QEMUs' QMP sockets for users: the downtime is seen from outside too.

use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sterna_api::Report;
use sterna_e2e::{Error, HostSetup, Pair, Result, Setup, Side, Vm, qemu10};

use crate::machine;
use crate::record::{Ending, Measured};
use crate::stage::{self, BOOT_LIMIT, GUEST_NETWORK, SWEEP_LIMIT};
use crate::tables::{Cell, Version};
use crate::watch::Watch;
use crate::watch::events::Events;

/// How often the destination's socket is looked for.
const LOOK: Duration = Duration::from_millis(5);

/// Boots the guest, moves it, gives what was measured.
///
/// # Errors
/// Something does not work at all.
pub(crate) fn run(cell: &Cell, options: &[&str]) -> Result<Measured> {
    let link = stage::wire(cell.link)?;
    let pair = Pair::start(&Setup { guest_network: GUEST_NETWORK, link, ..setup(cell)? })?;
    let mut vm = Vm::start(&pair, &stage::guest(cell)?)?;
    stage::shape(pair.world(), cell.link)?;

    let mut measured = Measured::default();
    let observer = Observer::start(&pair, vm.name())?;
    let watch = Watch::start(pair.world(), cell.load, vm.log())?;
    measured.start_unix_ms = Some(machine::unix_ms()?);
    let start = Instant::now();
    let moved = vm.try_migrate(&pair, options)?;
    measured.command_ms = Some(start.elapsed().as_secs_f64() * 1e3);
    let aftermath = watch.finish(&mut measured)?;
    let has_rolled_back = moved.check(1, "failed", "source").is_ok();
    let report: Report = serde_json::from_value(moved.report.clone())
        .map_err(|error| Error::unexpected("the report", "all its keys", error))?;
    if has_rolled_back {
        vm.check_still_here(&pair)?;
        measured.total_ms = Some(report.total_ms);
        measured.report = Some(report);
        measured.ending = Ending::NotInTime;
        return Ok(measured);
    }
    moved.check_done()?;
    vm.arrived(&pair)?;

    let downtime_ms = observer.downtime_ms()?;
    measured.total_ms = Some(report.total_ms);
    measured.downtime_ms = Some(downtime_ms);
    measured.destination_start_ms = Some(report.phases_ms.destination_qemu_start);
    measured.report = Some(report);
    aftermath.finish(vm.log(), downtime_ms, &mut measured)?;
    vm.log().wait_for_sweep(vm.log().mark()?, SWEEP_LIMIT)?;
    measured.guest_swept = true;
    measured.ending = Ending::Completed;
    Ok(measured)
}

/// Sees the guest stop at one host and run at the other.
#[derive(Debug)]
pub(crate) struct Observer {
    source: Events,
    destination: JoinHandle<Option<Events>>,
}

impl Observer {
    /// The destination's QEMU does not exist yet: its socket is looked for until it does. Both hosts
    /// have their sockets at the same place below their folders.
    pub(crate) fn start(pair: &Pair, name: &str) -> Result<Self> {
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

    /// From STOP to RESUME.
    ///
    /// # Errors
    /// One of them was not seen.
    pub(crate) fn downtime_ms(mut self) -> Result<f64> {
        let unseen = |event| Error::unexpected("QEMU's events", event, "none");
        let stopped = self.source.last("STOP").ok_or_else(|| unseen("STOP"))?.unix_ms;
        let destination = self.destination.join().ok().flatten();
        let mut destination = destination.ok_or_else(|| unseen("a QMP socket"))?;
        let resumed = destination.wait_for(LOOK, |event| event.name == "RESUME");
        Ok(resumed.ok_or_else(|| unseen("RESUME"))?.unix_ms - stopped)
    }
}

/// Two hosts that have the cell's QEMU: one outside of the search path is found at the destination by its mapping only.
fn setup(cell: &Cell) -> Result<Setup> {
    let paths = match cell.qemu {
        Version::Installed => Vec::new(),
        Version::Ten => vec![(qemu10()?, qemu10()?)],
    };
    Ok(Setup { beta: HostSetup { paths, ..HostSetup::default() }, ..Setup::default() })
}
