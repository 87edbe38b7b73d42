//! The sweep: walks all pages in slices of time and compares each with what it should be.
//!
//! A sweep runs in the background again and again. One that is asked for starts at page 0 after
//! the question, gets half of the time, and answers when it has seen every page. Once bad, always
//! bad: a later write may have repaired the page, so the count never goes back.

use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use crate::working_set::{BadPage, WorkingSet};

/// Bad pages that one sweep prints; the rest is only counted.
const PRINTED_BAD_PAGES: u64 = 4;

/// The walk over the pages and its books.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    next_page: usize,
    sequence_total: u64,
    printed: u64,
    completed: u64,
    bad_total: u64,
    first_bad: Option<BadPage>,
    answering: Vec<Sender<String>>,
    waiting: Vec<Sender<String>>,
    rests_until: Option<Instant>,
}

impl Sweep {
    /// Asks for a sweep of all pages from now on; the answer goes to `reply`.
    pub(crate) fn request(&mut self, reply: Sender<String>) {
        self.waiting.push(reply);
    }

    /// Bad pages seen since the start.
    pub(crate) fn bad_total(&self) -> u64 {
        self.bad_total
    }

    /// Sweeps completed since the start.
    pub(crate) fn completed(&self) -> u64 {
        self.completed
    }

    /// The share of time to give now, in percent.
    pub(crate) fn share_percent(&self, background_percent: u8) -> u8 {
        let is_asked = !self.answering.is_empty() || !self.waiting.is_empty();
        if is_asked { background_percent.max(50) } else { background_percent }
    }

    /// Checks pages for `slice`. A background sweep that is complete rests until `period` is over.
    pub(crate) fn run_slice(&mut self, set: &mut WorkingSet, slice: Duration, period: Duration) {
        let start = Instant::now();
        if self.answering.is_empty() && !self.waiting.is_empty() {
            self.answering = std::mem::take(&mut self.waiting);
            self.start_over();
        }
        if self.rests_until.is_some_and(|until| start < until) {
            return;
        }
        self.rests_until = None;
        while start.elapsed() < slice {
            for _ in 0..8 {
                if self.next_page == set.len() {
                    self.complete(set.len());
                    self.rests_until = Some(start + period);
                    return;
                }
                self.check_next(set);
            }
        }
    }

    /// Counts and prints a bad page, whoever found it.
    pub(crate) fn note_bad(&mut self, bad: BadPage) {
        self.bad_total += 1;
        self.first_bad.get_or_insert(bad);
        if self.printed < PRINTED_BAD_PAGES {
            self.printed += 1;
            println!("SWEEP BAD {bad}");
        }
    }

    fn check_next(&mut self, set: &mut WorkingSet) {
        match set.check(self.next_page) {
            Ok(sequence) => self.sequence_total += u64::from(sequence),
            Err(bad) => self.note_bad(bad),
        }
        self.next_page += 1;
    }

    fn complete(&mut self, pages: usize) {
        self.completed += 1;
        let (n, seq, bad) = (self.completed, self.sequence_total, self.bad_total);
        let counts = format!("n={n} pages={pages} seq={seq}");
        let answer = match self.first_bad {
            None => format!("OK {counts}"),
            Some(first) => format!("BAD {counts} bad={bad} first: {first}"),
        };
        println!("SWEEP {answer}");
        for reply in self.answering.drain(..) {
            // Whoever asked may have gone away.
            let _ = reply.send(answer.clone());
        }
        self.start_over();
    }

    fn start_over(&mut self) {
        self.next_page = 0;
        self.sequence_total = 0;
        self.printed = 0;
        self.rests_until = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::options::Options;

    #[test]
    fn a_request_sees_every_page_after_it() {
        let arguments = ["uniform".to_owned(), "size=1M".to_owned()];
        let mut set = WorkingSet::filled(&Options::parse(&arguments).unwrap());
        let mut sweep = Sweep::default();
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
        sweep.run_slice(&mut set, second, hour);
        assert_eq!(sweep.completed(), 1);
        sweep.run_slice(&mut set, second, hour);
        assert_eq!(sweep.completed(), 1, "a background sweep rests");
        set.write(0).unwrap();
        let (reply, answers) = mpsc::channel();
        sweep.request(reply);
        assert_eq!(sweep.share_percent(10), 50);
        sweep.run_slice(&mut set, second, hour);
        assert_eq!(answers.recv().unwrap(), "OK n=2 pages=256 seq=1");
        assert_eq!(sweep.share_percent(10), 10);
    }

    #[test]
    fn bad_stays_bad_after_the_page_was_repaired() {
        let arguments = ["uniform".to_owned(), "size=1M".to_owned()];
        let mut set = WorkingSet::filled(&Options::parse(&arguments).unwrap());
        let mut sweep = Sweep::default();
        let found = crate::page::Found::Zero;
        sweep.note_bad(BadPage { page: 5, expected: 2, found, at_bytes: 1 });
        let (reply, answers) = mpsc::channel();
        sweep.request(reply);
        sweep.run_slice(&mut set, Duration::from_secs(1), Duration::ZERO);
        let answer = answers.recv().unwrap();
        assert!(answer.starts_with("BAD n=1 pages=256 seq=0 bad=1 first: page=5 expected=2"));
    }
}
