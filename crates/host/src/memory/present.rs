//! Which part of a guest's memory was ever written: all else reads as zero, and need not be read to know that.
//!
//! A file in memory tells its holes. Of a process's anonymous memory the kernel tells which pages there are, and one that is new
//! enough which of them are more than its page of zeros (`page_scan.rs`).

use std::ops::Range;
use std::os::fd::OwnedFd;

use rustix::fs::SeekFrom;
use rustix::io::{Errno, pread};
use sterna_model::PAGE_BYTES;

use super::{Act, BlockMemory, MemoryError, page_scan};

/// Bytes of `/proc/PID/pagemap` for each page.
const ENTRY_BYTES: usize = 8;
/// The page is in memory.
const PRESENT: u64 = 1 << 63;
/// The page is swapped out.
const SWAPPED: u64 = 1 << 62;
/// Pages that are asked for at a time.
const BATCH_PAGES: usize = 4096;

impl BlockMemory {
    /// Tells the ranges that may hold something, in bytes from the block's start, ascending and whole pages. Where nothing is known, all of
    /// it may.
    ///
    /// # Errors
    /// [`MemoryError`], after some of them.
    pub fn each_present(&self, mut visit: impl FnMut(Range<u64>)) -> Result<(), MemoryError> {
        if let Self::Process { base, page_map: Some(map), .. } = self {
            let all = *base..base + self.length_bytes();
            let found =
                page_scan::each_written(map, all, |at| visit(at.start - base..at.end - base));
            return match found {
                // Linux before 6.7 has no such search.
                Err(Errno::NOTTY | Errno::INVAL) => self.each_in_process(map, *base, visit),
                Err(error) => Err(self.failed(Act::Seek, 0, error)),
                Ok(()) => Ok(()),
            };
        }
        let mut offset = 0;
        while let Some(range) = self.next_present(offset)? {
            offset = range.end;
            visit(range);
        }
        Ok(())
    }

    /// The next range at or after `offset` that is present in the file, in bytes from the block's start; `None` when there is none. For
    /// another process's memory everything counts as present.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn next_present(&self, offset: u64) -> Result<Option<Range<u64>>, MemoryError> {
        let end = self.length_bytes();
        if offset >= end {
            return Ok(None);
        }
        let Self::File { file, start, .. } = self else { return Ok(Some(offset..end)) };
        let seek = |to| match rustix::fs::seek(file, to) {
            Ok(found) => Ok(Some(found.saturating_sub(*start).min(end))),
            // Past the last of what is looked for.
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(self.failed(Act::Seek, offset, error)),
        };
        let Some(from) = seek(SeekFrom::Data(start + offset))?.filter(|from| *from < end) else {
            return Ok(None);
        };
        let to = seek(SeekFrom::Hole(start + from))?.unwrap_or(end);
        Ok(Some(from..to))
    }

    fn each_in_process(
        &self,
        map: &OwnedFd,
        base: u64,
        mut visit: impl FnMut(Range<u64>),
    ) -> Result<(), MemoryError> {
        let page_bytes = PAGE_BYTES as u64;
        let pages = self.length_bytes() / page_bytes;
        let mut entries = [0; BATCH_PAGES * ENTRY_BYTES];
        let mut run: Option<Range<u64>> = None;
        let mut page = 0;
        while page < pages {
            let count = usize::try_from(pages - page).unwrap_or(BATCH_PAGES).min(BATCH_PAGES);
            let wanted = &mut entries[..count * ENTRY_BYTES];
            let offset = page * page_bytes;
            let at = (base + offset) / page_bytes * ENTRY_BYTES as u64;
            let read = pread(map, &mut *wanted, at)
                .map_err(|error| self.failed(Act::Seek, offset, error))?;
            let (known, _) = wanted[..read].as_chunks::<ENTRY_BYTES>();
            if known.is_empty() {
                return Err(self.gone(Act::Seek, offset));
            }
            for entry in known {
                let offset = page * page_bytes;
                let is_there = u64::from_ne_bytes(*entry) & (PRESENT | SWAPPED) != 0;
                run = match run.take() {
                    Some(run) if is_there => Some(run.start..offset + page_bytes),
                    Some(run) => {
                        visit(run);
                        None
                    }
                    None => is_there.then(|| offset..offset + page_bytes),
                };
                page += 1;
            }
        }
        run.into_iter().for_each(visit);
        Ok(())
    }
}
