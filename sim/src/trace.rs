//! What happened in a run, line by line: to be read by people, and to be compared by the replay test.

use std::fmt;

use sterna_model::Instant;

/// Whether lines are kept. Millions of runs are not read by anybody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recording {
    /// No line is even put together.
    #[default]
    Off,
    /// All lines.
    On,
}

/// The lines of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    recording: Recording,
    lines: Vec<(Instant, String)>,
}

impl Trace {
    /// An empty trace.
    #[must_use]
    pub const fn new(recording: Recording) -> Self {
        Self { recording, lines: Vec::new() }
    }

    /// Its lines, with their time.
    #[must_use]
    pub fn lines(&self) -> &[(Instant, String)] {
        &self.lines
    }

    pub(crate) fn note(&mut self, now: Instant, line: impl FnOnce() -> String) {
        if self.recording == Recording::On {
            self.lines.push((now, line()));
        }
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, line) in &self.lines {
            let micros = at.nanos / 1000;
            writeln!(f, "{:>6}.{:06} {line}", micros / 1_000_000, micros % 1_000_000)?;
        }
        Ok(())
    }
}
