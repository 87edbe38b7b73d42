//! Job journals: torn at any byte, damaged anywhere, of entries that no agent writes.
//!
//! The log's format is written here anew, after what `sterna_host::durable` documents.

use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use serde_json::{Value, json};
use sterna_agent::stored::read_journal;
use sterna_host::durable::{DurableLog, MAX_RECORD_BYTES};
use sterna_sim::random::Random;

use crate::mutate::Mutator;
use crate::signature::{hash, of_error, scale};
use crate::{Made, Outcome, Target};

pub(super) const TARGET: Target = Target {
    name: "journal",
    about: "job journals, torn and damaged",
    run,
    make,
    mutators: &[Mutator::Bytes],
    tokens: TOKENS,
    max_bytes: 64 << 10,
    borrowed: &[],
};

#[rustfmt::skip]
const TOKENS: &[&[u8]] = &[
    MAGIC, br#"{"entry":"source","value":"gone"}"#, br#"{"entry":"guest-ran","value":true}"#, b"source-of",
    b"destination-of", b"offered", b"entitled", b"report", b"process",
];

const MAGIC: &[u8] = b"STRNLOG1";
const HEAD_BYTES: usize = 12;
const PATH: &str = "/var/lib/sterna/jobs/job-7.journal";
const ERROR_BYTES: usize = 64 << 10;
/// Cuts that are tried on one journal.
const CUTS: usize = 24;

#[derive(Arbitrary, Debug)]
struct Journal {
    is_source: bool,
    entries: Vec<Entry>,
    tear: u16,
}

#[derive(Arbitrary, Debug)]
enum Entry {
    PeerAddress(String),
    Process(i32, u64, bool),
    GuestRan(bool),
    Source(u8),
    Destination(u8),
    Ended(String),
    Lost(String),
    Subject,
}

fn make(noise: &mut Unstructured<'_>) -> arbitrary::Result<Made> {
    let journal = Journal::arbitrary(noise)?;
    let subject = json!([{
        "job": "job-7", "vm": "web", "uuid": "0a1b2c3d-0000-4111-8222-ffffffffffff", "epoch": 5, "peer": "beta",
    }, "2026-01-02T03:04:05Z"]);
    let begin = |is_source| if is_source { "source-of" } else { "destination-of" };
    let opening = json!({"entry": begin(journal.is_source), "value": subject});
    let later = journal.entries.iter().take(30).map(|entry| {
        let (name, value) = entry.parts(&subject, begin(!journal.is_source));
        json!({"entry": name, "value": value})
    });
    let records: Vec<Vec<u8>> =
        [opening].into_iter().chain(later).map(|entry| entry.to_string().into_bytes()).collect();
    let mut bytes = written(&records);
    // Any tear of the last record is what a crash leaves.
    let last = records.last().map_or(0, |record| HEAD_BYTES + record.len());
    bytes.truncate(bytes.len() - usize::from(journal.tear) % (last + 1));
    Ok(Made::valid(bytes))
}

impl Entry {
    fn parts(&self, subject: &Value, begin: &'static str) -> (&'static str, Value) {
        const SOURCE: [&str; 5] = ["copying", "stopping", "offered", "gone", "returned"];
        const DESTINATION: [&str; 4] = ["prepared", "entitled", "running", "discarded"];
        match self {
            Self::PeerAddress(text) => ("peer-address", json!(text)),
            Self::Process(pid, start, has_boot) => {
                let boot = has_boot.then_some("0a1b2c3d-0000-4111-8222-ffffffffffff");
                ("process", json!({"pid": pid, "start_time": start, "boot": boot}))
            }
            Self::GuestRan(ran) => ("guest-ran", json!(ran)),
            Self::Source(which) => ("source", json!(SOURCE[usize::from(*which) % SOURCE.len()])),
            Self::Destination(which) => {
                ("destination", json!(DESTINATION[usize::from(*which) % DESTINATION.len()]))
            }
            Self::Ended(text) => ("ended", json!(text)),
            Self::Lost(text) => ("lost", json!(text)),
            Self::Subject => (begin, subject.clone()),
        }
    }
}

/// The log of these records.
fn written(records: &[Vec<u8>]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for content in records {
        let offset = (out.len() as u64).to_le_bytes();
        let length = u32::try_from(content.len()).unwrap_or(u32::MAX).to_le_bytes();
        out.extend_from_slice(&length);
        out.extend_from_slice(&crc32(&[&offset[..], &length].concat()).to_le_bytes());
        out.extend_from_slice(&crc32(&[&offset[..], content].concat()).to_le_bytes());
        out.extend_from_slice(content);
    }
    out
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

fn run(input: &[u8]) -> Outcome {
    let path = Path::new(PATH);
    let log = match DurableLog::parse(path, input) {
        Ok(log) => log,
        Err(error) => {
            assert!(read_journal(path, input).is_err(), "a journal in a damaged log");
            return Outcome::refused(of_error(&error, ERROR_BYTES));
        }
    };
    assert!(log.records.iter().all(|record| (1..=MAX_RECORD_BYTES).contains(&record.len())));
    let kept = input.len() - usize::try_from(log.torn_bytes).unwrap_or(usize::MAX);
    if kept > 0 {
        assert!(written(&log.records) == input[..kept], "records written again are other bytes");
    }
    let mut random = Random::new(hash(input));
    for _ in 0..CUTS {
        torn(path, &input[..kept], &log.records, random.index(kept + 1));
    }
    // Every place of the last record, where a crash tears.
    let last = log.records.last().map_or(0, |record| HEAD_BYTES + record.len());
    for left in (0..last).step_by((last / CUTS).max(1)) {
        torn(path, &input[..kept], &log.records, kept - last + left);
    }
    match read_journal(path, input) {
        Ok(view) => {
            assert_eq!(view.torn_bytes, log.torn_bytes);
            assert_eq!(view.job.is_none(), view.state.is_empty());
            let records = scale(log.records.len() as u64);
            let torn = log.torn_bytes > 0;
            Outcome::accepted(format!("{records} records, {}, torn {torn}", view.state))
        }
        Err(error) => {
            assert!(error.to_string().contains(PATH), "which journal? {error}");
            // The words of a damaged entry may hold anything that JSON can.
            Outcome::refused(crate::signature::skeleton(&error.to_string()))
        }
    }
}

/// A log that was cut there says what was whole before the cut, and complains about nothing.
fn torn(path: &Path, log: &[u8], records: &[Vec<u8>], cut: usize) {
    let found = match DurableLog::parse(path, &log[..cut]) {
        Ok(found) => found,
        Err(error) => super::broken(&format!("torn at byte {cut}: {error}")),
    };
    let mut end = MAGIC.len();
    let is_whole = |record: &&Vec<u8>| {
        end += HEAD_BYTES + record.len();
        end <= cut
    };
    let whole = records.iter().take_while(is_whole).count();
    assert!(found.records == records[..whole], "torn at byte {cut}: expected {whole} records");
}
