//! The layout of a batch. Golden bytes are in tests/golden.rs.
//!
//! ```text
//! batch    := format: u8 = 1
//!             records: varint   bytes of the records
//!             plain:   varint   bytes of the plain section
//!             packed:  varint   bytes that the packed section unpacks to; 0: there is none
//!             frame:   varint   bytes of the packed section, one zstd frame
//!             record*  plain section  packed section
//!
//! record   := tag: u8  [page: jump]  version: varint (1 or more)  rest
//! tag      := bits 0-3 kind
//!             bit 6    PACKED: the body is in the packed section, else in the plain one
//!             bit 7    NEXT: the page follows the last one of the record before; no jump
//!                      (the page before the first record's is -1)
//! rest     := 1 zero     count: varint                    so many pages from here on are zero
//!             2 same     hash                             the destination has this content at this page
//!             3 ref      hash  from: jump                 ... at another page
//!             4 literal  hash                             body: 4096 bytes
//!             5 sparse   hash  length: varint             body: runs, XOR, on the zero page
//!             6 xor      hash  base: hash  length: varint body: runs, XOR, on the content that hashes to base
//!             7 patch    hash  base: hash  length: varint body: runs, new bytes, on the same
//!             8 absent   count: varint                    the content of so many pages from here on follows in post-copy
//! hash     := 16 bytes
//! jump     := varint, zigzag: page number minus the one expected; for a ref, minus the record's own page
//! runs     := see runs.rs
//! ```
//!
//! Bodies lie in their section in the order of their records, without gaps; both sections must be used up. A batch
//! names at most [`MAX_BATCH_PAGES`] pages.

use alloc::vec::Vec;

use sterna_model::{PAGE_BYTES, PageHash, PageId};

use crate::bytes::{Bytes, MAX_VARINT_BYTES, put_jump, put_length, put_varint};
use crate::runs::Coding;

/// Pages in a batch, at most; zero and absent pages count.
pub const MAX_BATCH_PAGES: usize = 128;
/// Bytes of a batch, at most: room for every page as it is, and its record.
pub const MAX_BATCH_BYTES: usize = MAX_HEAD_BYTES + MAX_BODY_BYTES;

/// Bytes of all bodies together, before packing.
pub(crate) const MAX_BODY_BYTES: usize = MAX_BATCH_PAGES * PAGE_BYTES;
/// Bytes of the header and the records.
pub(crate) const MAX_HEAD_BYTES: usize = MAX_HEADER_BYTES + MAX_BATCH_PAGES * MAX_RECORD_BYTES;

const FORMAT: u8 = 1;
const MAX_HEADER_BYTES: usize = 1 + 4 * MAX_VARINT_BYTES;
const MAX_RECORD_BYTES: usize = 1 + 3 * MAX_VARINT_BYTES + 2 * HASH_BYTES;
const HASH_BYTES: usize = 16;

/// The payload of one frame on the connection, at most: a batch must fit.
const FRAME_LIMIT_BYTES: usize = 1 << 20;
const _: () = assert!(MAX_BATCH_BYTES < FRAME_LIMIT_BYTES);

const KIND: u8 = 0x0f;
const PACKED: u8 = 0x40;
const NEXT: u8 = 0x80;

/// Where a body is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Section {
    Plain,
    Packed,
}

/// One record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    /// The first page that it is about.
    pub(crate) page: PageId,
    pub(crate) version: u32,
    pub(crate) kind: Kind,
}

/// What a record says about its page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Zero { count: u32 },
    Same { hash: PageHash },
    Ref { hash: PageHash, from: PageId },
    Literal { hash: PageHash, section: Section },
    Sparse { hash: PageHash, length_bytes: usize, section: Section },
    Delta { hash: PageHash, base: PageHash, coding: Coding, length_bytes: usize, section: Section },
    Absent { count: u32 },
}

impl Kind {
    fn tag(self) -> u8 {
        let packed = if self.section() == Some(Section::Packed) { PACKED } else { 0 };
        packed
            | match self {
                Self::Zero { .. } => 1,
                Self::Same { .. } => 2,
                Self::Ref { .. } => 3,
                Self::Literal { .. } => 4,
                Self::Sparse { .. } => 5,
                Self::Delta { coding: Coding::Xor, .. } => 6,
                Self::Delta { coding: Coding::Replace, .. } => 7,
                Self::Absent { .. } => 8,
            }
    }

    /// Where its body is, if it has one.
    pub(crate) fn section(self) -> Option<Section> {
        match self {
            Self::Zero { .. } | Self::Same { .. } | Self::Ref { .. } | Self::Absent { .. } => None,
            Self::Literal { section, .. }
            | Self::Sparse { section, .. }
            | Self::Delta { section, .. } => Some(section),
        }
    }

