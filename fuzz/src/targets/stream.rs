//! QEMU's migration stream through the parser: in one piece and in many, and again as the writer writes it.

use sterna_model::{Layout, PAGE_BYTES, Page, PageId};
use sterna_qemu_stream::{
    Command, Configuration, Event, MAX_TAIL_BYTES, MIN_BUFFER_BYTES, Parser, RamPartKind,
    RamSection, StreamEnd, StreamError, TailError, Writer,
};
use sterna_sim::random::Random;

use super::stream_grammar;
use crate::signature::{hash, of_error};
use crate::{Outcome, Target};

pub(super) const TARGET: Target = Target {
    name: "stream",
    about: "QEMU's migration stream, through the parser and the writer",
    run,
    make: stream_grammar::make,
    mutators: &[],
    tokens: TOKENS,
    max_bytes: 400 << 10,
    borrowed: GOLDEN,
};

#[rustfmt::skip]
pub(super) const TOKENS: &[&[u8]] = &[
    b"ram", b"dirty-bitmap", b"\x03ram", b"\x06pc.ram", b"QEVM\0\0\0\x03", b"\x08\0\x07\0\x04", b"\x08\0\x04\0\0",
    b"\x08\0\x05\0\0", b"\x08\0\x02\0\x04\0\0\0\x01", b"\x7e\0\0\0\x02", b"\0\x06\0\0\0\x02{}",
    b"\0\0\0\0\0\0\0\x10", b"configuration/capabilities", b"\x05", b"\x04",
];

pub(super) const GOLDEN: &[&str] = &[
    "crates/qemu-stream/tests/golden/i440fx-7.2.stream",
    "crates/qemu-stream/tests/golden/i440fx-7.2-packaged.stream",
    "crates/qemu-stream/tests/golden/q35-10.0.stream",
];

/// Commands that a stream may have before its device state.
const MAX_COMMANDS: usize = 64;
/// Pages that are kept to be written again.
const MAX_KEPT_PAGES: usize = 2048;
const ERROR_BYTES: usize = 4096;

fn run(input: &[u8]) -> Outcome {
    let (whole, end) = read(input, |rest| rest);
    let mut random = Random::new(hash(input));
    let (pieces, end_of_pieces) = read(input, |rest| match random.below(4) {
        0 => 1 + random.index(8.min(rest)),
        _ => 1 + random.index(rest.min(3 * PAGE_BYTES)),
    });
    assert_eq!(end, end_of_pieces, "how it arrives changes the end");
    assert!(whole == pieces, "how it arrives changes what is read");
    let shape = whole.shape();
    match end {
        Ok(end) => {
            assert_eq!(end.bytes, input.len() as u64, "a complete stream is read to its end");
            assert_eq!(end.tail_bytes, whole.tail.len() as u64);
            assert!(end.dropped_bytes < end.bytes);
            whole.writes_again();
            whole.is_packaged_again();
            Outcome::accepted(shape)
        }
        Err(error) => {
            assert!(error.offset <= input.len() as u64, "an error behind the input's end");
            Outcome::refused(format!("{}; {shape}", of_error(&error.fault, ERROR_BYTES)))
        }
    }
}

/// Everything that a stream said, checked for its order while it said it.
#[derive(Clone, Default, PartialEq, Debug)]
struct Reading {
    configuration: Option<Configuration>,
    commands: Vec<Command>,
    ram: Option<RamSection>,
    layout: Option<Layout>,
    parts: u64,
    pages: Vec<(PageId, Option<Box<Page>>)>,
    is_complete: bool,
    tail: Vec<u8>,
    is_packaged: bool,
}

/// Reads a stream whose pieces are as long as `next` says of the rest's length.
fn read(
    input: &[u8],
    mut next: impl FnMut(usize) -> usize,
) -> (Reading, Result<StreamEnd, StreamError>) {
    let (mut parser, mut reading) = (Parser::new(), Reading::default());
    let (mut rest, mut buffer) = (input, Vec::new());
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(next(rest.len()).clamp(1, rest.len()));
        buffer.extend_from_slice(piece);
        rest = later;
        match parser.feed(&buffer, |event| reading.take(event)) {
            Ok(taken) => drop(buffer.drain(..taken)),
            Err(error) => {
                let again = parser.feed(b"more", |_| super::broken(&"an event after an error"));
                assert_eq!(again.as_ref(), Err(&error), "an error has to stay");
                assert_eq!(parser.finish().as_ref(), Err(&error), "an error has to stay");
                return (reading, Err(error));
            }
        }
        assert!(buffer.len() < MIN_BUFFER_BYTES, "{} bytes are no element", buffer.len());
    }
    (reading, parser.finish())
}

