//! A batch of pages through the decoder: every kind of record, bases there and not there, zstd frames of all sorts.
//!
//! The input is a byte that chooses what the destination has already, and the batch. Its grammar is written here anew, after
//! the layout that the codec documents, so that batches can be made that no encoder makes.

use std::cell::RefCell;

use arbitrary::{Arbitrary, Unstructured};
use sterna_model::{PAGE_BYTES, Page, PageHash};
use sterna_page_codec::{DecodeError, Decoder, FormatError, MAX_BATCH_BYTES, page_hash};

use super::codec::{KEY, Memory, PAGES, content};
use crate::signature::of_error;
use crate::{Made, Outcome, Target};

pub(super) const TARGET: Target = Target {
    name: "pages",
    about: "batches of pages, through the decoder",
    run,
    make,
    mutators: &[],
    tokens: TOKENS,
    max_bytes: 80 << 10,
    borrowed: &[],
};

#[rustfmt::skip]
const TOKENS: &[&[u8]] = &[
    &[0x28, 0xb5, 0x2f, 0xfd], &[0x50, 0x2a, 0x4d, 0x18], &[0xff, 0xff, 0xff, 0xff, 0x0f], &[0x80, 0x20],
    &[0x80, 0x80, 0x01], &[0x81], &[0xc4], &[0x06], &[0x46],
];

const ERROR_BYTES: usize = 512;
/// Bodies of whole pages in one batch that is made here, at most.
const MAX_WHOLE: usize = 6;

#[derive(Arbitrary, Debug)]
struct Batch {
    has: u8,
    records: Vec<Record>,
    level: i8,
}

#[derive(Arbitrary, Debug)]
struct Record {
    jump: Option<u8>,
    version: u16,
    kind: Kind,
    content: u8,
    is_packed: bool,
}

#[derive(Arbitrary, Debug)]
enum Kind {
    Zero(u8),
    Same,
    Ref(u8),
    Literal,
    Sparse,
    /// On a base of this content, as XOR or as new bytes.
    Delta(u8, bool),
    Absent(u8),
}

/// What the destination has: nothing, or pages of some contents.
fn memory(has: u8) -> Memory {
    match has % 4 {
        0 => Memory::default(),
        1 => Memory::with(&[(0, 3), (1, 4), (2, 9), (3, 0), (40, 36), (41, 36)]),
        2 => Memory::with(&[(0, 4), (1, 4), (2, 4), (3, 4), (4, 4), (5, 4), (6, 4), (7, 4)]),
        _ => Memory::with(&[(63, 8), (62, 3), (0, 8)]),
    }
}

fn make(noise: &mut Unstructured<'_>) -> arbitrary::Result<Made> {
    Ok(Made::valid(Batch::arbitrary(noise)?.bytes()))
}

impl Batch {
    fn bytes(&self) -> Vec<u8> {
        let (mut records, mut plain, mut packed) = (Vec::new(), Vec::new(), Vec::new());
        let (mut expected, mut pages, mut whole) = (0_u32, 0, 0);
        for record in self.records.iter().take(40) {
            let page = record.jump.map_or(expected, u32::from) % PAGES;
            let (tag, count) = match record.kind {
                Kind::Zero(count) => (1, u32::from(count % 8 + 1).min(PAGES - page)),
                Kind::Same => (2, 1),
                Kind::Ref(_) => (3, 1),
                Kind::Literal => (4, 1),
                Kind::Sparse => (5, 1),
                Kind::Delta(_, false) => (6, 1),
                Kind::Delta(_, true) => (7, 1),
                Kind::Absent(count) => (8, u32::from(count % 8 + 1).min(PAGES - page)),
            };
            pages += count;
            whole += u32::from(tag == 4);
            if pages > 128 || whole as usize > MAX_WHOLE {
                break;
            }
            let is_packed = record.is_packed && (4..8).contains(&tag);
            let next = page == expected;
            records.push(tag | if is_packed { 0x40 } else { 0 } | if next { 0x80 } else { 0 });
            if !next {
                jump(&mut records, expected, page);
            }
            varint(&mut records, u32::from(record.version).max(1));
            record.rest(
                page,
                count,
                &mut records,
                if is_packed { &mut packed } else { &mut plain },
            );
            expected = page + count;
        }
        let frame = if packed.is_empty() { Vec::new() } else { zstd(&packed, self.level) };
        let mut out = vec![self.has, 1];
        for length in [records.len(), plain.len(), packed.len(), frame.len()] {
            varint(&mut out, u32::try_from(length).unwrap_or(u32::MAX));
        }
        [out, records, plain, frame].concat()
    }
}

