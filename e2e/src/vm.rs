//! A guest in a story: where it is, what it has printed, and how it is moved.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::command::{Output, Running, is_alive, wait_for};
use crate::error::expect_that;
use crate::host::{MOVE_LIMIT, with_json};
use crate::log::GuestLog;
use crate::qmp::Qmp;
use crate::story::Pair;
use crate::world::Side;
use crate::{Error, Guest, Result};

/// Under TCG on a busy machine; two to three seconds when it is idle.
const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// A sweep of the largest working set in these tests.
const SWEEP_LIMIT: Duration = Duration::from_secs(60);
/// A tick comes every second.
const TICK_LIMIT: Duration = Duration::from_secs(20);
/// A move over a slow wire is under way within this.
const UNDER_WAY_LIMIT: Duration = Duration::from_secs(60);
/// The source's QEMU is ended after the command has returned, at the latest.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A guest that an agent has.
#[derive(Debug)]
pub struct Vm {
    name: String,
    at: Side,
    pid: u32,
    log: GuestLog,
}

/// What a `migrate` left: its exit code and its report.
#[derive(Clone, Debug)]
pub struct Move {
    /// The command's output.
    pub output: Output,
    /// The report.
    pub report: Value,
}

impl Vm {
    /// Starts it on alpha and waits until its load runs.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(pair: &Pair, guest: &Guest) -> Result<Self> {
        let host = pair.host(Side::Alpha);
        let serial = host.folder().join(format!("{}.serial", guest.name()));
        let argv = guest.argv(&serial)?;
        let mut words = vec!["vm", "start", guest.name(), "--"];
        words.extend(argv.iter().map(String::as_str));
        host.run(&words)?.success()?;
        Self::of(pair, guest.name())
    }

    /// One that alpha's agent has already; waits until its load runs.
    ///
    /// # Errors
    /// The agent does not know it, or it does not come up.
    pub fn of(pair: &Pair, name: &str) -> Result<Self> {
        let view = pair.host(Side::Alpha).vm(name)?;
        let log = GuestLog::new(&serial_of(&view)?);
        let pid = pid_of(&view)?;
        let vm = Self { name: name.to_owned(), at: Side::Alpha, pid, log };
        let start = vm.log.mark()?;
        vm.log.wait_for_line("LOAD READY", start, BOOT_LIMIT).or_else(|error| {
            // It may have been there before the log was first looked at.
            if vm.log.text()?.contains("LOAD READY") { Ok(String::new()) } else { Err(error) }
        })?;
        Ok(vm)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it runs.
    #[must_use]
    pub const fn at(&self) -> Side {
        self.at
    }

    /// The QEMU that it runs in.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether its memory is a file that others can open, as it is of every guest that was moved once.
    ///
    /// # Errors
    /// Its QEMU has ended.
    pub fn memory_is_a_file(&self) -> Result<bool> {
        let path = format!("/proc/{}/cmdline", self.pid);
        let line = fs::read(&path).map_err(Error::io(path))?;
        Ok(String::from_utf8_lossy(&line).contains("memory-backend-memfd"))
    }

    /// What it has printed.
    #[must_use]
    pub const fn log(&self) -> &GuestLog {
        &self.log
    }

    /// The words of a `migrate` to the other host.
    #[must_use]
    pub fn migrate_words<'w>(&'w self, options: &[&'w str]) -> Vec<&'w str> {
        let mut words = vec!["migrate", &self.name, self.at.other().name()];
        words.extend(options);
        with_json(&words)
    }

    /// Begins a move to the other host, and waits until so many bytes of it have passed the wire.
    ///
    /// # Errors
    /// They do not; with what the command said, if it has ended.
    pub fn begin_move(&self, pair: &Pair, options: &[&str], bytes: u64) -> Result<Running> {
        let before = pair.world().counters(self.at)?;
        let mut command = pair.host(self.at).spawn(&self.migrate_words(options))?;
        match pair.world().wait_for_sent(self.at, before, bytes, UNDER_WAY_LIMIT) {
            Ok(()) => Ok(command),
            Err(error) if !command.has_ended()? => Err(error),
            Err(_) => {
                let words = command.wait(UNDER_WAY_LIMIT)?.words();
                Err(Error::unexpected("a move", "that it is under way", words))
            }
        }
    }

    /// Asks for a move to the other host and waits for its report, whatever that says.
    ///
    /// # Errors
    /// The command hangs or prints no report.
    pub fn try_migrate(&self, pair: &Pair, options: &[&str]) -> Result<Move> {
        let running = pair.host(self.at).spawn(&self.migrate_words(options))?;
        Move::of(running.wait(MOVE_LIMIT)?)
    }

    /// Moves it to the other host; it must be well there, and gone here.
    ///
    /// # Errors
    /// Anything that is not as it must be after a move.
    pub fn migrate(&mut self, pair: &Pair, options: &[&str]) -> Result<Move> {
        let moved = self.try_migrate(pair, options)?;
        moved.check_done()?;
        self.arrived(pair)?;
        Ok(moved)
    }

    /// Takes note that it is on the other host now, and checks both hosts' views of it.
    ///
    /// # Errors
    /// It is not as it must be after a move.
    pub fn arrived(&mut self, pair: &Pair) -> Result<()> {
        let (source, destination) = (pair.host(self.at), pair.host(self.at.other()));
        let state = source.vm_state(&self.name)?;
        expect_that(state == "migrated", "the VM's state at the source", "migrated", &state)?;
        let pid = self.pid;
        wait_for("the end of the source's QEMU", END_LIMIT, || Ok((!is_alive(pid)).then_some(())))?;
        let view = destination.vm(&self.name)?;
        self.at = self.at.other();
        self.pid = pid_of(&view)?;
        self.log.moved_to(&serial_of(&view)?)
    }

    /// It runs where it was: QEMU is the same process, its host says `running`, nothing of it is
    /// left on the other host, it works, and a sweep finds no bad page.
    ///
    /// # Errors
    /// It is not as it was.
    pub fn check_still_here(&self, pair: &Pair) -> Result<()> {
        let view = pair.host(self.at).vm(&self.name)?;
        expect_that(view["state"] == "running", "the VM's state", "running", &view["state"])?;
        let pid = pid_of(&view)?;
        expect_that(pid == self.pid, "the VM's process", self.pid, pid)?;
        self.check_works()?;
        wait_for("the end of the other host's QEMU", END_LIMIT, || {
            Ok(pair.world().qemus(self.at.other())?.is_empty().then_some(()))
        })
    }

    /// Its clock goes on, and a sweep that begins now finds no bad page.
    ///
    /// # Errors
    /// It is damaged, or stands.
    pub fn check_works(&self) -> Result<()> {
        let now = self.log.mark()?;
        self.check_ticks()?;
        self.log.wait_for_sweep(now, SWEEP_LIMIT).map(drop)
    }

    /// It prints a tick that is later than all before.
    ///
    /// # Errors
    /// It is damaged, or stands.
    pub fn check_ticks(&self) -> Result<()> {
        let now = self.log.mark()?;
        self.log.wait_for_line("TICK ", now, TICK_LIMIT)?;
        self.log.ticks().map(drop)
    }

    /// QEMU's QMP socket, as its host tells it.
    ///
    /// # Errors
    /// It has none, or nobody answers there.
    pub fn qmp(&self, pair: &Pair) -> Result<Qmp> {
        let view = pair.host(self.at).vm(&self.name)?;
        let socket = view["qmp"].as_str().map(PathBuf::from);
        let socket = socket.ok_or_else(|| Error::unexpected("vm show", "a qmp path", &view))?;
        Qmp::connect(&socket)
    }
}

impl Move {
    /// What a `migrate -o json` printed.
    ///
    /// # Errors
    /// Not exactly one report.
    pub fn of(output: Output) -> Result<Self> {
        let report = output.json()?;
        Ok(Self { output, report })
    }

    /// It went well, by exit code and report.
    ///
    /// # Errors
    /// Names what is not as it must be.
    pub fn check_done(&self) -> Result<()> {
        self.check(0, "done", "destination")?;
        let verify = &self.report["verify"];
        expect_that(verify["roots_match"] == true, "verify", "that the roots match", verify)
    }

    /// The exit code, the outcome and where the guest is.
    ///
    /// # Errors
    /// Names what is not as it must be.
    pub fn check(&self, code: i32, outcome: &str, guest_is: &str) -> Result<()> {
        let expected = format!("exit code {code}, outcome {outcome}, guest at {guest_is}");
        let report = &self.report;
        let is_so = self.output.code == Some(code)
            && report["outcome"] == outcome
            && report["guest_is"] == guest_is;
        let found = format!("exit code {:?}, {report}\n{}", self.output.code, self.output.stderr);
        expect_that(is_so, "the move", expected, found)
    }

    /// A number of the report by its JSON pointer.
    ///
    /// # Errors
    /// There is none.
    pub fn number(&self, pointer: &str) -> Result<f64> {
        let value = self.report.pointer(pointer).and_then(Value::as_f64);
        value.ok_or_else(|| Error::unexpected(format!("report{pointer}"), "a number", &self.report))
    }
}

fn pid_of(view: &Value) -> Result<u32> {
    let pid = view["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    pid.ok_or_else(|| Error::unexpected("vm show", "a pid", view))
}

fn serial_of(view: &Value) -> Result<PathBuf> {
    let path = view["serial"].as_str().map(PathBuf::from);
    path.ok_or_else(|| Error::unexpected("vm show", "a serial path", view))
}
