//! Captured streams of stock QEMU are read as an independent reader read them, however their bytes arrive.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests are tests: a failure in them is the test's failure"
)]

mod support;

use proptest::prelude::*;
use sterna_qemu_stream::{End, Inspector, RamPartKind, Writer};
use support::{GOLDEN, Golden, Reading, crc32, read, read_in_pieces};

#[test]
fn each_stream_says_what_is_in_it() {
    for golden in GOLDEN {
        let bytes = golden.bytes();
        let (reading, end) = read(&bytes).unwrap();
        let layout = reading.layout.as_ref().unwrap();
        let blocks = layout.blocks().iter();
        let blocks: Vec<_> =
            blocks.map(|block| (block.name.as_str(), u64::from(block.pages) * 4096)).collect();
        assert_eq!(blocks, golden.blocks, "{}", golden.file);
        assert_eq!(reading.configuration.as_ref().unwrap().machine(), golden.machine);
        assert_eq!(reading.commands, golden.commands, "{}", golden.file);
        assert_eq!(reading.pages, golden.pages, "{}", golden.file);
        assert_eq!(reading.zero_pages, golden.zero_pages, "{}", golden.file);
        assert_eq!(reading.memory.len(), layout.pages() as usize, "every page came");
        assert_eq!(reading.memory_sum(), golden.memory_sum, "{}", golden.file);
        assert_eq!(end.dropped_bytes, golden.dropped_bytes, "{}", golden.file);
        assert_eq!(end.bytes, bytes.len() as u64, "{}", golden.file);
        assert_parts_and_tail(golden, &reading, &bytes);
    }
}

fn assert_parts_and_tail(golden: &Golden, reading: &Reading, bytes: &[u8]) {
    assert_eq!(reading.parts.len(), golden.ram_parts, "{}", golden.file);
    let sum: u64 = reading.parts.iter().map(|(_, pages)| pages).sum();
    assert_eq!(sum, golden.pages + golden.zero_pages, "{}", golden.file);
    assert_eq!(reading.parts[0], (RamPartKind::Start, 0));
    let kinds = reading.parts.iter().skip(1).map(|(kind, _)| *kind);
    let is_last = |at: usize| at + 2 == golden.ram_parts;
    let expected = |at| if is_last(at) { RamPartKind::End } else { RamPartKind::Part };
    assert!(kinds.enumerate().all(|(at, kind)| kind == expected(at)), "{}", golden.file);
    assert!(reading.complete);
    assert_eq!(reading.tail.len() as u64, golden.tail_bytes, "{}", golden.file);
    assert_eq!(crc32(&reading.tail), golden.tail_crc, "{}", golden.file);
    assert_eq!(reading.packaged, golden.packaged, "{}", golden.file);
    assert_eq!(bytes.ends_with(&reading.tail), !golden.packaged, "a tail is passed on unchanged");
    assert_eq!(reading.tail[0], 0x04, "nothing of the bitmap is in the tail");
}

