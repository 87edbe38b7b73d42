//! A model of the text in the editor: what each edit makes of it, so that what the editor saves can
//! be compared line by line.

use std::rc::Rc;

use crate::page::{mix, next_random};

/// A text beyond these limits goes back by deleting or copying more.
const FEWEST_LINES: usize = 100;
/// Lines that a substitution looks at.
const SUBSTITUTED_LINES: usize = 400;
/// Words to type and to substitute: letters only, so that they mean nothing to the editor.
const WORDS: [&str; 24] = [
    "harbour", "question", "evening", "company", "morning", "answer", "picture", "mountain",
    "journey", "station", "language", "distance", "weather", "letter", "window", "garden", "the",
    "people", "little", "water", "through", "because", "between", "another",
];
const CANCEL: char = '\u{1b}';
const PAGE_DOWN: char = '\u{6}';

/// One change, with line numbers from 1 as the editor counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Edit {
    /// Types a new line below a line.
    Insert { below: usize, text: String },
    /// Types more words at the end of a line.
    Append { line: usize, text: String },
    /// Types another first word of a line.
    ChangeWord { line: usize, word: String },
    /// Replaces a word everywhere in some lines.
    Substitute { first: usize, last: usize, word: String, by: String },
    /// Puts a line below another one; 0 is the start.
    Move { line: usize, below: usize },
    /// Copies a line below another one.
    Copy { line: usize, below: usize },
    /// Removes a line.
    Delete { line: usize },
    /// Turns some pages: nothing changes.
    Scroll { line: usize },
    /// Takes the last change back.
    Undo,
}

impl Edit {
    /// The keys that somebody types for it, from the editor's normal mode to its normal mode.
    pub(super) fn keys(&self) -> String {
        match self {
            Self::Insert { below, text } => format!("{below}Go{text}{CANCEL}"),
            Self::Append { line, text } => format!("{line}GA {text}{CANCEL}"),
            Self::ChangeWord { line, word } => format!("{line}G0cW{word}{CANCEL}"),
            Self::Substitute { first, last, word, by } => {
                format!(":silent {first},{last}s/{word}/{by}/ge\r")
            }
            Self::Move { line, below } => format!(":{line}m{below}\r"),
            Self::Copy { line, below } => format!("{line}Gyy{below}Gp"),
            Self::Delete { line } => format!("{line}Gdd"),
            Self::Scroll { line } => format!("{line}G{PAGE_DOWN}{PAGE_DOWN}"),
            Self::Undo => "u".to_owned(),
        }
    }
}

/// The text as it should be.
#[derive(Clone, Debug)]
pub(super) struct Document {
    lines: Vec<Rc<str>>,
    /// Before the last edit, if that changed anything.
    previous: Option<Vec<Rc<str>>>,
}

impl Document {
    /// A text as it is opened.
    pub(super) fn new(text: &str) -> Self {
        Self { lines: text.lines().map(Rc::from).collect(), previous: None }
    }

    /// Lines now.
    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    /// The number of the first line in which a saved text differs.
    pub(super) fn first_difference(&self, saved: &str) -> Option<usize> {
        let mut theirs = saved.lines();
        let differing = self.lines.iter().position(|line| theirs.next() != Some(line));
        let after = theirs.next().is_some() || !saved.ends_with('\n');
        differing.or_else(|| after.then_some(self.lines.len())).map(|index| index + 1)
    }

    /// Draws the next edit; a text that became too short only grows.
    pub(super) fn choose(&self, draw: &mut Draw) -> Edit {
        let line = draw.line(self);
        let kind = draw.below(if self.len() < FEWEST_LINES { 3 } else { 16 });
        match kind {
            0..=3 => Edit::Insert { below: line, text: draw.words(6) },
            4..=6 => Edit::Append { line, text: draw.words(3) },
            7 | 8 => Edit::ChangeWord { line, word: draw.words(1) },
            9 | 10 => self.choose_substitution(line, draw),
            11 => Edit::Copy { line, below: draw.line(self) },
            12 => match draw.line(self) {
                below if below == line || below + 1 == line => Edit::Scroll { line },
                below => Edit::Move { line, below },
            },
            13 => Edit::Delete { line },
            14 if self.previous.is_some() => Edit::Undo,
            _ => Edit::Scroll { line },
        }
    }

    /// Changes the text as the editor should.
    pub(super) fn apply(&mut self, edit: &Edit) {
        let before = self.lines.clone();
        match edit {
            Edit::Insert { below, text } => self.lines.insert(*below, Rc::from(text.as_str())),
            Edit::Append { line, text } => self.replace(*line, |old| format!("{old} {text}")),
            Edit::ChangeWord { line, word } => self.replace(*line, |old| {
                let rest = old.find(' ').map_or("", |at| &old[at..]);
                format!("{word}{rest}")
            }),
            Edit::Substitute { first, last, word, by } => {
                for line in *first..=*last {
                    if self.lines[line - 1].contains(word.as_str()) {
                        self.replace(line, |old| old.replace(word.as_str(), by));
                    }
                }
            }
            Edit::Move { line, below } => {
                let moved = self.lines.remove(line - 1);
                self.lines.insert(if below < line { *below } else { below - 1 }, moved);
            }
            Edit::Copy { line, below } => {
                self.lines.insert(*below, Rc::clone(&self.lines[line - 1]))
            }
            Edit::Delete { line } => drop(self.lines.remove(line - 1)),
            Edit::Scroll { .. } => return,
            Edit::Undo => {
                if let Some(previous) = self.previous.take() {
                    self.lines = previous;
                }
                return;
            }
        }
        self.previous = (before != self.lines).then_some(before);
    }

