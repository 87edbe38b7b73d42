//! Messages of a control connection.

use arbitrary::{Arbitrary, Unstructured};
use serde_json::{Value, json};
use sterna_wire::limits::{
    MAX_COMMANDS, MAX_CONNECTIONS, MAX_DESCRIPTION_BYTES, MAX_FRAME_COUNTS, MAX_HASHES,
    MAX_KEEP_MS, MAX_LACKING_RUNS, MAX_LINK_TIMEOUT_MS, MAX_MISSING_PAGES, MAX_REFUSALS,
    MAX_TEXT_BYTES, MAX_VERSION_BYTES, MAX_WANTED_PAGES,
};
use sterna_wire::{Message, Sender};

use crate::mutate::Mutator;
use crate::signature::{of_error, scale};
use crate::{Made, Outcome, Target};

pub(super) const TARGET: Target = Target {
    name: "messages",
    about: "messages of a control connection, from either side",
    run,
    make,
    mutators: &[Mutator::Json, Mutator::Json, Mutator::Json],
    tokens: TOKENS,
    max_bytes: 48 << 10,
    borrowed: &[],
};

#[rustfmt::skip]
const TOKENS: &[&[u8]] = &[
    b"type", b"prepare", b"stream-head", b"final", b"commit", b"answer", b"missing", b"refused", b"applied",
    b"state", b"unknown", b"offered", b"running", b"18446744073709551616", b"-0", b"[[[[[[[[[", b"\\ud800",
    b"00000000000000000000000000000000", b"post_copy", b"lacks_pages", b"wanted", b"rejoin", b"lacking", b"runs",
];

const ERROR_BYTES: usize = 8192;

#[derive(Arbitrary, Debug)]
struct Said {
    kind: Kind,
    numbers: (u64, u64, u32, u16),
    text: String,
    bytes: Vec<u8>,
    list: Vec<(u32, u32)>,
    which: u8,
}

#[derive(Arbitrary, Debug)]
enum Kind {
    Prepare,
    StreamHead,
    Final,
    Commit,
    Abort,
    Inquire,
    Ping,
    Prepared,
    Refused,
    Applied,
    Missing,
    Loaded,
    Failed,
    Running,
    Discarded,
    Answer,
    Pong,
    Rejoin,
    Wanted,
    Complete,
    Rejoined,
    Lacking,
    Vanished,
    Hashes,
}

const STATES: [&str; 13] = [
    "copying",
    "stopping",
    "offered",
    "gone",
    "returned",
    "prepared",
    "entitled",
    "running",
    "discarded",
    "unknown",
    "serving",
    "faulting",
    "lost",
];

fn make(noise: &mut Unstructured<'_>) -> arbitrary::Result<Made> {
    Ok(Made::valid(Said::arbitrary(noise)?.value().to_string().into_bytes()))
}

impl Said {
    /// The message, at times with the keys that may be left out.
    fn value(&self) -> Value {
        let mut message = self.without_options();
        let option = match self.kind {
            Kind::Prepare if self.which & 4 != 0 => {
                Some(("keep_ms", json!(self.numbers.1 % MAX_KEEP_MS + 1)))
            }
            Kind::Prepare if self.which & 8 != 0 => Some(("reuse", json!(true))),
            Kind::Prepared if self.which & 4 != 0 => Some(("kept", json!(true))),
            Kind::Prepare | Kind::Prepared => Some(("post_copy", json!(true))),
            Kind::Abort => Some(("keep", json!(true))),
            Kind::Running => Some(("lacks_pages", json!(self.numbers.0))),
            _ => None,
        };
        if self.which & 2 != 0
            && let (Some(keys), Some((key, value))) = (message.as_object_mut(), option)
        {
            keys.insert(key.into(), value);
        }
        message
    }

