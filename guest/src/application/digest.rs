//! A digest of a stream: the same however the stream is cut into reads.
//!
//! Against accidents of memory, not against people; eight bytes at a time, because a guest whose
//! instructions are emulated digests megabytes per second beside its decoder.

use std::fmt;
use std::str::FromStr;

const WORD_BYTES: usize = 8;
const MULTIPLIER: u64 = 0x9fb2_1c65_1e98_df25;

/// The digest of what came so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Digest {
    state: u64,
    rest: [u8; WORD_BYTES],
    length_bytes: u64,
}

/// A digest's value, printed as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DigestValue(u64);

impl Digest {
    /// Takes more of the stream.
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        let filled = usize::try_from(self.length_bytes % 8).unwrap_or(0);
        self.length_bytes += bytes.len() as u64;
        if filled > 0 {
            let taken = bytes.len().min(WORD_BYTES - filled);
            self.rest[filled..filled + taken].copy_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if filled + taken < WORD_BYTES {
                return;
            }
            self.state = step(self.state, self.rest);
        }
        let (words, rest) = bytes.as_chunks::<WORD_BYTES>();
        self.state = words.iter().fold(self.state, |state, word| step(state, *word));
        self.rest[..rest.len()].copy_from_slice(rest);
    }

    /// Bytes so far.
    pub(crate) fn length_bytes(&self) -> u64 {
        self.length_bytes
    }

    /// The digest of all bytes so far.
    pub(crate) fn value(&self) -> DigestValue {
        let filled = usize::try_from(self.length_bytes % 8).unwrap_or(0);
        let mut last = [0; WORD_BYTES];
        last[..filled].copy_from_slice(&self.rest[..filled]);
        let state = step(self.state, last);
        DigestValue(step(state, self.length_bytes.to_le_bytes()))
    }
}

fn step(state: u64, word: [u8; WORD_BYTES]) -> u64 {
    let mixed = (state ^ u64::from_le_bytes(word)).wrapping_mul(MULTIPLIER);
    mixed.rotate_left(29) ^ mixed >> 17
}

impl fmt::Display for DigestValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for DigestValue {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: &[u8]) -> DigestValue {
        let mut digest = Digest::default();
        digest.update(bytes);
        digest.value()
    }

    #[test]
    fn the_cuts_do_not_matter() {
        let bytes: Vec<u8> = (0..1000_u32).map(|n| n.to_le_bytes()[0] ^ 0x5a).collect();
        for step in [1, 3, 7, 8, 9, 64] {
            let mut digest = Digest::default();
            bytes.chunks(step).for_each(|chunk| digest.update(chunk));
            assert_eq!((digest.length_bytes(), digest.value()), (1000, whole(&bytes)), "{step}");
        }
    }

    #[test]
    fn every_byte_and_the_length_count() {
        let bytes = [7_u8; 100];
        for at in 0..100 {
            let mut other = bytes;
            other[at] ^= 0x80;
            assert_ne!(whole(&other), whole(&bytes), "{at}");
        }
        assert_ne!(whole(&[0; 8]), whole(&[0; 9]));
        assert_eq!(whole(&bytes).to_string().parse(), Ok(whole(&bytes)));
    }
}
