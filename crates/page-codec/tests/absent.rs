//! Pages that are announced before their content follows in post-copy.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;

use proptest::prelude::*;
use sterna_model::{Page, PageHash, PageId, Root, ZERO_PAGE};
use sterna_page_codec::*;
use support::{KEY, Memory, decoder, encoder, random_page, text_page};

const PAGES: u32 = 512;

/// A source and a destination with one connection.
struct Pair {
    known: Arc<Known>,
    encoder: Encoder,
    decoder: Decoder,
    memory: Memory,
}

impl Pair {
    fn new() -> Self {
        let known = Arc::new(Known::new(PAGES));
        let encoder = encoder(&known);
        Self { known, encoder, decoder: decoder(PAGES), memory: Memory::new(PAGES as usize) }
    }

    fn send(&mut self, page: u32, content: &Page, hint: Hint) -> Pushed {
        let pushed = self.encoder.push(PageId(page), content, hint).unwrap();
        self.deliver();
        pushed
    }

    fn announce(&mut self, page: u32, content: Option<&Page>) -> Pushed {
        let hash = content.map(|content| page_hash(&KEY, content));
        let pushed = self.encoder.push_absent(PageId(page), hash).unwrap();
        self.deliver();
        pushed
    }

    /// Sends what was pushed and acknowledges it; nothing may be missing.
    fn deliver(&mut self) -> (BatchStats, BatchOutcome) {
        let batch = self.encoder.finish(Effort::Raw);
        let outcome = match batch.bytes {
            [] => BatchOutcome::default(),
            bytes => self.decoder.decode(bytes, &mut self.memory).unwrap(),
        };
        assert_eq!(outcome.missing, 0, "{:?}", self.memory.missing);
        batch.sent.iter().for_each(|sent| self.known.acknowledge(sent.page, sent.version));
        self.memory.check();
        (batch.stats, outcome)
    }

    /// The root of what the source believes, and that of what the destination has.
    fn roots(&self) -> (Root, Root) {
        let (mut believed, mut stored) = (Root::ZERO_MEMORY, Root::ZERO_MEMORY);
        for page in (0..PAGES).map(PageId) {
            if let Some(entry) = self.known.get(page) {
                believed.replace(page, PageHash::ZERO, entry.hash);
            }
            if let Some(entry) = self.memory.entries[page.index()] {
                stored.replace(page, PageHash::ZERO, entry.hash);
            }
        }
        (believed, stored)
    }
}

#[test]
fn absent_pages_are_runs_and_count_in_the_root() {
    let mut pair = Pair::new();
    for page in 10..138 {
        assert_eq!(pair.encoder.push_absent(PageId(page), None), Ok(Pushed::Absent));
    }
    assert_eq!(pair.encoder.push_absent(PageId(138), None), Err(PushError::Full));
    let beyond = PushError::Page { page: PageId(PAGES), pages: PAGES };
    assert_eq!(pair.encoder.push_absent(PageId(PAGES), None), Err(beyond));
    let (stats, outcome) = pair.deliver();
    assert_eq!(stats.pages, PageCounts { absent: 128, ..PageCounts::default() });
    assert_eq!(outcome, BatchOutcome { absent: 128, ..BatchOutcome::default() });
    assert!(stats.wire_bytes < 16 && stats.body_bytes == 0, "{stats:?}");
    assert_eq!(pair.memory.absent.len(), 128);
    let (believed, stored) = pair.roots();
    assert!(believed == stored && believed != Root::ZERO_MEMORY);
}

#[test]
fn runs_of_zero_and_absent_pages_stay_apart() {
    let mut pair = Pair::new();
    pair.announce(7, None);
    for page in [2, 3] {
        pair.encoder.push_zero(PageId(page), Hint::Cold).unwrap();
    }
    // Page 7 is at its second version, so its run ends before it.
    for page in [4, 5, 6, 7] {
        pair.encoder.push_absent(PageId(page), None).unwrap();
    }
    pair.encoder.push_zero(PageId(8), Hint::Cold).unwrap();
    let (_, outcome) = pair.deliver();
    assert_eq!((outcome.zeroed, outcome.absent), (3, 4));
    assert_eq!(pair.memory.absent, (4..8).map(PageId).collect());
    let versions = (2..9).map(|page: usize| pair.memory.entries[page].unwrap().version);
    assert_eq!(versions.collect::<Vec<_>>(), [1, 1, 1, 1, 1, 2, 1]);
}

#[test]
fn what_is_settled_already_is_not_absent() {
    let mut pair = Pair::new();
    let page = random_page(1);
    pair.send(5, &page, Hint::Cold);
    assert_eq!(pair.announce(5, Some(&page)), Pushed::Unchanged);
    assert_eq!(pair.announce(5, Some(&ZERO_PAGE)), Pushed::Zero);
    assert_eq!(pair.announce(5, Some(&ZERO_PAGE)), Pushed::Unchanged);
    assert!(pair.memory.absent.is_empty() && pair.memory.pages[5] == ZERO_PAGE);
    assert_eq!(pair.announce(5, Some(&page)), Pushed::Absent);
    let entry = pair.known.get(PageId(5)).unwrap();
    assert_eq!((entry.hash, entry.version), (PageHash::ABSENT, 3));
    assert_eq!(pair.memory.entries[5], Some(Stored { version: 3, hash: PageHash::ABSENT }));
    // Without its content, nothing is known of it.
    pair.send(6, &page, Hint::Cold);
    assert_eq!(pair.announce(6, None), Pushed::Absent);
}

