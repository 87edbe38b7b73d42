//! Reading and writing the smallest pieces of a batch: bytes, varints, hashes.
//!
//! A varint is little-endian base 128, at most 5 bytes, at most 2^32 - 1. A jump between pages is a varint of its
//! zigzag form, so that short jumps are short in both directions.

use alloc::vec::Vec;

use sterna_model::PageHash;

use crate::FormatError;

/// Bytes of the longest varint.
pub(crate) const MAX_VARINT_BYTES: usize = 5;

/// Appends a varint.
pub(crate) fn put_varint(out: &mut Vec<u8>, number: u32) {
    let mut rest = number;
    while rest >= 0x80 {
        out.push(rest.to_le_bytes()[0] | 0x80);
        rest >>= 7;
    }
    out.push(rest.to_le_bytes()[0]);
}

/// Appends a length, which the caller knows to be below 2^32.
pub(crate) fn put_length(out: &mut Vec<u8>, length_bytes: usize) {
    put_varint(out, u32::try_from(length_bytes).unwrap_or(u32::MAX));
}

/// Appends the jump that leads from page number `from` to `to`.
pub(crate) fn put_jump(out: &mut Vec<u8>, from: u32, to: u32) {
    let jump = to.wrapping_sub(from).cast_signed();
    put_varint(out, ((jump << 1) ^ (jump >> 31)).cast_unsigned());
}

/// What is left to read of one section of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes<'a> {
    rest: &'a [u8],
}

impl<'a> Bytes<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) const fn len(&self) -> usize {
        self.rest.len()
    }

    /// All that is left.
    pub(crate) const fn all(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `length_bytes` bytes; `field` is named if they are not there.
    pub(crate) fn take(
        &mut self,
        length_bytes: usize,
        field: &'static str,
    ) -> Result<&'a [u8], FormatError> {
        let found = self.rest.len();
        let (taken, rest) =
            self.rest.split_at_checked(length_bytes).ok_or(FormatError::Truncated {
                field,
                expected_bytes: length_bytes,
                found_bytes: found,
            })?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn byte(&mut self, field: &'static str) -> Result<u8, FormatError> {
        Ok(self.take(1, field)?[0])
    }

    pub(crate) fn varint(&mut self, field: &'static str) -> Result<u32, FormatError> {
        let mut number = 0_u64;
        for place in 0..MAX_VARINT_BYTES {
            let byte = self.byte(field)?;
            number |= u64::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                return u32::try_from(number).map_err(|_| FormatError::Varint { field });
            }
        }
        Err(FormatError::Varint { field })
    }

    /// A length of at most `limit_bytes`.
    pub(crate) fn length(
        &mut self,
        field: &'static str,
        limit_bytes: usize,
    ) -> Result<usize, FormatError> {
        let length_bytes = self.varint(field)? as usize;
        if length_bytes > limit_bytes {
            return Err(FormatError::Limit { field, limit: limit_bytes, found: length_bytes });
        }
        Ok(length_bytes)
    }

    /// The page number that a jump from `from` leads to. It may lie outside of the guest.
    pub(crate) fn jump(&mut self, from: u32, field: &'static str) -> Result<u32, FormatError> {
        let zigzag = self.varint(field)?;
        let jump = (zigzag >> 1) ^ (zigzag & 1).wrapping_neg();
        Ok(from.wrapping_add(jump))
    }

    pub(crate) fn hash(&mut self, field: &'static str) -> Result<PageHash, FormatError> {
        let mut hash = [0; 16];
        hash.copy_from_slice(self.take(16, field)?);
        Ok(PageHash(hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip() {
        for number in [0, 1, 127, 128, 16_383, 16_384, u32::MAX - 1, u32::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, number);
            let mut bytes = Bytes::new(&out);
            assert_eq!(bytes.varint("test"), Ok(number));
            assert!(bytes.is_empty());
        }
    }

    #[test]
    fn oversized_varints_are_refused() {
        let refused = Err(FormatError::Varint { field: "test" });
        assert_eq!(Bytes::new(&[0x80; 9]).varint("test"), refused);
        assert_eq!(Bytes::new(&[0xff, 0xff, 0xff, 0xff, 0x1f]).varint("test"), refused);
        assert!(matches!(Bytes::new(&[0x80]).varint("test"), Err(FormatError::Truncated { .. })));
    }

    #[test]
    fn jumps_lead_both_ways() {
        for (from, to, length) in
            [(7, 7, 1), (7, 6, 1), (6, 60, 1), (0, u32::MAX, 1), (0, 1 << 31, 5)]
        {
            let mut out = Vec::new();
            put_jump(&mut out, from, to);
            assert_eq!(out.len(), length);
            assert_eq!(Bytes::new(&out).jump(from, "test"), Ok(to));
        }
    }
}
