//! One run of QEMU's own migration: two QEMUs, driven over QMP as a management program would.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sterna_e2e::command::{tool, wait_for};
use sterna_e2e::{Error, GuestLog, Qmp, Result, Side, World, expect_that, sterna};

use crate::machine;
use crate::record::{Ending, Measured};
use crate::stage::{self, BOOT_LIMIT, GUEST_NETWORK, SWEEP_LIMIT};
use crate::tables::{Cell, Channel, StockMode, Switch};
use crate::watch::Watch;
use crate::watch::events::{Event, Events};

const PORT: u16 = 4444;
/// Where QEMU must name one, and the wire has none.
const NO_CAP_BYTES_PER_SECOND: u64 = 100_000_000_000;
/// The other end's word comes at once, or the move went wrong.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Boots the guest, moves it, gives what was measured.
///
/// # Errors
/// Something does not work at all; a migration that does not end is no error.
pub(crate) fn run(cell: &Cell, mode: &StockMode, limit: Duration) -> Result<Measured> {
    let world = World::with_link(GUEST_NETWORK, stage::wire(cell.link)?)?;
    if mode.channel == Channel::Tls {
        issue_certificates(&world)?;
    }
    let mut source = Qemu::prepare(&world, cell, mode, Side::Alpha)?;
    source.start()?;
    let mut log = GuestLog::new(&source.serial);
    wait_for("LOAD READY", BOOT_LIMIT, || {
        Ok((source.serial.exists() && log.text()?.contains("LOAD READY")).then_some(()))
    })?;
    let (mut from, mut from_events) = source.connect()?;
    stage::shape(&world, cell.link)?;
    let mut destination = Qemu::prepare(&world, cell, mode, Side::Beta)?;

    let mut measured = Measured::default();
    let watch = Watch::start(&world, cell.load, &log)?;
    let (start, start_unix_ms) = (Instant::now(), machine::unix_ms()?);
    measured.start_unix_ms = Some(start_unix_ms);
    destination.start()?;
    let (mut to, mut to_events) = destination.connect()?;
    measured.destination_start_ms = Some(start.elapsed().as_secs_f64() * 1e3);
    set_up(&mut to, cell, mode)?;
    to.command_with("migrate-incoming", &json!({"uri": format!("tcp:[::]:{PORT}")}))?;
    set_up(&mut from, cell, mode)?;
    let uri = format!("tcp:{}:{PORT}", Side::Beta.address());
    from.command_with("migrate", &json!({"uri": uri}))?;
    let end = follow(&mut from, &mut from_events, mode, limit)?;
    let resumed =
        end.as_ref().and_then(|_| to_events.wait_for(ANSWER_LIMIT, |event| event.name == "RESUME"));
    let aftermath = watch.finish(&mut measured)?;
    measured.stock_info = Some(from.command("query-migrate")?);
    let (Some(end), Some(resumed)) = (end, resumed) else {
        measured.ending = Ending::NotInTime;
        measured.total_ms = Some(start.elapsed().as_secs_f64() * 1e3);
        return Ok(measured);
    };
    let stopped = from_events.last("STOP");
    let stopped = stopped.ok_or_else(|| Error::unexpected("QEMU's events", "STOP", "none"))?;
    let downtime_ms = resumed.unix_ms - stopped.unix_ms;
    measured.total_ms = Some(end.unix_ms - start_unix_ms);
    measured.downtime_ms = Some(downtime_ms);
    log.moved_to(&destination.serial)?;
    aftermath.finish(&log, downtime_ms, &mut measured)?;
    log.wait_for_sweep(log.mark()?, SWEEP_LIMIT)?;
    measured.guest_swept = true;
    measured.ending = Ending::Completed;
    Ok(measured)
}

/// A QEMU that waits in its namespace to be started: the start of `ip` is not in the time.
#[derive(Debug)]
struct Qemu {
    child: Child,
    serial: PathBuf,
    monitor: PathBuf,
    events: PathBuf,
}

