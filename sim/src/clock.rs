//! Virtual time: what will happen, in order. Two things at the same instant happen in the order in which they were put in.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

use sterna_model::Instant;

/// The time, and what is to come.
#[derive(Debug)]
pub(crate) struct Clock<E> {
    now: Instant,
    entries: u64,
    coming: BinaryHeap<Reverse<Entry<E>>>,
}

#[derive(Debug)]
struct Entry<E> {
    at: Instant,
    number: u64,
    what: E,
}

impl<E> Default for Clock<E> {
    fn default() -> Self {
        Self { now: Instant::default(), entries: 0, coming: BinaryHeap::new() }
    }
}

impl<E> Clock<E> {
    /// The time.
    pub(crate) const fn now(&self) -> Instant {
        self.now
    }

    /// Lets something happen at a time; what lies in the past happens now.
    pub(crate) fn at(&mut self, at: Instant, what: E) {
        self.entries += 1;
        self.coming.push(Reverse(Entry { at: at.max(self.now), number: self.entries, what }));
    }

    /// Lets something happen so much later.
    pub(crate) fn after(&mut self, time: Duration, what: E) {
        self.at(self.now.after(time), what);
    }

    /// Goes on to what happens next.
    pub(crate) fn next(&mut self) -> Option<E> {
        let Reverse(entry) = self.coming.pop()?;
        self.now = entry.at;
        Some(entry.what)
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}
