//! Access to guest memory from outside of QEMU, block by block.
//!
//! A destination, and any guest on a shared backend, is read through the file behind its memory, any other source through
//! `/proc/PID/mem`. Always by `pread` and `pwrite`, never through a mapping: a mapping would make the agent's resident set as
//! large as the guest, a truncated file would be a SIGBUS, and touching a page that post-copy still misses would allocate
//! it, which QEMU answers by ending.
//!
//! `find.rs` finds the memory of a QEMU, `present.rs` and `page_scan.rs` which of it was ever written; `maps.rs` and
//! `monitor.rs` understand what the kernel and QEMU say about it.

mod find;
mod maps;
mod monitor;
mod page_scan;
mod present;

pub use find::{SharedFile, open_shared, ram_of, shared_blocks_of};
pub use maps::{Mapping, Maps};
pub use monitor::{RamBlock, parse_gpa2hva, parse_ramblock};

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use rustix::io::{Errno, pread, pwrite};
use sterna_model::{BlockName, ByteCount};

use crate::process::ProcessError;
use crate::qmp::QmpError;

/// What went wrong with guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Outside of the block.
    #[error("cannot {act} {length_bytes} bytes at {offset:#x} of {block}: it has {block_bytes:#x}")]
    Outside {
        /// What was to be done.
        act: Act,
        /// The block.
        block: BlockName,
        /// Where, in bytes from the block's start.
        offset: u64,
        /// How many bytes.
        length_bytes: u64,
        /// The block's length in bytes.
        block_bytes: u64,
    },
    /// The kernel refused.
    #[error("cannot {act} {block} at {offset:#x}: {error}")]
    Io {
        /// What was to be done.
        act: Act,
        /// The block.
        block: BlockName,
        /// Where, in bytes from the block's start.
        offset: u64,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// The memory ends before the block does: the process has ended or the file was cut.
    #[error("cannot {act} {block} at {offset:#x}: the memory is gone")]
    Gone {
        /// What was to be done.
        act: Act,
        /// The block.
        block: BlockName,
        /// Where, in bytes from the block's start.
        offset: u64,
    },
    /// The memory of another process is only read.
    #[error("cannot write to {block}: it is another process's memory, opened for reading")]
    ReadOnly {
        /// The block.
        block: BlockName,
    },
    /// We have no right to look.
    #[error(
        "no permission to {what} of process {pid}: that takes the same user with ptrace rights, or root ({error})"
    )]
    NotPermitted {
        /// What was to be done.
        what: &'static str,
        /// The process.
        pid: i32,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// Nothing where the block should be.
    #[error(
        "cannot find the memory of {block} in process {pid}: expected {expected}, found {found}"
    )]
    NotFound {
        /// The block.
        block: BlockName,
        /// The process.
        pid: i32,
        /// What was expected.
        expected: String,
        /// What there is.
        found: String,
    },
    /// Memory of our own could not be made.
    #[error("cannot make {length} of memory for {block}: {error}")]
    Staging {
        /// The block.
        block: BlockName,
        /// How much.
        length: ByteCount,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// Something of /proc could not be read.
    #[error("cannot read {path}: {error}")]
    Proc {
        /// The file.
        path: String,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// QEMU did not answer.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// The process could not be asked.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// What was to be done with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Read it.
    Read,
    /// Write it.
    Write,
    /// Give it back.
    Punch,
    /// Look for what is present.
    Seek,
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Punch => "punch a hole in",
            Self::Seek => "look into",
        })
    }
}

/// The memory behind one RAM block.
#[derive(Debug)]
pub enum BlockMemory {
    /// Inside another process; read only.
    Process {
        /// The block.
        block: BlockName,
        /// Its length in bytes.
        length_bytes: u64,
        /// That process's memory, as a file.
        memory: OwnedFd,
        /// Where the block starts in that process.
        base: u64,
        /// What the kernel tells of its pages; none where those that are not there may have a content.
        page_map: Option<OwnedFd>,
    },
    /// In a file: the shared backend's, or one of our own.
    File {
        /// The block.
        block: BlockName,
        /// Its length in bytes.
        length_bytes: u64,
        /// The file.
        file: OwnedFd,
        /// Where the block starts in the file.
        start: u64,
    },
}

