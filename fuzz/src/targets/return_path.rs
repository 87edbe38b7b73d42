//! What a destination's QEMU says on the way back: in one piece and in many, and again as it would say it.

use std::collections::BTreeSet;
use std::ops::Range;

use arbitrary::{Arbitrary, Unstructured};
use sterna_model::{Block, BlockName, Layout, PAGE_BYTES, PageId};
use sterna_qemu_stream::{PlacedPages, ReturnMessage, ReturnPath, ReturnPathError};
use sterna_sim::random::Random;

use crate::signature::{hash, of_error};
use crate::{Made, Outcome, Target};

pub(super) const TARGET: Target = Target {
    name: "return_path",
    about: "what a destination's QEMU says on the way back",
    run,
    make,
    mutators: &[],
    tokens: TOKENS,
    max_bytes: 8 << 10,
    borrowed: &[],
};

#[rustfmt::skip]
const TOKENS: &[&[u8]] = &[
    b"\0\x01\0\x04", b"\0\x02\0\x04\0\0\0\x01", b"\0\x03\0\x13", b"\0\x04\0\x0c", b"\0\x05\0\x07", b"\0\x06\0\x04", b"\0\x07\0\0",
    b"\x06pc.ram", b"\x01r", b"\0\0\x10\0", b"\0\0\0\0\0\0\0\x28", b"\0\0\0\0\0\0\0\x08", b"\x01\x23\x45\x67\x89\xab\xcd\xef",
];

/// The guest's blocks, with their pages: of less than a word of bits, of whole words, and of a bit more.
const BLOCKS: [(&str, u64); 4] =
    [("r", 1), ("pc.ram", 300), ("pc.bios", 64), ("0000:00:02.0/vga.vram", 65)];

const BITMAP_END: &[u8] = b"\x01\x23\x45\x67\x89\xab\xcd\xef";
const ERROR_BYTES: usize = 4096;

#[derive(Arbitrary, Debug)]
enum Said {
    Shut(u32),
    Pong(u32),
    ResumeAck(u32),
    Wanted { block: u8, start: u16, count: u8 },
    WantedOfTheSame { start: u16, count: u8 },
    Received { block: u8, bits: [u64; 5] },
}

fn make(noise: &mut Unstructured<'_>) -> arbitrary::Result<Made> {
    let (layout, mut out, mut last) = (layout(), Vec::new(), None);
    for said in Vec::<Said>::arbitrary(noise)?.iter().take(40) {
        said.put(&layout, &mut last, &mut out);
    }
    Ok(Made::valid(out))
}

impl Said {
    fn put<'a>(&self, layout: &'a Layout, last: &mut Option<&'a Block>, out: &mut Vec<u8>) {
        let block = |number: u8| &layout.blocks()[usize::from(number) % BLOCKS.len()];
        match *self {
            Self::Shut(value) => put(out, 1, &value.to_be_bytes()),
            Self::Pong(value) => put(out, 2, &value.to_be_bytes()),
            Self::ResumeAck(value) => put(out, 6, &value.to_be_bytes()),
            Self::Wanted { block: number, start, count } => {
                let block = block(number);
                put_request(out, 3, &run_of(block, start, count), &counted(block));
                *last = Some(block);
            }
            Self::WantedOfTheSame { start, count } => {
                if let Some(block) = last {
                    put_request(out, 4, &run_of(block, start, count), &[]);
                }
            }
            Self::Received { block: number, bits } => {
                let block = block(number);
                let words = block.pages.div_ceil(64) as usize;
                put_bitmap(out, block, &bits[..words.min(bits.len())]);
            }
        }
    }
}

/// Pages of a block, as numbers in it.
fn run_of(block: &Block, start: u16, count: u8) -> Range<u32> {
    let start = u32::from(start) % block.pages;
    start..start + 1 + u32::from(count) % (block.pages - start)
}

