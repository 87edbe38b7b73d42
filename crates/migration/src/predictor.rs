//! Which pages will change soon: learned from the dirty history, one byte a page.
//!
//! An epoch says of each page whether it was dirtied. A page's last eight epochs are its *context*; for each of the 256
//! contexts the predictor counts how often a page in it was dirtied in the next epoch:
//!
//! ```text
//! P(dirty in the next epoch | context) = (k + 1) / (n + 2)        k of n pages in this context were dirtied
//! hazard = -ln(1 - P), per epoch
//! ```
//!
//! All pages share the table, so that a page whose history was seen on others is known at once, and what is periodic or
//! comes in bursts is told from what is steady. The counts are halved now and then: a guest's habits change. This is a
//! reconstruction of the idea of probabilistic prediction of Tang et al. (CIT 2012), whose own formula was not at hand.

use alloc::boxed::Box;
use alloc::vec::Vec;

use sterna_model::PageId;

const CONTEXTS: usize = 256;
const WORD_PAGES: usize = 64;
/// Epochs after which what was learned counts half.
const HALF_LIFE_EPOCHS: u32 = 64;

/// See the module.
#[derive(Clone, Debug)]
pub struct Predictor {
    /// Of each page, the newest epoch in the lowest bit.
    histories: Box<[u8]>,
    /// Pages that were in a context at the begin of an epoch, and those of them that it dirtied.
    counts: Box<[Count; CONTEXTS]>,
    epochs: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    pages: u64,
    dirtied: u64,
}

/// Pages to be sent now, of those that are stale.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// A bit for each page, 64 in a word.
    pub pages: Vec<u64>,
    /// So many are chosen.
    pub count: u32,
    /// So many are stale and below the limit, chosen or not.
    pub eligible: u32,
}

impl Predictor {
    /// A predictor for so many pages that has seen nothing yet.
    #[must_use]
    pub fn new(pages: u32) -> Self {
        Self {
            histories: (0..pages).map(|_| 0).collect(),
            counts: Box::new([Count::default(); CONTEXTS]),
            epochs: 0,
        }
    }

    /// An epoch is over that dirtied these pages, a bit for each. What is missing at the end was not dirtied.
    pub fn learn(&mut self, dirtied: &[u64]) {
        let words = dirtied.iter().copied().chain(core::iter::repeat(0));
        for (histories, word) in self.histories.chunks_mut(WORD_PAGES).zip(words) {
            if word == 0 && histories.iter().all(|history| *history == 0) {
                self.counts[0].pages += histories.len() as u64;
                continue;
            }
            for (at, history) in histories.iter_mut().enumerate() {
                let bit = word >> at & 1;
                let count = &mut self.counts[usize::from(*history)];
                count.pages += 1;
                count.dirtied += bit;
                *history = *history << 1 | u8::from(bit == 1);
            }
        }
        self.epochs += 1;
        if self.epochs.is_multiple_of(HALF_LIFE_EPOCHS) {
            for count in self.counts.iter_mut() {
                count.pages /= 2;
                count.dirtied /= 2;
            }
        }
    }

    /// Epochs that were learned from.
    #[must_use]
    pub const fn epochs(&self) -> u32 {
        self.epochs
    }

    /// How likely the next epoch dirties this page, from 0 to 1, both excluded.
    #[must_use]
    pub fn chance(&self, page: PageId) -> f64 {
        let context = self.histories.get(page.index()).copied().unwrap_or_default();
        1.0 - self.counts[usize::from(context)].survival()
    }

    /// Chooses at most `window` of the stale pages, the coldest first, none whose hazard per epoch is `limit` or more.
    #[must_use]
    pub fn choose(&self, stale: &[u64], limit: f64, window: u32) -> Chosen {
        let mut waiting = [0_u32; CONTEXTS];
        self.each_stale(stale, |_, _, context| waiting[context] += 1);
        let quotas = self.quotas(&waiting, limit, window);
        let mut chosen =
            Chosen { pages: Vec::from_iter(stale.iter().map(|_| 0)), ..Chosen::default() };
        let hazards = self.hazards();
        let below = waiting.iter().zip(&hazards).filter(|(_, hazard)| **hazard < limit);
        chosen.eligible = below.map(|(pages, _)| *pages).sum();
        let mut left = quotas;
        self.each_stale(stale, |word, bit, context| {
            if left[context] > 0 {
                left[context] -= 1;
                chosen.pages[word] |= bit;
                chosen.count += 1;
            }
        });
        chosen
    }

    /// How many pages of each context may go.
    fn quotas(&self, waiting: &[u32; CONTEXTS], limit: f64, window: u32) -> [u32; CONTEXTS] {
        let hazards = self.hazards();
        let mut coldest: Vec<usize> =
            (0..CONTEXTS).filter(|at| waiting[*at] > 0 && hazards[*at] < limit).collect();
        coldest.sort_by(|one, other| hazards[*one].total_cmp(&hazards[*other]));
        let (mut quotas, mut left) = ([0; CONTEXTS], window);
        for context in coldest {
            quotas[context] = waiting[context].min(left);
            left -= quotas[context];
        }
        quotas
    }

    fn hazards(&self) -> [f64; CONTEXTS] {
        core::array::from_fn(|context| -ln(self.counts[context].survival()))
    }

