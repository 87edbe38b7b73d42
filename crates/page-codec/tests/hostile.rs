//! Batches that no encoder makes: no panic, no growth, an error that says what is wrong.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;

use proptest::prelude::*;
use sterna_model::{PageHash, PageId};
use sterna_page_codec::*;
use support::{KEY, Memory, decoder, encoder, random_page, text_page};

const PAGES: u32 = 64;

/// A batch with every kind of record, and a memory that it fits on.
fn every_kind() -> (Vec<u8>, Memory) {
    let known = Arc::new(Known::new(PAGES));
    let mut encoder = encoder(&known);
    let mut memory = Memory::new(PAGES as usize);
    let old = random_page(1);
    for page in [1, 2] {
        encoder.push(PageId(page), &old, Hint::Requested).unwrap();
    }
    decoder(PAGES).decode(encoder.finish(Effort::Raw).bytes, &mut memory).unwrap();
    let mut new = old;
    new[50..60].fill(1);
    encoder.push(PageId(1), &new, Hint::Hot).unwrap();
    encoder.push(PageId(2), &old, Hint::Confirm).unwrap();
    for page in 3..6 {
        encoder.push(PageId(page), &[0; 4096], Hint::Cold).unwrap();
    }
    encoder.push(PageId(9), &old, Hint::Cold).unwrap();
    for seed in 10..14 {
        encoder.push(PageId(seed), &text_page(seed.into()), Hint::Cold).unwrap();
    }
    encoder.push(PageId(20), &random_page(20), Hint::Cold).unwrap();
    let mut sparse = [0; 4096];
    sparse[7] = 7;
    encoder.push(PageId(21), &sparse, Hint::Cold).unwrap();
    for page in 22..26 {
        encoder.push_absent(PageId(page), None).unwrap();
    }
    let batch = encoder.finish(Effort::Zstd(Level::FAST)).bytes.to_vec();
    (batch, memory)
}

/// Decodes what may be anything; whatever comes of it, the memory's entries have to be true.
fn decode(batch: &[u8], mut memory: Memory) -> Result<BatchOutcome, String> {
    let result = decoder(PAGES).decode(batch, &mut memory);
    memory.check();
    result.map_err(|error| error.to_string())
}

/// A batch of these records and sections, without a zstd frame.
fn batch(records: &[u8], plain: &[u8]) -> Vec<u8> {
    let length = |bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).unwrap();
        [
            length.to_le_bytes()[0] & 0x7f | 0x80,
            (length >> 7 & 0x7f) as u8 | 0x80,
            (length >> 14) as u8,
        ]
    };
    [&[1], &length(records)[..], &length(plain), &[0, 0], records, plain].concat()
}

fn refusal(records: &[u8], plain: &[u8]) -> String {
    decode(&batch(records, plain), Memory::new(PAGES as usize)).unwrap_err()
}

#[test]
fn the_intact_batch_is_decoded() {
    let (batch, memory) = every_kind();
    let outcome = decode(&batch, memory).unwrap();
    let expected =
        BatchOutcome { written: 8, zeroed: 3, confirmed: 1, outdated: 0, missing: 0, absent: 4 };
    assert_eq!(outcome, expected);
}

#[test]
fn every_truncation_is_an_error() {
    let (batch, memory) = every_kind();
    for length in 0..batch.len() {
        assert!(decode(&batch[..length], memory.clone()).is_err(), "{length} of {}", batch.len());
    }
    let longer = [&batch[..], &[0]].concat();
    assert!(decode(&longer, memory).unwrap_err().contains("found 1 bytes left"));
}

#[test]
fn no_flipped_bit_makes_a_wrong_page() {
    let (batch, memory) = every_kind();
    let mut intact = memory.clone();
    decoder(PAGES).decode(&batch, &mut intact).unwrap();
    for bit in 0..batch.len() * 8 {
        let mut damaged = batch.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let mut into = memory.clone();
        // A flip may lead to another page or version, which only TLS can see; never to an untrue content.
        let _ = decoder(PAGES).decode(&damaged, &mut into);
        into.check();
    }
}

