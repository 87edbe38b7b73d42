//! Standard output for results, standard error for messages. Nobody reading the output any more (a closed pipe) is not
//! an error: what has begun goes on. An output that fails otherwise (a full disk) is one, but never hides the result.

use std::io::{self, Write};

use serde::Serialize;

use crate::args::Format;
use crate::failure::FAILED;

/// Where everything is printed.
#[derive(Debug)]
pub(crate) struct Console {
    format: Format,
    /// Why nothing more is printed on standard output.
    broken: Option<io::Error>,
}

impl Console {
    /// Prints results in that format.
    #[must_use]
    pub(crate) const fn new(format: Format) -> Self {
        Self { format, broken: None }
    }

    /// How results are printed.
    #[must_use]
    pub(crate) const fn format(&self) -> Format {
        self.format
    }

    /// Prints one result.
    pub(crate) fn value<T: Serialize + ?Sized>(
        &mut self,
        value: &T,
        text: impl FnOnce() -> String,
    ) {
        match self.format {
            Format::Text => self.text(&text()),
            Format::Json => self.json(serde_json::to_string_pretty(value)),
            Format::Jsonl => self.json(serde_json::to_string(value)),
        }
    }

    /// Prints a list: an array, or a line for each.
    pub(crate) fn list<T: Serialize>(&mut self, values: &[T], text: impl FnOnce() -> String) {
        match self.format {
            Format::Jsonl => {
                values.iter().for_each(|value| self.json(serde_json::to_string(value)))
            }
            Format::Text | Format::Json => self.value(values, text),
        }
    }

    /// Prints text on standard output. Control characters are shown, not obeyed: names and errors come from elsewhere.
    pub(crate) fn text(&mut self, text: &str) {
        self.print(&with_end(visible(text)));
    }

    /// Prints text on standard output as it is.
    pub(crate) fn print(&mut self, text: &str) {
        if self.broken.is_some() {
            return;
        }
        let mut stdout = io::stdout().lock();
        if let Err(error) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            self.broken = Some(error);
        }
    }

    /// Prints a message on standard error.
    #[expect(
        clippy::unused_self,
        reason = "messages belong to the console, even while they need no state"
    )]
    pub(crate) fn note(&self, message: &str) {
        // There is no third place to complain at.
        let _ = io::stderr().write_all(note(message).as_bytes());
    }

    /// Prints a line of progress on standard error.
    #[expect(clippy::unused_self, reason = "as for messages")]
    pub(crate) fn progress(&self, line: &str) {
        let _ = io::stderr().write_all(with_end(visible(line)).as_bytes());
    }

    /// Ends the output; returns the exit code, which is a failure if a result could not be printed.
    #[must_use]
    pub(crate) fn close(self, code: u8) -> u8 {
        match &self.broken {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                self.note(&format!(
                    "the result could not be printed: {error} (the exit code without that: {code})"
                ));
                code.max(FAILED)
            }
            _ => code,
        }
    }

    fn json(&mut self, text: serde_json::Result<String>) {
        match text {
            Ok(text) => self.print(&with_end(text)),
            Err(error) => self.broken = Some(io::Error::other(error)),
        }
    }
}

/// A message as it is printed.
#[must_use]
pub(crate) fn note(message: &str) -> String {
    with_end(format!("sterna: {}", visible(message)))
}

/// The text with control characters made visible, but for the ends of lines.
#[must_use]
pub(crate) fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '\n' => out.push('\n'),
            char if char.is_control() => out.extend(char.escape_default()),
            char => out.push(char),
        }
    }
    out
}

fn with_end(mut text: String) -> String {
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_not_obeyed() {
        assert_eq!(visible("a\x1b[2Jb\nc\r"), "a\\u{1b}[2Jb\nc\\r");
        assert_eq!(note("é\u{9b}1m"), "sterna: é\\u{9b}1m\n");
    }
}
