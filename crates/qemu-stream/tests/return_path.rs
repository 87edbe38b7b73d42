//! The way back: what QEMU says is read, however it arrives, and what it should not say is an error.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests are tests: a failure in them is the test's failure"
)]

use std::ops::Range;

use proptest::prelude::*;
use sterna_model::{Block, BlockName, Layout, PageId};
use sterna_qemu_stream::{ReturnFault, ReturnMessage, ReturnPath, ReturnPathError};

/// Three blocks: of one page, of 130 pages from page 1 on, of 64 pages from page 131 on.
fn layout() -> Layout {
    let block =
        |(name, pages): (&str, u64)| (BlockName::new(name.as_bytes()).unwrap(), pages << 12);
    Layout::new(&[("rom", 1), ("pc.ram", 130), ("vga", 64)].map(block)).unwrap()
}

/// A message, in a form that can be compared with what was said.
#[derive(Clone, PartialEq, Debug)]
enum Said {
    Shut(u32),
    Pong(u32),
    Wanted(u32, u32),
    Received(usize, Vec<u32>),
    ResumeAck(u32),
}

impl From<ReturnMessage> for Said {
    fn from(message: ReturnMessage) -> Self {
        match message {
            ReturnMessage::Shut(value) => Self::Shut(value),
            ReturnMessage::Pong(value) => Self::Pong(value),
            ReturnMessage::ResumeAck(value) => Self::ResumeAck(value),
            ReturnMessage::Wanted { first, count } => Self::Wanted(first.0, count),
            ReturnMessage::Received { block, pages } => {
                let runs: Vec<Range<u32>> = pages.runs().collect();
                let apart = runs.windows(2).all(|two| two[0].end < two[1].start);
                assert!(apart && runs.iter().all(|run| !run.is_empty()), "{runs:?}");
                let placed: Vec<u32> = runs.into_iter().flatten().collect();
                assert_eq!(pages.len() as usize, placed.len());
                assert_eq!(pages.is_empty(), placed.is_empty());
                let all = 0..placed.last().unwrap_or(&0) + 300;
                assert!(
                    all.filter(|page| pages.contains(PageId(*page))).eq(placed.iter().copied())
                );
                Self::Received(block, placed)
            }
        }
    }
}

/// What bytes say that arrive in pieces of these lengths, the last length again and again; and how they end.
fn read_in_pieces(bytes: &[u8], lengths: &[usize]) -> (Vec<Said>, Result<(), ReturnPathError>) {
    read_of(layout(), bytes, lengths)
}

fn read_of(
    layout: Layout,
    bytes: &[u8],
    lengths: &[usize],
) -> (Vec<Said>, Result<(), ReturnPathError>) {
    let (mut way_back, mut said) = (ReturnPath::new(layout), Vec::new());
    let (mut rest, mut lengths) = (bytes, lengths.iter().copied());
    let mut length = lengths.next().unwrap_or(rest.len());
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(length.clamp(1, rest.len()));
        way_back.feed(piece);
        loop {
            match way_back.next_message() {
                Ok(Some(message)) => said.push(message.into()),
                Ok(None) => break,
                Err(error) => {
                    way_back.feed(b"\0\x02\0\x04more");
                    assert_eq!(way_back.next_message(), Err(error.clone()), "an error stays");
                    assert_eq!(way_back.finish(), Err(error.clone()), "an error stays");
                    return (said, Err(error));
                }
            }
        }
        rest = later;
        length = lengths.next().unwrap_or(length);
    }
    (said, way_back.finish())
}

fn read(bytes: &[u8]) -> (Vec<Said>, Result<(), ReturnPathError>) {
    read_in_pieces(bytes, &[bytes.len()])
}