    fn without_options(&self) -> Value {
        let (number, other, small, tiny) = self.numbers;
        let (job, uuid) =
            (format!("job-{number}"), format!("{other:08x}-0000-4111-8222-ffffffffffff"));
        let uuid = uuid[uuid.len() - 36..].to_owned();
        let text: String = self.text.chars().take(200).collect();
        let hex = hex(&self.bytes[..self.bytes.len().min(200)]);
        let secret = format!("{number:064x}");
        let root = format!("{other:032x}");
        let page_list: Vec<_> = self.list.iter().take(100).collect();
        let wanted: Vec<u32> = page_list.iter().map(|(page, _)| *page).collect();
        let run = |(first, count): &(u32, u32)| (first >> 1, (count >> 1) + 1);
        let runs: Vec<_> = self.list.iter().take(100).map(run).collect();
        let frames: Vec<u64> = self.list.iter().take(60).map(|(one, _)| u64::from(*one)).collect();
        let blocks = self.list.iter().take(5).enumerate();
        let blocks: Vec<_> = blocks
            .map(|(at, (pages, _))| (format!("b{at}"), (u64::from(pages % 99) + 1) << 12))
            .collect();
        let first = [("pc.ram".to_owned(), 1_u64 << 20)];
        let layout: Vec<_> = first.iter().cloned().chain(blocks.clone()).collect();
        let state = STATES[usize::from(self.which) % STATES.len()];
        let guest = if self.which & 1 == 0 { "running" } else { "paused" };
        match self.kind {
            Kind::Prepare => json!({
                "type": "prepare", "job": job, "vm": "web", "uuid": uuid, "epoch": number, "description": text,
                "page_key": secret, "connections": tiny % 64 + 1, "verify": if self.which & 1 == 0 { "roots" } else { "full" },
                "link_timeout_ms": other % MAX_LINK_TIMEOUT_MS + 1,
            }),
            Kind::StreamHead => json!({
                "type": "stream-head", "configuration": hex, "layout": layout,
                "ram_section": {"section": small, "instance": 0},
            }),
            Kind::Final => json!({
                "type": "final", "root": root, "frames_per_connection": frames, "tail_bytes": other, "guest": guest,
                "commands": [{"command": tiny, "data": hex}],
            }),
            Kind::Commit => json!({"type": "commit", "epoch": number}),
            Kind::Abort => json!({"type": "abort", "reason": text}),
            Kind::Inquire => json!({"type": "inquire", "job": job, "uuid": uuid, "epoch": number}),
            Kind::Ping => json!({"type": "ping", "nonce": number, "sent_ns": other}),
            Kind::Pong => json!({"type": "pong", "nonce": number, "sent_ns": other}),
            Kind::Prepared => json!({
                "type": "prepared", "token": secret, "shared_blocks": blocks.iter().map(|(name, _)| name).collect::<Vec<_>>(),
                "qemu_version": "7.2.22", "start_ms": other,
            }),
            Kind::Refused => json!({"type": "refused", "refusals": [
                {"code": "x", "reason": printable(&text), "remedy": "y"},
            ]}),
            Kind::Applied => json!({"type": "applied", "frames_per_connection": frames}),
            Kind::Missing => json!({"type": "missing", "pages": page_list}),
            Kind::Loaded => {
                json!({"type": "loaded", "root": root, "pages_hashed": number, "load_ms": other})
            }
            Kind::Failed => json!({"type": "failed", "error": text}),
            Kind::Running => {
                json!({"type": "running", "commit_to_resume_ns": number, "peak_anonymous_bytes": other})
            }
            Kind::Discarded => json!({"type": "discarded", "job": job, "epoch": number}),
            Kind::Answer => json!({"type": "answer", "job": job, "state": state}),
            Kind::Rejoin => json!({
                "type": "rejoin", "job": job, "uuid": uuid, "epoch": number, "page_key": secret,
                "connections": tiny % 64 + 1,
            }),
            Kind::Wanted => json!({"type": "wanted", "pages": wanted}),
            Kind::Complete => json!({
                "type": "complete", "requests": number, "fault_latency_p50_us": small, "fault_latency_p99_us": other,
                "fault_latency_max_us": u64::MAX, "peak_anonymous_bytes": tiny,
            }),
            Kind::Rejoined => json!({"type": "rejoined", "token": secret}),
            Kind::Lacking => json!({"type": "lacking", "runs": runs, "last": self.which & 1 == 0}),
            Kind::Vanished => json!({"type": "vanished", "reason": text}),
            Kind::Hashes => json!({
                "type": "hashes", "first": small >> 1, "hashes": root.repeat(self.list.len().min(100)),
                "last": self.which & 1 == 0,
            }),
        }
    }
}

