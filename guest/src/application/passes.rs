//! The books of an application's passes: what a sweep is to the other loads.
//!
//! A pass plays a piece to its end, makes a script of edits and compares what was saved, or reads
//! every value once. One that is asked for begins after the question. Once bad, always bad.

use std::fmt;
use std::sync::mpsc::Sender;

/// Bad things that are printed between two passes; the rest is only counted.
const PRINTED: u64 = 4;

/// A pass that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pass {
    /// Units of work in it.
    pub(super) units: u64,
    /// What was wrong, if anything was.
    pub(super) bad: Option<String>,
}

/// All passes so far.
#[derive(Debug, Default)]
pub(super) struct Passes {
    completed: u64,
    bad_total: u64,
    first_bad: Option<String>,
    printed: u64,
    /// To be answered by the pass that is under way: it began after the question.
    answering: Vec<Sender<String>>,
    waiting: Vec<Sender<String>>,
}

impl Passes {
    /// Asks for a pass that begins from now on; the answer goes to `reply`.
    pub(super) fn request(&mut self, reply: Sender<String>) {
        self.waiting.push(reply);
    }

    /// Counts and prints something that is not as it should be.
    pub(super) fn note_bad(&mut self, words: String) {
        self.bad_total += 1;
        if self.printed < PRINTED {
            self.printed += 1;
            println!("SWEEP BAD {words}");
        }
        self.first_bad.get_or_insert(words);
    }

    /// Takes note of a pass; gives what is to be said of it, with the units of work so far.
    pub(super) fn complete(&mut self, pass: Pass, work: u64) -> String {
        self.completed += 1;
        if let Some(words) = pass.bad {
            self.note_bad(words);
        }
        self.printed = 0;
        let counts = format!("n={} pages={} seq={work}", self.completed, pass.units);
        let answer = match &self.first_bad {
            None => format!("OK {counts}"),
            Some(first) => format!("BAD {counts} bad={} first: {first}", self.bad_total),
        };
        for reply in self.answering.drain(..) {
            // Whoever asked may have gone away.
            let _ = reply.send(answer.clone());
        }
        self.answering = std::mem::take(&mut self.waiting);
        answer
    }
}

impl fmt::Display for Passes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sweeps={} bad={}", self.completed, self.bad_total)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn good(units: u64) -> Pass {
        Pass { units, bad: None }
    }

    #[test]
    fn a_request_is_answered_by_a_pass_that_began_after_it() {
        let mut passes = Passes::default();
        let (reply, answers) = mpsc::channel();
        passes.request(reply);
        passes.complete(good(7), 7);
        assert!(answers.try_recv().is_err());
        passes.complete(good(8), 15);
        assert_eq!(answers.try_recv().unwrap(), "OK n=2 pages=8 seq=15");
    }

    #[test]
    fn bad_stays_bad() {
        let mut passes = Passes::default();
        let bad = Pass { units: 3, bad: Some("piece=1".to_owned()) };
        assert_eq!(passes.complete(bad, 3), "BAD n=1 pages=3 seq=3 bad=1 first: piece=1");
        assert!(passes.complete(good(3), 6).starts_with("BAD n=2 "));
        assert_eq!(passes.to_string(), "sweeps=2 bad=1");
    }
}