/// One after the other of everything that QEMU says, with what it means.
fn everything() -> (Vec<u8>, Vec<Said>) {
    let bitmap: &[u8] = b"\0\x05\0\x07\x06pc.ram\0\0\0\0\0\0\0\x18\
        \x01\0\0\0\0\0\0\x80\x03\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x01\x23\x45\x67\x89\xab\xcd\xef";
    let one_word: &[u8] =
        b"\0\x05\0\x04\x03rom\0\0\0\0\0\0\0\x08\x01\0\0\0\0\0\0\0\x01\x23\x45\x67\x89\xab\xcd\xef";
    let parts: [(&[u8], Said); 9] = [
        (b"\0\x02\0\x04\0\0\0\x01", Said::Pong(1)),
        (b"\0\x03\0\x13\0\0\0\0\0\0\x20\0\0\0\x10\0\x06pc.ram", Said::Wanted(3, 1)),
        (b"\0\x04\0\x0c\0\0\0\0\0\x08\x10\0\0\0\x10\0", Said::Wanted(130, 1)),
        (b"\0\x03\0\x10\0\0\0\0\0\0\0\0\0\x04\0\0\x03vga", Said::Wanted(131, 64)),
        (b"\0\x04\0\x0c\0\0\0\0\0\x03\xf0\0\0\0\x10\0", Said::Wanted(194, 1)),
        (bitmap, Said::Received(1, vec![1, 64, 65, 66, 130])),
        (one_word, Said::Received(0, vec![0])),
        (b"\0\x06\0\x04\0\0\0\x01", Said::ResumeAck(1)),
        (b"\0\x01\0\x04\0\0\0\0", Said::Shut(0)),
    ];
    let bytes = parts.iter().flat_map(|(bytes, _)| bytes.iter().copied()).collect();
    (bytes, parts.into_iter().map(|(_, said)| said).collect())
}

#[test]
fn everything_that_qemu_says_is_read() {
    let (bytes, said) = everything();
    assert_eq!(read(&bytes), (said.clone(), Ok(())));
    assert_eq!(read_in_pieces(&bytes, &[1]), (said, Ok(())));
}

/// The guest of `capture_return_path.py`: what it said to a writer that shares no code with this crate.
#[test]
fn what_a_real_qemu_says_is_read() {
    let blocks = [
        ("/rom@etc/acpi/tables", 131_072),
        ("pc.ram", 2_088_960),
        ("pc.rom", 131_072),
        ("pc.bios", 65_536),
        ("/rom@etc/table-loader", 4096),
        ("/rom@etc/acpi/rsdp", 4096),
    ];
    let block = |(name, bytes): (&str, u64)| (BlockName::new(name.as_bytes()).unwrap(), bytes);
    let layout = Layout::new(&blocks.map(block)).unwrap();
    let counter = |number: u32| Said::Wanted(32 + 0x10 + number, 1);
    let cut = vec![Said::Pong(1), Said::Pong(3), counter(0), counter(1)];
    let bytes = include_bytes!("golden/return-path-cut.bytes");
    assert_eq!(read_of(layout.clone(), bytes, &[bytes.len()]), (cut, Ok(())));

    let before_the_cut = [0x10].into_iter().chain((0x50..0x60).step_by(2));
    let mut recovered = vec![
        Said::Received(0, (0..32).collect()),
        Said::Received(1, before_the_cut.map(|page| 32 + page).collect()),
        Said::Received(2, (542..574).collect()),
        Said::Received(3, (574..590).collect()),
        Said::Received(4, vec![590]),
        Said::Received(5, vec![591]),
    ];
    // It asks again for what it waited for when the connection was cut.
    recovered.extend([Said::ResumeAck(1), counter(1), counter(2), Said::Shut(0)]);
    let bytes = include_bytes!("golden/return-path-recovered.bytes");
    assert_eq!(read_of(layout, bytes, &[1]), (recovered, Ok(())));
}

#[test]
fn a_cut_conversation_is_told() {
    let (bytes, _) = everything();
    let whole_at: Vec<usize> =
        (0..bytes.len()).filter(|length| read(&bytes[..*length]).1.is_ok()).collect();
    assert_eq!(whole_at, [0, 8, 31, 47, 67, 83, 134, 166, 174]);
    let texts = [(3, "byte 0: expected the rest of a message"), (100, "the rest of a bitmap")];
    for (length, text) in texts {
        let error = read(&bytes[..length]).1.unwrap_err().to_string();
        assert!(error.contains(text) && error.ends_with("the end of the connection"), "{error}");
    }
}

#[test]
fn bits_behind_the_last_page_mean_nothing() {
    let bitmap = b"\0\x05\0\x04\x03rom\0\0\0\0\0\0\0\x08\xfe\xff\xff\xff\xff\xff\xff\xff\x01\x23\x45\x67\x89\xab\xcd\xef";
    assert_eq!(read(bitmap), (vec![Said::Received(0, vec![])], Ok(())));
}