impl Qemu {
    fn prepare(world: &World, cell: &Cell, mode: &StockMode, side: Side) -> Result<Self> {
        let folder = world.folder().join(format!("stock-{}", side.name()));
        fs::create_dir_all(&folder).map_err(Error::io("making QEMU's folder"))?;
        let [serial, monitor, events] =
            ["serial", "monitor.qmp", "events.qmp"].map(|name| folder.join(name));
        let guest = stage::guest(cell)?.qmp(&monitor);
        let mut argv = guest.argv(&serial)?;
        argv.extend(["-qmp".to_owned(), format!("unix:{},server=on,wait=off", events.display())]);
        if side == Side::Beta {
            argv.extend(["-incoming", "defer"].map(str::to_owned));
        }
        if mode.channel == Channel::Tls {
            argv.extend(["-object".to_owned(), credentials(world, side)]);
        }
        let log = fs::File::create(folder.join("log")).map_err(Error::io("making QEMU's log"))?;
        let mut command = world.command_at(side, Path::new("/bin/sh"));
        command.args(["-c", r#"read -r _; exec "$@""#, "sh"]).args(&argv);
        let child = spawn(command.stderr(log))?;
        Ok(Self { child, serial, monitor, events })
    }

    fn start(&mut self) -> Result<()> {
        let mut gate = self.child.stdin.take();
        let opened = gate.as_mut().map_or(Ok(()), |gate| gate.write_all(b"\n"));
        opened.map_err(Error::io("starting QEMU"))
    }

    /// Looked for every millisecond: it is in the time that is measured.
    fn connect(&self) -> Result<(Qmp, Events)> {
        let start = Instant::now();
        loop {
            match Qmp::connect(&self.monitor) {
                Ok(monitor) => return Ok((monitor, Events::listen(&self.events)?)),
                Err(error) if start.elapsed() > ANSWER_LIMIT => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    command.spawn().map_err(Error::io("starting a shell for QEMU"))
}

/// Capabilities and parameters; the same at both ends, as QEMU wants it.
fn set_up(qmp: &mut Qmp, cell: &Cell, mode: &StockMode) -> Result<()> {
    let capabilities: Vec<Value> = (["events"].iter().chain(mode.capabilities))
        .map(|name| json!({"capability": name, "state": true}))
        .collect();
    qmp.command_with("migrate-set-capabilities", &json!({"capabilities": capabilities}))?;
    let mut parameters: Value = serde_json::from_str(mode.parameters)
        .map_err(|error| Error::unexpected("a stock mode", "JSON parameters", error))?;
    let rate =
        stage::rate(cell.link)?.map_or(NO_CAP_BYTES_PER_SECOND, |rate| rate.bytes_per_second);
    parameters["max-bandwidth"] = json!(rate);
    if mode.channel == Channel::Tls {
        parameters["tls-creds"] = json!("tls0");
        parameters["tls-hostname"] = json!(Side::Beta.name());
    }
    qmp.command_with("migrate-set-parameters", &parameters).map(drop)
}

/// Sees a migration to its end; none when there is none in `limit`, and it is cancelled.
fn follow(
    qmp: &mut Qmp,
    events: &mut Events,
    mode: &StockMode,
    limit: Duration,
) -> Result<Option<Event>> {
    let status_is = |event: &Event, words: &[&str]| {
        event.name == "MIGRATION" && words.iter().any(|word| event.data["status"] == *word)
    };
    let is_over = |event: &Event| status_is(event, &["completed", "failed", "postcopy-paused"]);
    if mode.switch == Switch::AfterFirstPass {
        let second_pass = events.wait_for(limit, |event| {
            is_over(event) || event.name == "MIGRATION_PASS" && event.data["pass"] == 2
        });
        if second_pass.is_some_and(|event| !is_over(&event)) {
            qmp.command("migrate-start-postcopy")?;
        }
    }
    let Some(end) = events.wait_for(limit, is_over) else {
        qmp.command("migrate_cancel")?;
        return Ok(None);
    };
    expect_that(status_is(&end, &["completed"]), "stock migration", "completed", &end.data)?;
    Ok(Some(end))
}

/// Sterna's own CA names its files as QEMU does.
fn issue_certificates(world: &World) -> Result<()> {
    let program = sterna()?;
    let program = program.to_string_lossy();
    let folder = pki(world);
    let folder = folder.to_string_lossy();
    tool(&program, ["pki", "init", &folder])?;
    for side in Side::BOTH {
        tool(&program, ["pki", "issue", &folder, side.name()])?;
    }
    Ok(())
}

fn credentials(world: &World, side: Side) -> String {
    let endpoint = if side == Side::Alpha { "client" } else { "server" };
    let folder = pki(world).join(side.name());
    let folder = folder.display();
    format!("tls-creds-x509,id=tls0,dir={folder},endpoint={endpoint},verify-peer=on")
}

fn pki(world: &World) -> PathBuf {
    world.folder().join("stock-pki")
}