#[test]
fn byte_by_byte_is_the_same() {
    for golden in GOLDEN {
        let bytes = golden.bytes();
        assert!(read(&bytes) == read_in_pieces(&bytes, &[1]), "{}", golden.file);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn random_pieces_are_the_same(
        which in 0..GOLDEN.len(),
        lengths in prop::collection::vec(prop_oneof![1..20_usize, 1..9000_usize], 1..200),
    ) {
        let bytes = GOLDEN[which].bytes();
        prop_assert!(read(&bytes) == read_in_pieces(&bytes, &lengths));
    }
}

#[test]
fn what_is_written_is_what_qemu_writes() {
    for golden in GOLDEN.iter().filter(|golden| golden.machine.ends_with("7.2")) {
        let bytes = golden.bytes();
        let (reading, _) = read(&bytes).unwrap();
        let (configuration, layout) = (reading.configuration.unwrap(), reading.layout.unwrap());
        let mut head = Vec::new();
        let writer = Writer::begin(&mut head, &configuration, &[], reading.ram.unwrap(), layout);
        let list = configuration.bytes().len() + 8;
        assert_eq!(head[..list], bytes[..list], "{}", golden.file);
        let in_stream = bytes.windows(head.len() - list).position(|window| *window == head[list..]);
        assert!(in_stream.is_some_and(|at| at < list + 20), "{}", golden.file);
        let mut end = Vec::new();
        writer.end(&mut end);
        assert!(bytes.windows(13).any(|window| *window == end[end.len() - 13..]));
    }
}

/// What a reading says, written as a stream: all pages, or none.
fn write_again(reading: &Reading, with_pages: impl Fn(u32) -> bool) -> Vec<u8> {
    let mut out = Vec::new();
    let configuration = reading.configuration.as_ref().unwrap();
    let layout = reading.layout.clone().unwrap();
    let mut writer = Writer::begin(&mut out, configuration, &[], reading.ram.unwrap(), layout);
    let mut part = writer.part(&mut out);
    for (page, content) in reading.memory.iter().filter(|(page, _)| with_pages(page.0)) {
        match content {
            Some(content) => part.page(*page, content).unwrap(),
            None => part.zero_page(*page).unwrap(),
        }
    }
    part.close();
    for command in &reading.commands {
        writer.command(&mut out, *command);
    }
    writer.end(&mut out);
    out.extend_from_slice(&reading.tail);
    out
}

#[test]
fn what_is_written_again_says_the_same() {
    for golden in GOLDEN {
        let (first, _) = read(&golden.bytes()).unwrap();
        let (second, end) = read(&write_again(&first, |_| true)).unwrap();
        assert_eq!(second.memory_sum(), golden.memory_sum, "{}", golden.file);
        assert_eq!(end.dropped_bytes, 0, "the bitmap is gone");
        let same = |reading: Reading| {
            let Reading { configuration, commands, ram, layout, memory, tail, .. } = reading;
            (configuration, commands, ram, layout, memory, tail)
        };
        assert!(same(first) == same(second), "{}", golden.file);
    }
}

#[test]
fn a_stream_without_pages_of_main_memory_is_short_and_whole() {
    for golden in GOLDEN {
        let (first, _) = read(&golden.bytes()).unwrap();
        let layout = first.layout.clone().unwrap();
        let main = layout.blocks().iter().find(|block| block.name.as_str() == "pc.ram").unwrap();
        let outside = |page: u32| !main.page_numbers().contains(&page);
        let (second, _) = read(&write_again(&first, outside)).unwrap();
        assert_eq!(second.memory.len(), (layout.pages() - main.pages) as usize);
        assert!(second.tail == first.tail);
        assert!(second.memory.iter().all(|(page, content)| first.memory[page] == *content));
    }
}

#[test]
fn the_inspector_counts_the_same() {
    for golden in GOLDEN {
        let mut inspector = Inspector::new();
        golden.bytes().chunks(1000).for_each(|piece| inspector.push(piece));
        let summary = inspector.finish();
        assert_eq!(summary.end, End::Complete, "{}", golden.file);
        assert_eq!(summary.machine.as_deref(), Some(golden.machine));
        let names = summary.blocks.iter().map(|block| (block.name.as_str(), block.length_bytes));
        assert!(names.eq(golden.blocks.iter().copied()), "{}", golden.file);
        assert_eq!(summary.blocks.iter().map(|block| block.pages).sum::<u64>(), golden.pages);
        let zero_pages = summary.blocks.iter().map(|block| block.zero_pages);
        assert_eq!(zero_pages.sum::<u64>(), golden.zero_pages);
        assert_eq!(summary.ram_parts, golden.ram_parts as u64);
        assert_eq!(summary.dirty_bitmap_bytes, golden.dropped_bytes);
        assert_eq!(summary.tail_bytes, golden.tail_bytes);
        let text = summary.to_string();
        assert_eq!(summary.packaged, golden.packaged);
        assert_eq!(text.contains("without a description"), golden.packaged, "{text}");
        assert_eq!(summary.devices.is_empty(), golden.packaged, "{}", golden.file);
        for device in ["timer", "cpu", "i8254", "mc146818rtc", "fw_cfg"] {
            let is_named = summary.devices.iter().any(|name| name == device);
            assert_eq!(is_named, !golden.packaged, "{device}");
        }
        assert!(text.contains(golden.machine) && text.ends_with("complete"), "{text}");
    }
}
