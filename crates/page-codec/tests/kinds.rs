//! Each way to send a page, from encoder to decoder.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;

use sterna_model::{PAGE_BYTES, Page, PageHash, PageId, ZERO_PAGE};
use sterna_page_codec::*;
use support::{KEY, Memory, decoder, encoder, encoder_with, random_page, text_page};

const PAGES: u32 = 512;
const ZSTD: Effort = Effort::Zstd(Level::FAST);

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

    /// Sends pages in one batch and acknowledges them.
    fn send<'a>(
        &mut self,
        pages: impl IntoIterator<Item = (u32, &'a Page)>,
        hint: Hint,
        effort: Effort,
    ) -> (BatchStats, BatchOutcome) {
        let mut newest = Vec::new();
        for (page, content) in pages {
            self.encoder.push(PageId(page), content, hint).unwrap();
            newest.push((page, *content));
        }
        let batch = self.encoder.finish(effort);
        let outcome = match batch.bytes {
            [] => BatchOutcome::default(),
            bytes => self.decoder.decode(bytes, &mut self.memory).unwrap(),
        };
        for sent in batch.sent {
            if self.memory.missing.contains_key(&sent.page) {
                self.known.forget(sent.page);
            } else {
                self.known.acknowledge(sent.page, sent.version);
                let (_, content) = newest.iter().rfind(|(page, _)| *page == sent.page.0).unwrap();
                assert!(self.memory.pages[sent.page.index()] == *content);
            }
        }
        self.memory.check();
        (batch.stats, outcome)
    }
}

#[test]
fn random_pages_go_raw_in_one_run() {
    let mut pair = Pair::new();
    let pages: Vec<_> = (0..128).map(random_page).collect();
    let (stats, outcome) = pair.send((64..).zip(&pages), Hint::Cold, ZSTD);
    assert_eq!(stats.pages, PageCounts { raw: 128, ..PageCounts::default() });
    assert_eq!(outcome.written, 128);
    assert_eq!(pair.memory.runs, [(64, 128)]);
    assert!(stats.wire_bytes < 128 * (PAGE_BYTES as u64 + 18) + 16, "{}", stats.wire_bytes);
}

#[test]
fn text_is_compressed_and_random_pages_between_it_are_not() {
    let mut pair = Pair::new();
    let pages: Vec<_> = (0..100)
        .map(|page| if page % 4 == 3 { random_page(page) } else { text_page(page) })
        .collect();
    let (stats, _) = pair.send((0..).zip(&pages), Hint::Cold, ZSTD);
    assert_eq!((stats.pages.compressed, stats.pages.raw), (75, 25));
    assert!(stats.wire_bytes < 150_000, "{}", stats.wire_bytes);
    let mut other = Pair::new();
    let (stats, _) = other.send((0..).zip(&pages), Hint::Cold, Effort::Raw);
    assert_eq!((stats.pages.compressed, stats.pages.raw), (0, 100));
}

#[test]
fn evenly_distributed_repetition_is_found_by_trial() {
    let mut pair = Pair::new();
    let part = random_page(7);
    let pages: Vec<_> = (0..64_u8)
        .map(|number| {
            let mut page = part;
            page.rotate_left(usize::from(number) * 8);
            page
        })
        .collect();
    let (stats, _) = pair.send((0..).zip(&pages), Hint::Cold, ZSTD);
    assert_eq!(stats.pages.compressed, 64);
    assert!(stats.wire_bytes < 20_000, "{}", stats.wire_bytes);
}

#[test]
fn zero_pages_are_runs() {
    let mut pair = Pair::new();
    let (stats, outcome) = pair.send((10..138).map(|page| (page, &ZERO_PAGE)), Hint::Cold, ZSTD);
    assert_eq!((stats.pages.zero, outcome.zeroed), (128, 128));
    assert!(stats.wire_bytes < 16);
    let (stats, _) = pair.send([(10, &ZERO_PAGE)], Hint::Hot, ZSTD);
    assert_eq!((stats.pages.unchanged, stats.wire_bytes), (1, 0));
    let (stats, _) = pair.send([(10, &ZERO_PAGE)], Hint::Requested, ZSTD);
    assert_eq!(stats.pages.zero, 1);
}

