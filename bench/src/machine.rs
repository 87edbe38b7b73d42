//! The machine: what it is, and how quiet it is.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use sterna_e2e::command::{tool, tool_line};
use sterna_e2e::{Accelerator, Error, QEMU, Result, repository};

/// How long a run waits for a quiet machine before it is run all the same.
pub(crate) const QUIET_PATIENCE: Duration = Duration::from_secs(120);
/// Less than this share of all cores is quiet.
const QUIET_BUSY_PERCENT: f64 = 10.0;
/// How long the cores are watched.
const SAMPLE: Duration = Duration::from_secs(1);

/// What the numbers were measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// Cores.
    pub(crate) cores: usize,
    /// The kernel's release.
    pub(crate) kernel: String,
    /// QEMU's version.
    pub(crate) qemu: String,
    /// How QEMU runs the guest.
    pub(crate) accelerator: String,
}

impl Machine {
    /// This one.
    ///
    /// # Errors
    /// A tool fails.
    pub(crate) fn here() -> Result<Self> {
        let cores = thread::available_parallelism().map_err(Error::io("counting the cores"))?;
        let version = tool(QEMU, ["--version"])?;
        let words = version.split_whitespace().skip_while(|word| *word != "version").nth(1);
        Ok(Self {
            cores: cores.get(),
            kernel: tool_line("uname", "-r")?.trim().to_owned(),
            qemu: words.unwrap_or_default().to_owned(),
            accelerator: Accelerator::here()?.name().to_owned(),
        })
    }
}

/// What else the machine did just before a run, when nothing of ours ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Conditions {
    /// When, RFC 3339, UTC.
    pub(crate) date: String,
    /// Share of all cores that was busy.
    pub(crate) busy_percent: f64,
    /// The load average of the last minute; our own earlier runs are in it.
    pub(crate) load_average: f64,
}

/// The commit that is measured, with a mark when the program's sources differ from it.
///
/// # Errors
/// No git, or no repository.
pub(crate) fn commit() -> Result<String> {
    let folder = repository();
    let folder = folder.to_string_lossy();
    let git = |words: &[&str]| tool("git", ["-C", &*folder].iter().chain(words).copied());
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changes = git(&["status", "--porcelain", "--", "crates", "Cargo.lock"])?;
    let mark = if changes.trim().is_empty() { "" } else { "+" };
    Ok(format!("{}{mark}", commit.trim()))
}

/// Waits for a lock that is kept until the file is dropped.
///
/// # Errors
/// It cannot be made or locked.
pub(crate) fn take_turn(path: &Path) -> Result<fs::File> {
    let doing = || format!("locking {}", path.display());
    let file = fs::File::options().create(true).append(true).open(path);
    let file = file.map_err(Error::io(doing()))?;
    file.lock().map_err(Error::io(doing()))?;
    Ok(file)
}

/// Waits until others leave the machine alone, at most `patience`.
///
/// # Errors
/// The kernel does not say how busy it is.
pub(crate) fn wait_until_quiet(patience: Duration) -> Result<Conditions> {
    let start = Instant::now();
    loop {
        let busy_percent = busy_percent()?;
        if busy_percent < QUIET_BUSY_PERCENT || start.elapsed() >= patience {
            let load = read("/proc/loadavg")?;
            let load = load.split_whitespace().next().and_then(|number| number.parse().ok());
            return Ok(Conditions {
                date: tool_line("date", "-u +%Y-%m-%dT%H:%M:%SZ")?.trim().to_owned(),
                busy_percent,
                load_average: load.unwrap_or_default(),
            });
        }
    }
}

fn busy_percent() -> Result<f64> {
    let before = cpu_ticks()?;
    thread::sleep(SAMPLE);
    let after = cpu_ticks()?;
    let (busy, all) = (after.0 - before.0, after.1 - before.1);
    Ok(if all > 0.0 { 100.0 * busy / all } else { 0.0 })
}

/// Busy and all ticks of all cores since boot. Other guests on this host's cores ("steal") count.
fn cpu_ticks() -> Result<(f64, f64)> {
    let text = read("/proc/stat")?;
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<f64> =
        line.split_whitespace().skip(1).take(8).filter_map(|tick| tick.parse().ok()).collect();
    let [_, _, _, idle, waiting, ..] = ticks[..] else {
        return Err(Error::unexpected("/proc/stat", "a line of the cores", line));
    };
    let all: f64 = ticks.iter().sum();
    Ok((all - idle - waiting, all))
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).map_err(Error::io(format!("reading {path}")))
}

/// Now, in milliseconds since 1970: the clock of QEMU's events.
///
/// # Errors
/// The clock is before 1970.
pub(crate) fn unix_ms() -> Result<f64> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_err(|error| Error::unexpected("the clock", "a time after 1970", error))?;
    Ok(now.as_secs_f64() * 1e3)
}