#[test]
fn what_qemu_should_not_say_is_named() {
    let request = b"\0\x03\0\x10\0\0\0\0\0\0\0\0\0\0\x10\0\x03vga";
    let after_request = |bytes: &[u8]| [request, bytes].concat();
    let cases: &[(Vec<u8>, u64, &str)] = &[
        (b"\0\0\0\0".to_vec(), 0, "type 1 (SHUT) to 6 (RESUME_ACK), found 0 (unknown)"),
        (after_request(b"\0\x07\0\0"), 20, "found 7 (SWITCHOVER_ACK: switch the capability"),
        (b"\xff\xff\xff\xff".to_vec(), 0, "found 65535 (unknown)"),
        (b"\0\x02\0\x05".to_vec(), 0, "4 to 4 bytes of PONG, found 5"),
        (b"\0\x01\0\0".to_vec(), 0, "4 to 4 bytes of SHUT, found 0"),
        (b"\0\x06\xff\xff".to_vec(), 0, "4 to 4 bytes of RESUME_ACK, found 65535"),
        (b"\0\x04\0\x0d".to_vec(), 0, "12 to 12 bytes of REQ_PAGES, found 13"),
        (b"\0\x03\0\x0c".to_vec(), 0, "13 to 268 bytes of REQ_PAGES_ID, found 12"),
        (b"\0\x03\x01\x0d".to_vec(), 0, "13 to 268 bytes of REQ_PAGES_ID, found 269"),
        (b"\0\x05\0\0".to_vec(), 0, "1 to 256 bytes of RECV_BITMAP, found 0"),
        (b"\0\x05\x01\x01".to_vec(), 0, "1 to 256 bytes of RECV_BITMAP, found 257"),
        (b"\0\x04\0\x0c\0\0\0\0\0\0\0\0\0\0\x10\0".to_vec(), 0, "a request that names its RAM block"),
        (b"\0\x03\0\x0f\0\0\0\0\0\0\0\0\0\0\x10\0\x03vg".to_vec(), 0, "of 2 bytes up to the"),
        (b"\0\x05\0\x04\x02rom".to_vec(), 0, "end, found one of 2"),
        (b"\0\x05\0\x04\x03r\"m".to_vec(), 0, "RAM block of the guest, found \"r"),
        (b"\0\x05\0\x01\0".to_vec(), 0, "RAM block of the guest, found \"\""),
        (after_request(b"\0\x04\0\x0c\0\0\0\0\0\0\0\0\0\0\0\0"), 20, "found 0 bytes at offset 0x0"),
        (after_request(b"\0\x04\0\x0c\0\0\0\0\0\0\0\0\0\0\x10\x01"), 20, "found 4097 bytes"),
        (after_request(b"\0\x04\0\x0c\0\0\0\0\0\0\0\x01\0\0\x10\0"), 20, "4096 bytes at offset 0x1"),
        (after_request(b"\0\x04\0\x0c\0\0\0\0\0\x04\0\0\0\0\x10\0"), 20, "at offset 0x40000"),
        (after_request(b"\0\x04\0\x0c\0\0\0\0\0\x03\xf0\0\0\0\x20\0"), 20, "8192 bytes at offset 0x3f000"),
        (
            after_request(b"\0\x04\0\x0c\xff\xff\xff\xff\xff\xff\xf0\0\0\0\x10\0"),
            20,
            "\"vga\", which has 64 pages, found 4096 bytes at offset 0xfffffffffffff000",
        ),
        (b"\0\x05\0\x04\x03rom\0\0\0\0\0\0\0\x01".to_vec(), 8, "8 bytes for RAM block \"rom\", found one of 1"),
        (b"\0\x05\0\x07\x06pc.ram\xff\0\0\0\0\0\0\x18".to_vec(), 11, "of 24 bytes for RAM block \"pc.ram\""),
        (
            b"\0\x05\0\x04\x03rom\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\0\xef\xcd\xab\x89\x67\x45\x23\x01".to_vec(),
            24,
            "end 0x0123456789abcdef, found 0xefcdab8967452301",
        ),
    ];
    for (bytes, offset, text) in cases {
        let error = read(bytes).1.unwrap_err();
        assert!(error.to_string().contains(text), "expected {text:?}, found {error}");
        assert!(error.to_string().contains(", found "), "{error}");
        assert_eq!(error.offset, *offset, "{error}");
    }
}

#[test]
fn a_length_is_refused_before_its_data_come() {
    let bitmap = read(b"\0\x05\0\x07\x06pc.ram\0\0\0\0\xff\xff\xff\xff").1.unwrap_err();
    let expected =
        ReturnFault::BitmapLength { block: "pc.ram".into(), expected: 24, found: 0xffff_ffff };
    assert_eq!(bitmap.fault, expected);
    let message = read(b"\0\x02\xff\xff").1.unwrap_err();
    assert!(matches!(message.fault, ReturnFault::Length { found: 0xffff, .. }));
}