impl Reading {
    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Configuration(configuration) => {
                assert!(self.configuration.is_none() && self.commands.is_empty());
                self.configuration = Some(configuration.clone());
            }
            Event::Command(command) => {
                assert!(self.configuration.is_some() && !self.is_complete);
                self.commands.push(command);
                assert!(self.commands.len() <= MAX_COMMANDS);
            }
            Event::Layout { ram, layout } => {
                assert!(self.configuration.is_some() && self.layout.is_none());
                (self.ram, self.layout) = (Some(ram), Some(layout.clone()));
            }
            Event::Page { page, content } => self.page(page, Some(content)),
            Event::ZeroPage { page } => self.page(page, None),
            Event::RamPart { kind, .. } => {
                assert!(!self.is_complete && (kind == RamPartKind::Start) == (self.parts == 0));
                self.parts += 1;
            }
            Event::RamComplete => {
                assert!(self.layout.is_some() && !self.is_complete);
                self.is_complete = true;
            }
            Event::Tail(bytes) => {
                assert!(self.is_complete && !self.is_packaged);
                self.tail.extend_from_slice(bytes);
                assert!(self.tail.len() as u64 <= MAX_TAIL_BYTES);
            }
            Event::TailComplete => {
                assert!(self.is_complete && !self.is_packaged && !self.tail.is_empty());
                self.is_packaged = true;
            }
        }
    }

    fn page(&mut self, page: PageId, content: Option<&Page>) {
        let pages = self.layout.as_ref().map_or(0, Layout::pages);
        assert!(page.0 < pages && !self.is_complete, "page {} of {pages}", page.0);
        if self.pages.len() < MAX_KEPT_PAGES {
            self.pages.push((page, content.map(|content| Box::new(*content))));
        }
    }

    /// How far it came, and with what.
    fn shape(&self) -> String {
        let has_content = self.pages.iter().any(|(_, content)| content.is_some());
        let has_zeros = self.pages.iter().any(|(_, content)| content.is_none());
        let far = [
            self.layout.is_some(),
            has_content,
            has_zeros,
            self.is_complete,
            !self.tail.is_empty(),
            self.is_packaged,
        ];
        format!(
            "{} parts, {}",
            self.parts.min(3),
            far.map(|one| if one { '1' } else { '0' }).iter().collect::<String>()
        )
    }

    /// What was read, written for a destination, reads the same.
    fn writes_again(&self) {
        let (Some(configuration), Some(ram), Some(layout)) =
            (&self.configuration, self.ram, &self.layout)
        else {
            super::broken(&"a complete stream without configuration or layout");
        };
        if self.pages.len() == MAX_KEPT_PAGES {
            return;
        }
        assert_eq!(Configuration::parse(configuration.bytes()).as_ref(), Ok(configuration));
        let mut out = Vec::new();
        let mut writer =
            Writer::begin(&mut out, configuration, &self.commands, ram, layout.clone());
        let mut part = writer.part(&mut out);
        for (page, content) in &self.pages {
            let written = match content {
                Some(content) => part.page(*page, content),
                None => part.zero_page(*page),
            };
            assert_eq!(written, Ok(()));
        }
        part.close();
        writer.end(&mut out);
        out.extend_from_slice(&self.tail);
        let (again, end) = read(&out, |rest| rest);
        assert!(end.is_ok(), "what was written is refused: {end:?}");
        assert_eq!(end.map(|end| end.dropped_bytes), Ok(0));
        let expected = Reading { parts: again.parts, is_packaged: false, ..self.clone() };
        assert!(again == expected, "what was written reads otherwise");
    }

    /// The device state, packaged for a destination that runs before its last pages are there, reads the same as from a
    /// source that packages it. Only a tail that begins with commands is nothing that a package can be.
    fn is_packaged_again(&self) {
        let (Some(configuration), Some(ram), Some(layout), Some(0x04)) =
            (&self.configuration, self.ram, &self.layout, self.tail.first())
        else {
            return;
        };
        let mut out = Vec::new();
        Writer::begin(&mut out, configuration, &[], ram, layout.clone()).end(&mut out);
        let mut writer = Writer::recover(ram, layout.clone());
        if let Err(error) = writer.package(&mut out, &self.tail, 3) {
            // Device state is opaque to the parser, so there can be less than a section.
            let is_short =
                matches!(error, TailError::End { found: "no whole section before the end" });
            assert!(is_short, "a tail that was read is not packaged: {error}");
            return;
        }
        writer.end_of_postcopy(&mut out);
        let (again, end) = read(&out, |rest| rest);
        assert!(end.is_ok() && again.is_packaged, "what was packaged is refused: {end:?}");
        let state = again.tail.strip_suffix(b"\0\x06\0\0\0\x02{}");
        let end = state.and_then(|state| self.tail.strip_prefix(state));
        let is_end = end.is_some_and(|end| end.starts_with(b"\0\x06"));
        assert!(is_end, "what was packaged is other device state");
    }
}
