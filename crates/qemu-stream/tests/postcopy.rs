//! The post-copy half of the writer: each command byte for byte, and whole streams that mean what was to be said.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests are tests: a failure in them is the test's failure"
)]

mod support;

use std::collections::BTreeSet;
use std::ops::Range;

use proptest::prelude::*;
use sterna_model::{BlockName, Layout, PageId};
use sterna_qemu_stream::{Command, Fault, MAX_PACKAGE_BYTES, Parser, TailError, Writer};
use support::{
    GOLDEN, SMALL_RAM, SMALL_SECTIONS, SMALL_TAIL, error_of, read, small_configuration, small_head,
    small_layout,
};

const LISTEN: &[u8] = b"\x08\0\x04\0\0";
const RUN: &[u8] = b"\x08\0\x05\0\0";
/// A section's end without pages, and the end of the file.
const END: &[u8] = b"\x03\0\0\0\x02\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02\0";

/// A writer of a small stream whose head is fed.
fn small_writer() -> Writer {
    Writer::recover(SMALL_RAM, small_layout())
}

/// What `write` appends, behind something that was there before.
fn written(write: impl FnOnce(&mut Writer, &mut Vec<u8>)) -> Vec<u8> {
    let mut out = b"before".to_vec();
    write(&mut small_writer(), &mut out);
    out.strip_prefix(b"before").unwrap().to_vec()
}

fn discarded(runs: &[Range<u32>]) -> Vec<u8> {
    written(|writer, out| writer.discard(out, runs.iter().cloned()).unwrap())
}

fn packaged(tail: &[u8]) -> Result<Vec<u8>, TailError> {
    let mut out = Vec::new();
    small_writer().package(&mut out, tail, 3).map(|()| out)
}

#[test]
fn the_head_opens_the_way_back_and_advises() {
    let commands = [Command::OpenReturnPath, Command::PostcopyAdvise, Command::Ping(1)];
    let mut out = Vec::new();
    let _ = Writer::begin(&mut out, &small_configuration(), &commands, SMALL_RAM, small_layout());
    let advice = b"\x08\0\x03\0\x10\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x10\0";
    let expected = [
        b"QEVM\0\0\0\x03\x07\0\0\0\x05tiny1\x08\0\x01\0\0",
        &advice[..],
        b"\x08\0\x02\0\x04\0\0\0\x01",
    ];
    assert!(out.starts_with(&expected.concat()), "{}", out.escape_ascii());
    assert_eq!(out.strip_prefix(&expected.concat()[..]), Some(&small_head()[18..]));
}

#[test]
fn the_advice_is_only_written() {
    let (number, data) = Command::PostcopyAdvise.parts();
    assert_eq!((number, data.len()), (3, 16));
    assert_eq!(Command::from_parts(number, &data), None);
    let mut advised = small_head();
    Command::PostcopyAdvise.write(&mut advised);
    let fault = error_of(&advised).fault;
    assert!(matches!(fault, Fault::Command { number: 3, length: 16, .. }), "{fault}");
}

#[test]
fn absent_pages_are_discarded_by_block() {
    let pages = |start: u8, length: u8| {
        [[0, 0, 0, 0, 0, 0, start << 4, 0], [0, 0, 0, 0, 0, 0, length << 4, 0]].concat()
    };
    let ram = |length: u8, pairs: &[Vec<u8>]| {
        [&[8, 0, 6, 0, length][..], b"\0\x06pc.ram\0", &pairs.concat()].concat()
    };
    assert_eq!(discarded(&[1..3, 3..3]), ram(25, &[pages(1, 2)]));
    assert_eq!(discarded(&[0..1, 2..3]), ram(41, &[pages(0, 1), pages(2, 1)]));
    let rom = [&[8, 0, 6, 0, 25][..], b"\0\x06pc.rom\0", &pages(0, 1)].concat();
    let both = [ram(25, &[pages(2, 1)]), rom.clone()].concat();
    assert_eq!(discarded(&[0..0, 2..4]), both, "a run over a border is two");
    assert_eq!(discarded(&[2..3, 3..4]), both);
    let back = [rom, ram(25, &[pages(0, 1)])].concat();
    assert_eq!(discarded(&[3..4, 0..1]), back, "in any order");
    assert_eq!(discarded(&[]), b"");
    assert_eq!(discarded(&[1..1, 9..9]), b"", "empty runs are none");
}

#[test]
fn a_page_that_does_not_exist_is_not_discarded() {
    let mut out = b"before".to_vec();
    for (runs, found) in [(vec![0..1, 4..5], 4), (vec![0..1, 3..9], 4), (vec![7..7, 7..8], 7)] {
        let error = small_writer().discard(&mut out, runs).unwrap_err();
        assert_eq!(error.found, PageId(found));
        assert_eq!(out, b"before", "nothing is appended");
    }
}

/// A layout whose blocks have so many pages.
fn layout(pages: &[u32]) -> Layout {
    let block = |(number, pages): (usize, &u32)| {
        (BlockName::new(format!("b{number}").as_bytes()).unwrap(), u64::from(*pages) * 4096)
    };
    Layout::new(&pages.iter().enumerate().map(block).collect::<Vec<_>>()).unwrap()
}

