//! Damaged and hostile streams: each is an error that names its place, what was expected and what was found.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests are tests: a failure in them is the test's failure"
)]

mod support;

use proptest::prelude::*;
use sterna_model::{LayoutError, PageId};
use sterna_qemu_stream::{Configuration, End, Fault, Inspector, MAX_TAIL_BYTES, Parser, Writer};
use support::{
    GOLDEN, Reading, SMALL_RAM, SMALL_TAIL, SmallPackage, error_of, read, read_in_pieces,
    small_configuration, small_head, small_layout, small_stream,
};

/// A small stream's head, and then these bytes.
fn after_head(bytes: &[u8]) -> Vec<u8> {
    [&small_head(), bytes].concat()
}

/// A small stream's head, an open part of the RAM section, and then these bytes.
fn in_part(bytes: &[u8]) -> Vec<u8> {
    after_head(&[b"\x02\0\0\0\x02", bytes].concat())
}

/// The first bytes of a small stream, up to the RAM section, whose records these are.
fn block_list(bytes: &[u8]) -> Vec<u8> {
    let head: &[u8] = b"QEVM\0\0\0\x03\x07\0\0\0\x05tiny1\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04";
    [head, bytes].concat()
}

#[test]
fn a_small_stream_is_read() {
    let (reading, end) = read(&small_stream()).unwrap();
    assert_eq!(reading.memory[&PageId(1)].as_deref(), Some(&[4; 4096]));
    assert_eq!((reading.pages, reading.zero_pages), (4, 1));
    assert_eq!(reading.commands.len(), 3);
    assert_eq!(reading.tail, SMALL_TAIL);
    assert_eq!(end.bytes, small_stream().len() as u64);
}

#[test]
fn a_fill_byte_makes_a_page_of_it() {
    let mut reading = Reading::default();
    let stream = in_part(b"\0\0\0\0\0\0\0\x02\x06pc.ram\x55");
    let taken = Parser::new().feed(&stream, |event| reading.take(event));
    assert_eq!(taken, Ok(stream.len()));
    assert_eq!(reading.memory[&PageId(0)].as_deref(), Some(&[0x55; 4096]));
}

#[test]
fn no_cut_stream_is_whole() {
    let small = [small_stream(), SmallPackage::default().stream()];
    for stream in GOLDEN.iter().map(|golden| golden.bytes()).chain(small) {
        let mut parser = Parser::new();
        let mut start = 0;
        for length in 0..stream.len() {
            start += parser.feed(&stream[start..length], |_| ()).unwrap();
            let error = parser.clone().finish().unwrap_err();
            assert_eq!(error.offset, start as u64, "cut to {length}");
        }
        start += parser.feed(&stream[start..], |_| ()).unwrap();
        assert_eq!(start, stream.len());
        assert!(parser.finish().is_ok());
    }
}

/// Reads what is damaged, in two ways that must agree, and inspects it.
fn survives(bytes: &[u8]) {
    let at_once = read(bytes);
    assert!(at_once == read_in_pieces(bytes, &[7, 4096, 1, 100]));
    let mut inspector = Inspector::new();
    inspector.push(bytes);
    let summary = inspector.finish();
    assert!(!summary.to_string().is_empty());
    match at_once {
        Ok(_) => assert_eq!(summary.end, End::Complete),
        Err(error) => {
            assert!(error.offset <= bytes.len() as u64 && summary.bytes <= error.offset);
            let is_layout = matches!(error.fault, Fault::Layout(_));
            assert!(is_layout || error.to_string().contains(" found "), "{error}");
            assert_eq!(summary.end, End::Damaged(error));
        }
    }
}

#[test]
fn every_bit_of_a_small_stream_may_flip() {
    every_bit_may_flip(&small_stream());
    every_bit_may_flip(&SmallPackage::default().stream());
}

