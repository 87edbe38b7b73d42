//! Which pages the slots of a bounded slab hold, and who has to leave when it is full.
//!
//! A map from page to slot by open addressing (linear probing, deletion by shifting back), at most half full, and
//! the clock algorithm over the slots. Pages that were dirtied again come first: a page that was not gets a slot only
//! while there are free ones. Among the hot, a newcomer displaces a page that was not used lately only at every
//! 64th attempt: a guest that cycles through more pages than there are slots would else displace every page just
//! before it comes round again, and the slab would never be of use.

use alloc::boxed::Box;
use alloc::vec;

use sterna_model::PageId;

const NONE: u32 = u32::MAX;
/// Slots that the clock's hand looks at before it gives up.
const SWEEP: usize = 32;
/// A hot page displaces another hot one at every so many attempts.
const PATIENCE: u32 = 64;

/// Whether a page is likely to change again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Heat {
    /// Not dirtied again so far.
    Cold,
    /// Dirtied again after a send.
    Hot,
}

/// A slot that a page was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Given {
    /// The slot's number.
    pub(crate) slot: usize,
    /// The page that had it before.
    pub(crate) displaced: Option<PageId>,
}

#[derive(Clone, Copy)]
struct Slot {
    page: u32,
    hot: bool,
    used: bool,
}

/// The holders of a slab's slots.
pub(crate) struct Slots {
    slots: Box<[Slot]>,
    /// Slot numbers by page, a power of two of them.
    index: Box<[u32]>,
    taken: usize,
    hand: usize,
    attempts: u32,
}

impl Slots {
    /// Bytes that each slot costs here, for budgets.
    pub(crate) const BYTES_PER_SLOT: usize = size_of::<Slot>() + 4 * size_of::<u32>();

    pub(crate) fn new(count: usize) -> Self {
        let index = (count * 2).next_power_of_two();
        Self {
            slots: vec![Slot { page: NONE, hot: false, used: false }; count].into(),
            index: vec![NONE; index].into(),
            taken: 0,
            hand: 0,
            attempts: 0,
        }
    }

    /// The slot that holds `page`, and marks it as used.
    pub(crate) fn find(&mut self, page: PageId) -> Option<usize> {
        let slot = self.index.get(self.place_of(page.0)).copied().filter(|slot| *slot != NONE)?;
        self.slots[slot as usize].used = true;
        Some(slot as usize)
    }

    /// A slot for `page`: the one that it has, a free one, or another page's.
    pub(crate) fn give(&mut self, page: PageId, heat: Heat) -> Option<Given> {
        let hot = heat == Heat::Hot;
        if let Some(slot) = self.find(page) {
            self.slots[slot].hot |= hot;
            return Some(Given { slot, displaced: None });
        }
        let slot = if self.taken < self.slots.len() {
            self.taken += 1;
            self.taken - 1
        } else if hot {
            self.victim()?
        } else {
            return None;
        };
        let before = self.slots[slot].page;
        if before != NONE {
            self.unlink(before);
        }
        self.slots[slot] = Slot { page: page.0, hot, used: false };
        let place = self.place_of(page.0);
        self.index[place] = u32::try_from(slot).unwrap_or(NONE);
        Some(Given { slot, displaced: (before != NONE).then_some(PageId(before)) })
    }

    /// A slot whose page may be displaced by a hot one.
    fn victim(&mut self) -> Option<usize> {
        self.attempts = self.attempts.wrapping_add(1);
        let may_displace_hot = self.attempts.is_multiple_of(PATIENCE);
        for _ in 0..SWEEP.min(self.slots.len()) {
            let at = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &mut self.slots[at];
            if !slot.hot || (may_displace_hot && !slot.used) {
                return Some(at);
            }
            // Only an attempt that may displace takes away second chances, else they would never last.
            slot.used &= !may_displace_hot;
        }
        None
    }

    /// Where `page` is in the index, or the free place where it belongs.
    fn place_of(&self, page: u32) -> usize {
        let mask = self.index.len() - 1;
        let mut place = self.home_of(page);
        while self.index[place] != NONE && self.slots[self.index[place] as usize].page != page {
            place = (place + 1) & mask;
        }
        place
    }

    fn home_of(&self, page: u32) -> usize {
        let mixed = page.wrapping_mul(0x9e37_79b1);
        (mixed ^ mixed >> 15) as usize & (self.index.len() - 1)
    }

    /// Takes `page` out of the index and closes the gap that it leaves.
    fn unlink(&mut self, page: u32) {
        let mask = self.index.len() - 1;
        let mut gap = self.place_of(page);
        let mut place = gap;
        self.index[gap] = NONE;
        loop {
            place = (place + 1) & mask;
            let slot = self.index[place];
            if slot == NONE {
                return;
            }
            let home = self.home_of(self.slots[slot as usize].page);
            if place.wrapping_sub(home) & mask >= place.wrapping_sub(gap) & mask {
                self.index.swap(gap, place);
                gap = place;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use proptest::prelude::*;

    #[test]
    fn cold_pages_get_free_slots_only() {
        let mut slots = Slots::new(2);
        assert_eq!(slots.give(PageId(5), Heat::Cold), Some(Given { slot: 0, displaced: None }));
        assert_eq!(slots.give(PageId(6), Heat::Hot), Some(Given { slot: 1, displaced: None }));
        assert_eq!(slots.give(PageId(7), Heat::Cold), None);
        let given = Given { slot: 0, displaced: Some(PageId(5)) };
        assert_eq!(slots.give(PageId(8), Heat::Hot), Some(given));
        assert_eq!(slots.find(PageId(5)), None);
        assert_eq!(slots.find(PageId(8)), Some(0));
    }

    #[test]
    fn no_slots_hold_nothing() {
        let mut slots = Slots::new(0);
        assert_eq!(slots.give(PageId(1), Heat::Hot), None);
        assert_eq!(slots.find(PageId(1)), None);
    }

    #[test]
    fn a_cycle_larger_than_the_slab_still_hits() {
        let mut slots = Slots::new(100);
        let mut hits = 0;
        for round in 0..20 {
            for page in 0..400 {
                let hit = slots.find(PageId(page)).is_some();
                hits += u32::from(hit && round >= 10);
                slots.give(PageId(page), Heat::Hot);
            }
        }
        assert!(hits > 800, "{hits} of at most 1000");
    }

    proptest! {
        #[test]
        fn the_map_agrees_with_a_model(
            count in 0_usize..20, gives in prop::collection::vec((0_u32..64, any::<bool>()), 0..400),
        ) {
            let mut slots = Slots::new(count);
            let mut model = BTreeMap::new();
            for (page, hot) in gives {
                let heat = if hot { Heat::Hot } else { Heat::Cold };
                if let Some(given) = slots.give(PageId(page), heat) {
                    if let Some(PageId(gone)) = given.displaced {
                        prop_assert_eq!(model.remove(&gone), Some(given.slot));
                    }
                    model.insert(page, given.slot);
                }
                for page in 0..64 {
                    prop_assert_eq!(slots.find(PageId(page)), model.get(&page).copied());
                }
            }
        }
    }
}