impl Record {
    fn rest(&self, page: u32, count: u32, out: &mut Vec<u8>, bodies: &mut Vec<u8>) {
        let ours = content(match self.kind {
            // Of few bytes, so that its runs fit.
            Kind::Sparse => self.content % 50 * 5 + 2,
            _ => self.content,
        });
        let hash = page_hash(&KEY, &ours);
        if !matches!(self.kind, Kind::Zero(_) | Kind::Absent(_)) {
            out.extend_from_slice(&hash.0);
        }
        match self.kind {
            Kind::Zero(_) | Kind::Absent(_) => varint(out, count),
            Kind::Same => {}
            Kind::Ref(from) => jump(out, page, u32::from(from) % PAGES),
            Kind::Literal => bodies.extend_from_slice(&ours),
            Kind::Sparse => body(out, bodies, &content(0), &ours, false),
            Kind::Delta(base, is_patch) => {
                let base = content(base);
                out.extend_from_slice(&page_hash(&KEY, &base).0);
                body(out, bodies, &base, &ours, is_patch);
            }
        }
    }
}

/// The runs that lead from `old` to `new`; the first ones only, when there are more than fit.
fn body(out: &mut Vec<u8>, bodies: &mut Vec<u8>, old: &Page, new: &Page, is_patch: bool) {
    let (mut runs, mut at, mut done) = (Vec::new(), 0, 0);
    while at < PAGE_BYTES {
        if old[at] == new[at] {
            at += 1;
            continue;
        }
        let length = (at..PAGE_BYTES).take_while(|at| old[*at] != new[*at]).count();
        if runs.len() + length + 10 > PAGE_BYTES {
            break;
        }
        varint(&mut runs, u32::try_from(at - done).unwrap_or(0));
        varint(&mut runs, u32::try_from(length).unwrap_or(0));
        let difference = |at: usize| if is_patch { new[at] } else { old[at] ^ new[at] };
        runs.extend((at..at + length).map(difference));
        at += length;
        done = at;
    }
    varint(out, u32::try_from(runs.len()).unwrap_or(0));
    bodies.extend(runs);
}

fn varint(out: &mut Vec<u8>, number: u32) {
    let mut rest = number;
    while rest >= 0x80 {
        out.push(rest.to_le_bytes()[0] | 0x80);
        rest >>= 7;
    }
    out.push(rest.to_le_bytes()[0]);
}

fn jump(out: &mut Vec<u8>, from: u32, to: u32) {
    let by = to.wrapping_sub(from).cast_signed();
    varint(out, ((by << 1) ^ (by >> 31)).cast_unsigned());
}

fn zstd(body: &[u8], level: i8) -> Vec<u8> {
    let mut out = vec![0; zstd_safe::compress_bound(body.len())];
    let length = zstd_safe::compress(&mut out[..], body, (level % 4).into()).unwrap_or(0);
    out.truncate(length);
    out
}

thread_local! {
    /// One decoder for all inputs, as a connection has one for all batches: what a bad batch leaves in it shows.
    static DECODER: RefCell<Option<Decoder>> = const { RefCell::new(None) };
}

fn run(input: &[u8]) -> Outcome {
    let Some((has, batch)) = input.split_first() else { return Outcome::refused("empty") };
    // Taken out meanwhile: after a panic the next input gets a new one.
    let decoder = DECODER.take().or_else(|| Decoder::new(KEY, PAGES).ok());
    let Some(mut decoder) = decoder else { super::broken(&"no memory for a decoder") };
    let mut memory = memory(*has);
    let result = decoder.decode(batch, &mut memory);
    let outcome = match result {
        Ok(said) => {
            memory.check(said);
            memory.begin();
            let again = decoder.decode(batch, &mut memory);
            match again {
                Ok(again) => memory.check(again),
                Err(error) => {
                    super::broken(&format!("a batch is refused when it comes twice: {error}"))
                }
            }
            let settled = [said.written, said.zeroed, said.confirmed, said.absent];
            let others = [said.outdated, said.missing];
            let few = |count: u32| count.min(2);
            Outcome::accepted(format!("{:?} {:?}", settled.map(few), others.map(few)))
        }
        Err(DecodeError::Store { .. }) => super::broken(&"a store that never fails, failed"),
        Err(error) => {
            let is_too_long =
                matches!(error, DecodeError::Format(FormatError::Limit { field: "batch", .. }));
            assert_eq!(is_too_long, batch.len() > MAX_BATCH_BYTES);
            Outcome::refused(of_error(&error, ERROR_BYTES))
        }
    };
    still_works(&mut decoder);
    DECODER.set(Some(decoder));
    outcome
}

/// The decoder takes a good batch after whatever it had before.
fn still_works(decoder: &mut Decoder) {
    let text = content(3);
    let hash = page_hash(&KEY, &text);
    assert_ne!(hash, PageHash::ZERO);
    let frame = zstd(&text, 1);
    let mut batch = vec![1];
    let records = [&[0xc4, 1][..], &hash.0].concat();
    for length in [records.len(), 0, PAGE_BYTES, frame.len()] {
        varint(&mut batch, u32::try_from(length).unwrap_or(0));
    }
    batch.extend([records, frame].concat());
    let mut memory = Memory::default();
    let said = decoder.decode(&batch, &mut memory);
    assert!(said.is_ok_and(|said| said.written == 1), "a good batch is refused: {said:?}");
    assert!(*memory.content(0) == text);
}
