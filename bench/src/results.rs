//! The files that keep the runs: one for each, so that a benchmark can be interrupted and go on.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sterna_e2e::{Error, Result, repository};

use crate::machine::Machine;
use crate::record::Run;
use crate::tables::{Cell, MOVES, Suite};

/// All runs with the machine that they were measured on: `latest.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Document<'r> {
    /// What the numbers were measured on.
    pub(crate) machine: &'r Machine,
    /// Every run.
    pub(crate) runs: &'r [&'r Run],
}

/// The folder of the results.
#[derive(Debug)]
pub(crate) struct Results {
    folder: PathBuf,
    stem: &'static str,
}

impl Results {
    /// A suite's in `bench/results`; a quick benchmark has files of its own.
    pub(crate) fn at(suite: &'static Suite, is_quick: bool) -> Self {
        let stem = if is_quick { suite.quick_stem } else { suite.stem };
        Self { folder: repository().join("bench/results"), stem }
    }

    /// Whether these are the results that the README quotes.
    pub(crate) fn are_for_quoting(&self) -> bool {
        self.stem == MOVES.stem
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
        write_json(&self.file(&run.cell, &run.contender, run.number), run)
    }

    /// A run that was made before, if there is one.
    ///
    /// # Errors
    /// Its file cannot be read, or is no run.
    pub(crate) fn find(&self, cell: &str, contender: &str, number: u32) -> Result<Option<Run>> {
        let path = self.file(cell, contender, number);
        path.exists().then(|| read(&path)).transpose()
    }

    /// Removes the runs of a contender, to measure it anew.
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

    /// All runs of a cell as the tables define it now.
    ///
    /// # Errors
    /// A file cannot be read, or is no run.
    pub(crate) fn load(&self, cell: &Cell) -> Result<Vec<Run>> {
        let mut runs = Vec::new();
        for path in files_in(&self.runs_of(&cell.name()))? {
            let run = read(&path)?;
            let contender = cell.contenders.iter().find(|who| who.name == run.contender);
            if contender.is_some_and(|who| Run::definition(cell, who) == run.definition) {
                runs.push(run);
            }
        }
        runs.sort_by_key(|run| run.number);
        Ok(runs)
    }

    fn file(&self, cell: &str, contender: &str, number: u32) -> PathBuf {
        self.runs_of(cell).join(format!("{contender}-{number}.json"))
    }

    fn runs_of(&self, cell: &str) -> PathBuf {
        self.folder.join("runs").join(self.stem).join(cell)
    }
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

fn read(path: &Path) -> Result<Run> {
    let doing = format!("reading {}", path.display());
    let text = fs::read_to_string(path).map_err(Error::io(doing))?;
    serde_json::from_str(&text)
        .map_err(|error| Error::unexpected(path.display().to_string(), "a run", error))
}

fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries =
        fs::read_dir(folder).map_err(Error::io(format!("reading {}", folder.display())))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}
