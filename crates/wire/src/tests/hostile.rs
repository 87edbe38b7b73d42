//! Payloads of a peer that means harm, or is broken: an error each time, never a panic, never more memory than the limits.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::samples::{hellos, messages, replies};
use crate::limits::{MAX_JSON_DEPTH, MAX_JSON_VALUES};
use crate::{FrameKind, Hello, JsonError, Message, MessageError, Reply, Sender};

/// Every reader of JSON gets to see it.
fn read_all(payload: &[u8]) {
    for sender in [Sender::Source, Sender::Destination] {
        _ = Message::decode(payload, sender);
    }
    _ = (Hello::decode(payload), Reply::decode(payload));
}

fn json_error(payload: &[u8]) -> JsonError {
    match Message::decode(payload, Sender::Source) {
        Err(MessageError::Json(error)) => error,
        other => panic!("expected an error in the JSON, found {other:?}"),
    }
}

fn documents() -> Vec<Vec<u8>> {
    let messages = messages().into_iter().map(|(_, message)| message.encode().unwrap());
    let hellos = hellos().into_iter().map(|(_, hello)| hello.encode().unwrap());
    let replies = replies().into_iter().map(|(_, reply)| reply.encode().unwrap());
    messages.chain(hellos).chain(replies).collect()
}

proptest! {
    #[test]
    fn random_bytes_are_no_message(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        read_all(&bytes);
        prop_assert!(Message::decode(&bytes, Sender::Source).is_err());
    }

    #[test]
    fn a_changed_byte_never_panics(
        document in proptest::sample::select(documents()),
        at in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut changed = document;
        let at = at.index(changed.len());
        changed[at] = byte;
        read_all(&changed);
    }
}

#[test]
fn every_truncation_is_an_error() {
    for (sender, message) in messages() {
        let payload = message.encode().unwrap();
        for cut in 0..payload.len() {
            let result = Message::decode(&payload[..cut], sender);
            assert!(result.is_err(), "{} cut at {cut}", message.name());
        }
    }
    for (name, hello) in hellos() {
        let payload = hello.encode().unwrap();
        assert!((0..payload.len()).all(|cut| Hello::decode(&payload[..cut]).is_err()), "{name}");
    }
    for (name, reply) in replies() {
        let payload = reply.encode().unwrap();
        assert!((0..payload.len()).all(|cut| Reply::decode(&payload[..cut]).is_err()), "{name}");
    }
}

#[test]
fn a_key_that_is_not_known_is_an_error_in_every_message() {
    for (sender, message) in messages() {
        let mut text = String::from_utf8(message.encode().unwrap()).unwrap();
        text.truncate(text.len() - 1);
        text.push_str(r#","surprise":1}"#);
        let result = Message::decode(text.as_bytes(), sender);
        let error = result.expect_err(message.name());
        assert!(format!("{error}").contains("surprise"), "{error}");
    }
}

#[test]
fn types_that_are_missing_unknown_or_double_are_errors() {
    for wrong in [
        r#"{}"#,
        r#"{"epoch":1}"#,
        r#"{"type":"resume","epoch":1}"#,
        r#"{"type":1,"epoch":1}"#,
        r#"{"type":"commit","type":"commit","epoch":1}"#,
        r#"{"type":"commit","epoch":1,"epoch":2}"#,
        r#"{"type":"commit","epoch":-1}"#,
        r#"{"type":"commit","epoch":18446744073709551616}"#,
        r#"{"type":"commit","epoch":1} x"#,
        r#"["commit",1]"#,
        "null",
        "",
    ] {
        assert!(matches!(json_error(wrong.as_bytes()), JsonError::Form { .. }), "{wrong}");
    }
}

#[test]
fn nesting_ends_at_its_limit() {
    let nested = |depth: usize| [b"[".repeat(depth), b"]".repeat(depth)].concat();
    assert!(matches!(json_error(&nested(MAX_JSON_DEPTH)), JsonError::Form { .. }));
    assert_eq!(json_error(&nested(MAX_JSON_DEPTH + 1)), JsonError::Depth);
    assert_eq!(json_error(&b"{\"a\":".repeat(100_000)), JsonError::Depth);
    let in_a_string = format!("\"{}\\\"{}\"", "[".repeat(99), "[".repeat(99));
    assert!(matches!(json_error(in_a_string.as_bytes()), JsonError::Form { .. }));
}

#[test]
fn values_end_at_their_limit() {
    let list = |values: usize| format!("[{}0]", "0,".repeat(values - 3)).into_bytes();
    assert!(matches!(json_error(&list(MAX_JSON_VALUES)), JsonError::Form { .. }));
    assert_eq!(json_error(&list(MAX_JSON_VALUES + 2)), JsonError::Values);
    assert_eq!(json_error(&b"[],".repeat(300_000)), JsonError::Values);
}

#[test]
fn a_document_above_its_frame_is_not_parsed() {
    let limit_bytes = FrameKind::Control.limit_bytes() as usize;
    let spaces = |length| b" ".repeat(length);
    assert!(matches!(json_error(&spaces(limit_bytes)), JsonError::Form { .. }));
    let wrong = JsonError::Length { limit_bytes, found_bytes: limit_bytes + 1 };
    assert_eq!(json_error(&spaces(limit_bytes + 1)), wrong);
    let hello = Hello::decode(&spaces(FrameKind::Hello.limit_bytes() as usize + 1)).unwrap_err();
    assert!(format!("{hello}").contains("at most 16384 bytes, found 16385"), "{hello}");
}

#[test]
fn an_error_quotes_little_of_a_hostile_document() {
    let text = format!(r#"{{"type":"{}\u001b[2J"}}"#, "x".repeat(900_000));
    let message = format!("{}", json_error(text.as_bytes()));
    assert!(message.len() < 5000, "{} bytes", message.len());
    let escape = json_error(br#"{"type":"\u001b[2J"}"#);
    assert!(!format!("{escape}").contains('\u{1b}'));
}

#[test]
fn bytes_in_hexadecimal_are_exact() {
    let loaded = |root: &str| {
        let text = format!(r#"{{"type":"loaded","root":"{root}","pages_hashed":1,"load_ms":1}}"#);
        Message::decode(text.as_bytes(), Sender::Destination)
    };
    assert!(loaded(&"0f".repeat(16)).is_ok());
    for wrong in
        ["0f".repeat(15), "0f".repeat(17), "0F".repeat(16), "0g".repeat(16), "é".repeat(16)]
    {
        assert!(loaded(&wrong).is_err(), "{wrong}");
    }
}
