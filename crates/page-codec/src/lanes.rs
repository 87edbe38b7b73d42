//! BLAKE3 of several pages side by side.
//!
//! A page has four chunks, so that one alone fills four lanes of a processor's vectors at most, of eight (AVX2) or sixteen
//! (AVX-512). Here a lane is a page: the first chunks of all pages, then the second ones, and so on up their trees. The result
//! is that of [`blake3::keyed_hash`], to the bit: a destination cannot tell which way its source took.
//!
//! The crate `blake3` has this for its own use ([`Platform::hash_many`]) and promises nothing about it; hence its exact version
//! in the workspace's manifest, and the tests below.

use blake3::IncrementCounter;
use blake3::platform::{Platform, words_from_le_bytes_32};
use sterna_model::{PAGE_BYTES, Page};

use crate::PageKey;

/// Pages that are hashed side by side at most: lanes of the widest vectors that there are.
pub(crate) const LANES: usize = 16;

const CHUNK_BYTES: usize = 1024;
const CHUNKS: usize = PAGE_BYTES / CHUNK_BYTES;
/// A chaining value.
const VALUE_BYTES: usize = 32;
/// Two of them, the children of a parent.
const PARENT_BYTES: usize = 2 * VALUE_BYTES;

// Domain flags of the BLAKE3 paper, section 2.2.
const CHUNK_START: u8 = 1 << 0;
const CHUNK_END: u8 = 1 << 1;
const PARENT: u8 = 1 << 2;
const ROOT: u8 = 1 << 3;
const KEYED_HASH: u8 = 1 << 4;

/// Calls `tell` with the place and the first 16 bytes of the keyed hash of each page, at most [`LANES`] of them.
pub(crate) fn hash_side_by_side(
    key: &PageKey,
    pages: &[&Page],
    mut tell: impl FnMut(usize, [u8; 16]),
) {
    let (platform, key) = (Platform::detect(), words_from_le_bytes_32(&key.0));
    let count = pages.len().min(LANES);
    let level = |inputs: &[&[u8; PARENT_BYTES]], flags: u8, out: &mut [u8]| {
        platform.hash_many(inputs, &key, 0, IncrementCounter::No, flags | KEYED_HASH, 0, 0, out);
    };

    // Of each chunk of a page, the values of all pages.
    let mut values = [[0; LANES * VALUE_BYTES]; CHUNKS];
    for ((number, values), start) in (0..).zip(&mut values).zip((0..).step_by(CHUNK_BYTES)) {
        let mut chunks = [&[0; CHUNK_BYTES]; LANES];
        for (chunk, page) in chunks.iter_mut().zip(pages) {
            if let Some(bytes) = page[start..].first_chunk() {
                *chunk = bytes;
            }
        }
        platform.hash_many(
            &chunks[..count],
            &key,
            number,
            IncrementCounter::No,
            KEYED_HASH,
            CHUNK_START,
            CHUNK_END,
            &mut values[..count * VALUE_BYTES],
        );
    }
    // The parents of the first two chunks and of the last two.
    let mut halves = [[0; LANES * VALUE_BYTES]; 2];
    for (half, children) in halves.iter_mut().zip(values.as_chunks::<2>().0) {
        let parents = parents_of(children);
        level(&core::array::from_fn::<_, LANES, _>(|at| &parents[at])[..count], PARENT, half);
    }
    // And theirs.
    let roots = parents_of(&halves);
    let mut digests = [0; LANES * VALUE_BYTES];
    let inputs = core::array::from_fn::<_, LANES, _>(|at| &roots[at]);
    level(&inputs[..count], PARENT | ROOT, &mut digests);
    for (at, digest) in digests.as_chunks::<VALUE_BYTES>().0.iter().take(count).enumerate() {
        if let Some(first) = digest.first_chunk() {
            tell(at, *first);
        }
    }
}

/// What each page's parent hashes: the values of its two children.
fn parents_of(children: &[[u8; LANES * VALUE_BYTES]; 2]) -> [[u8; PARENT_BYTES]; LANES] {
    let [left, right] = children;
    let mut parents = [[0; PARENT_BYTES]; LANES];
    let pairs = left.chunks_exact(VALUE_BYTES).zip(right.chunks_exact(VALUE_BYTES));
    for (parent, (left, right)) in parents.iter_mut().zip(pairs) {
        parent[..VALUE_BYTES].copy_from_slice(left);
        parent[VALUE_BYTES..].copy_from_slice(right);
    }
    parents
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;
    use std::boxed::Box;
    use std::vec::Vec;

    fn page(seed: u64) -> Box<Page> {
        let mut page = Box::new([0; PAGE_BYTES]);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).finalize_xof().fill(&mut page[..]);
        page
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn pages_side_by_side_hash_as_they_do_alone(
            key in any::<[u8; 32]>(), seeds in prop::collection::vec(any::<u64>(), 0..=LANES),
        ) {
            let pages: Vec<_> = seeds.iter().map(|seed| page(*seed)).collect();
            let borrowed: Vec<&Page> = pages.iter().map(|page| &**page).collect();
            let mut found = Vec::new();
            hash_side_by_side(&PageKey(key), &borrowed, |at, hash| found.push((at, hash)));
            let alone = |page: &&Page| blake3::keyed_hash(&key, &page[..]);
            let expected: Vec<_> = borrowed.iter().map(alone).enumerate().collect();
            prop_assert_eq!(found.len(), expected.len());
            for ((at, hash), (number, digest)) in found.iter().zip(&expected) {
                prop_assert_eq!((at, &hash[..]), (number, &digest.as_bytes()[..16]));
            }
        }
    }
}