    /// Puts its body, if it has one, elsewhere.
    pub(crate) fn move_to(&mut self, to: Section) {
        match self {
            Self::Zero { .. } | Self::Same { .. } | Self::Ref { .. } | Self::Absent { .. } => {}
            Self::Literal { section, .. }
            | Self::Sparse { section, .. }
            | Self::Delta { section, .. } => *section = to,
        }
    }
}

/// Lengths of the sections, for the header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lengths {
    pub(crate) plain_bytes: usize,
    /// Unpacked.
    pub(crate) packed_bytes: usize,
    pub(crate) frame_bytes: usize,
}

/// Writes header and records to `head`, which is emptied before; `records` is room to work in.
pub(crate) fn write_head(
    head: &mut Vec<u8>,
    records: &mut Vec<u8>,
    content: impl Iterator<Item = Record>,
    lengths: Lengths,
) {
    records.clear();
    let mut expected = 0;
    for record in content {
        write_record(records, record, expected);
        expected = record.end();
    }
    head.clear();
    head.push(FORMAT);
    for length in [records.len(), lengths.plain_bytes, lengths.packed_bytes, lengths.frame_bytes] {
        put_length(head, length);
    }
    head.extend_from_slice(records);
}

fn write_record(out: &mut Vec<u8>, record: Record, expected: u32) {
    let next = record.page.0 == expected;
    out.push(record.kind.tag() | if next { NEXT } else { 0 });
    if !next {
        put_jump(out, expected, record.page.0);
    }
    put_varint(out, record.version);
    match record.kind {
        Kind::Zero { count } | Kind::Absent { count } => put_varint(out, count),
        Kind::Same { hash } | Kind::Literal { hash, .. } => out.extend_from_slice(&hash.0),
        Kind::Ref { hash, from } => {
            out.extend_from_slice(&hash.0);
            put_jump(out, record.page.0, from.0);
        }
        Kind::Sparse { hash, length_bytes, .. } => {
            out.extend_from_slice(&hash.0);
            put_length(out, length_bytes);
        }
        Kind::Delta { hash, base, length_bytes, .. } => {
            out.extend_from_slice(&hash.0);
            out.extend_from_slice(&base.0);
            put_length(out, length_bytes);
        }
    }
}

impl Record {
    /// Pages that it is about.
    fn pages(&self) -> u32 {
        match self.kind {
            Kind::Zero { count } | Kind::Absent { count } => count,
            _ => 1,
        }
    }

    fn end(&self) -> u32 {
        self.page.0.wrapping_add(self.pages())
    }
}

/// A batch taken apart.
#[derive(Debug)]
pub(crate) struct Sections<'a> {
    pub(crate) records: Records<'a>,
    pub(crate) plain: Bytes<'a>,
    pub(crate) frame: &'a [u8],
    /// What the frame unpacks to.
    pub(crate) packed_bytes: usize,
}

impl<'a> Sections<'a> {
    pub(crate) fn parse(batch: &'a [u8]) -> Result<Self, FormatError> {
        if batch.len() > MAX_BATCH_BYTES {
            let found = batch.len();
            return Err(FormatError::Limit { field: "batch", limit: MAX_BATCH_BYTES, found });
        }
        let mut rest = Bytes::new(batch);
        let found = rest.byte("format")?;
        if found != FORMAT {
            return Err(FormatError::Version { found });
        }
        let records_bytes = rest.length("records", MAX_HEAD_BYTES)?;
        let plain_bytes = rest.length("plain section", MAX_BODY_BYTES)?;
        let packed_bytes = rest.length("packed section", MAX_BODY_BYTES - plain_bytes)?;
        let frame_bytes = rest.length("zstd frame", MAX_BODY_BYTES)?;
        let records = Records {
            rest: Bytes::new(rest.take(records_bytes, "records")?),
            expected: 0,
            pages: 0,
        };
        let plain = Bytes::new(rest.take(plain_bytes, "plain section")?);
        let frame = rest.take(frame_bytes, "zstd frame")?;
        no_rest("batch", rest)?;
        Ok(Self { records, plain, frame, packed_bytes })
    }
}

/// The records of a batch that are left to read.
#[derive(Debug)]
pub(crate) struct Records<'a> {
    rest: Bytes<'a>,
    expected: u32,
    pages: usize,
}

