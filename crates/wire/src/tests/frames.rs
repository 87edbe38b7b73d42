//! Frames: what is written is read, however it is cut; what breaks a rule is named.

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use crate::{Frame, FrameError, FrameKind, FrameReader, FrameWriter, HEADER_BYTES, Header};

/// The frames on the wire: a Hello, then these.
pub(super) fn wire(frames: &[(FrameKind, Vec<u8>)]) -> Vec<u8> {
    let mut writer = FrameWriter::new();
    let mut bytes = Vec::new();
    for (kind, payload) in frames {
        bytes.extend(writer.header(*kind, payload.len()).unwrap());
        bytes.extend(payload);
    }
    bytes
}

/// Reads `bytes`, at most `step` at a time, giving each frame to `take`.
pub(super) fn feed(
    reader: &mut FrameReader,
    mut bytes: &[u8],
    step: usize,
    mut take: impl FnMut(Frame<'_>),
) -> Result<(), FrameError> {
    while !bytes.is_empty() {
        let buffer = reader.buffer_mut();
        let count = buffer.len().min(step).min(bytes.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        bytes = &bytes[count..];
        if let Some(frame) = reader.advance(count)? {
            take(frame);
        }
    }
    Ok(())
}

fn frames() -> impl Strategy<Value = Vec<(FrameKind, Vec<u8>)>> {
    let payload = || proptest::collection::vec(any::<u8>(), 0..300);
    let kind = proptest::sample::select(&FrameKind::ALL[1..]);
    let rest = proptest::collection::vec((kind, payload()), 0..8);
    (payload(), rest)
        .prop_map(|(hello, rest)| core::iter::once((FrameKind::Hello, hello)).chain(rest).collect())
}

proptest! {
    #[test]
    fn what_is_written_is_read(frames in frames(), step in 1_usize..64) {
        let mut reader = FrameReader::new();
        let mut read = Vec::new();
        let take = |frame: Frame<'_>| {
            assert_eq!(frame.sequence, read.len() as u64);
            read.push((frame.kind, frame.payload.to_vec()));
        };
        feed(&mut reader, &wire(&frames), step, take).unwrap();
        prop_assert_eq!(read, frames);
        prop_assert!(reader.is_between_frames());
    }

    #[test]
    fn a_cut_stream_gives_no_frame_too_many(frames in frames(), cut in any::<proptest::sample::Index>()) {
        let bytes = wire(&frames);
        let cut = cut.index(bytes.len());
        let mut reader = FrameReader::new();
        let mut whole = 0;
        feed(&mut reader, &bytes[..cut], usize::MAX, |_| whole += 1).unwrap();
        let mut ends = frames.iter().scan(0, |at, (_, payload)| {
            *at += HEADER_BYTES + payload.len();
            Some(*at)
        });
        prop_assert_eq!(whole, ends.clone().filter(|end| *end <= cut).count());
        prop_assert_eq!(reader.is_between_frames(), cut == 0 || ends.any(|end| end == cut));
    }

    #[test]
    fn random_bytes_never_grow_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut reader = FrameReader::new();
        _ = feed(&mut reader, &bytes, usize::MAX, |_| {});
        prop_assert!(reader.buffer_mut().len() <= 1024 * 1024);
    }
}

#[test]
fn lengths_are_taken_up_to_the_limit_and_no_further() {
    for kind in FrameKind::ALL {
        let sequence = u64::from(kind != FrameKind::Hello);
        let limit_bytes = kind.limit_bytes();
        let header = Header { kind, length_bytes: limit_bytes, sequence };
        assert_eq!(Header::decode(&header.encode(), sequence), Ok(header));
        for above in [limit_bytes + 1, u32::MAX] {
            let bytes = Header { length_bytes: above, ..header }.encode();
            let found_bytes = u64::from(above);
            let wrong = FrameError::Length { kind, limit_bytes, found_bytes };
            assert_eq!(Header::decode(&bytes, sequence), Err(wrong));
        }
        let mut writer = FrameWriter::new();
        if sequence == 1 {
            writer.header(FrameKind::Hello, 0).unwrap();
        }
        assert!(writer.header(kind, limit_bytes as usize + 1).is_err());
        assert_eq!(writer.header(kind, limit_bytes as usize), Ok(header.encode()));
    }
}

