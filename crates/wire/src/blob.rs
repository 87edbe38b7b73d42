//! Texts, byte strings and secrets as JSON carries them: bounded, in hexadecimal where they are bytes.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::MAX_TEXT_BYTES;

/// A text for people: at most [`MAX_TEXT_BYTES`], without control characters but line breaks and tabs, so that a peer
/// can neither flood a log nor drive a terminal.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Text(String);

impl Text {
    /// The text, cut at the limit, with a `?` for each control character.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(clean(text, MAX_TEXT_BYTES))
    }

    /// The text as such.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl TryFrom<String> for Text {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if text.len() > MAX_TEXT_BYTES {
            let found = text.len();
            return Err(format!(
                "expected a text of at most {MAX_TEXT_BYTES} bytes, found {found}"
            ));
        }
        Ok(Self::new(&text))
    }
}

impl From<Text> for String {
    fn from(text: Text) -> Self {
        text.0
    }
}

/// `text`, at most `limit_bytes` of it, with a `?` for each control character that is no line break or tab.
pub(crate) fn clean(text: &str, limit_bytes: usize) -> String {
    let cut = &text[..text.floor_char_boundary(limit_bytes)];
    cut.chars().map(|char| if is_clean(char) { char } else { '?' }).collect()
}

/// Whether a character may stand in a text for people.
pub(crate) fn is_clean(char: char) -> bool {
    !char.is_control() || char == '\n' || char == '\t'
}

/// At most `MAX` bytes that this crate does not look into; hexadecimal in JSON.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Blob<const MAX: usize>(Vec<u8>);

impl<const MAX: usize> Blob<MAX> {
    /// The blob of these bytes; `None` when they are more than `MAX`.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        (bytes.len() <= MAX).then_some(Self(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl<const MAX: usize> fmt::Debug for Blob<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl<const MAX: usize> TryFrom<String> for Blob<MAX> {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if text.len() > 2 * MAX {
            return Err(format!("expected at most {MAX} bytes, found {}", text.len() / 2));
        }
        from_hex(&text).map(Self)
    }
}

impl<const MAX: usize> From<Blob<MAX>> for String {
    fn from(blob: Blob<MAX>) -> Self {
        to_hex(&blob.0)
    }
}

macro_rules! secret_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// Comparing takes the same time wherever the two differ, and printing tells nothing.
        #[derive(Clone, Copy, Eq, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub [u8; 32]);

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                equal_in_constant_time(&self.0, &other.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(secret)"))
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                fixed_from_hex(&text).map(Self)
            }
        }

        impl From<$name> for String {
            fn from(secret: $name) -> Self {
                to_hex(&secret.0)
            }
        }
    };
}

secret_type!(
    /// What a data connection shows to prove that it belongs to a job: the destination drew it at random.
    Token
);
secret_type!(
    /// The key of one job's page hashes.
    PageKey
);

fn equal_in_constant_time(one: &[u8; 32], other: &[u8; 32]) -> bool {
    let differ = |sum: u8, (a, b): (&u8, &u8)| core::hint::black_box(sum | (a ^ b));
    one.iter().zip(other).fold(0, differ) == 0
}

/// A root in JSON: 32 hexadecimal digits, in the order of [`sterna_model::Root::to_bytes`].
pub(crate) mod root {
    use alloc::string::String;

    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};
    use sterna_model::Root;

    pub(crate) fn serialize<S: Serializer>(root: &Root, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::to_hex(&root.to_bytes()))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Root, D::Error> {
        let text = String::deserialize(from)?;
        super::fixed_from_hex(&text).map(Root::from_bytes).map_err(D::Error::custom)
    }
}

fn to_hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn fixed_from_hex<const N: usize>(text: &str) -> Result<[u8; N], String> {
    let found = text.len();
    let wrong = || format!("expected {} hexadecimal digits, found {found} characters", 2 * N);
    if found != 2 * N {
        return Err(wrong());
    }
    from_hex(text)?.try_into().map_err(|_| wrong())
}

fn from_hex(text: &str) -> Result<Vec<u8>, String> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return Err(format!("expected pairs of hexadecimal digits, found {} digits", text.len()));
    }
    let byte = |pair: &[u8; 2]| Some(digit_value(pair[0])? << 4 | digit_value(pair[1])?);
    let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
    bytes.ok_or_else(|| String::from("expected the hexadecimal digits 0-9 and a-f"))
}

fn digit_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}