#[test]
fn a_literal_that_lies_is_named() {
    let mut memory = Memory::new(PAGES as usize);
    let content = random_page(3);
    let mut hash = page_hash(&KEY, &content);
    hash.0[0] ^= 1;
    let records = [&[4, 18, 1][..], &hash.0].concat();
    let error = decoder(PAGES).decode(&batch(&records, &content), &mut memory).unwrap_err();
    assert!(matches!(error, DecodeError::Corrupt { page: PageId(9), .. }), "{error}");
    let records = [&[4, 18, 1][..], &PageHash::ZERO.0].concat();
    assert!(refusal(&records, &content).contains("PageId(9)"));
}

#[test]
fn each_limit_has_its_error() {
    let hash = [7; 16];
    let big_delta = [&[6, 0, 1][..], &hash, &hash, &[0x81, 0x20]].concat();
    let too_many = [&[1, 0, 1, 60][..], &[8, 119, 1, 60], &[8, 119, 1, 60]].concat();
    let far_ref = [&[3, 0, 1][..], &hash, &[0x80, 0x01]].concat();
    for (records, expected) in [
        (&[0, 0, 1, 1][..], "known record tag"),
        (&[15, 0, 1, 1], "known record tag"),
        (&[0x21, 0, 1, 1], "known record tag"),
        (&[0x41, 0, 1, 1], "known record tag"),
        (&[1, 0, 0, 1], "versions from 1"),
        (&[1, 0, 1, 0], "extent of pages"),
        (&[1, 0, 1, 0x81, 0x01], "at most 128"),
        (&[0x48, 0, 1, 1], "known record tag"),
        (&[9, 0, 1, 1], "known record tag"),
        (&[8, 0, 0, 1], "versions from 1"),
        (&[8, 0, 1, 0], "extent of pages"),
        (&[8, 0, 1, 0x81, 0x01], "at most 128"),
        (&[8, 0, 1, 0xff, 0xff, 0xff, 0xff, 0x0f], "at most 128"),
        (&[8, 0, 1, 65], "found 64"),
        (&[8, 126, 1, 2], "found 64"),
        (&[8, 1, 1, 1], "page numbers below 64"),
        (&[8, 0, 1], "1 bytes of count"),
        (&too_many, "extent of pages"),
        (&[1, 0, 1, 65], "page numbers below 64"),
        (&[1, 0x80, 0x01, 1, 1], "found 64"),
        (&[1, 1, 1, 1], "page numbers below 64"),
        (&[1, 0, 0xff, 0xff, 0xff, 0xff, 0x7f, 1], "below 2^32"),
        (&[2, 0, 1, 7], "16 bytes of hash"),
        (&[4, 0, 1, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7], "4096 bytes of literal"),
        (&big_delta, "found 4097"),
        (&far_ref, "found 64"),
    ] {
        let found = refusal(records, &[]);
        assert!(found.contains(expected), "{records:?}: {found}");
    }
    assert!(refusal(&[1, 0, 1, 1], &[5]).contains("use up its plain section, found 1"));
    let too_long = vec![1; MAX_BATCH_BYTES + 1];
    assert!(decode(&too_long, Memory::new(0)).unwrap_err().contains("extent of batch"));
    assert!(decode(&[2], Memory::new(0)).unwrap_err().contains("format 1, found 2"));
    assert!(decode(&[1, 0, 0xff, 0xff, 0xff, 0x7f], Memory::new(0)).unwrap_err().contains("plain"));
}