/// The pages that discards name, and how many runs each command has; as QEMU reads them.
fn discards_of(mut bytes: &[u8], layout: &Layout) -> (Vec<u32>, Vec<usize>) {
    let (mut pages, mut runs) = (Vec::new(), Vec::new());
    while let Some((head, rest)) = bytes.split_first_chunk::<5>() {
        let [8, 0, 6, high, low] = *head else { panic!("{head:?} is no discard") };
        let (data, later) = rest.split_at(usize::from(u16::from_be_bytes([high, low])));
        let (name, pairs) = data[2..].split_at(usize::from(data[1]));
        assert_eq!((data[0], pairs[0], pairs.len() % 16), (0, 0, 1));
        let block = layout.block_named(&BlockName::new(name).unwrap()).unwrap();
        for pair in pairs[1..].chunks(16) {
            let start = u64::from_be_bytes(pair[..8].try_into().unwrap());
            let length = u64::from_be_bytes(pair[8..].try_into().unwrap());
            assert!(length > 0);
            let offsets = (start..start + length).step_by(4096);
            pages.extend(offsets.map(|offset| block.page_at(offset).unwrap().0));
        }
        runs.push(pairs.len() / 16);
        bytes = later;
    }
    assert!(bytes.is_empty());
    (pages, runs)
}

proptest! {
    #[test]
    fn discards_name_the_pages_that_they_are_told(
        blocks in prop::collection::vec(1..200_u32, 1..6),
        borders in prop::collection::vec(any::<prop::sample::Index>(), 0..120),
    ) {
        let layout = layout(&blocks);
        let borders: BTreeSet<u32> = borders
            .iter()
            .map(|border| u32::try_from(border.index(layout.pages() as usize + 1)).unwrap())
            .collect();
        let borders: Vec<u32> = borders.into_iter().collect();
        let runs: Vec<Range<u32>> = borders.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
        let mut out = Vec::new();
        Writer::recover(SMALL_RAM, layout.clone()).discard(&mut out, runs.clone()).unwrap();
        let (pages, in_commands) = discards_of(&out, &layout);
        prop_assert_eq!(pages, runs.iter().cloned().flatten().collect::<Vec<_>>());
        prop_assert!(in_commands.iter().all(|runs| (1..=12).contains(runs)));
        let most_commands = in_commands.iter().sum::<usize>() / 12 + blocks.len();
        prop_assert!(in_commands.len() <= most_commands, "as few commands as can be");
    }
}

#[test]
fn device_state_is_packaged_without_end_and_description() {
    let ping = b"\x08\0\x02\0\x04\0\0\0\x03";
    let inside = [LISTEN, SMALL_SECTIONS, ping, RUN].concat();
    let length = u8::try_from(inside.len()).unwrap();
    let expected = [b"\x08\0\x07\0\x04\0\0\0", &[length][..], &inside].concat();
    let description: &[u8] = b"\0\x06\0\0\0\x08{\"a\":[]}";
    for end in [description, b"\0\x06\0\0\0\x02{}", b"\0"] {
        let tail = [SMALL_SECTIONS, end].concat();
        assert_eq!(packaged(&tail), Ok(expected.clone()), "{}", end.escape_ascii());
    }
}

#[test]
fn a_tail_that_is_cut_is_not_packaged() {
    let end_of_file = SMALL_TAIL.windows(2).position(|two| two == b"\0\x06").unwrap() + 1;
    for length in (0..SMALL_TAIL.len()).filter(|length| *length != end_of_file) {
        let error = packaged(&SMALL_TAIL[..length]).unwrap_err();
        assert!(error.to_string().contains(", found "), "{error}");
    }
    assert!(packaged(&SMALL_TAIL[..end_of_file]).is_ok(), "no description is allowed");
    for more in [&b"}"[..], b"\0", b"x"] {
        assert!(packaged(&[SMALL_TAIL, more].concat()).is_err());
    }
    let sections: [&[u8]; 2] = [b"\x04\0\0\0\x09\0\0\0\0\0\0\0\0", b"\x7e\0\0\0\x09"];
    for end in [&b"\0"[..], b"\0\x06\0\0\0\x02{}"] {
        assert!(packaged(&[sections[0], b"\0", sections[1], end].concat()).is_ok());
        let short = packaged(&[&sections.concat()[..], end].concat());
        assert_eq!(short, Err(TailError::End { found: "no whole section before the end" }));
    }
}

#[test]
fn a_package_is_at_most_what_qemu_takes() {
    let around = (LISTEN.len() + 9 + RUN.len()) as u64;
    let tail = |package_bytes: u64| {
        let mut tail = vec![4; usize::try_from(package_bytes - around).unwrap() - 5];
        tail.extend_from_slice(b"\x7e\0\0\0\x09\0");
        tail
    };
    let largest = packaged(&tail(MAX_PACKAGE_BYTES)).unwrap();
    assert_eq!(largest[..9], *b"\x08\0\x07\0\x04\x01\0\0\0");
    assert_eq!(largest.len() as u64, 9 + MAX_PACKAGE_BYTES);
    let found = MAX_PACKAGE_BYTES + 1;
    assert_eq!(packaged(&tail(found)), Err(TailError::Length { found }));
}