impl BlockMemory {
    /// Anonymous memory of our own, zero everywhere, for a block that nobody else holds.
    ///
    /// # Errors
    /// [`MemoryError::Staging`].
    pub fn staging(block: BlockName, length_bytes: u64) -> Result<Self, MemoryError> {
        let make = || {
            let file = memfd_create("sterna-staging", MemfdFlags::CLOEXEC)?;
            rustix::fs::ftruncate(&file, length_bytes).map(|()| file)
        };
        match make() {
            Ok(file) => Ok(Self::File { block, length_bytes, file, start: 0 }),
            Err(error) => {
                let length = ByteCount(length_bytes);
                Err(MemoryError::Staging { block, length, error: error.into() })
            }
        }
    }

    /// The same memory once more: it outlives whoever made it for as long as one of them is there.
    ///
    /// # Errors
    /// [`MemoryError::NotFound`] when there are no more descriptors to be had.
    pub fn try_clone(&self) -> Result<Self, MemoryError> {
        let cloned = match self {
            Self::Process { block, length_bytes, memory, base, page_map } => {
                memory.try_clone().map(|memory| Self::Process {
                    block: block.clone(),
                    length_bytes: *length_bytes,
                    memory,
                    base: *base,
                    page_map: page_map.as_ref().and_then(|map| map.try_clone().ok()),
                })
            }
            Self::File { block, length_bytes, file, start } => {
                file.try_clone().map(|file| Self::File {
                    block: block.clone(),
                    length_bytes: *length_bytes,
                    file,
                    start: *start,
                })
            }
        };
        cloned.map_err(|error| MemoryError::NotFound {
            block: self.block().clone(),
            pid: 0,
            expected: "another descriptor of its memory".into(),
            found: error.to_string(),
        })
    }

    /// The block that this is.
    #[must_use]
    pub fn block(&self) -> &BlockName {
        match self {
            Self::Process { block, .. } | Self::File { block, .. } => block,
        }
    }

    /// Its length in bytes.
    #[must_use]
    pub fn length_bytes(&self) -> u64 {
        match self {
            Self::Process { length_bytes, .. } | Self::File { length_bytes, .. } => *length_bytes,
        }
    }

