//! A log that survives crashes: records are appended, each on the disk before the next.
//!
//! ```text
//! file    "STRNLOG1", then records
//! record  u32 length (1 to MAX_RECORD_BYTES), u32 head, u32 sum, then the content       little endian
//!         head = CRC-32 of (u64 offset of the record, u32 length)
//!         sum  = CRC-32 of (u64 offset of the record, content)
//! ```
//!
//! A crash in the middle of an append leaves a torn tail: part of a record, in any pattern of written and unwritten blocks, and nothing
//! after it, since the append before was on the disk before this one began. So a record that is not whole is a torn tail if
//! no whole record begins anywhere behind it; then it is cut off, for it was never acknowledged. Otherwise something that
//! was on the disk has changed: an error that names the place, since a state that was acknowledged may be lost. The offset
//! in the checksums keeps a record's image inside another one's content from counting as a record. What cannot be told apart from
//! a torn tail is damage to the very last record.
//!
//! Room is set aside on the disk before the first record, so that a disk that fills up meanwhile does not keep out what
//! a job has still to say, where the file system can do that (not where it copies on write).

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::crc32::crc32;
use super::{DurableError, replace_file, sync_folder_of};

/// Bytes in a record, at most.
pub const MAX_RECORD_BYTES: usize = 1 << 20;

/// Bytes that are set aside for a log: enough for all states of a job.
pub const RESERVED_BYTES: u64 = 16 << 10;

/// Bytes in a log, at most. Make it short again ([`DurableLog::rewrite`]) long before.
pub const MAX_LOG_BYTES: u64 = 64 << 20;

const MAGIC: &[u8; 8] = b"STRNLOG1";
const HEAD_BYTES: usize = 12;

/// A log, open for appending.
#[derive(Debug)]
pub struct DurableLog {
    path: PathBuf,
    file: File,
    /// Where the next record goes.
    end: u64,
    poisoned: bool,
}

/// What an opened log had in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The records, oldest first.
    pub records: Vec<Vec<u8>>,
    /// Bytes of a torn tail that were cut off: the last append was interrupted and never acknowledged.
    pub torn_bytes: u64,
}

impl DurableLog {
    /// Makes an empty log where there is none.
    ///
    /// # Errors
    /// [`DurableError::Io`], also when there is a file already: it is left as it is.
    pub fn create(path: &Path) -> Result<Self, DurableError> {
        let failed = |act| move |error| DurableError::io(act, path, error);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(failed("create"))?;
        if let Err(error) = reserve(&file).and_then(|()| file.write_all_at(MAGIC, 0)) {
            // Nothing was written in it: without it the next attempt can begin anew.
            let _ = std::fs::remove_file(path);
            return Err(failed("write")(error));
        }
        file.sync_all().map_err(failed("sync"))?;
        sync_folder_of(path)?;
        Ok(Self { path: path.into(), file, end: MAGIC.len() as u64, poisoned: false })
    }

    /// Reads what is in a log and changes nothing, so that somebody else may be appending to it: a record that is half
    /// written counts as a torn tail.
    ///
    /// # Errors
    /// As [`DurableLog::open`]; a log that is not there is one.
    pub fn read(path: &Path) -> Result<Recovered, DurableError> {
        let file = File::open(path).map_err(|error| DurableError::io("open", path, error))?;
        let (recovered, _) = recover(path, &file)?;
        Ok(recovered)
    }

    /// Reads the bytes of a log whose file has this path, which is for messages only: nothing is opened.
    ///
    /// # Errors
    /// [`DurableError::Damaged`] and [`DurableError::TooLarge`], as [`DurableLog::open`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Recovered, DurableError> {
        check_size(path, "a log", MAX_LOG_BYTES, bytes.len() as u64)?;
        let (records, end) = read_records(path, bytes)?;
        Ok(Recovered { records, torn_bytes: bytes.len() as u64 - end })
    }

    /// Opens a log, or makes an empty one, and reads what is in it.
    ///
    /// # Errors
    /// [`DurableError::Damaged`] when what was once on the disk has changed: the file is left as it is.
    pub fn open(path: &Path) -> Result<(Self, Recovered), DurableError> {
        let failed = |act| move |error| DurableError::io(act, path, error);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed("open"))?;
        let (recovered, end) = recover(path, &file)?;
        let mut log = Self { path: path.into(), file, end, poisoned: false };
        if end == 0 {
            // New, or torn while its first bytes were written.
            log.file.set_len(0).map_err(failed("empty"))?;
            log.file.write_all_at(MAGIC, 0).map_err(failed("write"))?;
            log.end = MAGIC.len() as u64;
        } else if recovered.torn_bytes > 0 {
            log.file.set_len(end).map_err(failed("cut the torn tail of"))?;
        }
        // What a cut of the tail gave back is taken again; a log that is there can be used without.
        let _ = reserve(&log.file);
        log.file.sync_all().map_err(failed("sync"))?;
        sync_folder_of(path)?;
        Ok((log, recovered))
    }

    /// Appends a record. When this returns `Ok`, it outlasts a power cut.
    ///
    /// # Errors
    /// When it is empty, too long, or the log is full: nothing was written. When writing fails: the record may or may
    /// not be there after the next [`DurableLog::open`], and this log takes no more.
    pub fn append(&mut self, content: &[u8]) -> Result<(), DurableError> {
        if self.poisoned {
            return Err(DurableError::Poisoned { path: self.path.clone() });
        }
        let record = self.encode(self.end, content)?;
        check_size(&self.path, "a log", MAX_LOG_BYTES, self.end + record.len() as u64)?;
        let written =
            self.file.write_all_at(&record, self.end).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // After a failed sync the kernel may have forgotten what it could not write: no retry tells.
            self.poisoned = true;
            return Err(DurableError::io("append to", &self.path, error));
        }
        self.end += record.len() as u64;
        Ok(())
    }

    /// Replaces all records by these, or leaves it as it was.
    ///
    /// # Errors
    /// As [`replace_file`]; the log can be used on, unless opening it again fails.
    pub fn rewrite(&mut self, records: &[Vec<u8>]) -> Result<(), DurableError> {
        let mut bytes = MAGIC.to_vec();
        for content in records {
            let record = self.encode(bytes.len() as u64, content)?;
            bytes.extend_from_slice(&record);
        }
        check_size(&self.path, "a log", MAX_LOG_BYTES, bytes.len() as u64)?;
        let replaced = replace_file(&self.path, &bytes);
        // Whether it was replaced or not: what the path names now is what appends must reach.
        self.poisoned = true;
        let (log, _) = Self::open(&self.path)?;
        *self = log;
        replaced
    }

    /// Bytes in the file: a measure for when to [`DurableLog::rewrite`].
    #[must_use]
    pub fn length_bytes(&self) -> u64 {
        self.end
    }

    fn encode(&self, offset: u64, content: &[u8]) -> Result<Vec<u8>, DurableError> {
        check_size(&self.path, "a record", MAX_RECORD_BYTES as u64, content.len() as u64)?;
        let length = u32::try_from(content.len()).ok().filter(|length| *length > 0);
        let Some(length) = length else {
            return Err(DurableError::Damaged {
                path: self.path.clone(),
                offset,
                expected: "a record with content",
                found: "an empty one to write".into(),
            });
        };
        let mut record = Vec::with_capacity(HEAD_BYTES + content.len());
        record.extend(length.to_le_bytes());
        record.extend(crc32(&[&offset.to_le_bytes(), &length.to_le_bytes()]).to_le_bytes());
        record.extend(crc32(&[&offset.to_le_bytes(), content]).to_le_bytes());
        record.extend_from_slice(content);
        Ok(record)
    }
}