#[test]
fn a_sparse_page_needs_no_base() {
    let mut pair = Pair::new();
    let mut page = ZERO_PAGE;
    page[77] = 9;
    page[4095] = 1;
    let (stats, outcome) = pair.send([(3, &page)], Hint::Requested, Effort::Raw);
    assert_eq!((stats.pages.compressed, outcome.written), (1, 1));
    assert!(stats.wire_bytes < 40);
}

#[test]
fn an_unchanged_page_is_not_sent() {
    let mut pair = Pair::new();
    let page = random_page(1);
    pair.send([(5, &page)], Hint::Cold, ZSTD);
    let (stats, outcome) = pair.send([(5, &page)], Hint::Hot, ZSTD);
    assert_eq!((stats.pages.unchanged, stats.wire_bytes), (1, 0));
    assert_eq!(outcome, BatchOutcome::default());
}

#[test]
fn equal_contents_are_referred_to() {
    let mut pair = Pair::new();
    let page = random_page(1);
    // Within a batch.
    let (stats, _) = pair.send([(5, &page), (6, &page), (9, &page)], Hint::Cold, ZSTD);
    assert_eq!((stats.pages.raw, stats.pages.reference), (1, 2));
    // By another encoder, once acknowledged.
    pair.encoder = encoder(&pair.known);
    let (stats, outcome) = pair.send([(400, &page)], Hint::Cold, ZSTD);
    assert_eq!((stats.pages.reference, outcome.written), (1, 1));
    assert!(stats.wire_bytes < 32);
}

#[test]
fn a_small_write_costs_less_than_150_bytes_with_either_memory() {
    for (contents, digests, limit) in [(1 << 20, 0, 60), (0, 1 << 20, 115)] {
        let mut pair = Pair::new();
        pair.encoder = encoder_with(&pair.known, contents, digests);
        let mut pages: Vec<_> = (0..100).map(random_page).collect();
        pair.send((0..).zip(&pages), Hint::Hot, ZSTD);
        for (number, page) in pages.iter_mut().enumerate() {
            page[number * 32 + 8..][..8].copy_from_slice(b"12345678");
        }
        let (stats, _) = pair.send((0..).zip(&pages), Hint::Hot, ZSTD);
        assert_eq!(stats.pages.delta, 100);
        assert!(stats.wire_bytes < limit * 100, "{}", stats.wire_bytes);
    }
}

#[test]
fn a_delta_on_what_is_not_there_is_asked_for_again() {
    let mut pair = Pair::new();
    let old = random_page(1);
    pair.encoder.push(PageId(5), &old, Hint::Hot).unwrap();
    pair.encoder.finish(ZSTD); // lost, and the source does not know
    let mut new = old;
    new[0] ^= 1;
    let (stats, outcome) = pair.send([(5, &new)], Hint::Hot, ZSTD);
    assert_eq!((stats.pages.delta, outcome.missing), (1, 1));
    assert_eq!(pair.memory.missing.remove(&PageId(5)), Some(Missing::Base));
    let (stats, outcome) = pair.send([(5, &new)], Hint::Requested, ZSTD);
    assert_eq!((stats.pages.raw, outcome.written), (1, 1));
}

#[test]
fn a_wrong_delta_or_ref_is_asked_for_again() {
    let mut pair = Pair::new();
    let (old, other) = (random_page(1), random_page(2));
    pair.send([(5, &old), (6, &other)], Hint::Hot, ZSTD);
    // The destination's memory changes behind everyone's back.
    pair.memory.pages[5][100] ^= 1;
    pair.memory.pages[6][100] ^= 1;
    let mut new = old;
    new[0] ^= 1;
    pair.encoder.push(PageId(5), &new, Hint::Hot).unwrap();
    pair.encoder.push(PageId(7), &other, Hint::Cold).unwrap();
    let batch = pair.encoder.finish(ZSTD);
    assert_eq!((batch.stats.pages.delta, batch.stats.pages.reference), (1, 1));
    let outcome = pair.decoder.decode(batch.bytes, &mut pair.memory).unwrap();
    assert_eq!(outcome, BatchOutcome { missing: 2, ..BatchOutcome::default() });
    let missing: Vec<_> = pair.memory.missing.iter().map(|(page, why)| (page.0, *why)).collect();
    assert_eq!(missing, [(5, Missing::Delta), (7, Missing::Ref)]);
}