impl Records<'_> {
    /// The next record, with its pages checked to be within a guest of `pages` pages.
    pub(crate) fn next(&mut self, pages: u32) -> Result<Option<Record>, FormatError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let record = self.parse()?;
        let count = record.pages();
        self.pages = self.pages.saturating_add(count as usize);
        if count == 0 || self.pages > MAX_BATCH_PAGES {
            let found = self.pages;
            return Err(FormatError::Limit { field: "pages", limit: MAX_BATCH_PAGES, found });
        }
        in_guest(record.page.0.saturating_add(count - 1), pages)?;
        if let Kind::Ref { from, .. } = record.kind {
            in_guest(from.0, pages)?;
        }
        self.expected = record.end();
        Ok(Some(record))
    }

    fn parse(&mut self) -> Result<Record, FormatError> {
        let rest = &mut self.rest;
        let tag = rest.byte("tag")?;
        let page = if tag & NEXT == 0 { rest.jump(self.expected, "page")? } else { self.expected };
        let version = rest.varint("version")?;
        if version == 0 {
            return Err(FormatError::Unversioned);
        }
        let section = if tag & PACKED == 0 { Section::Plain } else { Section::Packed };
        let kind = match tag & !NEXT & !PACKED {
            1 => Kind::Zero { count: rest.varint("count")? },
            2 => Kind::Same { hash: rest.hash("hash")? },
            3 => Kind::Ref { hash: rest.hash("hash")?, from: PageId(rest.jump(page, "from")?) },
            4 => Kind::Literal { hash: rest.hash("hash")?, section },
            5 => {
                let hash = rest.hash("hash")?;
                Kind::Sparse { hash, length_bytes: rest.length("sparse", PAGE_BYTES)?, section }
            }
            code @ (6 | 7) => {
                let coding = if code == 6 { Coding::Xor } else { Coding::Replace };
                let (hash, base) = (rest.hash("hash")?, rest.hash("base")?);
                let length_bytes = rest.length("delta", PAGE_BYTES)?;
                Kind::Delta { hash, base, coding, length_bytes, section }
            }
            8 => Kind::Absent { count: rest.varint("count")? },
            _ => return Err(FormatError::Tag { tag }),
        };
        if tag & (KIND | PACKED) != kind.tag() {
            return Err(FormatError::Tag { tag });
        }
        Ok(Record { page: PageId(page), version, kind })
    }
}

/// Checks that a section has been used up.
pub(crate) fn no_rest(field: &'static str, rest: Bytes<'_>) -> Result<(), FormatError> {
    if rest.is_empty() {
        return Ok(());
    }
    Err(FormatError::Unused { field, found_bytes: rest.len() })
}

fn in_guest(page: u32, pages: u32) -> Result<(), FormatError> {
    if page < pages {
        return Ok(());
    }
    Err(FormatError::Page { page, pages })
}

/// Why bytes are no batch: the peer misbehaves, or they were damaged on their way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// Made by another version of the codec.
    #[error("expected page batch format {FORMAT}, found {found}")]
    Version {
        /// The format's number.
        found: u8,
    },
    /// Something ends before it should.
    #[error("expected {expected_bytes} bytes of {field} in the page batch, found {found_bytes}")]
    Truncated {
        /// What was read.
        field: &'static str,
        /// Bytes that it needs.
        expected_bytes: usize,
        /// Bytes that are there.
        found_bytes: usize,
    },
    /// A number of more than 32 bits.
    #[error("expected a number below 2^32 as {field} in the page batch")]
    Varint {
        /// What was read.
        field: &'static str,
    },
    /// Something is longer than it may be, or a count is zero.
    #[error("expected at most {limit} as the extent of {field} in the page batch, found {found}")]
    Limit {
        /// What was read.
        field: &'static str,
        /// What it may be.
        limit: usize,
        /// What it is.
        found: usize,
    },
    /// Bytes that no record asks for.
    #[error(
        "expected the page batch's records to use up its {field}, found {found_bytes} bytes left"
    )]
    Unused {
        /// What is left over.
        field: &'static str,
        /// Bytes left.
        found_bytes: usize,
    },
    /// A record of an unknown kind, or with a flag that it cannot have.
    #[error("expected a known record tag in the page batch, found {tag:#04x}")]
    Tag {
        /// The tag.
        tag: u8,
    },
    /// A record with version 0, which stands for what was here before the move.
    #[error("expected versions from 1 on in the page batch, found 0")]
    Unversioned,
    /// A page that the guest does not have.
    #[error("expected page numbers below {pages} in the page batch, found {page}")]
    Page {
        /// The page's number.
        page: u32,
        /// Pages of the guest.
        pages: u32,
    },
    /// A run of differing bytes without bytes.
    #[error("expected at least one byte in each run of a delta, found none")]
    EmptyRun,
    /// Something else than one zstd frame of the length that was announced.
    #[error("expected one zstd frame of {expected} bytes in the page batch")]
    Packed {
        /// Bytes that it should unpack to.
        expected: usize,
    },
}