#[test]
fn an_absent_page_is_never_unchanged_nor_built_on() {
    let mut pair = Pair::new();
    let old = random_page(1);
    let mut new = old;
    new[0] ^= 1;
    for (page, hint) in [(5, Hint::Cold), (6, Hint::Hot)] {
        pair.send(page, &random_page(page.into()), Hint::Hot);
        pair.announce(page, None);
        assert_eq!(pair.announce(page, None), Pushed::Absent, "again");
        // What was there, and what differs little from it: the encoder remembers it, the destination does not have it.
        assert_eq!(pair.send(page, &random_page(page.into()), hint), Pushed::Literal);
    }
    pair.send(7, &old, Hint::Hot);
    pair.announce(7, None);
    assert_eq!(pair.send(7, &new, Hint::Hot), Pushed::Literal);
    pair.announce(7, None);
    assert_eq!(pair.send(7, &ZERO_PAGE, Hint::Cold), Pushed::Zero);
    assert!(pair.memory.absent.is_empty());
}

#[test]
fn an_absent_page_is_never_referred_to() {
    let mut pair = Pair::new();
    let page = random_page(1);
    pair.send(5, &page, Hint::Cold);
    assert_eq!(pair.send(6, &page, Hint::Cold), Pushed::Ref);
    pair.announce(5, None);
    pair.announce(6, None);
    assert_eq!(pair.known.find(page_hash(&KEY, &page), PageId(7)), None);
    assert_eq!(pair.known.find(PageHash::ABSENT, PageId(7)), None);
    assert_eq!(pair.send(7, &page, Hint::Cold), Pushed::Literal);
    // By a table that was told so, too.
    pair.known.record_present(PageId(9), PageHash::ABSENT);
    assert_eq!(pair.known.find(PageHash::ABSENT, PageId(7)), None);
}

#[test]
fn a_requested_page_stands_alone() {
    let mut pair = Pair::new();
    let (random, text) = (random_page(1), text_page(2));
    let mut sparse = ZERO_PAGE;
    sparse[9] = 9;
    // Another page has each content, and the encoder remembers an older one of the page itself.
    for (page, content) in (20..).zip([&random, &text, &sparse, &ZERO_PAGE]) {
        pair.send(page, content, Hint::Cold);
        let mut old = *content;
        old[100] ^= 1;
        pair.send(page - 10, &old, Hint::Hot);
        pair.announce(page - 10, Some(content));
    }
    for (page, content) in (10..).zip([&random, &text, &sparse]) {
        assert_eq!(pair.announce(page, None), Pushed::Absent);
        assert_eq!(pair.send(page, content, Hint::Requested), Pushed::Literal);
        assert!(pair.memory.pages[page as usize] == *content);
    }
    pair.announce(13, None);
    assert_eq!(pair.encoder.push_zero(PageId(13), Hint::Requested), Ok(Pushed::Zero));
    pair.deliver();
    assert!(pair.memory.absent.is_empty() && pair.memory.pages[13] == ZERO_PAGE);
}

#[test]
fn the_newest_version_counts_whatever_comes_first() {
    let mut pair = Pair::new();
    let page = random_page(1);
    let mut batches = Vec::new();
    pair.encoder.push(PageId(4), &page, Hint::Cold).unwrap();
    batches.push(pair.encoder.finish(Effort::Raw).bytes.to_vec());
    for number in [3, 4, 5] {
        pair.encoder.push_absent(PageId(number), None).unwrap();
    }
    batches.push(pair.encoder.finish(Effort::Raw).bytes.to_vec());
    pair.encoder.push(PageId(4), &page, Hint::Requested).unwrap();
    batches.push(pair.encoder.finish(Effort::Raw).bytes.to_vec());
    for order in [[2, 1, 0], [1, 2, 0], [0, 2, 1], [2, 0, 1]] {
        let mut memory = Memory::new(PAGES as usize);
        let mut total = 0;
        for batch in order {
            let outcome = pair.decoder.decode(&batches[batch], &mut memory).unwrap();
            total += outcome.written + outcome.absent + outcome.outdated;
            memory.check();
        }
        assert_eq!(total, 5, "{order:?}");
        assert_eq!(memory.absent, [3, 5].map(PageId).into(), "{order:?}");
        assert!(memory.pages[4] == page, "{order:?}");
    }
}

/// The content of this number.
fn content(seed: u64) -> Page {
    match seed {
        0 | 1 => ZERO_PAGE,
        2..6 => random_page(seed),
        _ => text_page(seed),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// A whole move in three stages: what the guest wrote late is announced, and follows once.
    #[test]
    fn what_is_announced_follows_once(
        first in prop::collection::vec(0_u64..10, 64),
        late in prop::collection::vec((0_u32..64, 0_u64..10, any::<bool>()), 0..60),
    ) {
        let mut pair = Pair::new();
        let mut source: Vec<Page> = first.iter().map(|seed| content(*seed)).collect();
        for (page, content) in (0..).zip(&source) {
            pair.encoder.push(PageId(page), content, Hint::Cold).unwrap();
        }
        pair.deliver();
        let mut absent = Vec::new();
        for (page, seed, read) in late {
            source[page as usize] = content(seed);
            let content = &source[page as usize];
            // Whoever has announced a page without reading it does not come back to it.
            if !absent.contains(&page) && pair.announce(page, read.then_some(content)) == Pushed::Absent {
                absent.push(page);
            }
        }
        let (believed, stored) = pair.roots();
        prop_assert_eq!(believed, stored);
        prop_assert_eq!(pair.memory.absent.len(), absent.len());
        for page in absent {
            let pushed = pair.send(page, &source[page as usize], Hint::Requested);
            prop_assert!(matches!(pushed, Pushed::Literal | Pushed::Zero), "{pushed:?}");
        }
        prop_assert!(pair.memory.absent.is_empty());
        prop_assert!(pair.memory.pages[..64] == source);
        let (believed, stored) = pair.roots();
        prop_assert_eq!(believed, stored);
    }
}
