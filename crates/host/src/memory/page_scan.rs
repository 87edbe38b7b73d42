//! Linux' own search of a page map (`PAGEMAP_SCAN` of `linux/fs.h`, since Linux 6.7): which pages hold something.
//!
//! It knows the kernel's page of zeros, which stands wherever memory was read and never written: after QEMU's first pass over
//! its guest's memory that is all of what the guest does not use, and [the page map's own entries](super::present) call it
//! present.

use std::ops::Range;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::opcode::read_write;
use rustix::ioctl::{Opcode, Updater, ioctl};

const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;

/// Ranges that are asked for at a time.
const RANGES: usize = 512;

/// `struct page_region`: addresses of the first byte and of the one after the last.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[derive(Debug, Default)]
#[repr(C)]
struct Request {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_length: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const PAGEMAP_SCAN: Opcode = read_write::<Request>(b'f', 16);

/// Tells the ranges of a process's anonymous memory that hold something, as addresses, ascending.
///
/// # Errors
/// What the kernel says, before the first range where it does not know this search.
pub(super) fn each_written(
    page_map: impl AsFd,
    within: Range<u64>,
    mut visit: impl FnMut(Range<u64>),
) -> Result<(), Errno> {
    let mut from = within.start;
    while from < within.end {
        let mut found = [Region::default(); RANGES];
        let mut request = Request {
            size: size_of::<Request>() as u64,
            start: from,
            end: within.end,
            regions: found.as_mut_ptr().expose_provenance() as u64,
            regions_length: RANGES as u64,
            category_inverted: PAGE_IS_PFNZERO,
            category_mask: PAGE_IS_PFNZERO,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            ..Request::default()
        };
        // SAFETY: the request is laid out as the kernel has it and says its own size; the kernel writes to it, and at most
        // `RANGES` regions to `found`, which lives until after the call and is read only after it.
        unsafe { ioctl(&page_map, Updater::<{ PAGEMAP_SCAN }, _>::new(&mut request)) }?;
        // What it did not fill in is empty.
        found.iter().take_while(|region| region.end != 0).for_each(|one| visit(one.start..one.end));
        if request.walk_end <= from {
            return Err(Errno::IO);
        }
        from = request.walk_end;
    }
    Ok(())
}
