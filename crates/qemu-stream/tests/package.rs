//! Device state in a package: what comes of it, however it arrives, and what is wrong with one that QEMU does not send.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests are tests: a failure in them is the test's failure"
)]

mod support;

use proptest::prelude::*;
use sterna_qemu_stream::{Fault, MAX_TAIL_BYTES, Parser};
use support::{
    Reading, SMALL_BITMAP_END, SMALL_RAM_END, SMALL_SECTIONS, SmallPackage, error_of, read,
    read_in_pieces,
};

/// What ends the tail, as a package has no end and no description.
const TAIL_END: &[u8] = b"\0\x06\0\0\0\x02{}";
const PINGS: &[u8] = b"\x08\0\x02\0\x04\0\0\0\x03\x08\0\x02\0\x04\0\0\0\x42";

#[test]
fn a_package_becomes_a_tail_with_or_without_pings() {
    for pings in [b"", &PINGS[..9], PINGS] {
        let stream = SmallPackage { pings, ..SmallPackage::default() }.stream();
        let (reading, end) = read(&stream).unwrap();
        assert_eq!(reading.tail, [SMALL_SECTIONS, TAIL_END].concat());
        assert!(reading.packaged && reading.commands.is_empty());
        assert_eq!(reading.parts.len(), 2, "the second end of memory is not told");
        assert_eq!(end.bytes, stream.len() as u64);
        assert_eq!(end.tail_bytes, reading.tail.len() as u64);
    }
}

#[test]
fn a_package_needs_no_bitmap() {
    let package = SmallPackage { behind: b"\0".to_vec(), ..SmallPackage::default() };
    let head = support::small_head();
    let stream = [&head, SMALL_RAM_END, &package.package(), b"\0"].concat();
    let (reading, end) = read(&stream).unwrap();
    assert!(reading.packaged);
    assert_eq!(end.dropped_bytes, 0);
}

#[test]
fn the_smallest_package_is_a_section_of_nothing() {
    let sections = b"\x04\0\0\0\x09\0\0\0\0\0\0\0\0\x01\x7e\0\0\0\x09";
    let (reading, _) =
        read(&SmallPackage { sections, ..SmallPackage::default() }.stream()).unwrap();
    assert_eq!(reading.tail, [&sections[..], TAIL_END].concat());
    let shorter = SmallPackage { sections: &sections[1..], ..SmallPackage::default() };
    assert_eq!(error_of(&shorter.stream()).fault, Fault::PackageLength { found: 28 });
}

#[test]
fn the_tail_is_complete_as_soon_as_the_package_is() {
    let stream = SmallPackage::default().stream();
    let start = SmallPackage::before().len();
    let end = start + SmallPackage::default().package().len();
    let mut whole = 0;
    for length in start..=stream.len() {
        let (mut parser, mut reading) = (Parser::new(), Reading::default());
        let taken = parser.feed(&stream[..length], |event| reading.take(event)).unwrap();
        assert_eq!(reading.packaged, length >= end, "cut to {length}");
        assert_eq!(reading.tail.ends_with(TAIL_END), length >= end, "cut to {length}");
        match parser.finish() {
            Ok(_) => whole += 1,
            Err(error) => {
                assert_eq!(error.offset, taken as u64);
                assert!(matches!(error.fault, Fault::Truncated { .. }), "{error}");
            }
        }
    }
    assert_eq!(whole, 1, "only the whole stream is whole");
}

#[test]
fn a_cut_behind_the_package_says_what_is_missing() {
    let behind = |bytes: &[u8]| {
        error_of(&SmallPackage { behind: bytes.to_vec(), ..SmallPackage::default() }.stream())
            .to_string()
    };
    assert!(
        behind(b"").ends_with("expected the rest of the dirty bitmap, found the end of the stream")
    );
    let bitmap = behind(SMALL_BITMAP_END);
    assert!(
        bitmap.ends_with("expected the end of the file, found the end of the stream"),
        "{bitmap}"
    );
    let ram = behind(&[SMALL_BITMAP_END, &SMALL_RAM_END[..7]].concat());
    assert!(
        ram.ends_with("expected the rest of a RAM section, found the end of the stream"),
        "{ram}"
    );
}

#[test]
fn a_package_that_qemu_does_not_send_is_named() {
    let start = SmallPackage::before().len() as u64;
    let package = SmallPackage::default;
    let true_length = package().package().len() as u64 - 9;
    let longer = u32::try_from(true_length).ok().map(|length| length + 1);
    let shorter = u32::try_from(true_length).ok().map(|length| length - 1);
    let end = start + 9 + true_length;
    let three_pings = b"\x08\0\x02\0\x04ping\x08\0\x02\0\x04ping\x08\0\x02\0\x04ping";
    let cases = [
        (SmallPackage { length_bytes: Some(0), ..package() }, start + 5, "29 to 268435456 bytes"),
        (SmallPackage { length_bytes: Some(28), ..package() }, start + 5, "state, found 28"),
        (SmallPackage { length_bytes: Some(u32::MAX), ..package() }, start + 5, "found 4294967295"),
        (
            SmallPackage { length_bytes: longer, ..package() },
            end - 27,
            "POSTCOPY_RUN (5) at the end",
        ),
        (
            SmallPackage { length_bytes: shorter, ..package() },
            end - 29,
            "POSTCOPY_RUN (5) at the end",
        ),
        (SmallPackage { run: b"", ..package() }, end - 33, "POSTCOPY_RUN (5) at the end"),
        (SmallPackage { listen: b"", ..package() }, start + 9, "POSTCOPY_LISTEN (4) in"),
        (SmallPackage { sections: b"", pings: PINGS, ..package() }, start + 5, "state, found 28"),
        (
            SmallPackage { sections: b"", pings: three_pings, ..package() },
            start + 14,
            "a device section (0x04) in the packaged device state, found \"\\x08\"",
        ),
        (SmallPackage { pings: three_pings, ..package() }, end - 1, "footer (0x7e)"),
        (SmallPackage { pings: b"\x08\0\x06\0\0", ..package() }, end - 23, "footer (0x7e)"),
        (SmallPackage { pings: &PINGS[1..], ..package() }, end - 11, "footer (0x7e)"),
    ];
    for (case, (package, offset, text)) in cases.into_iter().enumerate() {
        let error = error_of(&package.stream());
        assert!(error.to_string().contains(text), "case {case}: expected {text:?}, found {error}");
        assert_eq!(error.offset, offset, "case {case}: {error}");
    }
}

