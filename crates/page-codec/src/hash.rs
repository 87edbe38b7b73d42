//! The identity of a page's content, and the fast test for the content that most pages of a fresh guest have.

use sterna_model::{Page, PageHash, ZERO_PAGE};

use crate::lanes::{LANES, hash_side_by_side};

/// Bytes between two looks at whether a page can still be zero: enough for the loop in between to be vector code.
const ZERO_STRIDE_BYTES: usize = 256;

/// Fewer pages are hashed one by one: each fills four lanes by itself.
const LEAST_LANES: usize = 5;

/// The secret that one move's page hashes are keyed with: 32 random bytes, agreed upon inside TLS.
///
/// The guest chooses its contents, but cannot aim at a collision under a key that it does not know.
#[derive(Clone, PartialEq, Eq)]
pub struct PageKey(pub [u8; 32]);

impl core::fmt::Debug for PageKey {
    /// Hides the key: what is logged is not secret any more.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("PageKey(..)")
    }
}

/// The identity of `page`: the first 16 bytes of its BLAKE3 under `key`, or [`PageHash::ZERO`] for the zero page.
#[must_use]
pub fn page_hash(key: &PageKey, page: &Page) -> PageHash {
    if is_zero(page) { PageHash::ZERO } else { nonzero_page_hash(key, page) }
}

/// The identities of pages, each as [`page_hash`] tells it; several at a time take a half to a third of the time.
///
/// Fills `hashes`, of which there are as many as pages, or more.
pub fn page_hashes(key: &PageKey, pages: &[Page], hashes: &mut [PageHash]) {
    let mut places = [0; LANES];
    let mut waiting = [&ZERO_PAGE; LANES];
    let mut count = 0;
    for (at, page) in pages.iter().enumerate() {
        if is_zero(page) {
            hashes[at] = PageHash::ZERO;
            continue;
        }
        (places[count], waiting[count]) = (at, page);
        count += 1;
        if count == LANES {
            hash_some(key, &waiting, &places, hashes);
            count = 0;
        }
    }
    hash_some(key, &waiting[..count], &places, hashes);
}

/// Of pages that are not zero, with their places among the hashes.
fn hash_some(key: &PageKey, pages: &[&Page], places: &[usize], hashes: &mut [PageHash]) {
    if pages.len() < LEAST_LANES {
        for (page, place) in pages.iter().zip(places) {
            hashes[*place] = nonzero_page_hash(key, page);
        }
        return;
    }
    hash_side_by_side(key, pages, |at, first| hashes[places[at]] = set_aside(PageHash(first)));
}

/// The identity of a page that is known not to be zero.
fn nonzero_page_hash(key: &PageKey, page: &Page) -> PageHash {
    let digest = blake3::keyed_hash(&key.0, page);
    let mut first = [0; 16];
    first.copy_from_slice(&digest.as_bytes()[..16]);
    set_aside(PageHash(first))
}

/// Whether every byte of `page` is zero. Most other pages are told by their first bytes.
#[must_use]
pub fn is_zero(page: &Page) -> bool {
    page.chunks_exact(ZERO_STRIDE_BYTES).all(|part| {
        let (words, _) = part.as_chunks::<8>();
        words.iter().fold(0, |all, word| all | u64::from_ne_bytes(*word)) == 0
    })
}

/// [`PageHash::ZERO`] means the zero page and [`PageHash::ABSENT`] no content yet; a content that hashes to one of them
/// by chance is called its neighbour instead.
fn set_aside(hash: PageHash) -> PageHash {
    match hash {
        PageHash::ZERO => PageHash::from_u128(1),
        PageHash::ABSENT => PageHash::from_u128(u128::MAX - 1),
        hash => hash,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::vec;
    use std::vec::Vec;
    use sterna_model::PAGE_BYTES;

    const KEY: PageKey = PageKey([7; 32]);

    #[test]
    fn one_bit_anywhere_is_not_zero() {
        assert!(is_zero(&ZERO_PAGE));
        for at in 0..PAGE_BYTES {
            let mut page = ZERO_PAGE;
            page[at] = 0x80;
            assert!(!is_zero(&page), "{at}");
        }
    }

    #[test]
    fn many_hash_as_each_does() {
        for count in 0..3 * LANES {
            let mut pages = vec![ZERO_PAGE; count];
            for (page, number) in pages.iter_mut().zip(1_u8..) {
                // Zero pages stand between the others.
                page[usize::from(number)] = number % 3;
            }
            let mut hashes = vec![PageHash::ABSENT; count];
            page_hashes(&KEY, &pages, &mut hashes);
            let each: Vec<_> = pages.iter().map(|page| page_hash(&KEY, page)).collect();
            assert_eq!(hashes, each);
        }
    }

    #[test]
    fn hashes_depend_on_key_and_content_and_zero_is_fixed() {
        let mut page = ZERO_PAGE;
        assert_eq!(page_hash(&KEY, &page), PageHash::ZERO);
        assert_eq!(page_hash(&PageKey([8; 32]), &page), PageHash::ZERO);
        page[4095] = 1;
        let hash = page_hash(&KEY, &page);
        assert_ne!(hash, PageHash::ZERO);
        assert_eq!(hash.0, blake3::keyed_hash(&[7; 32], &page).as_bytes()[..16]);
        assert_ne!(hash, page_hash(&PageKey([8; 32]), &page));
        assert_eq!(set_aside(hash), hash);
        assert_eq!(set_aside(PageHash::ZERO), PageHash::from_u128(1));
        assert_eq!(set_aside(PageHash::ABSENT), PageHash::from_u128(u128::MAX - 1));
    }
}
