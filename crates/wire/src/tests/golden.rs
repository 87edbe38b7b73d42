//! The bytes that builds of a protocol agree on. A change here is a change of the protocol: it needs a new version, and a
//! file of its own beside that of the version before, which is still spoken (see [`versions`](crate::versions)).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::samples::{hellos, messages, replies};
use crate::versions::{PROTOCOL_NEWEST, PROTOCOL_OLDEST};
use crate::{FrameKind, Header, Hello, Message, Reply, Sender};

/// By protocol. One line each: what it is, then its bytes (headers in hexadecimal, documents as they are).
const GOLDEN: [(u16, &str); 1] = [(1, include_str!("golden/protocol-1.txt"))];

/// Of the newest protocol.
fn newest() -> &'static str {
    GOLDEN[GOLDEN.len() - 1].1
}

#[test]
fn every_protocol_that_is_spoken_has_its_bytes_here() {
    let kept: Vec<u16> = GOLDEN.iter().map(|(protocol, _)| *protocol).collect();
    assert_eq!(kept, (PROTOCOL_OLDEST..=PROTOCOL_NEWEST).collect::<Vec<_>>());
}

#[test]
fn every_protocol_that_is_spoken_is_read() {
    for (protocol, lines) in GOLDEN {
        for line in lines.lines() {
            let mut words = line.splitn(3, ' ');
            let (what, _, document) =
                (words.next().unwrap(), words.next().unwrap(), words.next().unwrap().as_bytes());
            let error = match what {
                "header" => None,
                "hello" => Hello::decode(document).err().map(|error| format!("{error}")),
                "reply" => Reply::decode(document).err().map(|error| format!("{error}")),
                "source" => {
                    Message::decode(document, Sender::Source).err().map(|it| format!("{it}"))
                }
                "destination" => {
                    Message::decode(document, Sender::Destination).err().map(|it| format!("{it}"))
                }
                other => Some(format!("{other} is nothing that golden files have")),
            };
            assert_eq!(error, None, "protocol {protocol}: {line}");
        }
    }
}

fn headers() -> Vec<Header> {
    let header = |(sequence, kind): (u64, FrameKind)| Header {
        kind,
        length_bytes: kind.limit_bytes() - 1,
        sequence: sequence * 0x0102_0304_0506,
    };
    (0..).zip(FrameKind::ALL).map(header).collect()
}

fn text(payload: Vec<u8>) -> String {
    String::from_utf8(payload).unwrap()
}

fn now() -> Vec<String> {
    let hex = |header: &Header| header.encode().map(|byte| format!("{byte:02x}")).concat();
    let headers = headers();
    let headers = headers.iter().map(|header| format!("header {} {}", header.kind, hex(header)));
    let hellos = hellos();
    let hellos =
        hellos.iter().map(|(name, it)| format!("hello {name} {}", text(it.encode().unwrap())));
    let replies = replies();
    let replies =
        replies.iter().map(|(name, it)| format!("reply {name} {}", text(it.encode().unwrap())));
    let messages = messages();
    let messages = messages.iter().map(|(sender, it)| {
        let side = format!("{sender:?}").to_lowercase();
        format!("{side} {} {}", it.name(), text(it.encode().unwrap()))
    });
    headers.chain(hellos).chain(replies).chain(messages).collect()
}

#[test]
fn what_is_written_is_what_earlier_builds_wrote() {
    let now = now();
    assert_eq!(newest().lines().collect::<Vec<_>>(), now, "\n{}\n", now.join("\n"));
}

#[test]
fn what_earlier_builds_wrote_is_read() {
    let mut wanted = messages();
    for line in newest().lines() {
        let mut words = line.splitn(3, ' ');
        let (what, _, document) =
            (words.next().unwrap(), words.next().unwrap(), words.next().unwrap().as_bytes());
        let sender = match what {
            "source" => Sender::Source,
            "destination" => Sender::Destination,
            "hello" => {
                assert!(hellos().iter().any(|(_, it)| Hello::decode(document).as_ref() == Ok(it)));
                continue;
            }
            "reply" => {
                assert!(replies().iter().any(|(_, it)| Reply::decode(document).as_ref() == Ok(it)));
                continue;
            }
            _ => continue,
        };
        let read = (sender, Message::decode(document, sender).unwrap());
        wanted.retain(|message| *message != read);
    }
    assert!(wanted.is_empty(), "not among the golden messages: {wanted:?}");
}

#[test]
fn golden_headers_are_read() {
    let lines: Vec<&str> = newest().lines().filter(|line| line.starts_with("header")).collect();
    assert_eq!(lines.len(), FrameKind::ALL.len());
    for (line, header) in lines.into_iter().zip(headers()) {
        let hex = line.rsplit(' ').next().unwrap();
        let number = u128::from_str_radix(hex, 16).unwrap();
        assert_eq!(Header::decode(&number.to_be_bytes(), header.sequence), Ok(header));
    }
}
