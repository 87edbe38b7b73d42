//! What a guest has printed, put together from the files of all the hosts it was on.
//!
//! The guest prints as if it had never moved, so its log is the files' contents one after the
//! other: each host's file from where the guest arrived to where it left. A line that a move cuts
//! in two is whole again that way.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::command::wait_for;
use crate::{Error, Result};

/// Words that a healthy guest never prints.
const DAMAGE: [&str; 10] = [
    "SWEEP BAD",
    "DISK BAD",
    "LOAD REFUSED",
    "Kernel panic",
    "Oops",
    "BUG: ",
    "general protection fault",
    "segfault",
    "Call Trace:",
    "Buffer I/O error",
];
/// Lines that an error quotes.
const TAIL_LINES: usize = 12;

/// A point in a guest's log: bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(usize);

/// A `TICK` line: the guest's own clock and count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    /// Milliseconds on the guest's clock.
    pub time_ms: u64,
    /// Pages written since it started.
    pub writes: u64,
}

/// A guest's log over all its moves.
#[derive(Debug)]
pub struct GuestLog {
    /// What was printed on the hosts that it has left.
    past: String,
    left: Vec<(PathBuf, usize)>,
    current: PathBuf,
    /// Where in the current file the guest's stay there begins.
    from: usize,
}

impl GuestLog {
    /// The log of a guest that was started with its output to `file`.
    #[must_use]
    pub fn new(file: &Path) -> Self {
        Self { past: String::new(), left: Vec::new(), current: file.to_path_buf(), from: 0 }
    }

    /// The guest is on another host now, and prints to `file`. A file that it has printed to before
    /// must be longer, not begun anew.
    ///
    /// # Errors
    /// Output of an earlier stay is gone.
    pub fn moved_to(&mut self, file: &Path) -> Result<()> {
        let stay = self.current_text()?;
        self.left.push((self.current.clone(), self.from + stay.len()));
        self.past.push_str(&stay);
        file.clone_into(&mut self.current);
        let earlier = self.left.iter().rev().find(|(path, _)| path == file);
        self.from = earlier.map_or(0, |(_, length)| *length);
        self.check_earlier_files()
    }

    /// Where the log ends now.
    ///
    /// # Errors
    /// A file cannot be read, or the guest is damaged.
    pub fn mark(&self) -> Result<Mark> {
        Ok(Mark(self.text()?.len()))
    }

    /// Waits for a line with `words` after `since`; gives the line.
    ///
    /// # Errors
    /// It does not come in `limit`, or the guest says that it is damaged.
    pub fn wait_for_line(&self, words: &str, since: Mark, limit: Duration) -> Result<String> {
        self.wait_for_lines(words, 1, since, limit)
    }

    /// Waits for a whole sweep without a bad page that began after `since`: the second line that
    /// comes, since the first sweep may have been under way.
    ///
    /// # Errors
    /// As for [`Self::wait_for_line`].
    pub fn wait_for_sweep(&self, since: Mark, limit: Duration) -> Result<String> {
        self.wait_for_lines("SWEEP OK", 2, since, limit)
    }

    /// All ticks so far.
    ///
    /// # Errors
    /// Its clock or its count went back: the guest is an earlier one than it was.
    pub fn ticks(&self) -> Result<Vec<Tick>> {
        let text = self.text()?;
        // A line that is being written would have a shorter number.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let ticks: Vec<Tick> = whole.lines().filter_map(parse_tick).collect();
        for pair in ticks.windows(2) {
            if pair[1].time_ms <= pair[0].time_ms || pair[1].writes < pair[0].writes {
                let line = format!("time or writes went back from {:?} to {:?}", pair[0], pair[1]);
                return Err(Error::GuestDamaged { line, tail: tail(&text) });
            }
        }
        Ok(ticks)
    }

    /// The last tick.
    ///
    /// # Errors
    /// As for [`Self::ticks`], or there is none yet.
    pub fn last_tick(&self) -> Result<Tick> {
        let ticks = self.ticks()?;
        ticks.last().copied().ok_or_else(|| Error::unexpected("the guest's log", "a tick", "none"))
    }

    /// The last tick that it printed before its last move; none when it was not moved, or printed none.
    ///
    /// # Errors
    /// As for [`Self::mark`].
    pub fn last_tick_before_move(&self) -> Result<Option<Tick>> {
        self.text()?;
        let whole = self.past.rfind('\n').map_or("", |end| &self.past[..end]);
        Ok(whole.lines().rev().find_map(parse_tick))
    }

    /// Complete sweeps without a bad page so far.
    ///
    /// # Errors
    /// As for [`Self::mark`].
    pub fn sweeps(&self) -> Result<usize> {
        Ok(self.text()?.matches("SWEEP OK").count())
    }

    /// The whole log.
    ///
    /// # Errors
    /// A file cannot be read, the guest is damaged, or a file that it has left grows: two copies run.
    pub fn text(&self) -> Result<String> {
        self.check_earlier_files()?;
        let text = format!("{}{}", self.past, self.current_text()?);
        let damage = text.lines().find(|line| DAMAGE.iter().any(|words| line.contains(words)));
        match damage {
            Some(line) => Err(Error::GuestDamaged { line: line.to_owned(), tail: tail(&text) }),
            None => Ok(text),
        }
    }

