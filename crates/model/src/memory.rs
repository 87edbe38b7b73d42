//! A page, the identity of its content, and the identity of all contents together.

use core::fmt;

use crate::PageId;

/// Bytes in a page. QEMU's stream uses the target's page size, 4096 on every machine that Sterna moves.
pub const PAGE_BYTES: usize = 4096;

/// The content of one page.
pub type Page = [u8; PAGE_BYTES];

/// The content of a page that nobody wrote.
pub static ZERO_PAGE: Page = [0; PAGE_BYTES];

/// The identity of a page's content: the first 16 bytes of a keyed BLAKE3 (the key belongs to one job).
///
/// [`PageHash::ZERO`] is set aside for the zero page, so that both ends agree on it without hashing, and
/// [`PageHash::ABSENT`] for a page whose content is not at the destination yet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageHash(pub [u8; 16]);

impl PageHash {
    /// The identity of the zero page, by definition.
    pub const ZERO: Self = Self([0; 16]);

    /// Stands for a content that follows in post-copy. No content hashes to it.
    pub const ABSENT: Self = Self([0xff; 16]);

    /// The hash as one number.
    #[must_use]
    pub const fn to_u128(self) -> u128 {
        u128::from_le_bytes(self.0)
    }

    /// The hash whose number this is.
    #[must_use]
    pub const fn from_u128(number: u128) -> Self {
        Self(number.to_le_bytes())
    }
}

impl fmt::Debug for PageHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.to_u128())
    }
}

/// The identity of a whole memory: the sum over all pages of `hash * (2 * page + 1)`, modulo 2^128.
///
/// A sum can be kept up to date page by page, on several threads and in any order, so comparing two memories at the
/// switchover costs nothing that grows with the guest. The factor ties a content to its place: exchanging the contents
/// of two pages changes the root. It finds mistakes, not forgeries: the page hashes are keyed and travel inside TLS.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Root(u128);

impl Root {
    /// The root of a memory that is zero everywhere.
    pub const ZERO_MEMORY: Self = Self(0);

    /// Accounts for `page` changing from content `old` to content `new`.
    pub fn replace(&mut self, page: PageId, old: PageHash, new: PageHash) {
        let weight = u128::from(page.0) * 2 + 1;
        let change = new.to_u128().wrapping_sub(old.to_u128());
        self.0 = self.0.wrapping_add(change.wrapping_mul(weight));
    }

    /// Adds what another thread accounted for, starting from [`Root::ZERO_MEMORY`].
    pub fn add(&mut self, other: Self) {
        self.0 = self.0.wrapping_add(other.0);
    }

    /// The root as bytes, for the wire.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }

    /// The root that these bytes stand for.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PageHash = PageHash::from_u128(0x1234_5678_9abc_def0_1111);
    const B: PageHash = PageHash::from_u128(77);

    #[test]
    fn root_does_not_depend_on_the_order_of_writes() {
        let mut one = Root::ZERO_MEMORY;
        one.replace(PageId(3), PageHash::ZERO, A);
        one.replace(PageId(9), PageHash::ZERO, B);
        one.replace(PageId(3), A, B);
        let mut other = Root::ZERO_MEMORY;
        other.replace(PageId(3), PageHash::ZERO, B);
        let mut thread = Root::ZERO_MEMORY;
        thread.replace(PageId(9), PageHash::ZERO, B);
        other.add(thread);
        assert_eq!(one, other);
    }

    #[test]
    fn root_sees_two_pages_exchanged() {
        let mut one = Root::ZERO_MEMORY;
        one.replace(PageId(1), PageHash::ZERO, A);
        one.replace(PageId(2), PageHash::ZERO, B);
        let mut other = Root::ZERO_MEMORY;
        other.replace(PageId(1), PageHash::ZERO, B);
        other.replace(PageId(2), PageHash::ZERO, A);
        assert_ne!(one, other);
    }
}