fn every_bit_may_flip(stream: &[u8]) {
    // Of the contents of pages a few bytes are enough: they are not looked at.
    let is_content = |at: usize| stream[at..].starts_with(&[stream[at]; 64]);
    for at in (0..stream.len()).filter(|at| !is_content(*at)) {
        for bit in 0..8 {
            let mut flipped = stream.to_vec();
            flipped[at] ^= 1 << bit;
            survives(&flipped);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        survives(&bytes);
        survives(&[b"QEVM\0\0\0\x03", &bytes[..]].concat());
        survives(&after_head(&bytes));
        survives(&in_part(&bytes));
        survives(&block_list(&bytes));
        survives(&[&SmallPackage::before()[..], b"\x08\0\x07\0\x04\0\0\0", &bytes].concat());
        let package = b"\x08\0\x07\0\x04\0\0\x01\0\x08\0\x04\0\0\x04";
        survives(&[&SmallPackage::before(), &package[..], &bytes].concat());
        survives(&after_head(&[b"\x01\0\0\0\x03\x0cdirty-bitmap\0\0\0\0\0\0\0\x01", &bytes[..]].concat()));
    }

    #[test]
    fn flipped_bits_of_a_captured_stream_are_survived(
        which in 0..GOLDEN.len(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u32), 1..4),
    ) {
        let mut bytes = GOLDEN[which].bytes();
        for (at, bit) in flips {
            let length = bytes.len();
            bytes[at.index(length)] ^= 1 << bit;
        }
        survives(&bytes);
    }

    #[test]
    fn bytes_put_into_a_captured_stream_are_survived(
        which in 0..GOLDEN.len(),
        at in any::<prop::sample::Index>(),
        bytes in prop::collection::vec(any::<u8>(), 1..40),
    ) {
        let mut stream = GOLDEN[which].bytes();
        let at = at.index(stream.len());
        stream.splice(at..at, bytes);
        survives(&stream);
    }
}

