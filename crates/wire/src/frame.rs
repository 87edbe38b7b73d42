//! The frame: the unit in which two agents exchange bytes.
//!
//! ```text
//!   offset  0        2      3       4          8                     16
//!           +--------+------+-------+----------+---------------------+----------------------
//!           | magic  | kind | flags | length   | sequence            | payload, `length` bytes
//!           | "St"   | u8   | u8: 0 | u32      | u64                 |
//!           +--------+------+-------+----------+---------------------+----------------------
//!                                                              all numbers little-endian
//!
//!   kind  name     payload                                         at most
//!      1  Hello    a Hello or its Reply (JSON)                      16 KiB
//!      2  Control  one Message (JSON)                                1 MiB
//!      3  Pages    a batch of the page codec                         1 MiB
//!      4  Tail     a piece of the device state, in order           256 KiB
//!      5  Probe    bytes to be counted and thrown away             256 KiB
//! ```
//!
//! The sequence starts at 0 on each connection and in each direction, and goes up by one: a frame that is lost, repeated
//! or out of place is found. The frame with sequence 0 is a Hello, and no other is: before two agents agreed on a
//! protocol, a peer can make us hold no more than a Hello. A frame of no payload is allowed.

use alloc::vec::Vec;
use core::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes in a frame's header.
pub const HEADER_BYTES: usize = 16;

/// What every frame starts with: `St`, as a little-endian number.
pub const MAGIC: u16 = u16::from_le_bytes(*b"St");

const KIB: u32 = 1024;

/// What a frame carries. The numbers are the format's; they are only ever added.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum FrameKind {
    /// A [`Hello`](crate::Hello) or its [`Reply`](crate::Reply); the first frame of each direction.
    Hello = 1,
    /// One [`Message`](crate::Message).
    Control = 2,
    /// A batch of the page codec.
    Pages = 3,
    /// A piece of the device state.
    Tail = 4,
    /// Bytes that measure the link.
    Probe = 5,
}

impl FrameKind {
    /// Every kind, by number.
    pub const ALL: [Self; 5] = [Self::Hello, Self::Control, Self::Pages, Self::Tail, Self::Probe];

    /// Bytes in a payload of this kind, at most.
    #[must_use]
    pub const fn limit_bytes(self) -> u32 {
        match self {
            Self::Hello => 16 * KIB,
            Self::Control | Self::Pages => 1024 * KIB,
            Self::Tail | Self::Probe => 256 * KIB,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

impl fmt::Display for FrameKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A header that was checked: its kind is known, its length within the kind's limit, its place in the sequence right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What the payload is.
    pub kind: FrameKind,
    /// Bytes in the payload.
    pub length_bytes: u32,
    /// The frame's number on its connection, from 0.
    pub sequence: u64,
}

/// The header as it lies on the wire.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: U16,
    kind: u8,
    flags: u8,
    length_bytes: U32,
    sequence: U64,
}

impl Header {
    /// The header that these bytes spell, on a connection where `expected_sequence` comes next.
    ///
    /// # Errors
    /// When anything in it is not as the format says; the connection is then of no use any more.
    pub fn decode(bytes: &[u8; HEADER_BYTES], expected_sequence: u64) -> Result<Self, FrameError> {
        let raw: RawHeader = zerocopy::transmute!(*bytes);
        if raw.magic.get() != MAGIC {
            return Err(FrameError::Magic { found: raw.magic.get() });
        }
        if raw.flags != 0 {
            return Err(FrameError::Flags { found: raw.flags });
        }
        let kind = FrameKind::from_number(raw.kind).ok_or(FrameError::Kind { found: raw.kind })?;
        if raw.sequence.get() != expected_sequence {
            let (expected, found) = (expected_sequence, raw.sequence.get());
            return Err(FrameError::Sequence { expected, found });
        }
        Self::new(kind, u64::from(raw.length_bytes.get()), expected_sequence)
    }

