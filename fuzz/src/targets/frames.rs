//! A connection's bytes through the frame reader, and what is in the frames through its decoders.

use arbitrary::{Arbitrary, Unstructured};
use sterna_sim::random::Random;
use sterna_wire::{
    FrameError, FrameKind, FrameReader, FrameWriter, HEADER_BYTES, Hello, Message, Sender,
};

use crate::signature::{hash, of_error, scale};
use crate::{Made, Outcome, Target};

pub(super) const TARGET: Target = Target {
    name: "frames",
    about: "a connection's bytes: frames, and what is in them",
    run,
    make,
    mutators: &[],
    tokens: TOKENS,
    max_bytes: 64 << 10,
    borrowed: &[],
};

#[rustfmt::skip]
const TOKENS: &[&[u8]] = &[
    b"St\x01\0", b"St\x02\0", b"St\x03\0", b"St\x04\0", b"St\x05\0", b"\0\0\x10\0", b"\0\0\x04\0", b"\0\x40\0\0",
    br#"{"type":"ping","nonce":1,"sent_ns":2}"#,
];

const ERROR_BYTES: usize = 2048;
const LARGEST_PAYLOAD_BYTES: usize = 1 << 20;

#[derive(Arbitrary, Debug)]
struct Sent {
    frames: Vec<(Kind, Vec<u8>)>,
}

#[derive(Arbitrary, Debug)]
enum Kind {
    Control,
    Pages,
    Tail,
    Probe,
}

fn make(noise: &mut Unstructured<'_>) -> arbitrary::Result<Made> {
    let mut out = Vec::new();
    let hello = br#"{"offer":{"protocol_min":1,"protocol_max":1,"software":"x","capabilities":[]},"role":{"type":"check"}}"#;
    put(&mut out, 1, 0, hello);
    for (sequence, (kind, payload)) in (1..).zip(Sent::arbitrary(noise)?.frames.iter().take(30)) {
        let (number, payload) = match kind {
            Kind::Control => (2, &br#"{"type":"commit","epoch":7}"#[..]),
            Kind::Pages => (3, &payload[..]),
            Kind::Tail => (4, &payload[..]),
            Kind::Probe => (5, &payload[..]),
        };
        put(&mut out, number, sequence, payload);
    }
    Ok(Made::valid(out))
}

fn put(out: &mut Vec<u8>, kind: u8, sequence: u64, payload: &[u8]) {
    out.extend_from_slice(&[b'S', b't', kind, 0]);
    out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(payload);
}

/// How a connection's bytes end.
#[derive(PartialEq, Debug)]
enum End {
    Between,
    Within,
    Wrong(FrameError),
}

type Frames = Vec<(FrameKind, Vec<u8>)>;

fn run(input: &[u8]) -> Outcome {
    let mut random = Random::new(hash(input));
    let (frames, end) = read(input, |wanted| wanted, false);
    let some = read(input, |wanted| 1 + random.index(wanted), false);
    assert!(some.0 == frames && some.1 == end, "how bytes arrive changes what is read");
    let taken = read(input, |wanted| wanted.min(1000), true);
    assert!(taken.0 == frames && taken.1 == end, "taking payloads changes what is read");
    let written = written(&frames);
    assert!(input.starts_with(&written), "frames written again are other bytes");
    if end == End::Between {
        assert_eq!(written.len(), input.len());
    }
    let inside: Vec<String> =
        frames.iter().take(2).map(|(kind, payload)| decoded(*kind, payload)).collect();
    let shape = format!("{} frames: {}", scale(frames.len() as u64), inside.join(", "));
    match end {
        End::Between => Outcome::accepted(shape),
        End::Within => Outcome::refused(format!("cut; {shape}")),
        End::Wrong(error) => {
            Outcome::refused(format!("{}; {shape}", of_error(&error, ERROR_BYTES)))
        }
    }
}

fn read(input: &[u8], mut next: impl FnMut(usize) -> usize, takes: bool) -> (Frames, End) {
    let (mut reader, mut frames) = (FrameReader::new(), Frames::new());
    let mut rest = input;
    while !rest.is_empty() {
        let wanted = reader.wanted_bytes();
        let buffer = reader.buffer_mut();
        assert!(wanted > 0 && buffer.len() == wanted && wanted <= LARGEST_PAYLOAD_BYTES);
        let length = next(wanted).clamp(1, wanted).min(rest.len());
        let (piece, later) = rest.split_at(length);
        buffer[..length].copy_from_slice(piece);
        rest = later;
        match reader.advance(length) {
            Err(error) => return (frames, End::Wrong(error)),
            Ok(None) => continue,
            Ok(Some(frame)) => {
                assert_eq!(frame.sequence, frames.len() as u64);
                assert!(frame.payload.len() <= frame.kind.limit_bytes() as usize);
                assert_eq!(frame.kind == FrameKind::Hello, frame.sequence == 0);
                let kind = frame.kind;
                let payload = frame.payload.to_vec();
                if takes {
                    assert_eq!(reader.take_payload(Vec::new()).as_ref(), Some(&payload));
                    assert_eq!(reader.take_payload(Vec::new()), None);
                }
                frames.push((kind, payload));
            }
        }
        assert_eq!(reader.frames(), frames.len() as u64);
    }
    let end = if reader.is_between_frames() { End::Between } else { End::Within };
    (frames, end)
}

fn written(frames: &Frames) -> Vec<u8> {
    let (mut writer, mut out) = (FrameWriter::new(), Vec::new());
    for (kind, payload) in frames {
        match writer.header(*kind, payload.len()) {
            Ok(header) => out.extend_from_slice(&header),
            Err(error) => super::broken(&format!("a frame that was read is refused: {error}")),
        }
        out.extend_from_slice(payload);
    }
    assert!(out.len() >= frames.len() * HEADER_BYTES);
    out
}

fn decoded(kind: FrameKind, payload: &[u8]) -> String {
    let result = match kind {
        FrameKind::Hello => Hello::decode(payload).map(drop).map_err(|error| error.to_string()),
        FrameKind::Control => {
            Message::decode(payload, Sender::Source).map(drop).map_err(|error| error.to_string())
        }
        FrameKind::Pages | FrameKind::Tail | FrameKind::Probe => Ok(()),
    };
    match result {
        Ok(()) => format!("{kind}"),
        Err(_) => format!("bad {kind}"),
    }
}
