//! A run, and the files that keep it: one for each, so that a later benchmark adds to them.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sterna_api::Report;
use sterna_e2e::{Counters, Error, Result, Side, World, repository};

use crate::cells::{Cell, Contender, Metric};
use crate::machine::{Conditions, Machine};

/// How a run ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ending {
    /// The guest runs at the destination.
    Completed,
    /// It was given up.
    NotInTime,
    /// Nothing is known.
    #[default]
    Unmeasured,
    /// It went wrong, in words.
    Failed(String),
}

/// What one move gave. Times in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// How it ended.
    pub(crate) ending: Ending,
    /// From the command, with the start of the destination's QEMU, until the source may be destroyed.
    pub(crate) total_ms: Option<f64>,
    /// The guest stopped at the source until running at the destination.
    pub(crate) downtime_ms: Option<f64>,
    /// Sterna's downtime as stock's is measured: the source's STOP event to the destination's RESUME event.
    pub(crate) observed_downtime_ms: Option<f64>,
    /// Bytes on the wire by the interface's counters: both directions, headers included.
    pub(crate) bytes: Option<u64>,
    /// Of the total: from spawning the destination's QEMU until it answered.
    pub(crate) destination_start_ms: Option<f64>,
    /// The whole command `sterna migrate`, as a shell sees it.
    pub(crate) command_ms: Option<f64>,
    /// After the move the guest has found every page of its working set as it should be. Absent in early runs, where the
    /// guest had only to go on.
    #[serde(default)]
    pub(crate) guest_swept: bool,
    /// Sterna's report.
    pub(crate) report: Option<Report>,
    /// Stock's `query-migrate` at the end.
    pub(crate) stock_info: Option<Value>,
}

impl Measured {
    /// A run that went wrong.
    pub(crate) fn failed(error: &Error) -> Self {
        Self { ending: Ending::Failed(error.to_string()), ..Self::default() }
    }
}

/// A run with all that is needed to read it later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// The cell's name.
    pub(crate) cell: String,
    /// The contender's name.
    pub(crate) contender: String,
    /// Counted from 1.
    pub(crate) number: u32,
    /// The guest's load at that time.
    pub(crate) load: String,
    /// The wire's rate at that time.
    pub(crate) link: Option<String>,
    /// What else the machine did.
    pub(crate) conditions: Conditions,
    /// What was measured.
    pub(crate) measured: Measured,
}

impl Run {
    /// Puts it together.
    pub(crate) fn new(
        cell: &Cell,
        contender: &Contender,
        number: u32,
        conditions: Conditions,
        measured: Measured,
    ) -> Self {
        Self {
            cell: cell.name.to_owned(),
            contender: contender.name.to_owned(),
            number,
            load: cell.load.to_owned(),
            link: cell.link.map(str::to_owned),
            conditions,
            measured,
        }
    }

    /// Whether the guest runs at the destination.
    pub(crate) fn has_completed(&self) -> bool {
        self.measured.ending == Ending::Completed
    }

    /// Whether the guest itself said that something of it was lost.
    pub(crate) fn was_damaged(&self) -> bool {
        matches!(&self.measured.ending, Ending::Failed(words) if words.contains("the guest is damaged"))
    }

    /// A number of it, if it was measured.
    #[expect(clippy::cast_precision_loss, reason = "byte counts are far below 2^52")]
    pub(crate) fn value(&self, metric: Metric) -> Option<f64> {
        let measured = &self.measured;
        match metric {
            Metric::TotalMs => measured.total_ms,
            Metric::DowntimeMs => measured.downtime_ms,
            Metric::Bytes => measured.bytes.map(|bytes| bytes as f64),
            Metric::AgentBytes => measured.report.as_ref().map(|report| {
                let memory = report.memory;
                let (source, destination) =
                    (memory.agent_peak_anon_bytes_source, memory.agent_peak_anon_bytes_destination);
                source.max(destination) as f64
            }),
        }
    }

