//! Files that say the same after a crash: replaced whole ([`replace_file`]), or appended to ([`DurableLog`]).
//!
//! The ownership law rests on this: what a state announces may be done only after the state is on the disk.

mod crc32;
mod log;
#[cfg(test)]
mod tests;

pub use log::{DurableLog, MAX_LOG_BYTES, MAX_RECORD_BYTES, RESERVED_BYTES, Recovered};

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// What went wrong with a durable file.
#[derive(Debug, thiserror::Error)]
pub enum DurableError {
    /// The file system refused.
    #[error("cannot {act} {path}: {error}", path = path.display())]
    Io {
        /// What was to be done.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// Something in the middle of a log is not what was written there.
    #[error("{path} is damaged at byte {offset}: expected {expected}, found {found}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where, in bytes from the file's start.
        offset: u64,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// More than the limit.
    #[error("{path}: expected at most {limit_bytes} bytes in {what}, found {found_bytes}", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The file or a record.
        what: &'static str,
        /// The limit.
        limit_bytes: u64,
        /// What it would be.
        found_bytes: u64,
    },
    /// An earlier write failed so that nobody knows what is on the disk: open it again to find out.
    #[error("{path} takes no more records: an earlier write to it failed", path = path.display())]
    Poisoned {
        /// The file.
        path: PathBuf,
    },
    /// Another process has it.
    #[error("{path} is in use by another process", path = path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
}

impl DurableError {
    fn io(act: &'static str, path: &Path, error: impl Into<io::Error>) -> Self {
        Self::Io { act, path: path.into(), error: error.into() }
    }
}

/// Gives a file this content, or leaves it as it was: whatever happens, a reader finds one of both, whole. When this
/// returns `Ok` the new content outlasts a power cut. The file's mode becomes 0600.
///
/// One writer at a time per path: the temporary file beside it has a fixed name, so that crashes leave at most one.
///
/// # Errors
/// [`DurableError::Io`].
pub fn replace_file(path: &Path, content: &[u8]) -> Result<(), DurableError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let write = || -> io::Result<()> {
        // Removed and made anew, rather than opened, so that a link that somebody left there is not followed.
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|error| DurableError::io("write", &temporary, error))?;
    std::fs::rename(&temporary, path).map_err(|error| DurableError::io("replace", path, error))?;
    sync_folder_of(path)
}

/// Makes what was created, renamed or removed beside `path` outlast a power cut.
///
/// # Errors
/// [`DurableError::Io`].
pub fn sync_folder_of(path: &Path) -> Result<(), DurableError> {
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| DurableError::io("sync the folder", folder, error))
}

/// That this process alone uses a folder, until this is dropped or the process ends.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Locks a folder by the file `lock` in it.
    ///
    /// # Errors
    /// [`DurableError::InUse`] when another process has it.
    pub fn take(folder: &Path) -> Result<Self, DurableError> {
        let path = folder.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| DurableError::io("open", &path, error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(Errno::WOULDBLOCK) => Err(DurableError::InUse { path: folder.into() }),
            Err(error) => Err(DurableError::io("lock", &path, error)),
        }
    }
}
