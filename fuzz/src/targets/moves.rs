//! Pages from encoder to decoder: whatever a guest writes, and whatever gets lost or refused on the way, the destination has
//! what the source has in the end, absent pages that followed included.

use std::collections::BTreeSet;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use sterna_model::{Page, PageId, ZERO_PAGE};
use sterna_page_codec::{
    Decoder, Effort, Encoder, EncoderConfig, Hint, Known, Level, MAX_BATCH_BYTES, Pushed, Sent,
    page_hash,
};

use super::codec::{KEY, Memory, PAGES, content};
use crate::signature::scale;
use crate::{Made, Outcome, Target};

pub(super) const TARGET: Target = Target {
    name: "moves",
    about: "pages through encoder and decoder, with losses",
    run,
    make,
    mutators: &[],
    tokens: TOKENS,
    max_bytes: 4096,
    borrowed: &[],
};

#[rustfmt::skip]
const TOKENS: &[&[u8]] = &[
    &[0, 0, 0, 0], &[3, 3, 3, 3],
];

#[derive(Arbitrary, Debug)]
struct Move {
    steps: Vec<Step>,
    contents_kib: u8,
    digests_kib: u8,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Write { page: u8, content: u8 },
    Poke { page: u8, at: u16, byte: u8 },
    Send { page: u8, hint: Told },
    Finish { level: i8, fate: Fate },
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Told {
    Cold,
    Hot,
    Confirm,
    Requested,
    Absent,
    AbsentUnread,
}

#[derive(Arbitrary, Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Arrives,
    Lost,
    Twice,
}

/// Any noise is a move.
fn make(noise: &mut Unstructured<'_>) -> arbitrary::Result<Made> {
    let length = noise.len();
    Ok(Made::anything(noise.bytes(length)?.to_vec()))
}

fn run(input: &[u8]) -> Outcome {
    let Ok(script) = Move::arbitrary(&mut Unstructured::new(input)) else {
        return Outcome::refused("no move");
    };
    let known = Arc::new(Known::new(PAGES));
    let config = EncoderConfig {
        key: KEY,
        known: Arc::clone(&known),
        content_cache_bytes: usize::from(script.contents_kib) << 10,
        digest_bytes: usize::from(script.digests_kib) << 6,
    };
    let (Ok(encoder), Ok(decoder)) = (Encoder::new(config), Decoder::new(KEY, PAGES)) else {
        super::broken(&"no memory for zstd");
    };
    let source = vec![ZERO_PAGE; PAGES as usize];
    let mut moving = Moving {
        encoder,
        decoder,
        known,
        source,
        unsent: BTreeSet::new(),
        memory: Memory::default(),
        asked: 0,
        kinds: BTreeSet::new(),
    };
    script.steps.iter().take(120).for_each(|step| moving.step(step));
    let finishes = script.steps.iter().filter(|step| matches!(step, Step::Finish { .. })).count();
    moving.settle();
    let kinds: Vec<String> = moving.kinds.into_iter().collect();
    let (batches, asked) = (scale(finishes as u64), scale(moving.asked));
    Outcome::accepted(format!("{batches} batches, {asked} asked for, {}", kinds.join(" ")))
}

struct Moving {
    encoder: Encoder,
    decoder: Decoder,
    known: Arc<Known>,
    source: Vec<Page>,
    /// Pages that changed, or whose last version did not arrive.
    unsent: BTreeSet<u32>,
    memory: Memory,
    asked: u64,
    /// What became of pages.
    kinds: BTreeSet<String>,
}

impl Moving {
    fn step(&mut self, step: &Step) {
        let number = |page: &u8| u32::from(*page) % PAGES;
        match step {
            Step::Write { page, content: kind } => {
                self.source[number(page) as usize] = content(*kind);
                self.unsent.insert(number(page));
            }
            Step::Poke { page, at, byte } => {
                self.source[number(page) as usize][usize::from(*at) % 4096] ^= byte;
                self.unsent.insert(number(page));
            }
            Step::Send { page, hint } => self.send(number(page), *hint),
            Step::Finish { level, fate } => {
                let level = Level::new(level % 3).map_or(Effort::Raw, Effort::Zstd);
                self.finish(level, *fate);
            }
        }
    }

    fn send(&mut self, page: u32, hint: Told) {
        if self.encoder.room() == 0 {
            self.finish(Effort::Raw, Fate::Arrives);
        }
        let (page_id, content) = (PageId(page), &self.source[page as usize]);
        let pushed = match hint {
            Told::Cold => self.encoder.push(page_id, content, Hint::Cold),
            Told::Hot => self.encoder.push(page_id, content, Hint::Hot),
            Told::Confirm => self.encoder.push(page_id, content, Hint::Confirm),
            Told::Requested => self.encoder.push(page_id, content, Hint::Requested),
            Told::Absent => self.encoder.push_absent(page_id, Some(page_hash(&KEY, content))),
            Told::AbsentUnread => self.encoder.push_absent(page_id, None),
        };
        // Until the batch's fate is known it counts as on its way, but for a content that was only announced.
        match pushed {
            Ok(Pushed::Absent) => self.unsent.insert(page),
            _ => self.unsent.remove(&page),
        };
        match pushed {
            Ok(pushed) => drop(self.kinds.insert(format!("{pushed:?}"))),
            Err(error) => super::broken(&format!("page {page} is refused: {error}")),
        }
    }

    fn finish(&mut self, effort: Effort, fate: Fate) {
        let batch = self.encoder.finish(effort);
        assert!(
            batch.bytes.len() <= MAX_BATCH_BYTES
                && batch.stats.wire_bytes == batch.bytes.len() as u64
        );
        let (bytes, sent): (Vec<u8>, Vec<Sent>) = (batch.bytes.to_vec(), batch.sent.to_vec());
        self.memory.missing.clear();
        if fate == Fate::Lost {
            for sent in sent {
                self.known.forget(sent.page);
                self.unsent.insert(sent.page.0);
            }
            return;
        }
        let times = if fate == Fate::Twice { 2 } else { 1 };
        for _ in 0..if bytes.is_empty() { 0 } else { times } {
            self.memory.begin();
            match self.decoder.decode(&bytes, &mut self.memory) {
                Ok(said) => self.memory.check(said),
                Err(error) => super::broken(&format!("the encoder's batch is refused: {error}")),
            }
        }
        for sent in sent {
            if self.memory.missing.contains_key(&sent.page.0) {
                self.asked += 1;
                self.known.forget(sent.page);
                self.unsent.insert(sent.page.0);
            } else {
                self.known.acknowledge(sent.page, sent.version);
            }
        }
    }

    /// Sends what is left until nothing is asked for, and compares.
    fn settle(&mut self) {
        self.finish(Effort::Raw, Fate::Arrives);
        for hint in [Told::Cold, Told::Requested] {
            for page in std::mem::take(&mut self.unsent) {
                self.send(page, hint);
            }
            self.finish(Effort::Zstd(Level::FAST), Fate::Arrives);
        }
        assert!(
            self.unsent.is_empty(),
            "asked for again what stood for itself: {:?}",
            self.memory.missing
        );
        let differs =
            (0..PAGES).find(|page| self.memory.content(*page) != &self.source[*page as usize]);
        assert_eq!(differs, None, "a page differs in the end");
    }
}