fn printable(text: &str) -> String {
    text.chars().filter(|char| !char.is_control()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn run(input: &[u8]) -> Outcome {
    let by_source = Message::decode(input, Sender::Source);
    let by_destination = Message::decode(input, Sender::Destination);
    let (message, sender) = match (by_source, by_destination) {
        (Ok(message), other) => {
            assert!(other.is_err() || message.may_be_sent_by(Sender::Destination));
            (message, Sender::Source)
        }
        (Err(_), Ok(message)) => (message, Sender::Destination),
        (Err(error), Err(other)) => {
            let _ = of_error(&other, ERROR_BYTES);
            return Outcome::refused(of_error(&error, ERROR_BYTES));
        }
    };
    assert!(message.may_be_sent_by(sender), "{sender} may not send {}", message.name());
    check_limits(&message);
    check_secrets(&message);
    let encoded = message.encode();
    assert!(encoded.is_ok(), "what was read cannot be written: {encoded:?}");
    let again = encoded.and_then(|bytes| Message::decode(&bytes, sender));
    assert_eq!(again.as_ref(), Ok(&message), "what was written reads otherwise");
    Outcome::accepted(format!("{} of {} bytes", message.name(), scale(input.len() as u64)))
}

/// What a message may make its reader hold.
fn check_limits(message: &Message) {
    match message {
        Message::Prepare(prepare) => {
            assert!((1..=MAX_CONNECTIONS).contains(&usize::from(prepare.connections)));
            assert!((1..=MAX_LINK_TIMEOUT_MS).contains(&prepare.link_timeout_ms));
            assert!((1..=MAX_KEEP_MS).contains(&prepare.keep_ms.unwrap_or(1)));
            assert!(prepare.description.len() <= MAX_DESCRIPTION_BYTES);
        }
        Message::StreamHead(head) => {
            assert!(head.layout.pages() > 0 && !head.layout.blocks().is_empty());
        }
        Message::Final(last) => {
            assert!(last.commands.len() <= MAX_COMMANDS);
            assert!(last.frames_per_connection.len() <= MAX_FRAME_COUNTS);
        }
        Message::Applied(applied) => {
            assert!(applied.frames_per_connection.len() <= MAX_FRAME_COUNTS);
        }
        Message::Prepared(prepared) => {
            assert!(prepared.qemu_version.len() <= MAX_VERSION_BYTES);
        }
        Message::Refused(refused) => assert!(refused.refusals.len() <= MAX_REFUSALS),
        Message::Missing(missing) => assert!(missing.pages.len() <= MAX_MISSING_PAGES),
        Message::Rejoin(rejoin) => {
            assert!((1..=MAX_CONNECTIONS).contains(&usize::from(rejoin.connections)));
        }
        Message::Wanted(wanted) => assert!(wanted.pages.len() <= MAX_WANTED_PAGES),
        Message::Lacking(lacking) => {
            assert!(lacking.runs.len() <= MAX_LACKING_RUNS);
            for (first, count) in &lacking.runs {
                assert!(
                    *count > 0 && first.0.checked_add(count - 1).is_some(),
                    "{first:?} {count}"
                );
            }
        }
        Message::Hashes(hashes) => {
            let count = hashes.pages().count();
            let beyond = u64::from(hashes.first.0) + count as u64;
            assert!(count <= MAX_HASHES && beyond <= 1 << 32, "{beyond}");
        }
        Message::Vanished(vanished) => check_text(vanished.reason.as_str()),
        Message::Abort(abort) => check_text(abort.reason.as_str()),
        Message::Failed(failed) => check_text(failed.error.as_str()),
        _ => {}
    }
}

fn check_text(text: &str) {
    assert!(text.len() <= MAX_TEXT_BYTES);
    assert!(text.chars().all(|char| !char.is_control() || matches!(char, '\n' | '\t')), "{text:?}");
}

fn check_secrets(message: &Message) {
    let secret = match message {
        Message::Prepare(prepare) => prepare.page_key.0,
        Message::Prepared(prepared) => prepared.token.0,
        Message::Rejoin(rejoin) => rejoin.page_key.0,
        Message::Rejoined(rejoined) => rejoined.token.0,
        _ => return,
    };
    let printed = format!("{message:?}");
    // A secret of one repeated byte could be in there for other reasons.
    let is_telling = secret.iter().any(|byte| *byte != secret[0]);
    let is_printed = printed.contains(&hex(&secret)) || printed.contains(&format!("{secret:?}"));
    assert!(!is_telling || !is_printed, "a secret is printed");
}
