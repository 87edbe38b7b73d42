//! Whole moves under faults: random guests, reordered connections, lost batches, caches that are too small.
//!
//! The oracle: once nothing is waiting or missing, both memories are equal, and every entry at the destination tells
//! the truth at any time.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use proptest::prelude::*;
use sterna_model::{PAGE_BYTES, Page, PageHash, PageId, ZERO_PAGE};
use sterna_page_codec::{Decoder, Effort, Encoder, Hint, Known, Level, Pushed, Sent, page_hash};
use support::{KEY, Memory, decoder, encoder_with, random_page, text_page};

const PAGES: u32 = 48;
const CONNECTIONS: usize = 3;

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    /// The guest fills a page with the content of this number.
    Fill(u32, u64),
    /// The guest writes a few bytes.
    Poke(u32, usize, u8),
    /// The guest copies a page.
    Copy(u32, u32),
    /// A worker sends its dirty pages.
    Send(usize),
    /// A worker announces its dirty pages, having read those with this remainder; their contents follow.
    Announce(usize, u32),
    /// The oldest batch of a connection arrives.
    Arrive(usize),
    /// A connection breaks: what is under way is lost, or arrives much later (`true`).
    Break(usize, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let page = 0..PAGES;
    let connection = 0..CONNECTIONS;
    prop_oneof![
        (page.clone(), 0_u64..12).prop_map(|(page, seed)| Step::Fill(page, seed)),
        (page.clone(), 0..PAGE_BYTES, any::<u8>())
            .prop_map(|(page, at, byte)| Step::Poke(page, at, byte)),
        (page.clone(), 0..PAGES).prop_map(|(from, to)| Step::Copy(from, to)),
        connection.clone().prop_map(Step::Send),
        (connection.clone(), 0_u32..3)
            .prop_map(|(connection, read)| Step::Announce(connection, read)),
        connection.clone().prop_map(Step::Arrive),
        (connection, any::<bool>()).prop_map(|(connection, late)| Step::Break(connection, late)),
    ]
}

struct Flight {
    bytes: Vec<u8>,
    sent: Vec<Sent>,
}

struct Move {
    source: Memory,
    destination: Memory,
    known: Arc<Known>,
    encoders: Vec<Encoder>,
    decoder: Decoder,
    dirty: BTreeMap<PageId, Hint>,
    flights: Vec<VecDeque<Flight>>,
    /// Of broken connections; nobody waits for an answer.
    late: Vec<Vec<u8>>,
    effort: Effort,
}

impl Move {
    fn new(contents: usize, digests: usize, effort: Effort) -> Self {
        let known = Arc::new(Known::new(PAGES));
        Self {
            source: Memory::new(PAGES as usize),
            destination: Memory::new(PAGES as usize),
            encoders: (0..CONNECTIONS).map(|_| encoder_with(&known, contents, digests)).collect(),
            known,
            decoder: decoder(PAGES),
            dirty: (0..PAGES).map(|page| (PageId(page), Hint::Cold)).collect(),
            flights: (0..CONNECTIONS).map(|_| VecDeque::new()).collect(),
            late: Vec::new(),
            effort,
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Fill(page, seed) => {
                self.source.pages[page as usize] = match seed {
                    0..3 => ZERO_PAGE,
                    3..7 => random_page(seed),
                    _ => text_page(seed),
                };
                self.touch(page);
            }
            Step::Poke(page, at, byte) => {
                self.source.pages[page as usize][at] = byte;
                self.touch(page);
            }
            Step::Copy(from, to) => {
                self.source.pages[to as usize] = self.source.pages[from as usize];
                self.touch(to);
            }
            Step::Send(connection) => self.send(connection),
            Step::Announce(connection, read) => self.announce(connection, read),
            Step::Arrive(connection) => self.arrive(connection),
            Step::Break(connection, late) => self.break_connection(connection, late),
        }
    }

    fn touch(&mut self, page: u32) {
        self.dirty.entry(PageId(page)).or_insert(Hint::Hot);
    }