#[test]
fn what_is_absent_is_not_built_on_nor_claimed() {
    let mut memory = Memory::new(PAGES as usize);
    decoder(PAGES).decode(&batch(&[8, 0, 1, 4], &[]), &mut memory).unwrap();
    let (absent, other) = (PageHash::ABSENT.0, page_hash(&KEY, &random_page(1)).0);
    let delta = [&[6, 0, 2][..], &other, &absent, &[0]].concat();
    let absent_delta = [&[7, 0, 2][..], &absent, &absent, &[0]].concat();
    for (record, why) in [
        (delta, Missing::Base),
        (absent_delta, Missing::Base),
        ([&[2, 0, 2][..], &absent].concat(), Missing::Same),
        ([&[2, 0, 2][..], &other].concat(), Missing::Same),
        // From page 1, to page 0 and to one that is not absent.
        ([&[3, 0, 2][..], &absent, &[2]].concat(), Missing::Ref),
        ([&[3, 0, 2][..], &PageHash::ZERO.0, &[2]].concat(), Missing::Ref),
        ([&[3, 18, 2][..], &other, &[15]].concat(), Missing::Ref),
    ] {
        let outcome = decoder(PAGES).decode(&batch(&record, &[]), &mut memory).unwrap();
        assert_eq!(outcome, BatchOutcome { missing: 1, ..BatchOutcome::default() }, "{record:?}");
        let (_, found) = memory.missing.pop_first().unwrap();
        assert_eq!(found, why, "{record:?}");
        memory.check();
    }
    // No content is the one that hashes to that.
    for (record, plain) in [
        ([&[4, 0, 2][..], &absent].concat(), &random_page(1)[..]),
        ([&[5, 0, 2][..], &absent, &[0]].concat(), &[]),
    ] {
        assert!(refusal(&record, plain).contains("to hash to ffffffff"));
    }
}

#[test]
fn a_batch_is_good_or_bad_by_itself() {
    // A run that begins behind the page's end, and one without a byte.
    for (body, expected) in [(&[0x81, 0x20, 1, 1][..], "skip of a run"), (&[0, 0], "each run")] {
        let length = u8::try_from(body.len()).unwrap();
        // On a base that is not here.
        let delta = [&[7, 0, 1][..], &[1; 16], &[2; 16], &[length]].concat();
        let found = refusal(&delta, body);
        assert!(found.contains(expected), "{found}");
        // Of a version that is older than what is here.
        let mut memory = Memory::new(PAGES as usize);
        decoder(PAGES).decode(&batch(&[1, 0, 9, 1], &[]), &mut memory).unwrap();
        let sparse = [&[5, 0, 1][..], &[1; 16], &[length]].concat();
        let found = decode(&batch(&sparse, body), memory).unwrap_err();
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn a_frame_that_is_none_is_refused() {
    // One packed literal of 4096 bytes; the frame is 3 bytes of nothing, then empty.
    let records = [&[0x44, 0, 1][..], &[7; 16]].concat();
    for frame in [&[1, 2, 3][..], &[]] {
        let head = [1, 19, 0, 0x80, 0x20, u8::from(!frame.is_empty()) * 3];
        let batch = [&head, &records[..], frame].concat();
        let found = decode(&batch, Memory::new(PAGES as usize)).unwrap_err();
        assert!(found.contains("one zstd frame of 4096 bytes"), "{found}");
    }
    // A frame where none is announced.
    let found = decode(&[1, 0, 0, 0, 2, 1, 1], Memory::new(PAGES as usize)).unwrap_err();
    assert!(found.contains("zstd frame of 0 bytes"), "{found}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&bytes, Memory::new(PAGES as usize));
    }

    #[test]
    fn random_records_do_no_harm(
        records in prop::collection::vec(prop_oneof![0_u8..9, any::<u8>()], 0..200),
        plain in prop::collection::vec(0_u8..4, 0..200),
    ) {
        let _ = decode(&batch(&records, &plain), Memory::new(PAGES as usize));
    }

    #[test]
    fn damaged_batches_do_no_harm(
        writes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let (mut batch, memory) = every_kind();
        for (at, byte) in writes {
            let at = at.index(batch.len());
            batch[at] = byte;
        }
        let _ = decode(&batch, memory);
    }
}