    /// Reads exactly as much as `into` holds, `offset` bytes from the block's start. Allocates nothing in the guest.
    ///
    /// # Errors
    /// [`MemoryError`], with `into` partly overwritten.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        self.check(Act::Read, offset, into.len() as u64)?;
        let (descriptor, start) = match self {
            Self::Process { memory, base, .. } => (memory, base),
            Self::File { file, start, .. } => (file, start),
        };
        let mut done = 0;
        while done < into.len() {
            let at = offset + done as u64;
            match pread(descriptor, &mut into[done..], start + at) {
                Ok(0) => return Err(self.gone(Act::Read, at)),
                Ok(read) => done += read,
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.failed(Act::Read, at, error)),
            }
        }
        Ok(())
    }

    /// Writes all of `bytes`, `offset` bytes from the block's start.
    ///
    /// # Errors
    /// [`MemoryError`], with a part written.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.check(Act::Write, offset, bytes.len() as u64)?;
        let (file, start) = self.writable()?;
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            match pwrite(file, &bytes[done..], start + at) {
                Ok(0) => return Err(self.gone(Act::Write, at)),
                Ok(written) => done += written,
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.failed(Act::Write, at, error)),
            }
        }
        Ok(())
    }

    /// Writes zeros that are present afterwards: post-copy does not ask for these pages.
    ///
    /// # Errors
    /// As [`BlockMemory::write_at`].
    pub fn write_zeroes(&self, offset: u64, length_bytes: u64) -> Result<(), MemoryError> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        self.check(Act::Write, offset, length_bytes)?;
        let mut done = 0;
        while done < length_bytes {
            let step = (length_bytes - done).min(ZEROS.len() as u64);
            let piece = usize::try_from(step).unwrap_or(ZEROS.len());
            self.write_at(offset + done, &ZEROS[..piece])?;
            done += step;
        }
        Ok(())
    }

    /// Gives the pages back: they read as zero and are absent, as before anybody wrote them. The range should be whole
    /// pages; of others only the part inside is zeroed and nothing given back.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn punch(&self, offset: u64, length_bytes: u64) -> Result<(), MemoryError> {
        self.check(Act::Punch, offset, length_bytes)?;
        let (file, start) = self.writable()?;
        if length_bytes == 0 {
            return Ok(());
        }
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        loop {
            match fallocate(file, how, start + offset, length_bytes) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.failed(Act::Punch, offset, error)),
            }
        }
    }

    fn writable(&self) -> Result<(&OwnedFd, u64), MemoryError> {
        match self {
            Self::File { file, start, .. } => Ok((file, *start)),
            Self::Process { block, .. } => Err(MemoryError::ReadOnly { block: block.clone() }),
        }
    }

    fn check(&self, act: Act, offset: u64, length_bytes: u64) -> Result<(), MemoryError> {
        let block_bytes = self.length_bytes();
        if offset.checked_add(length_bytes).is_some_and(|end| end <= block_bytes) {
            return Ok(());
        }
        let block = self.block().clone();
        Err(MemoryError::Outside { act, block, offset, length_bytes, block_bytes })
    }

    fn failed(&self, act: Act, offset: u64, error: Errno) -> MemoryError {
        MemoryError::Io { act, block: self.block().clone(), offset, error: error.into() }
    }

    fn gone(&self, act: Act, offset: u64) -> MemoryError {
        MemoryError::Gone { act, block: self.block().clone(), offset }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> BlockName {
        BlockName::new(b"pc.ram").unwrap()
    }

    #[test]
    fn staging_reads_what_was_written_and_nothing_else_is_present() {
        let memory = BlockMemory::staging(name(), 16 * 4096).unwrap();
        memory.write_at(3 * 4096, &[7; 4096]).unwrap();
        memory.write_zeroes(5 * 4096, 4096).unwrap();
        let mut page = [1; 3 * 4096];
        memory.read_at(2 * 4096, &mut page).unwrap();
        assert_eq!(page[..4096], [0; 4096]);
        assert_eq!(page[4096..8192], [7; 4096]);
        assert_eq!(memory.next_present(0).unwrap(), Some(3 * 4096..4 * 4096));
        assert_eq!(memory.next_present(4 * 4096).unwrap(), Some(5 * 4096..6 * 4096));
        assert_eq!(memory.next_present(6 * 4096).unwrap(), None);
        memory.punch(3 * 4096, 4096).unwrap();
        assert_eq!(memory.next_present(0).unwrap(), Some(5 * 4096..6 * 4096));
        memory.read_at(3 * 4096, &mut page[..4096]).unwrap();
        assert_eq!(page[..4096], [0; 4096]);
    }

    #[test]
    fn the_block_ends_where_it_ends() {
        let memory = BlockMemory::staging(name(), 4096).unwrap();
        for (offset, length) in [(4096, 1), (1, 4096), (u64::MAX, 2), (u64::MAX - 4095, 4096)] {
            let mut into = vec![0; usize::try_from(length).unwrap()];
            for refused in [
                memory.read_at(offset, &mut into),
                memory.write_at(offset, &into),
                memory.punch(offset, length),
                memory.write_zeroes(offset, length),
            ] {
                assert!(matches!(refused, Err(MemoryError::Outside { .. })), "{offset} {length}");
            }
        }
        memory.read_at(4096, &mut []).unwrap();
        assert_eq!(memory.next_present(u64::MAX).unwrap(), None);
    }

    #[test]
    fn a_file_that_was_cut_is_gone_and_names_where() {
        let memory = BlockMemory::staging(name(), 8192).unwrap();
        let BlockMemory::File { file, .. } = &memory else { panic!("no file") };
        rustix::fs::ftruncate(file, 4096).unwrap();
        let refused = memory.read_at(0, &mut [0; 8192]).unwrap_err();
        assert!(matches!(refused, MemoryError::Gone { offset: 4096, .. }), "{refused}");
    }

    #[test]
    fn another_process_is_only_read() {
        let content = Box::new([0x5a_u8; 4096]);
        let memory = BlockMemory::Process {
            block: name(),
            length_bytes: 4096,
            memory: std::fs::File::open("/proc/self/mem").unwrap().into(),
            base: content.as_ptr() as u64,
            page_map: None,
        };
        let mut page = [0; 4096];
        memory.read_at(0, &mut page).unwrap();
        assert_eq!(page, *content);
        assert!(matches!(memory.write_at(0, &page), Err(MemoryError::ReadOnly { .. })));
    }
}