    fn claim(&mut self, connection: usize) -> Vec<(PageId, Hint)> {
        let mine = |page: &PageId| page.index() / 8 % CONNECTIONS == connection;
        self.dirty.extract_if(.., |page, _| mine(page)).collect()
    }

    fn send(&mut self, connection: usize) {
        let claims = self.claim(connection);
        let contents: Vec<Page> =
            claims.iter().map(|(page, _)| self.source.pages[page.index()]).collect();
        let mut hashes = vec![PageHash::ABSENT; claims.len()];
        let encoder = &mut self.encoders[connection];
        encoder.hash(&contents, &mut hashes);
        for ((page, hint), (content, hash)) in claims.into_iter().zip(contents.iter().zip(hashes)) {
            encoder.push_hashed(page, content, hash, hint).unwrap();
        }
        self.finish(connection);
    }

    fn announce(&mut self, connection: usize, read: u32) {
        for (page, _) in self.claim(connection) {
            let content = &self.source.pages[page.index()];
            let hash = (page.0 % 3 == read).then(|| page_hash(&KEY, content));
            let pushed = self.encoders[connection].push_absent(page, hash).unwrap();
            if pushed == Pushed::Absent {
                self.dirty.insert(page, Hint::Requested);
            }
        }
        self.finish(connection);
    }

    fn finish(&mut self, connection: usize) {
        let encoder = &mut self.encoders[connection];
        let batch = encoder.finish(self.effort);
        if !batch.bytes.is_empty() {
            let flight = Flight { bytes: batch.bytes.to_vec(), sent: batch.sent.to_vec() };
            self.flights[connection].push_back(flight);
        }
    }

    fn arrive(&mut self, connection: usize) {
        let Some(flight) = self.flights[connection].pop_front() else { return };
        self.decoder.decode(&flight.bytes, &mut self.destination).unwrap();
        self.destination.check();
        let missing = std::mem::take(&mut self.destination.missing);
        for Sent { page, version } in flight.sent {
            if missing.contains_key(&page) {
                self.known.forget(page);
                self.dirty.insert(page, Hint::Requested);
            } else {
                self.known.acknowledge(page, version);
            }
        }
    }

    fn break_connection(&mut self, connection: usize, late: bool) {
        for flight in std::mem::take(&mut self.flights[connection]) {
            for sent in &flight.sent {
                self.known.forget(sent.page);
                self.touch(sent.page.0);
            }
            if late {
                self.late.push(flight.bytes);
            }
        }
    }

    fn complete(&mut self) {
        for bytes in self.late.drain(..) {
            self.decoder.decode(&bytes, &mut self.destination).unwrap();
            self.destination.missing.clear();
        }
        let mut rounds = 0;
        while !self.dirty.is_empty() || self.flights.iter().any(|flights| !flights.is_empty()) {
            rounds += 1;
            assert!(rounds < 100, "the move does not end");
            for connection in 0..CONNECTIONS {
                self.send(connection);
                while !self.flights[connection].is_empty() {
                    self.arrive(connection);
                }
            }
        }
    }
}

fn run(steps: &[Step], contents: usize, digests: usize, effort: Effort) {
    let mut r#move = Move::new(contents, digests, effort);
    steps.iter().for_each(|step| r#move.step(step));
    r#move.complete();
    r#move.destination.check();
    assert!(r#move.destination.absent.is_empty(), "{:?}", r#move.destination.absent);
    for (page, (one, other)) in
        r#move.source.pages.iter().zip(&r#move.destination.pages).enumerate()
    {
        assert!(one == other, "page {page} differs");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn memories_are_equal_in_the_end(
        steps in prop::collection::vec(step(), 0..250),
        contents in prop_oneof![Just(0_usize), Just(10_000), Just(1 << 20)],
        digests in prop_oneof![Just(0_usize), Just(1_500), Just(1 << 20)],
        compressed: bool,
    ) {
        let effort = if compressed { Effort::Zstd(Level::FAST) } else { Effort::Raw };
        run(&steps, contents, digests, effort);
    }
}