#[test]
fn what_must_not_stand_behind_a_package_is_named() {
    let package = SmallPackage::default().package();
    let start = (SmallPackage::before().len() + package.len()) as u64;
    let bitmap = SMALL_BITMAP_END.len() as u64;
    let after_bitmap = |bytes: &[u8]| [SMALL_BITMAP_END, bytes].concat();
    let cases = [
        (b"\0".to_vec(), 0, "the rest of the dirty bitmap (0x02, 0x03), found byte 0x00"),
        (b"\x08\0\x02\0\x04ping".to_vec(), 0, "(0x02, 0x03), found byte 0x08"),
        (after_bitmap(b"\x08\0\x03\0\0"), bitmap, "end of the file (0x00), found byte 0x08"),
        (after_bitmap(&package), bitmap, "end of the file (0x00), found byte 0x08"),
        (after_bitmap(SMALL_SECTIONS), bitmap, "end of the file (0x00), found byte 0x04"),
        (after_bitmap(b"\x06\0\0\0\x02{}"), bitmap, "end of the file (0x00), found byte 0x06"),
        (after_bitmap(b"\0\0"), bitmap + 1, "the stream's end, found byte 0x00"),
        (after_bitmap(b"\0\x06\0\0\0\x02{}"), bitmap + 1, "the stream's end, found byte 0x06"),
        (after_bitmap(SMALL_BITMAP_END), bitmap + 1, "(ram is 2), found one of section 3"),
        (
            after_bitmap(b"\x03\0\0\0\x02\0\0\0\0\0\0\0\x02\x06pc.ram\0"),
            bitmap + 5,
            "no guest memory behind the packaged device state, found RAM flags 0x2",
        ),
    ];
    for (behind, offset, text) in cases {
        let error = error_of(&SmallPackage { behind, ..SmallPackage::default() }.stream());
        assert!(error.to_string().contains(text), "expected {text:?}, found {error}");
        assert_eq!(error.offset, start + offset, "{error}");
    }
}

#[test]
fn a_long_package_is_passed_on_and_not_kept() {
    let length = u32::try_from(MAX_TAIL_BYTES).unwrap().to_be_bytes();
    let start: &[u8] = b"\x08\0\x04\0\0\x04";
    let head = [&SmallPackage::before(), &b"\x08\0\x07\0\x04"[..], &length, start].concat();
    let (mut parser, mut passed) = (Parser::new(), 0);
    assert_eq!(parser.feed(&head, |_| ()), Ok(head.len()));
    let piece = vec![0; 1 << 20];
    for _ in 0..100 {
        let taken = parser.feed(&piece, |_| passed += 1).unwrap();
        assert_eq!(taken, piece.len(), "nothing waits for the package's end");
    }
    assert_eq!(passed, 100);
}

proptest! {
    #[test]
    fn random_pieces_are_the_same(
        pings in prop::sample::select(vec![&PINGS[..0], &PINGS[..9], PINGS]),
        lengths in prop::collection::vec(1..40_usize, 1..200),
    ) {
        let stream = SmallPackage { pings, ..SmallPackage::default() }.stream();
        prop_assert!(read(&stream) == read_in_pieces(&stream, &lengths));
    }

    /// Wherever a ping or RUN is imitated inside device state, it stays device state.
    #[test]
    fn state_that_looks_like_commands_stays_state(
        pieces in prop::collection::vec(
            prop::sample::select(vec![&PINGS[..9], b"\x08\0\x05\0\0", b"\x7e\0\0\0\x09", b"\0", b"\x08"]),
            0..12,
        ),
        pings in prop::sample::select(vec![&PINGS[..0], &PINGS[..9], PINGS]),
        lengths in prop::collection::vec(1..40_usize, 1..20),
    ) {
        let head: &[u8] = b"\x04\0\0\0\x09\x01x\0\0\0\0\0\0\0\x01";
        let sections = [head, &pieces.concat(), b"\x7e\0\0\0\x09"].concat();
        let inside = [b"\x08\0\x04\0\0", &sections[..], pings, b"\x08\0\x05\0\0"].concat();
        let length = u32::try_from(inside.len()).unwrap().to_be_bytes();
        let package = [b"\x08\0\x07\0\x04", &length[..], &inside].concat();
        let behind = SmallPackage::default().behind;
        let stream = [SmallPackage::before(), package, behind].concat();
        let (reading, _) = read_in_pieces(&stream, &lengths).unwrap();
        prop_assert_eq!(reading.tail, [&sections[..], TAIL_END].concat());
    }
}
