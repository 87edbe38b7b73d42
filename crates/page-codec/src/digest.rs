//! Short keyed digests of a page's chunks: enough to see which chunks changed when the old content is not kept.
//!
//! The function is NH of UMAC: the sum over pairs of 32-bit words of `(word + key) * (word + key)`, modulo 2^64, here
//! folded to 32 bits. It is universal: two different chunks chosen without knowledge of the key collide with a
//! probability of about 2^-32, and it runs as vector code. The guest chooses the contents, hence the key. A collision
//! makes a delta that lacks a chunk: the page's hash at the destination then differs, and it asks for the page.

use sterna_model::Page;

use crate::PageKey;
use crate::runs::{CHUNK_BYTES, CHUNKS};

/// The digests of all chunks of a page.
pub(crate) type Digests = [u32; CHUNKS];

const WORDS: usize = CHUNK_BYTES / 4;

/// The key of the digests, derived from the key of the page hashes.
#[derive(Clone)]
pub(crate) struct DigestKey {
    words: [u32; WORDS],
    fold: u64,
}

impl DigestKey {
    pub(crate) fn new(key: &PageKey) -> Self {
        let mut bytes = [0; WORDS * 4 + 8];
        let mut hasher = blake3::Hasher::new_keyed(&key.0);
        hasher.update(b"sterna chunk digest 1").finalize_xof().fill(&mut bytes);
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        let fold = bytes.last_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        // Odd, so that folding loses nothing before its upper half is taken.
        Self { words, fold: fold | 1 }
    }

    /// The digests of `page`.
    pub(crate) fn digests(&self, page: &Page) -> Digests {
        let mut digests = [0; CHUNKS];
        for (digest, chunk) in digests.iter_mut().zip(page.as_chunks::<CHUNK_BYTES>().0) {
            *digest = self.digest(chunk);
        }
        digests
    }

    fn digest(&self, chunk: &[u8; CHUNK_BYTES]) -> u32 {
        let words = chunk.as_chunks::<4>().0;
        let mut sum = 0_u64;
        // Partners are half a chunk apart: that suits vector registers better than neighbours.
        for at in 0..WORDS / 2 {
            let one = u32::from_le_bytes(words[at]).wrapping_add(self.words[at]);
            let other =
                u32::from_le_bytes(words[at + WORDS / 2]).wrapping_add(self.words[at + WORDS / 2]);
            sum = sum.wrapping_add(u64::from(one) * u64::from(other));
        }
        let folded = sum.wrapping_mul(self.fold) >> 32;
        u32::try_from(folded).unwrap_or(0)
    }
}

/// The chunks that differ, one bit each.
pub(crate) fn changed_chunks(old: &Digests, new: &Digests) -> u64 {
    let differs = old.iter().zip(new).map(|(old, new)| u64::from(old != new));
    differs.enumerate().fold(0, |changed, (at, differs)| changed | differs << at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_model::{PAGE_BYTES, ZERO_PAGE};

    #[test]
    fn every_byte_counts_in_its_chunk_only() {
        let key = DigestKey::new(&PageKey([3; 32]));
        let old = [0x5a; PAGE_BYTES];
        let before = key.digests(&old);
        for at in 0..PAGE_BYTES {
            let mut new = old;
            new[at] ^= 1;
            assert_eq!(
                changed_chunks(&before, &key.digests(&new)),
                1 << (at / CHUNK_BYTES),
                "{at}"
            );
        }
    }

    #[test]
    fn digests_depend_on_the_key_and_the_order() {
        let one = DigestKey::new(&PageKey([3; 32])).digests(&ZERO_PAGE);
        assert_ne!(one, DigestKey::new(&PageKey([4; 32])).digests(&ZERO_PAGE));
        let key = DigestKey::new(&PageKey([3; 32]));
        let (mut ab, mut ba) = (ZERO_PAGE, ZERO_PAGE);
        (ab[0], ab[4]) = (1, 2);
        (ba[0], ba[4]) = (2, 1);
        assert_eq!(changed_chunks(&key.digests(&ab), &key.digests(&ba)), 1);
    }
}