#[test]
fn a_wrong_header_allocates_nothing() {
    let mut bytes = Header { kind: FrameKind::Hello, length_bytes: 0, sequence: 0 }.encode();
    bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut reader = FrameReader::new();
    assert!(matches!(feed(&mut reader, &bytes, 16, |_| {}), Err(FrameError::Length { .. })));
    assert_eq!(reader.take_payload(Vec::new()), None);
    assert_eq!(reader.wanted_bytes(), 0);
    assert!(reader.advance(0).is_err(), "it must not go on");
}

#[test]
fn each_field_of_a_header_is_checked() {
    let right = Header { kind: FrameKind::Pages, length_bytes: 1, sequence: 7 }.encode();
    let with = |at: usize, value: u8| {
        let mut bytes = right;
        bytes[at] = value;
        Header::decode(&bytes, 7).unwrap_err()
    };
    assert!(matches!(with(0, 0), FrameError::Magic { .. }));
    assert!(matches!(with(1, 0xff), FrameError::Magic { .. }));
    assert_eq!(with(2, 0), FrameError::Kind { found: 0 });
    assert_eq!(with(2, 6), FrameError::Kind { found: 6 });
    assert_eq!(with(3, 1), FrameError::Flags { found: 1 });
    assert!(matches!(with(7, 1), FrameError::Length { .. }));
    assert_eq!(with(8, 6), FrameError::Sequence { expected: 7, found: 6 });
    assert_eq!(with(8, 8), FrameError::Sequence { expected: 7, found: 8 });
    assert!(matches!(with(15, 1), FrameError::Sequence { .. }));
    assert!(matches!(with(2, 1), FrameError::HelloPlace { kind: FrameKind::Hello, sequence: 7 }));
}

#[test]
fn a_repeated_or_lost_frame_is_found() {
    let hello = (FrameKind::Hello, vec![]);
    let bytes = wire(&[hello, (FrameKind::Pages, vec![1]), (FrameKind::Pages, vec![2])]);
    let (first, rest) = bytes.split_at(HEADER_BYTES);
    let (second, third) = rest.split_at(HEADER_BYTES + 1);
    for wrong in [[first, second, second], [first, third, second], [first, first, second]] {
        let mut reader = FrameReader::new();
        let result = feed(&mut reader, &wrong.concat(), usize::MAX, |_| {});
        assert!(matches!(result, Err(FrameError::Sequence { .. })), "{result:?}");
    }
}

#[test]
fn a_connection_begins_with_a_hello() {
    let bytes = Header { kind: FrameKind::Pages, length_bytes: 9, sequence: 0 }.encode();
    let wrong = FrameError::HelloPlace { kind: FrameKind::Pages, sequence: 0 };
    assert_eq!(FrameReader::new().wanted_bytes(), HEADER_BYTES);
    assert_eq!(feed(&mut FrameReader::new(), &bytes, 16, |_| {}), Err(wrong));
    assert_eq!(FrameWriter::new().header(FrameKind::Pages, 9), Err(wrong));
}

#[test]
fn a_payload_is_handed_over_and_the_spare_buffer_used() {
    let frames = [(FrameKind::Hello, vec![1; 100]), (FrameKind::Tail, vec![2; 50])];
    let bytes = wire(&frames);
    let mut reader = FrameReader::new();
    feed(&mut reader, &bytes[..HEADER_BYTES + 100], usize::MAX, |_| {}).unwrap();
    let spare = vec![0; 10];
    assert_eq!(reader.take_payload(spare), Some(vec![1; 100]));
    assert!(reader.is_between_frames());
    assert_eq!(reader.frame(), None);
    let mut last = Vec::new();
    feed(&mut reader, &bytes[HEADER_BYTES + 100..], 7, |frame| last = frame.payload.to_vec())
        .unwrap();
    assert_eq!(last, vec![2; 50]);
    assert_eq!(reader.frames(), 2);
}

#[test]
fn more_bytes_than_wanted_are_an_error() {
    let wrong = FrameError::Overrun { wanted_bytes: 16, found_bytes: 17 };
    assert_eq!(FrameReader::new().advance(17), Err(wrong));
}