#[test]
fn what_is_not_read_is_named() {
    let head = small_head().len() as u64;
    let cases: &[(Vec<u8>, u64, &str)] = &[
        (b"QEMU\0\0\0\x03".to_vec(), 0, "expected \"QEVM\", found \"QEMU\""),
        (b"QEVM\0\0\0\x02".to_vec(), 4, "stream version 3, found 2"),
        (b"QEVM\0\0\0\x03\x01".to_vec(), 8, "the configuration (0x07), found byte 0x01"),
        (after_head(b"\x01\0\0\0\x05\x04vfio"), head + 5, "\"dirty-bitmap\" only, found \"vfio\""),
        (after_head(b"\x01\0\0\0\x05\x03ram"), head, "\"ram\" to be begun once"),
        (after_head(b"\x04\0\0\0\x05\x0avirtio-mem"), head + 5, "found \"virtio-mem\" before it"),
        (after_head(b"\x02\0\0\0\x05"), head + 1, "(ram is 2), found one of section 5"),
        (after_head(b"\x09"), head, "found byte 0x09"),
        (after_head(b"\x08\0\x03\0\x10"), head + 3, "found 3 (POSTCOPY_ADVISE"),
        (after_head(b"\x08\0\x07\0\x04"), head + 3, "found 7 (PACKAGED) with 4 bytes"),
        (after_head(b"\x08\0\x63\0\x04"), head + 3, "found 99 (unknown)"),
        (in_part(b"\0\0\0\0\0\0\x01\0"), head + 5, "COMPRESSED"),
        (in_part(b"\0\0\0\0\0\0\0\x40"), head + 5, "XBZRLE"),
        (in_part(b"\0\0\0\0\0\0\0\x80"), head + 5, "HOOK"),
        (in_part(b"\0\0\0\0\0\0\x02\0"), head + 5, "MULTIFD_FLUSH"),
        (in_part(b"\0\0\0\0\0\0\0\x0a"), head + 5, "found flags 0xa (unknown)"),
        (in_part(b"\0\0\0\0\0\0\0\x04"), head + 5, "one block list (0x4), found RAM flags 0x4"),
        (in_part(b"\0\0\0\0\0\0\0\x28"), head + 5, "goes on with the block before it"),
        (in_part(b"\0\0\0\0\0\0\0\x08\x03foo"), head + 13, "of the list, found \"foo\""),
        (in_part(b"\0\0\0\0\0\0\x30\x08\x06pc.ram"), head + 13, "3 pages, found offset 0x3000"),
        (
            in_part(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x03"),
            head + 13,
            "section 2 (0x7e), found byte 0x7e",
        ),
    ];
    for (bytes, offset, text) in cases {
        let error = error_of(bytes);
        assert!(error.to_string().contains(text), "expected {text:?}, found {error}");
        assert_eq!(error.offset, *offset, "{error}");
    }
}

#[test]
fn a_wrong_block_list_is_named() {
    let entry = |name: &str, length: u64| {
        let length_byte = [u8::try_from(name.len()).unwrap()];
        [&length_byte, name.as_bytes(), &length.to_be_bytes()].concat()
    };
    let list = |total: u64, entries: &[Vec<u8>]| {
        let fault =
            error_of(&block_list(&[&(total | 4).to_be_bytes()[..], &entries.concat()].concat()));
        fault.fault
    };
    assert_eq!(list(0, &[]), Fault::MemorySize { found: 0 });
    assert_eq!(list(1 << 45, &[]), Fault::MemorySize { found: 1 << 45 });
    assert_eq!(list(4096, &[entry("", 0)]), Fault::BlockListExtras);
    let long = entry("pc.ram", 8192);
    assert_eq!(list(4096, &[long]), Fault::BlockLength { left: 4096, found: 8192 });
    let empty = entry("pc.ram", 0);
    assert_eq!(list(4096, &[empty]), Fault::BlockLength { left: 4096, found: 0 });
    let twice = list(8192, &[entry("a", 4096), entry("a", 4096)]);
    assert!(matches!(twice, Fault::Layout(LayoutError::Duplicate { .. })));
    let odd = list(8192, &[entry("a", 4095), entry("b", 4097)]);
    assert!(matches!(odd, Fault::Layout(LayoutError::Length { .. })));
    let many: Vec<_> = (0..2000).map(|number| entry(&format!("block{number}"), 4096)).collect();
    assert_eq!(list(4096 * 2000, &many), Fault::BlockCount);
    let no_list = error_of(&block_list(b"\0\0\0\0\0\0\0\x10")).fault;
    assert!(matches!(no_list, Fault::BlockList { flags: 0x10, .. }));
}

#[test]
fn the_configuration_is_checked() {
    let parse = |bytes: &[u8]| Configuration::parse(bytes).map_err(|error| error.fault);
    let uuid = b"\x07\0\0\0\x01q\x05\x12configuration/uuid\0\0\0\x010123456789abcdef";
    assert_eq!(parse(uuid).unwrap().bytes(), uuid);
    let twice = [&uuid[..], &uuid[6..]].concat();
    assert!(matches!(parse(&twice), Err(Fault::Subsection { .. })));
    let bits = b"\x07\0\0\0\x01q\x05\x1econfiguration/target-page-bits\0\0\0\x01\0\0\0\x10";
    assert_eq!(parse(bits), Err(Fault::PageBits { found: 16 }));
    let capability =
        b"\x07\0\0\0\x01q\x05\x1aconfiguration/capabilities\0\0\0\x01\0\0\0\x01\x0fx-ignore-shared";
    assert_eq!(parse(capability), Err(Fault::Capability { name: "x-ignore-shared".into() }));
    assert_eq!(parse(b"\x07\xff\0\0\0"), Err(Fault::MachineName { length: 0xff00_0000 }));
    assert_eq!(parse(b"\x07\0\0\0\x01\n"), Err(Fault::MachineName { length: 1 }));
    assert!(matches!(parse(b"\x07\0\0\0\x01qq"), Err(Fault::SectionType { .. })));
    for length in 0..uuid.len() {
        let whole = length == 6;
        assert_eq!(parse(&uuid[..length]).is_ok(), whole, "cut to {length}");
    }
}

#[test]
fn a_bitmap_is_dropped_wherever_it_comes_and_must_end() {
    let start: &[u8] = b"\x01\0\0\0\x03\x0cdirty-bitmap\0\0\0\0\0\0\0\x01\x1c\x01n\x01b\0\0\x10\0\0\x01\x7e\0\0\0\x03";
    let bits: &[u8] =
        b"\x03\0\0\0\x03\x40\0\0\0\0\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x04bits\x20\x01\x7e\0\0\0\x03";
    let end = b"\x03\0\0\0\x02\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02";
    let after = [&small_head(), start, end, bits, SMALL_TAIL].concat();
    let before = [&small_head(), start, bits, end, SMALL_TAIL].concat();
    for stream in [after, before] {
        let (reading, complete) = read(&stream).unwrap();
        assert_eq!(reading.tail, SMALL_TAIL);
        assert_eq!(complete.dropped_bytes, (start.len() + bits.len()) as u64);
    }
    let open = error_of(&[&small_head(), start, end, SMALL_TAIL].concat()).fault;
    assert_eq!(open, Fault::BitmapOpen { name: "cpu".into() });
    let long = b"\x02\0\0\0\x03\x40\0\0\0\0\0\0\0\0\0\0\0\x08\xff\0\0\0\0\0\0\x04";
    let long = error_of(&[&small_head(), start, long].concat()).fault;
    assert_eq!(long, Fault::BitmapChunk { found: 0xff00_0000_0000_0004 });
}

#[test]
fn commands_behind_memory_belong_to_the_tail() {
    let mut stream = small_head();
    let writer = Writer::begin(&mut stream, &small_configuration(), &[], SMALL_RAM, small_layout());
    stream.truncate(small_head().len());
    writer.end(&mut stream);
    stream.extend_from_slice(b"\x08\0\x02\0\x04ping");
    stream.extend_from_slice(SMALL_TAIL);
    let (reading, end) = read(&stream).unwrap();
    assert_eq!(reading.tail, [b"\x08\0\x02\0\x04ping", SMALL_TAIL].concat());
    assert_eq!(end.tail_bytes, reading.tail.len() as u64);
    assert!(reading.commands.is_empty());
}

#[test]
fn commands_without_end_are_given_up() {
    let pings = b"\x08\0\x02\0\x04ping".repeat(1000);
    assert_eq!(error_of(&after_head(&pings)).fault, Fault::CommandCount);
}

#[test]
fn a_tail_without_end_is_given_up() {
    let stream = small_stream();
    let mut parser = Parser::new();
    assert_eq!(parser.feed(&stream, |_| ()), Ok(stream.len()));
    let chunk = vec![0; 1 << 20];
    let mut length = 0;
    let error = loop {
        match parser.feed(&chunk, |_| ()) {
            Ok(taken) => length += taken as u64,
            Err(error) => break error,
        }
        assert!(length <= MAX_TAIL_BYTES);
    };
    assert_eq!(error.fault, Fault::TailTooLong);
    assert_eq!(parser.feed(&chunk, |_| ()), Err(error.clone()), "and stays given up");
    assert_eq!(parser.finish(), Err(error));
}

#[test]
fn the_inspector_tells_what_came_before_the_damage() {
    let mut stream = GOLDEN[0].bytes();
    stream.truncate(stream.len() - 30_000);
    let mut inspector = Inspector::new();
    inspector.push(&stream);
    let summary = inspector.finish();
    assert_eq!(summary.blocks.len(), GOLDEN[0].blocks.len());
    assert!(summary.ram_complete && !summary.devices.is_empty());
    let End::Damaged(error) = &summary.end else { panic!("{:?}", summary.end) };
    assert_eq!(error.offset, stream.len() as u64);
    let text = summary.to_string();
    assert!(text.contains(&format!("damaged at byte {}: expected", stream.len())), "{text}");
}

#[test]
fn a_page_that_does_not_exist_is_not_written() {
    let mut out = Vec::new();
    let mut writer =
        Writer::begin(&mut out, &small_configuration(), &[], SMALL_RAM, small_layout());
    let mut part = writer.part(&mut out);
    let length = part.buffered_bytes();
    let error = part.zero_page(PageId(4)).unwrap_err();
    assert_eq!(error.to_string(), "expected one of 4 pages of the guest, found page 4");
    assert_eq!(part.buffered_bytes(), length);
    part.close();
}
