//! Inputs on the disk: the committed corpus, and inputs that failed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::{Target, signature};

/// A folder or file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {path}: {error}", path = .path.display())]
pub struct CorpusError {
    /// The folder or file.
    pub path: PathBuf,
    /// Why.
    pub error: io::Error,
}

/// The crate's folder, where the corpus, failures and results are.
#[must_use]
pub fn home() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The committed inputs of a target, by name, and those that it borrows.
///
/// # Errors
/// When one cannot be read. A target without a folder has no committed inputs.
pub fn load(target: &Target) -> Result<Vec<Vec<u8>>, CorpusError> {
    let mut files = Vec::new();
    let folder = home().join("corpus").join(target.name);
    match fs::read_dir(&folder) {
        Ok(entries) => files.extend(entries.flatten().map(|entry| entry.path())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(CorpusError { path: folder, error }),
    }
    files.sort();
    let root = home().parent().unwrap_or_else(home);
    files.extend(target.borrowed.iter().map(|path| root.join(path)));
    files.into_iter().map(|path| read(&path)).collect()
}

/// One input.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>, CorpusError> {
    fs::read(path).map_err(|error| CorpusError { path: path.into(), error })
}

/// Keeps an input that failed, as `failures/TARGET-HASH`.
///
/// # Errors
/// When it cannot be written.
pub fn keep_failure(folder: &Path, target: &Target, input: &[u8]) -> Result<PathBuf, CorpusError> {
    let path = folder.join(format!("{}-{:016x}", target.name, signature::hash(input)));
    let written = fs::create_dir_all(folder).and_then(|()| fs::write(&path, input));
    written.map_err(|error| CorpusError { path: path.clone(), error })?;
    Ok(path)
}