    /// One line for whoever watches.
    pub(crate) fn in_short(&self) -> String {
        let shown =
            |metric| self.value(metric).map_or_else(|| "-".to_owned(), |n| format!("{n:.1}"));
        format!(
            "{:?}, total {} ms, downtime {} ms, {} bytes, destination start {:.0} ms, busy before {:.1} %",
            self.measured.ending,
            shown(Metric::TotalMs),
            shown(Metric::DowntimeMs),
            shown(Metric::Bytes).trim_end_matches(".0"),
            self.measured.destination_start_ms.unwrap_or_default(),
            self.conditions.busy_percent,
        )
    }
}

/// All runs with the machine that they were measured on: `latest.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Document<'r> {
    /// What the numbers were measured on.
    pub(crate) machine: &'r Machine,
    /// Every run.
    pub(crate) runs: &'r [Run],
}

/// The folder of the results.
#[derive(Debug)]
pub(crate) struct Results {
    folder: PathBuf,
    stem: &'static str,
}

impl Results {
    /// `bench/results`; a quick benchmark has files of its own.
    pub(crate) fn at(is_quick: bool) -> Self {
        let stem = if is_quick { "quick" } else { "latest" };
        Self { folder: repository().join("bench/results"), stem }
    }

    /// Whether these are results to quote.
    pub(crate) fn are_for_quoting(&self) -> bool {
        self.stem == "latest"
    }

    /// `latest.json`, `latest.md`.
    pub(crate) fn summary(&self, extension: &str) -> PathBuf {
        self.folder.join(format!("{}.{extension}", self.stem))
    }

    /// Keeps a run.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn save(&self, run: &Run) -> Result<()> {
        let folder = self.runs_of(&run.cell);
        fs::create_dir_all(&folder).map_err(Error::io(format!("making {}", folder.display())))?;
        write_json(&folder.join(format!("{}-{}.json", run.contender, run.number)), run)
    }

    /// Removes the runs of a contender, before it is measured anew.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn forget(&self, cell: &str, contender: &str) -> Result<()> {
        for path in files_in(&self.runs_of(cell))? {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if stem.rsplit_once('-').is_some_and(|(name, _)| name == contender) {
                let doing = format!("removing {}", path.display());
                fs::remove_file(&path).map_err(Error::io(doing))?;
            }
        }
        Ok(())
    }

    /// All runs of a cell.
    ///
    /// # Errors
    /// A file cannot be read, or is no run.
    pub(crate) fn load(&self, cell: &str) -> Result<Vec<Run>> {
        let mut runs = Vec::new();
        for path in files_in(&self.runs_of(cell))? {
            let doing = format!("reading {}", path.display());
            let text = fs::read_to_string(&path).map_err(Error::io(doing))?;
            let run: Run = serde_json::from_str(&text)
                .map_err(|error| Error::unexpected(path.display().to_string(), "a run", error))?;
            runs.push(run);
        }
        runs.sort_by_key(|run| run.number);
        Ok(runs)
    }

    fn runs_of(&self, cell: &str) -> PathBuf {
        self.folder.join("runs").join(self.stem).join(cell)
    }
}

/// Bytes on the wire in both directions since then.
///
/// # Errors
/// `ip` fails.
pub(crate) fn wire_bytes(world: &World, since: Counters) -> Result<u64> {
    let now = world.counters(Side::Alpha)?;
    Ok(now.sent_bytes - since.sent_bytes + now.received_bytes - since.received_bytes)
}

/// Writes a document.
///
/// # Errors
/// The disk.
pub(crate) fn write_json(path: &Path, document: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(document)
        .map_err(|error| Error::unexpected(path.display().to_string(), "JSON", error))?;
    write_text(path, &(text + "\n"))
}

/// Writes a file.
///
/// # Errors
/// The disk.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::io(format!("writing {}", path.display())))
}

fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries =
        fs::read_dir(folder).map_err(Error::io(format!("reading {}", folder.display())))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}