    fn wait_for_lines(
        &self,
        words: &str,
        count: usize,
        since: Mark,
        limit: Duration,
    ) -> Result<String> {
        let found = wait_for(words, limit, || {
            let text = self.text()?;
            let rest = text.get(since.0..).unwrap_or_default();
            // The last line may not be complete yet.
            let complete = rest.rsplit_once('\n').map_or("", |(complete, _)| complete);
            let mut lines = complete.lines().filter(|line| line.contains(words));
            Ok(lines.nth(count - 1).map(str::to_owned))
        });
        found.map_err(|error| match error {
            Error::TimedOut { what, after, .. } => {
                let seen = self.text().map_or_else(|error| error.to_string(), |text| tail(&text));
                Error::TimedOut { what: format!("{what} in the guest's log"), after, seen }
            }
            other => other,
        })
    }

    fn current_text(&self) -> Result<String> {
        let bytes = read(&self.current)?;
        let stay = bytes.get(self.from..).ok_or_else(|| overwritten(&self.current))?;
        // Serial output is ASCII; anything else is one character for each byte, so that lengths agree.
        Ok(stay.iter().map(|byte| if byte.is_ascii() { char::from(*byte) } else { '?' }).collect())
    }

    fn check_earlier_files(&self) -> Result<()> {
        for (path, length) in &self.left {
            let now = read(path)?.len();
            if now < *length {
                return Err(overwritten(path));
            }
            if now > *length && *path != self.current {
                let line = format!("a second copy prints to {}", path.display());
                return Err(Error::GuestDamaged { line, tail: String::new() });
            }
        }
        Ok(())
    }
}

fn overwritten(path: &Path) -> Error {
    let what = format!("the serial file {}", path.display());
    Error::unexpected(what, "the output of the guest's earlier stay", "it was overwritten")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Error::io(format!("reading {}", path.display())))
}

fn parse_tick(line: &str) -> Option<Tick> {
    let rest = line.strip_prefix("TICK ")?;
    let value = |key: &str| {
        rest.split_whitespace().find_map(|word| word.strip_prefix(key)?.parse::<u64>().ok())
    };
    Some(Tick { time_ms: value("t=")?, writes: value("writes=")? })
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(30);

    struct Files(PathBuf);

    impl Files {
        fn new(name: &str) -> Self {
            let name = format!("sterna-e2e.log-{name}-{}", std::process::id());
            let folder = std::env::temp_dir().join(name);
            fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, text).unwrap();
            path
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_line_cut_by_a_move_is_whole_again() {
        let files = Files::new("cut");
        let mut log = GuestLog::new(&files.write("a", "TICK t=1 writes=1\r\nTICK t=2 wri"));
        log.moved_to(&files.write("b", "tes=7\r\nTICK t=3 writes=1")).unwrap();
        // The last line is still being written: its count may be 1, or 12.
        assert_eq!(log.ticks().unwrap().last(), Some(&Tick { time_ms: 2, writes: 7 }));
        let before = log.last_tick_before_move().unwrap();
        assert_eq!(before, Some(Tick { time_ms: 1, writes: 1 }), "whole when it left");
    }

    #[test]
    fn a_file_that_is_used_again_goes_on_where_it_ended() {
        let files = Files::new("again");
        let a = files.write("a", "one\n");
        let mut log = GuestLog::new(&a);
        log.moved_to(&files.write("b", "two\n")).unwrap();
        files.write("a", "one\nthree\n");
        log.moved_to(&a).unwrap();
        assert_eq!(log.text().unwrap(), "one\ntwo\nthree\n");
    }

    #[test]
    fn a_second_copy_is_noticed() {
        let files = Files::new("two");
        let a = files.write("a", "one\n");
        let mut log = GuestLog::new(&a);
        log.moved_to(&files.write("b", "two\n")).unwrap();
        assert!(log.mark().is_ok());
        files.write("a", "one\ntwo\n");
        let error = log.mark().unwrap_err();
        assert!(error.to_string().contains("second copy"), "{error}");
    }

    #[test]
    fn an_overwritten_file_is_an_error() {
        let files = Files::new("over");
        let a = files.write("a", "one\n");
        let mut log = GuestLog::new(&a);
        log.moved_to(&files.write("b", "two\n")).unwrap();
        files.write("a", "");
        let error = log.moved_to(&a).unwrap_err();
        assert!(error.to_string().contains("overwritten"), "{error}");
    }

    #[test]
    fn a_sweep_that_was_under_way_does_not_count() {
        let files = Files::new("sweep");
        let mut text = "SWEEP OK n=1\n".to_owned();
        let path = files.write("a", &text);
        let log = GuestLog::new(&path);
        let mark = log.mark().unwrap();
        text += "SWEEP OK n=2\nSWEEP OK n=";
        files.write("a", &text);
        assert!(log.wait_for_sweep(mark, SHORT).is_err(), "only one is complete after the mark");
        files.write("a", &(text + "3\n"));
        assert_eq!(log.wait_for_sweep(mark, SHORT).unwrap(), "SWEEP OK n=3");
    }

    #[test]
    fn damage_is_noticed_by_every_look() {
        let files = Files::new("bad");
        for line in ["SWEEP BAD page=1 expected=2", "[    2.1] Kernel panic - not syncing"] {
            let log = GuestLog::new(&files.write("a", &format!("TICK t=1 writes=1\n{line}\n")));
            assert!(matches!(log.mark(), Err(Error::GuestDamaged { .. })), "{line}");
            assert!(log.ticks().is_err() && log.wait_for_line("TICK", Mark(0), SHORT).is_err());
        }
    }

    #[test]
    fn a_clock_that_goes_back_is_damage() {
        let files = Files::new("back");
        let log = GuestLog::new(&files.write("a", "TICK t=5 writes=9\nTICK t=4 writes=9\n"));
        assert!(matches!(log.ticks(), Err(Error::GuestDamaged { .. })));
    }
}
