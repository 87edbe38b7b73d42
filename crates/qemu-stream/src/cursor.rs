//! Reading fields from a buffer that may end in the middle of one.

use core::str;

use crate::error::{Fault, StreamError};

/// Why a field was not read.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The buffer ends before the field does: come again with more.
    NeedMore,
    /// The field is wrong.
    Fault(StreamError),
}

/// A place in a buffer whose first byte has the offset `base` in the stream.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
    base: u64,
    field: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) const fn new(bytes: &'a [u8], base: u64) -> Self {
        Self { bytes, position: 0, base, field: 0 }
    }

    /// Bytes read so far.
    pub(crate) const fn position(&self) -> usize {
        self.position
    }

    /// The offset in the stream of what is read next.
    pub(crate) const fn offset(&self) -> u64 {
        self.base + self.position as u64
    }

    /// What was read since `start`, a [`Cursor::position`].
    pub(crate) fn since(&self, start: usize) -> &'a [u8] {
        self.bytes.get(start..self.position).unwrap_or_default()
    }

    /// The next bytes.
    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], Stop> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let taken = rest.get(..length).ok_or(Stop::NeedMore)?;
        self.field = self.position;
        self.position += length;
        Ok(taken)
    }

    /// The next `N` bytes, borrowed.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], Stop> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let taken = rest.first_chunk().ok_or(Stop::NeedMore)?;
        self.field = self.position;
        self.position += N;
        Ok(taken)
    }

    /// All bytes that there are; at least one, at most `limit`.
    pub(crate) fn some(&mut self, limit: u64) -> Result<&'a [u8], Stop> {
        let there = self.bytes.len() - self.position;
        let length = usize::try_from(limit).map_or(there, |limit| limit.min(there));
        if length == 0 { Err(Stop::NeedMore) } else { self.take(length) }
    }

    /// The next `N` bytes, which stay to be read; they are no field of their own yet.
    pub(crate) fn ahead<const N: usize>(&self) -> Result<&'a [u8; N], Stop> {
        self.bytes.get(self.position..).and_then(<[u8]>::first_chunk).ok_or(Stop::NeedMore)
    }

    /// The next byte, which stays to be read.
    pub(crate) fn peek(&mut self) -> Result<u8, Stop> {
        self.field = self.position;
        self.bytes.get(self.position).copied().ok_or(Stop::NeedMore)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Stop> {
        let [byte] = *self.array()?;
        Ok(byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Stop> {
        Ok(u16::from_be_bytes(*self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Stop> {
        Ok(u32::from_be_bytes(*self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Stop> {
        Ok(u64::from_be_bytes(*self.array()?))
    }

    /// A length byte and as many bytes; the field is the length byte.
    pub(crate) fn counted(&mut self) -> Result<&'a [u8], Stop> {
        let start = self.position;
        let length = self.u8()?;
        let taken = self.take(usize::from(length))?;
        self.field = start;
        Ok(taken)
    }

    /// A fault of the field that was read or peeked at last.
    pub(crate) fn fault(&self, fault: impl Into<Fault>) -> Stop {
        let offset = self.base + self.field as u64;
        Stop::Fault(StreamError { offset, fault: fault.into() })
    }
}

/// The text of these bytes, if they are printable ASCII.
pub(crate) fn ascii(bytes: &[u8]) -> Option<&str> {
    let printable = bytes.iter().all(|byte| (0x20..0x7f).contains(byte));
    str::from_utf8(bytes).ok().filter(|_| printable)
}
