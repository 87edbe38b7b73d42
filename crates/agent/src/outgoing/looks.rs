//! Whether it pays to look at stale pages before they are marked to follow in post-copy.
//!
//! With the guest stopped, a look at a page (reading and hashing it, 0.7 us on two processors) finds the pages that are what
//! the destination has all the same, or zero: they need not follow. That is downtime, where a page that follows in vain takes
//! the link's time while the guest runs. So a sample is looked at; where few of it need not follow, the rest is marked
//! unseen, but for a batch now and then, since places differ.

/// So many have to be looked at before they tell anything.
const SAMPLE: u32 = 512;
/// Looks pay where at least one page of so many need not follow. Without them the push takes at most so much longer.
const PAYS_FROM_ONE_OF: u32 = 16;
/// One batch of so many is looked at all the same.
const PROBE_EVERY: u32 = 8;

/// What a worker's looks have found in this stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Looks {
    looked: u32,
    needless: u32,
    batches: u32,
}

impl Looks {
    /// Whether the pages of the next batch are looked at.
    pub(super) fn pay(&mut self) -> bool {
        self.batches = self.batches.wrapping_add(1);
        self.looked < SAMPLE
            || self.needless.saturating_mul(PAYS_FROM_ONE_OF) >= self.looked
            || self.batches.is_multiple_of(PROBE_EVERY)
    }

    /// A page was looked at; `needless`: it need not follow.
    pub(super) fn note(&mut self, needless: bool) {
        self.looked += 1;
        self.needless += u32::from(needless);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCH: u32 = 64;

    /// Looks at a guest's pages batch by batch; tells how many batches of the last hundred were looked at.
    fn looked_at(needless: impl Fn(u32) -> bool) -> usize {
        let mut looks = Looks::default();
        let batches: Vec<bool> = (0..200)
            .map(|batch| {
                let pays = looks.pay();
                if pays {
                    (0..BATCH).for_each(|page| looks.note(needless(batch * BATCH + page)));
                }
                pays
            })
            .collect();
        assert!(batches[..8].iter().all(|looked| *looked), "a sample comes first");
        batches[100..].iter().filter(|looked| **looked).count()
    }

    #[test]
    fn pages_that_all_changed_are_marked_unseen_but_for_probes() {
        assert_eq!(looked_at(|_| false), 13);
        assert_eq!(looked_at(|page| page % 40 == 0), 13);
    }

    #[test]
    fn where_some_need_not_follow_all_are_looked_at() {
        assert_eq!(looked_at(|page| page % 10 == 0), 100);
        assert_eq!(looked_at(|_| true), 100);
    }

    #[test]
    fn a_place_that_is_different_is_found() {
        assert!(looked_at(|page| page / BATCH > 60) > 80);
    }
}
