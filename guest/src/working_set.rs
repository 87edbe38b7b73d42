//! The pages under load and, apart from them, the table of the sequence that each should have.
//!
//! The table lives in pages that migrate too: if one of them is lost or stale, the pages it speaks
//! of no longer agree with it, and that shows as well.

use std::hint::black_box;

use crate::options::{LoadKind, Options};
use crate::page::{Found, Page, PageFormat, Touch};

/// All pages of a load with what is expected of them.
pub(crate) struct WorkingSet {
    format: PageFormat,
    touch: Touch,
    pages: Vec<Page>,
    sequences: Vec<u32>,
    scratch: Box<Page>,
}

/// A page that is not what was last written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("page={page} expected={expected} found={} at={at_bytes}", describe(*found))]
pub(crate) struct BadPage {
    /// Index in the working set.
    pub(crate) page: usize,
    /// The sequence it was last written with.
    pub(crate) expected: u32,
    /// What is there instead.
    pub(crate) found: Found,
    /// Offset of the first wrong byte.
    pub(crate) at_bytes: usize,
}

impl WorkingSet {
    /// Allocates the pages and fills them with sequence 0.
    pub(crate) fn filled(options: &Options) -> Self {
        let touch = match options.load {
            LoadKind::Sparse => Touch::Word,
            _ => Touch::Whole,
        };
        let format = PageFormat::new(options.seed, options.shares, touch);
        let mut pages = vec![Page::ZERO; options.pages as usize];
        for (index, page) in (0..options.pages).zip(&mut pages) {
            format.generate(index, 0, page);
        }
        let sequences = vec![0; pages.len()];
        Self { format, touch, pages, sequences, scratch: Box::new(Page::ZERO) }
    }

    /// Number of pages.
    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    /// Gives the page its next sequence.
    ///
    /// # Errors
    /// The page was already bad: said before the write destroys the evidence.
    pub(crate) fn write(&mut self, page: usize) -> Result<(), BadPage> {
        let before = self.check_first_word(page);
        let index = index_of(page);
        let sequence = self.sequences[page].wrapping_add(1);
        self.sequences[page] = sequence;
        match self.touch {
            Touch::Whole => self.format.generate(index, sequence, &mut self.pages[page]),
            Touch::Word => {
                self.pages[page].set_first_word(self.format.first_word(index, sequence));
            }
        }
        before
    }

    /// Writes the content that the page should have already.
    ///
    /// # Errors
    /// As for [`Self::write`].
    pub(crate) fn rewrite(&mut self, page: usize) -> Result<(), BadPage> {
        let before = self.check_first_word(page);
        let sequence = self.sequences[page];
        self.format.generate(index_of(page), sequence, black_box(&mut self.pages[page]));
        before
    }

    /// Compares the whole page with its expected content; gives its sequence.
    ///
    /// # Errors
    /// The page differs.
    pub(crate) fn check(&mut self, page: usize) -> Result<u32, BadPage> {
        let expected = self.sequences[page];
        self.format.generate(index_of(page), expected, &mut self.scratch);
        let found = black_box(&self.pages[page]);
        if *found == *self.scratch {
            return Ok(expected);
        }
        let at_bytes = (found.0.iter().zip(&self.scratch.0)).take_while(|(a, b)| a == b).count();
        let found = self.format.identify(index_of(page), found);
        Err(BadPage { page, expected, found, at_bytes })
    }

    fn check_first_word(&self, page: usize) -> Result<(), BadPage> {
        let expected = self.sequences[page];
        let found = black_box(&self.pages[page]);
        if found.first_word() == self.format.first_word(index_of(page), expected) {
            return Ok(());
        }
        let found = self.format.identify(index_of(page), found);
        Err(BadPage { page, expected, found, at_bytes: 0 })
    }
}

/// The options allow at most 2^28 pages.
fn index_of(page: usize) -> u32 {
    u32::try_from(page).unwrap_or(u32::MAX)
}

fn describe(found: Found) -> String {
    match found {
        Found::Sequence(sequence) => sequence.to_string(),
        Found::Zero => "zero".to_owned(),
        Found::Pattern(pattern) => format!("pattern{pattern}"),
        Found::Foreign => "foreign".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(line: &str) -> WorkingSet {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        WorkingSet::filled(&Options::parse(&arguments).unwrap())
    }

    fn bad_pages(set: &mut WorkingSet) -> Vec<BadPage> {
        (0..set.len()).filter_map(|page| set.check(page).err()).collect()
    }

    #[test]
    fn written_pages_are_good_whatever_the_load() {
        for load in ["uniform", "hotset", "sparse", "rewrite"] {
            let mut set = set(&format!("{load} size=1M random=30 text=30 duplicate=30"));
            for page in (0..set.len()).chain(0..100) {
                set.write(page).unwrap();
                set.rewrite(page).unwrap();
            }
            assert_eq!(bad_pages(&mut set), [], "{load}");
            assert_eq!(set.check(0).unwrap(), 2);
        }
    }

    #[test]
    fn a_stale_page_shows_in_the_sweep_and_at_the_next_write() {
        for load in ["uniform", "sparse"] {
            let mut set = set(&format!("{load} size=1M random=30 text=30 duplicate=30"));
            for page in 0..set.len() {
                let stale = set.pages[page].clone();
                set.write(page).unwrap();
                set.pages[page] = stale;
                assert_eq!(set.check(page).unwrap_err().expected, 1);
                assert_eq!(set.write(page).unwrap_err().page, page);
                set.check(page).unwrap();
            }
        }
    }

    #[test]
    fn a_lost_page_and_a_flipped_bit_show() {
        let mut set = set("uniform size=1M");
        set.write(3).unwrap();
        set.pages[3] = Page::ZERO;
        set.pages[7].0[4095] ^= 1;
        let lost = BadPage { page: 3, expected: 1, found: Found::Zero, at_bytes: 3 };
        let flipped = BadPage { page: 7, expected: 0, found: Found::Sequence(0), at_bytes: 4095 };
        let found = bad_pages(&mut set);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].page, found[0].found), (lost.page, lost.found));
        assert_eq!(found[1], flipped);
    }

    #[test]
    fn a_lost_page_of_the_table_shows() {
        let mut set = set("sparse size=1M");
        (0..set.len()).for_each(|page| set.write(page).unwrap());
        set.sequences[10..20].fill(0);
        assert_eq!(bad_pages(&mut set).len(), 10);
    }
}