/// The stream that a source sends which packages: our package is to be the same.
fn as_from_a_source(package: &[u8]) -> Vec<u8> {
    let mut stream = small_head();
    small_writer().end(&mut stream);
    stream.extend_from_slice(package);
    small_writer().end_of_postcopy(&mut stream);
    stream
}

#[test]
fn what_real_machines_say_is_packaged_whole() {
    for golden in GOLDEN {
        let (reading, _) = read(&golden.bytes()).unwrap();
        let stream = as_from_a_source(&packaged(&reading.tail).unwrap());
        let (again, _) = read(&stream).unwrap();
        let state = again.tail.strip_suffix(b"\0\x06\0\0\0\x02{}").unwrap();
        let rest = reading.tail.strip_prefix(state).unwrap();
        assert!(again.packaged && rest.starts_with(b"\0\x06"), "{}", golden.file);
        assert_eq!(rest.get(6), Some(&b'{'), "{}: only the description is left out", golden.file);
        assert_eq!(rest.iter().filter(|byte| **byte == b'\0').count(), 1 + leading_nuls(rest));
    }
}

/// NUL bytes in the length of the description that stands behind an end of file.
fn leading_nuls(end: &[u8]) -> usize {
    end[2..6].iter().filter(|byte| **byte == 0).count()
}

#[test]
fn a_package_is_what_qemu_makes_of_the_same_state() {
    for golden in GOLDEN.iter().filter(|golden| golden.packaged) {
        let bytes = golden.bytes();
        let (reading, _) = read(&bytes).unwrap();
        let ours = packaged(&reading.tail).unwrap();
        // QEMU had nobody to answer a ping.
        let (before, behind) = ours.split_at(ours.len() - 14);
        assert_eq!(behind, b"\x08\0\x02\0\x04\0\0\0\x03\x08\0\x05\0\0");
        let length = u32::try_from(ours.len() - 9 - 9).unwrap().to_be_bytes();
        let expected = [b"\x08\0\x07\0\x04", &length[..], &before[9..], RUN].concat();
        assert!(bytes.windows(expected.len()).any(|window| window == expected), "{}", golden.file);
    }
}

#[test]
fn a_post_copy_ends_with_memory_and_the_file() {
    let mut out = Vec::new();
    small_writer().end_of_postcopy(&mut out);
    assert_eq!(out, END);
}

#[test]
fn a_recovered_stream_asks_resumes_and_goes_on() {
    let name = BlockName::new(b"pc.rom").unwrap();
    let asked = written(|writer, out| writer.ask_received(out, &name));
    assert_eq!(asked, b"\x08\0\x0a\0\x07\x06pc.rom");
    assert_eq!(written(Writer::resume), b"\x08\0\x09\0\0");
    let part = written(|writer, out| {
        let mut part = writer.part(out);
        part.zero_page(PageId(3)).unwrap();
        part.close();
    });
    assert_eq!(
        part,
        b"\x02\0\0\0\x02\0\0\0\0\0\0\0\x02\x06pc.rom\0\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02"
    );
    let longest = "n".repeat(255);
    let asked = written(|writer, out| {
        writer.ask_received(out, &BlockName::new(longest.as_bytes()).unwrap());
    });
    assert_eq!(asked, [b"\x08\0\x0a\x01\0\xff", longest.as_bytes()].concat());
}

/// Bytes among which those that mean something are frequent.
fn telling_bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop::sample::select(&[0_u8, 0, 2, 6, 0x7e, b'{', b'}', b'x'][..]);
    prop::collection::vec(byte, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn only_what_ends_as_a_tail_is_packaged(
        before in telling_bytes(),
        footer in prop::bool::weighted(0.9),
        json in telling_bytes(),
    ) {
        let length = u32::try_from(json.len()).unwrap().to_be_bytes();
        let footer: &[u8] = if footer { b"\x7e\0\0\0\x09" } else { b"" };
        let tail = [&before, footer, b"\0\x06", &length, &json].concat();
        if let Ok(package) = packaged(&tail) {
            let state = &package[14..package.len() - 14];
            let end = tail.strip_prefix(state).unwrap();
            prop_assert_eq!(state[state.len() - 5], 0x7e);
            let description = end.strip_prefix(b"\0").unwrap();
            if let Some((head, json)) = description.split_first_chunk::<5>() {
                prop_assert_eq!(head[0], 6);
                prop_assert_eq!(&head[1..], u32::try_from(json.len()).unwrap().to_be_bytes());
                prop_assert_eq!((json.first(), json.last()), (Some(&0x7b), Some(&0x7d)));
            } else {
                prop_assert!(description.is_empty());
            }
            let mut parser = Parser::new();
            let stream = as_from_a_source(&package);
            prop_assert!(parser.feed(&stream, |_| ()).is_ok() || state[0] != 4);
        }
    }
}