/// Sets room aside, leaving the length as it is.
fn reserve(file: &File) -> std::io::Result<()> {
    match fallocate(file, FallocateFlags::KEEP_SIZE, 0, RESERVED_BYTES) {
        // This file system cannot; the log works all the same.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn check_size(path: &Path, what: &'static str, limit: u64, found: u64) -> Result<(), DurableError> {
    if found <= limit {
        return Ok(());
    }
    Err(DurableError::TooLarge { path: path.into(), what, limit_bytes: limit, found_bytes: found })
}

/// What is in a log, and where its last whole record ends; 0 where not even the magic is whole.
fn recover(path: &Path, mut file: &File) -> Result<(Recovered, u64), DurableError> {
    let failed = |act| move |error| DurableError::io(act, path, error);
    let length = file.metadata().map_err(failed("look at"))?.len();
    check_size(path, "a log", MAX_LOG_BYTES, length)?;
    let mut bytes = Vec::new();
    (&mut file).take(MAX_LOG_BYTES).read_to_end(&mut bytes).map_err(failed("read"))?;
    let (records, end) = read_records(path, &bytes)?;
    Ok((Recovered { records, torn_bytes: bytes.len() as u64 - end }, end))
}

/// The whole records, and where the last of them ends; 0 where not even the magic is whole.
fn read_records(path: &Path, bytes: &[u8]) -> Result<(Vec<Vec<u8>>, u64), DurableError> {
    let damaged = |offset: usize, expected, found: &str| DurableError::Damaged {
        path: path.into(),
        offset: offset as u64,
        expected,
        found: found.into(),
    };
    if !bytes.starts_with(MAGIC) {
        // The magic is on the disk before the first record, so an interrupted making of the log is no longer than it.
        let torn = bytes.len() <= MAGIC.len()
            && bytes.iter().zip(MAGIC).all(|(found, written)| [0, *written].contains(found));
        if torn {
            return Ok((Vec::new(), 0));
        }
        return Err(damaged(0, "a log of Sterna", "something else"));
    }
    let mut records = Vec::new();
    let mut at = MAGIC.len();
    while at < bytes.len() {
        let Some(content) = record_at(bytes, at) else { break };
        records.push(content.to_vec());
        at += HEAD_BYTES + content.len();
    }
    if bytes.len() - at > HEAD_BYTES + MAX_RECORD_BYTES {
        return Err(damaged(at, "a record, whole or torn", "more than one append can leave"));
    }
    if (at + 1..bytes.len()).any(|later| record_at(bytes, later).is_some()) {
        return Err(damaged(at, "a whole record", "a broken one with whole ones behind it"));
    }
    Ok((records, at as u64))
}

/// The content of the whole record that begins at an offset, if one does.
fn record_at(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let number = |from: usize| {
        let four = bytes.get(from..from.checked_add(4)?)?;
        Some(u32::from_le_bytes(four.try_into().ok()?))
    };
    let (length, head, sum) = (number(at)?, number(at + 4)?, number(at + 8)?);
    let offset = (at as u64).to_le_bytes();
    let content_bytes = usize::try_from(length).ok()?;
    let possible = (1..=MAX_RECORD_BYTES).contains(&content_bytes);
    if !possible || crc32(&[&offset, &length.to_le_bytes()]) != head {
        return None;
    }
    let start = at + HEAD_BYTES;
    let content = bytes.get(start..start.checked_add(content_bytes)?)?;
    (crc32(&[&offset, content]) == sum).then_some(content)
}