    /// The bytes of this header.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let raw = RawHeader {
            magic: U16::new(MAGIC),
            kind: self.kind as u8,
            flags: 0,
            length_bytes: U32::new(self.length_bytes),
            sequence: U64::new(self.sequence),
        };
        zerocopy::transmute!(raw)
    }

    /// The one place where length and place are checked, for reading and for writing.
    fn new(kind: FrameKind, length_bytes: u64, sequence: u64) -> Result<Self, FrameError> {
        if (kind == FrameKind::Hello) != (sequence == 0) {
            return Err(FrameError::HelloPlace { kind, sequence });
        }
        let limit_bytes = kind.limit_bytes();
        match u32::try_from(length_bytes) {
            Ok(length_bytes) if length_bytes <= limit_bytes => {
                Ok(Self { kind, length_bytes, sequence })
            }
            _ => Err(FrameError::Length { kind, limit_bytes, found_bytes: length_bytes }),
        }
    }
}

/// One frame that has arrived whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    /// What it carries.
    pub kind: FrameKind,
    /// Its number on its connection, from 0.
    pub sequence: u64,
    /// Its payload, in the reader's buffer.
    pub payload: &'a [u8],
}

/// Puts frames together from bytes that arrive as they like. The caller does the reading, straight into the reader's
/// buffer: fill [`buffer_mut`](Self::buffer_mut), then say how much came with [`advance`](Self::advance).
///
/// The buffer is kept from frame to frame. It grows only to a length that was checked against the kind's limit.
#[derive(Debug, Default)]
pub struct FrameReader {
    header_bytes: [u8; HEADER_BYTES],
    /// The frame whose payload is being read, or was read.
    header: Option<Header>,
    /// Bytes there, of the header or of the payload.
    filled_bytes: usize,
    body: Vec<u8>,
    next_sequence: u64,
}

impl FrameReader {
    /// A reader at the start of a connection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes until the header or the payload being read is whole. Zero only after an error.
    #[must_use]
    pub fn wanted_bytes(&self) -> usize {
        match self.header {
            Some(header) if !self.is_complete() => header.length_bytes as usize - self.filled_bytes,
            Some(_) => HEADER_BYTES,
            None => HEADER_BYTES - self.filled_bytes,
        }
    }

    /// Where the next bytes go, [`wanted_bytes`](Self::wanted_bytes) long. A frame that was complete is forgotten.
    pub fn buffer_mut(&mut self) -> &mut [u8] {
        if self.is_complete() {
            self.header = None;
            self.filled_bytes = 0;
        }
        match self.header {
            Some(header) => &mut self.body[self.filled_bytes..header.length_bytes as usize],
            None => &mut self.header_bytes[self.filled_bytes..],
        }
    }

