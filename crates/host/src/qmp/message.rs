//! One line from QEMU: the greeting, a reply or an event. Fields that we don't know are passed over.
//!
//! ```text
//! {"QMP": {"version": {"qemu": {"major", "minor", "micro"}, "package"}, "capabilities": ["oob", …]}}
//! {"return": VALUE, "id": ID}
//! {"error": {"class", "desc"}, "id": ID}
//! {"event": NAME, "data": {…}, "timestamp": {"seconds", "microseconds"}}
//! ```

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use super::error::QmpError;
use super::event::{Event, Timestamp};

/// Bytes in a line, at most. QEMU's longest known reply (its schema) has 200 to 400 kB.
pub(super) const MAX_LINE_BYTES: usize = 16 << 20;

/// Values in a line, at most: a value parsed takes up to a hundred times the bytes that it has on the line.
const MAX_LINE_VALUES: usize = 1 << 20;

/// What QEMU says of itself when a client connects.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Greeting {
    /// Which QEMU this is.
    pub version: Version,
    /// What the monitor can do besides the basic protocol (`oob`).
    pub capabilities: Vec<String>,
}

/// QEMU's version. Only for reports and for known bugs of old versions: features are probed by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Version {
    /// The numbers.
    pub qemu: VersionNumber,
    /// The distributor's package.
    pub package: String,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VersionNumber { major, minor, micro } = self.qemu;
        write!(f, "{major}.{minor}.{micro}")
    }
}

/// The three numbers of a version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(default)]
pub struct VersionNumber {
    /// The first, 7 of 7.2.22.
    pub major: u32,
    /// The second.
    pub minor: u32,
    /// The third.
    pub micro: u32,
}

/// A line, understood.
#[derive(Debug)]
pub(super) enum Message {
    Greeting(Greeting),
    Reply {
        id: Option<String>,
        result: Result<Value, Refusal>,
    },
    Event(Event),
    /// An object of a kind that we don't know.
    Unknown(String),
}

/// QEMU's error object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Refusal {
    pub(super) class: String,
    pub(super) desc: String,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Greeting>,
    /// `null` is a result too.
    #[serde(rename = "return", default, deserialize_with = "present")]
    result: Option<Value>,
    error: Option<Refusal>,
    id: Option<Value>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    #[serde(default)]
    timestamp: Timestamp,
}

fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

/// Understands a line.
///
/// # Errors
/// [`QmpError::Protocol`] where it is no JSON object or has too many values.
pub(super) fn decode(line: &[u8]) -> Result<Message, QmpError> {
    let values = line.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
    if values > MAX_LINE_VALUES {
        let expected = format!("a line of at most {MAX_LINE_VALUES} values");
        return Err(QmpError::protocol(expected, &format!("about {values}")));
    }
    let parsed: Line = serde_json::from_slice(line).map_err(|error| {
        let start = String::from_utf8_lossy(&line[..line.len().min(200)]);
        QmpError::protocol("a line with one JSON object", &format!("{error}: {start}"))
    })?;
    let id = parsed.id.as_ref().and_then(Value::as_str).map(str::to_owned);
    Ok(match parsed {
        Line { greeting: Some(greeting), .. } => Message::Greeting(greeting),
        Line { result: Some(value), .. } => Message::Reply { id, result: Ok(value) },
        Line { error: Some(refusal), .. } => Message::Reply { id, result: Err(refusal) },
        Line { event: Some(name), data, timestamp, .. } => {
            Message::Event(Event { name, data, timestamp })
        }
        _ => Message::Unknown(super::error::shortened(&String::from_utf8_lossy(line))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_the_kinds_apart() {
        let greeting = br#"{"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7},"package":"x"},"capabilities":["oob"],"new":1}}"#;
        let Ok(Message::Greeting(greeting)) = decode(greeting) else { panic!("no greeting") };
        assert_eq!(greeting.version.qemu, VersionNumber { major: 7, minor: 2, micro: 22 });
        assert_eq!(greeting.capabilities, ["oob"]);
        let null = decode(br#"{"return":null,"id":"a"}"#);
        assert!(matches!(null, Ok(Message::Reply { id: Some(_), result: Ok(Value::Null) })));
        let refused = decode(br#"{"error":{"class":"C","desc":"D"},"id":7}"#);
        assert!(matches!(refused, Ok(Message::Reply { id: None, result: Err(_) })));
        assert!(matches!(decode(br#"{"event":"X"}"#), Ok(Message::Event(_))));
        assert!(matches!(decode(br#"{"x":1}"#), Ok(Message::Unknown(_))));
    }

    #[test]
    fn refuses_what_is_no_object_or_too_much() {
        for wrong in [&b"[1]"[..], b"{", b"", b"\xff", b"{\"event\":7}"] {
            assert!(matches!(decode(wrong), Err(QmpError::Protocol { .. })), "{wrong:?}");
        }
        let mut many = br#"{"return":[0"#.to_vec();
        many.extend(b",0".repeat(MAX_LINE_VALUES + 1));
        many.extend(b"]}");
        assert!(matches!(decode(&many), Err(QmpError::Protocol { .. })));
        let deep = "[".repeat(100_000);
        assert!(decode(deep.as_bytes()).is_err());
    }
}
