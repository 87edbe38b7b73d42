//! Which pages are there and which are holes, whatever order they are told in.

use std::ops::Range;

use super::*;

const PAGES: u32 = 2048;

/// What is told to follow later is a hole from then on, so that QEMU asks for it; nothing else is.
#[test]
fn absent_pages_are_holes() {
    let (memory, file) = memory();
    let mut store = Store(&memory, Lane::Bulk);
    store.write_run(PageId(0), &entries(1), &contents()).unwrap();
    // Over the border of two stripes.
    store.write_absent(PageId(500), 100, 2).unwrap();
    assert_eq!(data(&file), [0..500, 600..PAGES]);
    let absent = |page: u32| memory.stored(PageId(page)).unwrap().hash == PageHash::ABSENT;
    assert!((500..600).all(absent) && !absent(499) && !absent(600));
}

/// Connections overtake each other.
#[test]
fn a_newer_page_is_not_thrown_away_by_an_older_word() {
    let (memory, file) = memory();
    let mut store = Store(&memory, Lane::Bulk);
    store.write_run(PageId(0), &entries(1), &contents()).unwrap();
    let newer = Stored { version: 3, hash: hash() };
    store.write_run(PageId(10), &[newer], &contents()[..PAGE_BYTES]).unwrap();
    store.write_absent(PageId(8), 5, 2).unwrap();
    assert_eq!(data(&file), [0..8, 10..11, 13..PAGES]);
}

/// A guest that runs here has its pages, or asks for them.
#[test]
fn nothing_is_taken_from_a_guest_that_runs() {
    let (memory, file) = memory();
    let mut store = Store(&memory, Lane::Bulk);
    store.write_run(PageId(0), &entries(1), &contents()).unwrap();
    store.write_absent(PageId(3), 1, 2).unwrap();
    assert!(memory.begin_faulting().is_some());
    store.write_absent(PageId(0), PAGES, 3).unwrap();
    assert_eq!(data(&file), [0..3, 4..PAGES]);
}

fn memory() -> (DestinationMemory, BlockMemory) {
    let name = BlockName::new(b"pc.ram").unwrap();
    let bytes = u64::from(PAGES) * PAGE_BYTES as u64;
    let file = BlockMemory::staging(name.clone(), bytes).unwrap();
    let layout = Layout::new(&[(name, bytes)]).unwrap();
    let shared = vec![file.try_clone().unwrap()];
    (DestinationMemory::open(layout, shared, ByteCount(0)).unwrap(), file)
}

fn hash() -> PageHash {
    PageHash::from_u128(7)
}

fn entries(version: u32) -> Vec<Stored> {
    vec![Stored { version, hash: hash() }; PAGES as usize]
}

fn contents() -> Vec<u8> {
    vec![7; PAGES as usize * PAGE_BYTES]
}

/// Runs of pages that are data in the file.
fn data(file: &BlockMemory) -> Vec<Range<u32>> {
    let page = |bytes: u64| u32::try_from(bytes / PAGE_BYTES as u64).unwrap();
    let (mut runs, mut offset) = (Vec::new(), 0);
    while let Some(run) = file.next_present(offset).unwrap() {
        offset = run.end;
        runs.push(page(run.start)..page(run.end));
    }
    runs
}