fn put(out: &mut Vec<u8>, number: u16, data: &[u8]) {
    out.extend_from_slice(&number.to_be_bytes());
    out.extend_from_slice(&u16::try_from(data.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(data);
}

fn put_request(out: &mut Vec<u8>, number: u16, run: &Range<u32>, name: &[u8]) {
    let page_bytes = PAGE_BYTES as u64;
    let start_bytes = u64::from(run.start) * page_bytes;
    let length_bytes = u32::try_from(run.len() as u64 * page_bytes).unwrap_or(u32::MAX);
    put(out, number, &[&start_bytes.to_be_bytes()[..], &length_bytes.to_be_bytes(), name].concat());
}

fn put_bitmap(out: &mut Vec<u8>, block: &Block, words: &[u64]) {
    put(out, 5, &counted(block));
    out.extend_from_slice(&(words.len() as u64 * 8).to_be_bytes());
    out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    out.extend_from_slice(BITMAP_END);
}

fn counted(block: &Block) -> Vec<u8> {
    let name = block.name.as_str().as_bytes();
    [&[u8::try_from(name.len()).unwrap_or(u8::MAX)], name].concat()
}

fn layout() -> Layout {
    let named = |(name, pages): &(&str, u64)| {
        BlockName::new(name.as_bytes()).map(|name| (name, pages * PAGE_BYTES as u64))
    };
    let blocks: Result<Vec<_>, _> = BLOCKS.iter().map(named).collect();
    match blocks.and_then(|blocks| Layout::new(&blocks)) {
        Ok(layout) => layout,
        Err(error) => super::broken(&error),
    }
}

type Messages = Vec<ReturnMessage>;

fn run(input: &[u8]) -> Outcome {
    let (messages, end) = read(input, |rest| rest);
    let mut random = Random::new(hash(input));
    let pieces = read(input, |rest| 1 + random.index(rest.min(30)));
    assert!(pieces.0 == messages && pieces.1 == end, "how it arrives changes what is read");
    messages.iter().for_each(check);
    let again = read(&said_again(&messages), |rest| rest);
    assert!(again == (messages.clone(), Ok(())), "what is said again reads otherwise");
    let kinds: String = messages.iter().map(kind).collect::<BTreeSet<char>>().iter().collect();
    let last = messages.last().map_or('-', kind);
    let shape = format!("messages {kinds}, last {last}");
    match end {
        Ok(()) => Outcome::accepted(shape),
        Err(error) => {
            assert!(error.offset <= input.len() as u64, "an error behind the input's end");
            Outcome::refused(format!("{}; {shape}", of_error(&error.fault, ERROR_BYTES)))
        }
    }
}

/// Reads what arrives in pieces that are as long as `next` says of the rest's length.
fn read(
    input: &[u8],
    mut next: impl FnMut(usize) -> usize,
) -> (Messages, Result<(), ReturnPathError>) {
    let (mut way_back, mut messages) = (ReturnPath::new(layout()), Messages::new());
    let mut rest = input;
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(next(rest.len()).clamp(1, rest.len()));
        way_back.feed(piece);
        rest = later;
        loop {
            match way_back.next_message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => {
                    way_back.feed(b"\0\x02\0\x04more");
                    assert_eq!(way_back.next_message(), Err(error.clone()), "an error has to stay");
                    assert_eq!(way_back.finish(), Err(error.clone()), "an error has to stay");
                    return (messages, Err(error));
                }
            }
        }
    }
    (messages, way_back.finish())
}

/// Pages that are named exist, and are of one block.
fn check(message: &ReturnMessage) {
    let layout = layout();
    match message {
        ReturnMessage::Wanted { first, count } => {
            let last = PageId(first.0 + count - 1);
            let block = layout.block_index_of(*first);
            assert!(block.is_some() && block == layout.block_index_of(last), "{first:?} {count}");
        }
        ReturnMessage::Received { block, pages } => {
            let numbers = layout.blocks()[*block].page_numbers();
            let runs: Vec<Range<u32>> = pages.runs().collect();
            assert!(runs.windows(2).all(|two| two[0].end < two[1].start), "{runs:?}");
            let is_inside = |run: &Range<u32>| run.start >= numbers.start && run.end <= numbers.end;
            assert!(runs.iter().all(|run| !run.is_empty() && is_inside(run)), "{runs:?}");
            assert_eq!(runs.iter().map(Range::len).sum::<usize>(), pages.len() as usize);
            let contained = (0..layout.pages()).filter(|page| pages.contains(PageId(*page)));
            assert!(contained.eq(runs.into_iter().flatten()), "runs and bits differ");
        }
        ReturnMessage::Shut(_) | ReturnMessage::Pong(_) | ReturnMessage::ResumeAck(_) => {}
    }
}

/// What QEMU would say to mean this.
fn said_again(messages: &Messages) -> Vec<u8> {
    let (layout, mut out) = (layout(), Vec::new());
    for message in messages {
        match message {
            ReturnMessage::Shut(value) => put(&mut out, 1, &value.to_be_bytes()),
            ReturnMessage::Pong(value) => put(&mut out, 2, &value.to_be_bytes()),
            ReturnMessage::ResumeAck(value) => put(&mut out, 6, &value.to_be_bytes()),
            ReturnMessage::Wanted { first, count } => {
                let block = layout.block_index_of(*first).map(|index| &layout.blocks()[index]);
                let Some(block) = block else { super::broken(&"a page of no block") };
                let start = first.0 - block.first.0;
                put_request(&mut out, 3, &(start..start + count), &counted(block));
            }
            ReturnMessage::Received { block, pages } => {
                let block = &layout.blocks()[*block];
                put_bitmap(&mut out, block, &words_of(block, pages));
            }
        }
    }
    out
}

fn words_of(block: &Block, pages: &PlacedPages) -> Vec<u64> {
    let mut words = vec![0; block.pages.div_ceil(64) as usize];
    for page in pages.runs().flatten() {
        let number = page - block.first.0;
        words[(number / 64) as usize] |= 1 << (number % 64);
    }
    words
}

fn kind(message: &ReturnMessage) -> char {
    match message {
        ReturnMessage::Shut(_) => 's',
        ReturnMessage::Pong(_) => 'p',
        ReturnMessage::Wanted { count: 1, .. } => 'w',
        ReturnMessage::Wanted { .. } => 'W',
        ReturnMessage::Received { pages, .. } if pages.is_empty() => 'r',
        ReturnMessage::Received { .. } => 'R',
        ReturnMessage::ResumeAck(_) => 'a',
    }
}