#[test]
fn a_confirmation_is_believed_by_its_hash_only() {
    let mut pair = Pair::new();
    let (page, other) = (random_page(1), random_page(2));
    pair.send([(5, &page), (6, &page)], Hint::Cold, ZSTD);
    let (stats, outcome) = pair.send([(5, &page), (6, &other), (7, &other)], Hint::Confirm, ZSTD);
    assert_eq!(stats.pages.same, 3);
    assert_eq!((outcome.confirmed, outcome.missing), (1, 2));
    assert_eq!(pair.memory.entries[5].unwrap().version, 2);
    assert_eq!(pair.memory.missing[&PageId(6)], Missing::Same);
}

#[test]
fn an_older_version_is_dropped() {
    let mut pair = Pair::new();
    let mut batches = Vec::new();
    for seed in 0..2 {
        for page in [1, 2, 4] {
            pair.encoder
                .push(PageId(page), &random_page(seed * 9 + u64::from(page)), Hint::Cold)
                .unwrap();
        }
        pair.encoder.push_zero(PageId(8), Hint::Requested).unwrap();
        batches.push(pair.encoder.finish(Effort::Raw).bytes.to_vec());
    }
    let newest = pair.decoder.decode(&batches[1], &mut pair.memory).unwrap();
    let late = pair.decoder.decode(&batches[0], &mut pair.memory).unwrap();
    assert_eq!((newest.written, newest.zeroed, newest.outdated), (3, 1, 0));
    assert_eq!((late.written, late.zeroed, late.outdated), (0, 0, 4));
    assert!(pair.memory.pages[4] == random_page(13));
}

#[test]
fn a_page_may_be_twice_in_a_batch() {
    let mut pair = Pair::new();
    let (one, mut two) = (random_page(1), random_page(1));
    two[9] ^= 9;
    let (stats, _) = pair.send([(5, &one), (5, &two), (6, &two), (5, &one)], Hint::Hot, ZSTD);
    assert_eq!((stats.pages.raw, stats.pages.delta, stats.pages.reference), (1, 2, 1));
    assert_eq!(pair.memory.entries[5].unwrap().version, 3);
}

#[test]
fn what_the_destination_has_from_before_is_not_sent() {
    let mut pair = Pair::new();
    let page = random_page(1);
    let hash = page_hash(&KEY, &page);
    pair.memory.pages[3] = page;
    pair.memory.entries[3] = Some(Stored { version: 0, hash });
    pair.known.record_present(PageId(3), hash);
    let (stats, _) = pair.send([(3, &page), (4, &page)], Hint::Cold, ZSTD);
    assert_eq!((stats.pages.unchanged, stats.pages.reference), (1, 1));
    assert_ne!(hash, PageHash::ZERO);
}

#[test]
fn a_full_batch_is_within_its_limit() {
    let mut pair = Pair::new();
    // As many bytes as possible: no page follows the one before.
    for page in 0..128_u32 {
        assert_eq!(pair.encoder.room(), 128 - page as usize);
        let content = random_page(page.into());
        pair.encoder.push(PageId((page * 300) % 509), &content, Hint::Cold).unwrap();
    }
    assert_eq!(pair.encoder.push(PageId(0), &ZERO_PAGE, Hint::Cold), Err(PushError::Full));
    let out_of_range = PushError::Page { page: PageId(PAGES), pages: PAGES };
    assert_eq!(pair.encoder.push(PageId(PAGES), &ZERO_PAGE, Hint::Cold), Err(out_of_range));
    assert!(pair.encoder.finish(ZSTD).bytes.len() <= MAX_BATCH_BYTES);
    assert_eq!(pair.encoder.room(), 128);
    assert!(pair.encoder.finish(ZSTD).bytes.is_empty());
}
