//! The identity of a page's content, and the fast test for the content that most pages of a fresh guest have.

use sterna_model::{Page, PageHash};

/// Bytes between two looks at whether a page can still be zero: enough for the loop in between to be vector code.
const ZERO_STRIDE_BYTES: usize = 256;

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

/// The identity of a page that is known not to be zero.
pub(crate) fn nonzero_page_hash(key: &PageKey, page: &Page) -> PageHash {
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
    use super::*;
    use sterna_model::{PAGE_BYTES, ZERO_PAGE};

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