    /// Takes note that `count_bytes` were put in the buffer. Gives the frame, when they complete one.
    ///
    /// # Errors
    /// When they are more than was wanted, or complete a header that is wrong. The connection is then to be closed: the
    /// reader goes no further.
    pub fn advance(&mut self, count_bytes: usize) -> Result<Option<Frame<'_>>, FrameError> {
        // The buffer of a complete frame is the next header, also if nobody asked for it again.
        let wanted_bytes = self.buffer_mut().len();
        if count_bytes > wanted_bytes {
            return Err(FrameError::Overrun { wanted_bytes, found_bytes: count_bytes });
        }
        self.filled_bytes += count_bytes;
        if self.header.is_none() && self.filled_bytes == HEADER_BYTES {
            self.begin_payload()?;
        }
        Ok(self.frame())
    }

    /// The frame that is complete, until the next one is begun.
    #[must_use]
    pub fn frame(&self) -> Option<Frame<'_>> {
        let header = self.header.filter(|_| self.is_complete())?;
        let payload = &self.body[..header.length_bytes as usize];
        Some(Frame { kind: header.kind, sequence: header.sequence, payload })
    }

    /// Hands the payload of the complete frame over without copying it, and goes on with `spare` as the buffer.
    /// `None` (and `spare` is dropped) when no frame is complete.
    pub fn take_payload(&mut self, spare: Vec<u8>) -> Option<Vec<u8>> {
        let length = self.frame()?.payload.len();
        let mut payload = core::mem::replace(&mut self.body, spare);
        payload.truncate(length);
        self.header = None;
        self.filled_bytes = 0;
        Some(payload)
    }

    /// Whether the connection may end here: no frame is half read.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        self.is_complete() || (self.header.is_none() && self.filled_bytes == 0)
    }

    /// Headers read so far, which is the sequence that comes next.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        self.next_sequence
    }

    fn is_complete(&self) -> bool {
        self.header.is_some_and(|header| header.length_bytes as usize == self.filled_bytes)
    }

    fn begin_payload(&mut self) -> Result<(), FrameError> {
        let header = Header::decode(&self.header_bytes, self.next_sequence)?;
        let length = header.length_bytes as usize;
        if self.body.len() < length {
            self.body.reserve_exact(length - self.body.len());
            self.body.resize(length, 0);
        }
        self.next_sequence = self.next_sequence.saturating_add(1);
        self.header = Some(header);
        self.filled_bytes = 0;
        Ok(())
    }
}

/// Numbers the frames of one direction of a connection.
#[derive(Debug, Default)]
pub struct FrameWriter {
    next_sequence: u64,
}

impl FrameWriter {
    /// A writer at the start of a connection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The header of the next frame; its payload must follow at once.
    ///
    /// # Errors
    /// When the payload is above the kind's limit, or a Hello is not first, or something else is. No number is used up.
    pub fn header(
        &mut self,
        kind: FrameKind,
        payload_bytes: usize,
    ) -> Result<[u8; HEADER_BYTES], FrameError> {
        let header = Header::new(kind, payload_bytes as u64, self.next_sequence)?;
        self.next_sequence = self.next_sequence.saturating_add(1);
        Ok(header.encode())
    }

    /// Frames begun so far, the Hello included, which is the sequence that comes next.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        self.next_sequence
    }
}

/// Why bytes are no frame, or a frame cannot be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// Not our protocol, or we lost our place.
    #[error("expected a frame to start with {MAGIC:#06x}, found {found:#06x}")]
    Magic {
        /// What the frame starts with.
        found: u16,
    },
    /// A flag that this version does not know.
    #[error("expected a frame without flags, found {found:#04x}")]
    Flags {
        /// The flags.
        found: u8,
    },
    /// A kind that this version does not know.
    #[error("expected a frame of kind 1 to {}, found kind {found}", FrameKind::ALL.len())]
    Kind {
        /// The kind's number.
        found: u8,
    },
    /// Lost, repeated or reordered.
    #[error("expected frame number {expected}, found {found}: frames were lost or repeated")]
    Sequence {
        /// The number that comes next.
        expected: u64,
        /// The number in the header.
        found: u64,
    },
    /// A Hello that is not first, or something else that is.
    #[error("expected a Hello as frame 0 and nowhere else, found {kind} as frame {sequence}")]
    HelloPlace {
        /// The frame's kind.
        kind: FrameKind,
        /// Its number.
        sequence: u64,
    },
    /// Above the limit of its kind.
    #[error(
        "expected at most {limit_bytes} bytes in a frame of kind {kind}, found {found_bytes} bytes"
    )]
    Length {
        /// The frame's kind.
        kind: FrameKind,
        /// The kind's limit.
        limit_bytes: u32,
        /// The payload's length.
        found_bytes: u64,
    },
    /// The caller put more bytes in the buffer than it holds.
    #[error("expected at most {wanted_bytes} bytes for this part of a frame, found {found_bytes}")]
    Overrun {
        /// Bytes that were wanted.
        wanted_bytes: usize,
        /// Bytes that the caller says it has.
        found_bytes: usize,
    },
}
