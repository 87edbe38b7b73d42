//! The names of the device sections, out of the description at a stream's end:
//! `{..., "devices": [{"name": "timer", "instance_id": 0, ...}, ...]}`. The JSON is not kept and not believed: it goes
//! by byte for byte, and only texts at the one place where a section's name stands are collected.

use alloc::string::String;
use alloc::vec::Vec;
use core::mem;

use crate::error::printable;
use crate::parser::Place;

/// Names that are collected, at most. Some 50 are usual.
const MAX_NAMES: usize = 4096;
/// Bytes of a name that are kept: what QEMU's length byte can count.
const MAX_NAME_BYTES: usize = 255;
/// Where a section's name stands: in an object in an array in the outermost object.
const NAME_NESTING: &[u8] = b"{[{";

/// Collects names while the tail goes by.
#[derive(Default, Debug)]
pub(super) struct DeviceNames {
    names: Vec<String>,
    /// The first brackets that are open.
    nesting: [u8; NAME_NESTING.len()],
    depth: usize,
    text: Text,
    /// What was read of the pair at hand, in an object that can have a section's name.
    pair: Pair,
}

/// Whether a text is being read.
#[derive(Default, Debug)]
enum Text {
    #[default]
    Outside,
    Inside(Vec<u8>),
    Escape(Vec<u8>),
}

/// How far a pair `"name": "value"` is.
#[derive(Default, Debug, PartialEq, Eq)]
enum Pair {
    #[default]
    Other,
    NameKey,
    NameValue,
}

impl DeviceNames {
    /// Takes the next byte of the tail and what it is.
    pub(super) fn push(&mut self, byte: u8, place: Place) {
        match place {
            Place::State => return,
            // What was taken for a description before was device state.
            Place::DescriptionStart => *self = Self::default(),
            Place::Description => {}
        }
        self.text = match mem::take(&mut self.text) {
            Text::Outside => self.token(byte),
            Text::Inside(text) if byte == b'"' => self.text_end(&text),
            Text::Inside(text) if byte == b'\\' => Text::Escape(text),
            Text::Inside(mut text) | Text::Escape(mut text) => {
                if text.len() < MAX_NAME_BYTES {
                    text.push(byte);
                }
                Text::Inside(text)
            }
        };
    }

    /// The names, in the stream's order.
    pub(super) fn into_names(self) -> Vec<String> {
        self.names
    }

    fn token(&mut self, byte: u8) -> Text {
        match byte {
            b'"' => return Text::Inside(Vec::new()),
            b'{' | b'[' => {
                if let Some(place) = self.nesting.get_mut(self.depth) {
                    *place = byte;
                }
                self.depth += 1;
                self.pair = Pair::Other;
            }
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            b':' if self.pair == Pair::NameKey => self.pair = Pair::NameValue,
            b',' => self.pair = Pair::Other,
            _ => {}
        }
        Text::Outside
    }

    fn text_end(&mut self, text: &[u8]) -> Text {
        let is_place = self.depth == NAME_NESTING.len() && self.nesting == NAME_NESTING;
        self.pair = match self.pair {
            Pair::NameValue if is_place => {
                if self.names.len() < MAX_NAMES {
                    self.names.push(printable(text));
                }
                Pair::Other
            }
            _ if is_place && text == b"name" => Pair::NameKey,
            _ => Pair::Other,
        };
        Text::Outside
    }
}
