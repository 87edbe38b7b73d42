//! The case that the memories are sized for: 64 MiB of random data in a guest of 256 MiB, whose writer touches 8 bytes
//! in each page, over and over; four encoders that share the default budgets of a move.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;

use sterna_model::{Page, PageId};
use sterna_page_codec::{Decoder, Effort, Encoder, Hint, Known, Level, MAX_BATCH_PAGES};
use support::{Memory, decoder, encoder_with, random_page};

const GUEST_PAGES: u32 = 65_536;
const WORKING_SET: u32 = 16_384;
const ENCODERS: usize = 4;
const STRIPE_PAGES: u32 = 512;
const CONTENT_CACHE_BYTES: usize = (12 << 20) / ENCODERS;
const DIGEST_BYTES: usize = (20 << 20) / ENCODERS;
/// What a dirty page may cost, header included.
const LIMIT_BYTES: u64 = 150;

/// Sends the stripes of all encoders; gives deltas and bytes.
fn send(
    encoders: &mut [Encoder],
    (decoder, memory): (&mut Decoder, &mut Memory),
    pages: &[Page],
    hint: Hint,
) -> (u32, u64) {
    let (mut deltas, mut bytes) = (0, 0);
    for (stripe, first) in (0..WORKING_SET).step_by(STRIPE_PAGES as usize).enumerate() {
        let encoder = &mut encoders[stripe % ENCODERS];
        let stripe: Vec<_> = (first..first + STRIPE_PAGES).collect();
        for batch in stripe.chunks(MAX_BATCH_PAGES) {
            for page in batch {
                encoder.push(PageId(*page), &pages[*page as usize], hint).unwrap();
            }
            let batch = encoder.finish(Effort::Zstd(Level::FAST));
            deltas += batch.stats.pages.delta;
            bytes += batch.stats.wire_bytes;
            decoder.decode(batch.bytes, memory).unwrap();
        }
    }
    (deltas, bytes)
}

#[test]
fn every_dirty_page_is_a_short_delta() {
    let known = Arc::new(Known::new(GUEST_PAGES));
    let mut encoders: Vec<_> =
        (0..ENCODERS).map(|_| encoder_with(&known, CONTENT_CACHE_BYTES, DIGEST_BYTES)).collect();
    let mut decoder = decoder(GUEST_PAGES);
    let mut memory = Memory::new(WORKING_SET as usize);
    let mut pages: Vec<_> = (0..u64::from(WORKING_SET)).map(random_page).collect();
    send(&mut encoders, (&mut decoder, &mut memory), &pages, Hint::Cold);
    for round in 0_u8..4 {
        for (number, page) in pages.iter_mut().enumerate() {
            let at = (number * 7919 + usize::from(round) * 31) % 512 * 8;
            page[at..at + 8].iter_mut().for_each(|byte| *byte = byte.wrapping_add(round | 1));
        }
        let (deltas, bytes) = send(&mut encoders, (&mut decoder, &mut memory), &pages, Hint::Hot);
        assert_eq!(deltas, WORKING_SET);
        assert!(bytes < u64::from(WORKING_SET) * LIMIT_BYTES, "{bytes} bytes in round {round}");
    }
    assert!(memory.missing.is_empty() && memory.pages == pages);
}