    /// Calls with word, bit and context of each stale page.
    fn each_stale(&self, stale: &[u64], mut call: impl FnMut(usize, u64, usize)) {
        for (at, word) in stale.iter().enumerate() {
            let mut rest = *word;
            while rest != 0 {
                let bit = rest & rest.wrapping_neg();
                rest ^= bit;
                let page = at * WORD_PAGES + bit.trailing_zeros() as usize;
                if let Some(history) = self.histories.get(page) {
                    call(at, bit, usize::from(*history));
                }
            }
        }
    }
}

impl Count {
    /// `1 - (k + 1) / (n + 2)`.
    fn survival(self) -> f64 {
        let clean = as_f64(self.pages - self.dirtied.min(self.pages) + 1);
        clean / as_f64(self.pages + 2)
    }
}

/// As a number with a fraction.
#[allow(
    clippy::cast_precision_loss,
    reason = "a count of pages; beyond 2^53 the last digits do not matter"
)]
fn as_f64(number: u64) -> f64 {
    number as f64
}

/// The natural logarithm of a number above 0 that is no tiny one: `core` has none.
fn ln(number: f64) -> f64 {
    let (mut mantissa, mut doublings) = (number, 0.0);
    while mantissa < 0.75 {
        mantissa *= 2.0;
        doublings -= 1.0;
    }
    while mantissa > 1.5 {
        mantissa /= 2.0;
        doublings += 1.0;
    }
    // ln m = 2 artanh((m - 1) / (m + 1)), and the argument is at most 1/5 here.
    let ratio = (mantissa - 1.0) / (mantissa + 1.0);
    let square = ratio * ratio;
    let series = [9.0, 7.0, 5.0, 3.0].iter().fold(1.0 / 11.0, |sum, odd| sum * square + 1.0 / odd);
    2.0 * ratio * (1.0 + square * series) + doublings * core::f64::consts::LN_2
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    fn bits(pages: &[usize], words: usize) -> Vec<u64> {
        let mut bits = vec![0; words];
        pages.iter().for_each(|page| bits[page / 64] |= 1 << (page % 64));
        bits
    }

    #[test]
    fn a_steady_writer_is_told_from_idle_pages() {
        let mut predictor = Predictor::new(256);
        for _ in 0..20 {
            predictor.learn(&bits(&[1, 2, 100], 4));
        }
        assert!(predictor.chance(PageId(2)) > 0.9, "{}", predictor.chance(PageId(2)));
        assert!(predictor.chance(PageId(3)) < 0.01, "{}", predictor.chance(PageId(3)));
        let chosen = predictor.choose(&bits(&[1, 2, 3, 200], 4), 0.5, 100);
        assert_eq!((chosen.pages, chosen.count, chosen.eligible), (bits(&[3, 200], 4), 2, 2));
    }

    /// What a moving average cannot know: a page that is dirtied every other epoch is clean in the one after.
    #[test]
    fn a_periodic_page_is_known_by_its_phase() {
        let mut predictor = Predictor::new(640);
        let even: Vec<usize> = (0..640).step_by(10).collect();
        for epoch in 0..40 {
            predictor.learn(&bits(if epoch % 2 == 0 { &even } else { &[] }, 10));
        }
        assert!(predictor.chance(PageId(10)) > 0.8, "it is due");
        predictor.learn(&bits(&even, 10));
        assert!(predictor.chance(PageId(10)) < 0.2, "it was just dirtied");
    }

    #[test]
    fn the_window_takes_the_coldest_first() {
        let mut predictor = Predictor::new(64);
        for epoch in 0..32 {
            let busy: &[usize] = if epoch % 3 == 0 { &[5] } else { &[] };
            predictor.learn(&bits(busy, 1));
        }
        let chosen = predictor.choose(&bits(&[5, 9], 1), f64::INFINITY, 1);
        assert_eq!((chosen.pages, chosen.eligible), (bits(&[9], 1), 2));
    }

    #[test]
    fn habits_are_forgotten() {
        let mut predictor = Predictor::new(64);
        let all: Vec<usize> = (0..64).collect();
        for _ in 0..100 {
            predictor.learn(&bits(&all, 1));
        }
        for _ in 0..(HALF_LIFE_EPOCHS * 2) {
            predictor.learn(&[]);
        }
        assert!(predictor.chance(PageId(0)) < 0.05, "{}", predictor.chance(PageId(0)));
    }

    proptest! {
        #[test]
        fn the_logarithm_is_one(number in 1e-12_f64..1e12) {
            prop_assert!((ln(number) - number.ln()).abs() < 1e-7, "{number}");
        }

        #[test]
        fn only_stale_pages_are_chosen_and_never_too_many(
            pages in 1_u32..1000, stale: Vec<u64>, touched: Vec<Vec<u64>>, window in 0_u32..500, limit in 0.0_f64..3.0,
        ) {
            let mut predictor = Predictor::new(pages);
            touched.iter().for_each(|epoch| predictor.learn(epoch));
            let chosen = predictor.choose(&stale, limit, window);
            prop_assert_eq!(chosen.pages.len(), stale.len());
            prop_assert!(chosen.pages.iter().zip(&stale).all(|(chosen, stale)| chosen & !stale == 0));
            let count: u32 = chosen.pages.iter().map(|word| word.count_ones()).sum();
            prop_assert_eq!(count, chosen.count);
            prop_assert_eq!(chosen.count, chosen.eligible.min(window), "no place of the window stays empty");
            for page in 0..pages {
                let chance = predictor.chance(PageId(page));
                prop_assert!(chance > 0.0 && chance < 1.0);
            }
        }
    }
}
