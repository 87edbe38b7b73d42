//! A set of pages: one bit a page, for sets that one thread owns.

use alloc::vec;
use alloc::vec::Vec;

use crate::PageId;

/// A dense set of pages below a bound.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageSet {
    words: Vec<u64>,
    bound: u32,
    len: u32,
}

impl PageSet {
    /// The empty set of pages below `bound`.
    #[must_use]
    pub fn new(bound: u32) -> Self {
        Self { words: vec![0; (bound as usize).div_ceil(64)], bound, len: 0 }
    }

    /// Adds a page; tells whether it is new. Pages at or above the bound are not added.
    pub fn insert(&mut self, page: PageId) -> bool {
        let new = page.0 < self.bound && !self.contains(page);
        if new {
            self.words[page.index() / 64] |= 1 << (page.0 % 64);
            self.len += 1;
        }
        new
    }

    /// Takes a page out; tells whether it was there.
    pub fn remove(&mut self, page: PageId) -> bool {
        let there = self.contains(page);
        if there {
            self.words[page.index() / 64] &= !(1 << (page.0 % 64));
            self.len -= 1;
        }
        there
    }

    /// Whether the page is in the set.
    #[must_use]
    pub fn contains(&self, page: PageId) -> bool {
        page.0 < self.bound && self.words[page.index() / 64] >> (page.0 % 64) & 1 == 1
    }

    /// Pages in the set.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pages, ascending.
    pub fn iter(&self) -> impl Iterator<Item = PageId> + '_ {
        (0u32..).zip(&self.words).flat_map(|(number, word)| {
            let mut rest = *word;
            core::iter::from_fn(move || {
                let bit = rest.trailing_zeros();
                (rest != 0).then(|| {
                    rest &= rest - 1;
                    PageId(number * 64 + bit)
                })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_set() {
        let mut set = PageSet::new(130);
        for page in [129, 0, 64, 63, 64] {
            set.insert(PageId(page));
        }
        assert!(!set.insert(PageId(130)));
        assert_eq!(set.len(), 4);
        assert!(set.remove(PageId(63)) && !set.remove(PageId(63)));
        assert_eq!(set.iter().map(|page| page.0).collect::<Vec<_>>(), [0, 64, 129]);
    }
}
