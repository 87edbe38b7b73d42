//! The guest: memory whose pages are single numbers, and a program that writes them.
//!
//! Its writes are made up for when somebody looks, not one event each: a guest that writes for a minute beside a link that
//! is silent costs nothing. A content of 0 is the zero page. The devices' state is a counter that every write moves on.
//!
//! Pages may be absent (post-copy): the guest's write to one of them stops it, until the page is placed. It has one
//! processor, so one page at a time is waited for.

use std::collections::BTreeMap;
use std::time::Duration;

use sterna_model::{Instant, PageHash, PageId};

use crate::random::Random;

/// Writes that are made up at most between two looks: more would only write over each other.
const MAX_WRITES: u64 = 1024;

/// What is read where a page is absent: nothing that was ever anywhere.
const NOWHERE: u64 = u64::MAX;
/// The contents that a guest makes after a hand-over begin so far above those from before.
const FRESH_GAP: u64 = 1 << 32;

/// A guest's memory and devices, and its dirty pages as the hypervisor's log has them.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    /// Each page's content.
    pub memory: Vec<u64>,
    /// The devices' state.
    pub device: u64,
    dirty: Vec<bool>,
    fresh: u64,
    written_until: Instant,
    write_every: Duration,
    working_set: u32,
    random: Random,
    /// Pages that are not here; empty when none ever was absent.
    absent: Vec<bool>,
    /// How many these are.
    lacking: usize,
    /// The absent page that it waits for.
    waits_for: Option<PageId>,
    /// What it has written itself since pages were absent.
    own: BTreeMap<PageId, u64>,
}

impl Guest {
    /// A guest with random contents, a share of them zero.
    pub(crate) fn new(
        pages: u32,
        zero_percent: u64,
        write_every: Duration,
        working_set: u32,
        seed: u64,
    ) -> Self {
        let mut random = Random::new(seed);
        let memory: Vec<u64> = (1..=u64::from(pages))
            .map(|fresh| if random.below(100) < zero_percent { 0 } else { fresh })
            .collect();
        Self {
            dirty: vec![false; memory.len()],
            fresh: u64::from(pages),
            memory,
            device: 1,
            written_until: Instant::default(),
            write_every,
            working_set: working_set.clamp(1, pages),
            random,
            absent: Vec::new(),
            lacking: 0,
            waits_for: None,
            own: BTreeMap::new(),
        }
    }

    /// A guest's memory before anything has come.
    pub(crate) fn empty(pages: u32) -> Self {
        let mut guest = Self::new(pages, 100, Duration::MAX, 1, 0);
        guest.device = 0;
        guest
    }

    /// Lets it have run until now.
    pub(crate) fn run_until(&mut self, now: Instant) {
        let ran = now.since(self.written_until);
        let every = self.write_every.as_nanos().max(1);
        let writes = u64::try_from(ran.as_nanos() / every).unwrap_or(u64::MAX);
        if writes == 0 {
            return;
        }
        self.written_until = now;
        for _ in 0..writes.min(MAX_WRITES) {
            if self.waits_for.is_some() {
                return;
            }
            self.write();
        }
    }

    /// Goes on with another guest's program, with these pages absent.
    pub(crate) fn take_over(&mut self, from: &Self, absent: impl IntoIterator<Item = PageId>) {
        self.write_every = from.write_every;
        self.working_set = from.working_set;
        self.random = from.random.clone();
        self.fresh = from.fresh + FRESH_GAP;
        self.absent = vec![false; self.memory.len()];
        for page in absent {
            self.memory[page.index()] = NOWHERE;
            self.lacking += usize::from(!std::mem::replace(&mut self.absent[page.index()], true));
        }
    }

    /// A page arrives. `false` when it was not absent: it is overwritten all the same.
    pub(crate) fn place(&mut self, page: PageId, content: u64) -> bool {
        let Some(absent) = self.absent.get_mut(page.index()) else { return false };
        let was_absent = std::mem::take(absent);
        self.memory[page.index()] = content;
        self.lacking -= usize::from(was_absent);
        if self.waits_for == Some(page) {
            self.waits_for = None;
            self.write_to(page);
        }
        was_absent
    }

    /// Whether a page is absent.
    pub(crate) fn is_absent(&self, page: PageId) -> bool {
        self.absent.get(page.index()).copied().unwrap_or(false)
    }

    /// The pages that are absent.
    pub(crate) fn absent_pages(&self) -> impl Iterator<Item = PageId> {
        let numbered = (0..).map(PageId).zip(&self.absent);
        numbered.filter_map(|(page, absent)| absent.then_some(page))
    }

    /// How many pages are absent.
    pub(crate) const fn lacking(&self) -> usize {
        self.lacking
    }

    /// The absent page that it waits for.
    pub(crate) const fn waits_for(&self) -> Option<PageId> {
        self.waits_for
    }

    /// What it has written itself to a page since pages were absent.
    pub(crate) fn own(&self, page: PageId) -> Option<u64> {
        self.own.get(&page).copied()
    }

    /// The time between two of its writes.
    pub(crate) const fn write_every(&self) -> Duration {
        self.write_every
    }

    /// Lets it have stood until now.
    pub(crate) fn stand_until(&mut self, now: Instant) {
        self.written_until = now;
    }

    /// The log of dirty pages is taken, and begins anew.
    pub(crate) fn take_dirty(&mut self) -> Vec<PageId> {
        let numbered = (0..).map(PageId).zip(self.dirty.iter_mut());
        numbered.filter_map(|(page, dirty)| std::mem::take(dirty).then_some(page)).collect()
    }

    /// Pages in the log.
    pub(crate) fn dirty_pages(&self) -> usize {
        self.dirty.iter().filter(|dirty| **dirty).count()
    }

    /// A page's content.
    pub(crate) fn read(&self, page: PageId) -> u64 {
        self.memory.get(page.index()).copied().unwrap_or(0)
    }

    fn write(&mut self) {
        let anywhere = self.random.chance(20);
        let among = if anywhere { self.memory.len() as u64 } else { u64::from(self.working_set) };
        let page = PageId(u32::try_from(self.random.below(among)).unwrap_or(0));
        if self.is_absent(page) {
            self.waits_for = Some(page);
        } else {
            self.write_to(page);
        }
    }

    fn write_to(&mut self, page: PageId) {
        let before = self.read(page);
        self.fresh += 1;
        // Zeroed, written anew with the same, or with something that was never anywhere.
        let content = match self.random.below(10) {
            0 => 0,
            1 => before,
            _ => self.fresh,
        };
        self.memory[page.index()] = content;
        self.dirty[page.index()] = true;
        self.device += 1;
        if !self.absent.is_empty() {
            self.own.insert(page, content);
        }
    }
}

/// What an absent page counts as in a root: no content's hash.
pub(crate) fn hash_of_absent() -> PageHash {
    PageHash::from_u128(u128::MAX)
}

/// The hash of a content: no two contents share one, and zero has its own.
pub(crate) fn hash_of(content: u64) -> PageHash {
    let mixed = u128::from(content).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    PageHash::from_u128(mixed)
}