    fn choose_substitution(&self, first: usize, draw: &mut Draw) -> Edit {
        let last = (first + SUBSTITUTED_LINES).min(self.len());
        let word = draw.word();
        let by = WORDS.iter().find(|by| !by.contains(word) && draw.below(3) == 0);
        Edit::Substitute {
            first,
            last,
            word: word.to_owned(),
            by: by.unwrap_or(&"quay").to_string(),
        }
    }

    fn replace(&mut self, line: usize, change: impl FnOnce(&str) -> String) {
        let changed = change(&self.lines[line - 1]);
        self.lines[line - 1] = Rc::from(changed);
    }
}

/// Draws by chance from a seed.
#[derive(Clone, Debug)]
pub(super) struct Draw(u64);

impl Draw {
    /// The same draws for the same seed.
    pub(super) fn new(seed: u64) -> Self {
        Self(mix(seed) | 1)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 = next_random(self.0);
        let limit = limit.max(1) as u64;
        usize::try_from((mix(self.0) >> 16) % limit).unwrap_or(0)
    }

    fn line(&mut self, document: &Document) -> usize {
        self.below(document.len()) + 1
    }

    fn word(&mut self) -> &'static str {
        WORDS[self.below(WORDS.len())]
    }

    fn words(&mut self, most: usize) -> String {
        let count = self.below(most) + 1;
        (0..count).map(|_| self.word()).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Document {
        Document::new("one two\nthree\nfour four\n")
    }

    fn after(edits: &[Edit]) -> String {
        let mut document = document();
        edits.iter().for_each(|edit| document.apply(edit));
        document.lines.join("|")
    }

    #[test]
    fn edits_do_what_the_editor_does() {
        let text = || "x".to_owned();
        assert_eq!(after(&[Edit::Insert { below: 3, text: text() }]), "one two|three|four four|x");
        assert_eq!(after(&[Edit::Append { line: 2, text: text() }]), "one two|three x|four four");
        assert_eq!(after(&[Edit::ChangeWord { line: 1, word: text() }]), "x two|three|four four");
        assert_eq!(after(&[Edit::ChangeWord { line: 2, word: text() }]), "one two|x|four four");
        assert_eq!(after(&[Edit::Move { line: 1, below: 3 }]), "three|four four|one two");
        assert_eq!(after(&[Edit::Move { line: 3, below: 1 }]), "one two|four four|three");
        assert_eq!(after(&[Edit::Copy { line: 3, below: 1 }]), "one two|four four|three|four four");
        assert_eq!(after(&[Edit::Delete { line: 2 }]), "one two|four four");
        let (word, by) = ("four".to_owned(), text());
        assert_eq!(after(&[Edit::Substitute { first: 1, last: 3, word, by }]), "one two|three|x x");
    }

    #[test]
    fn undo_takes_back_one_change_and_is_not_drawn_where_there_is_none() {
        let delete = Edit::Delete { line: 2 };
        assert_eq!(after(&[delete.clone(), Edit::Undo]), "one two|three|four four");
        let nothing =
            Edit::Substitute { first: 1, last: 2, word: "water".to_owned(), by: "x".to_owned() };
        let mut document = document();
        document.apply(&delete);
        document.apply(&nothing);
        assert!(document.previous.is_none());
        document.apply(&delete);
        document.apply(&Edit::Scroll { line: 1 });
        assert!(document.previous.is_some());
    }

    #[test]
    fn a_difference_is_found_wherever_it_is() {
        let document = document();
        assert_eq!(document.first_difference("one two\nthree\nfour four\n"), None);
        assert_eq!(document.first_difference("one two\nthrEe\nfour four\n"), Some(2));
        assert_eq!(document.first_difference("one two\nthree\n"), Some(3));
        assert_eq!(document.first_difference("one two\nthree\nfour four\nx\n"), Some(4));
        assert_eq!(document.first_difference("one two\nthree\nfour four"), Some(4));
    }

    #[test]
    fn drawn_edits_keep_within_the_text_and_are_the_same_for_a_seed() {
        let text = "the question of the evening\n".repeat(150);
        let (mut one, mut two) = (Document::new(&text), Document::new(&text));
        let (mut draw, mut again) = (Draw::new(1), Draw::new(1));
        let mut undone = 0;
        for _ in 0..3000 {
            let edit = one.choose(&mut draw);
            assert_eq!(edit, two.choose(&mut again));
            undone += u32::from(edit == Edit::Undo);
            one.apply(&edit);
            two.apply(&edit);
            assert!(one.lines.iter().all(|line| !line.is_empty()));
        }
        assert!(undone > 20, "{undone}");
        assert_eq!(two.first_difference(&(one.lines.join("\n") + "\n")), None);
    }
}