#[test]
fn every_bit_may_flip() {
    let (bytes, _) = everything();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            survives(&flipped);
        }
    }
}

/// Reads what is damaged, in ways that must agree.
fn survives(bytes: &[u8]) {
    let at_once = read(bytes);
    assert_eq!(at_once, read_in_pieces(bytes, &[3, 1, 40, 7]));
    if let Err(error) = at_once.1 {
        assert!(error.offset <= bytes.len() as u64);
        assert!(error.to_string().contains(", found "), "{error}");
    }
}

/// Something that QEMU can say, with its bytes. Pages and bits are chosen by the indexes.
fn said() -> impl Strategy<Value = (Said, Vec<u8>)> {
    let value = |kind: u8, value: u32| [&[0, kind, 0, 4][..], &value.to_be_bytes()].concat();
    let index = any::<prop::sample::Index>;
    prop_oneof![
        any::<u32>().prop_map(move |one| (Said::Shut(one), value(1, one))),
        any::<u32>().prop_map(move |one| (Said::Pong(one), value(2, one))),
        any::<u32>().prop_map(move |one| (Said::ResumeAck(one), value(6, one))),
        (0..3_usize, index(), index()).prop_map(|(block, start, count)| {
            let block = layout().blocks()[block].clone();
            let start = start.index(block.pages as usize);
            let count = 1 + count.index(block.pages as usize - start);
            wanted(&block, u32::try_from(start).unwrap(), u32::try_from(count).unwrap())
        }),
        (0..3_usize, prop::collection::vec(any::<bool>(), 192))
            .prop_map(|(block, bits)| received(block, &bits)),
    ]
}

/// A length byte and a block's name.
fn counted(block: &Block) -> Vec<u8> {
    let name = block.name.as_str();
    [&[u8::try_from(name.len()).unwrap()], name.as_bytes()].concat()
}

fn wanted(block: &Block, start: u32, count: u32) -> (Said, Vec<u8>) {
    let start_bytes = (u64::from(start) * 4096).to_be_bytes();
    let data = [&start_bytes[..], &(count * 4096).to_be_bytes(), &counted(block)].concat();
    let length = u16::try_from(data.len()).unwrap().to_be_bytes();
    (Said::Wanted(block.first.0 + start, count), [&[0, 3][..], &length, &data].concat())
}

fn received(index: usize, bits: &[bool]) -> (Said, Vec<u8>) {
    let block = layout().blocks()[index].clone();
    let bits = &bits[..block.pages as usize];
    let mut bitmap = vec![0_u8; bits.len().div_ceil(64) * 8];
    for at in (0..bits.len()).filter(|at| bits[*at]) {
        bitmap[at / 8] |= 1 << (at % 8);
    }
    let name = counted(&block);
    let bytes = [
        &[0, 5, 0, u8::try_from(name.len()).unwrap()][..],
        &name,
        &(bitmap.len() as u64).to_be_bytes(),
        &bitmap,
        b"\x01\x23\x45\x67\x89\xab\xcd\xef",
    ];
    let placed = block.page_numbers().zip(bits).filter(|(_, bit)| **bit);
    (Said::Received(index, placed.map(|(page, _)| page).collect()), bytes.concat())
}

proptest! {
    #[test]
    fn what_is_said_is_read_however_it_arrives(
        said in prop::collection::vec(said(), 0..12),
        lengths in prop::collection::vec(1..40_usize, 1..60),
    ) {
        let bytes: Vec<u8> = said.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        let said: Vec<Said> = said.into_iter().map(|(said, _)| said).collect();
        prop_assert_eq!(read(&bytes), (said.clone(), Ok(())));
        prop_assert_eq!(read_in_pieces(&bytes, &lengths), (said, Ok(())));
    }

    #[test]
    fn random_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        survives(&bytes);
        for start in [&b"\0\x03\0\x10"[..], b"\0\x05\0\x04\x03vga", b"\0\x05\0\x07\x06pc.ram\0\0\0\0\0\0\0\x18"] {
            survives(&[start, &bytes].concat());
        }
    }

    #[test]
    fn damaged_conversations_are_survived(
        said in prop::collection::vec(said(), 1..6),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes: Vec<u8> = said.into_iter().flat_map(|(_, bytes)| bytes).collect();
        for (at, byte) in changes {
            let length = bytes.len();
            bytes[at.index(length)] = byte;
        }
        survives(&bytes);
    }
}
