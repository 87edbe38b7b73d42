//! The bytes of one batch, so that the format cannot change unnoticed. The layout is drawn in src/format.rs.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;

use sterna_model::{PageId, ZERO_PAGE};
use sterna_page_codec::{Effort, Hint, Known};
use support::{Memory, decoder, encoder, encoder_with};

/// Two batches: a page filled with 7, then one of each other kind but compressed ones, which are zstd's to define.
const FIRST: &str =
    "012680200000045001823c32ae1e7474c5dc6d5e978ee4136f8301823c32ae1e7474c5dc6d5e978ee4136f01";
const SECOND: &str = "014d0a00000650028b49be2849c46e6cd78a6730c1e4812f823c32ae1e7474c5dc6d5e978ee4136f068202823c32ae1e7474c5dc6d5e978ee4136f810103054b0150bcf7dede108c553546eca8eabf8e7c04640473627569ff1f01aa";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_format_is_stable() {
    let known = Arc::new(Known::new(100));
    let mut encoder = encoder(&known);
    let old = [7; 4096];
    encoder.push(PageId(40), &old, Hint::Hot).unwrap();
    encoder.push(PageId(41), &old, Hint::Hot).unwrap();
    let first = encoder.finish(Effort::Raw).bytes.to_vec();
    let (head, body) = first.split_at(first.len() - 4096);
    assert_eq!(body, old);
    assert_eq!(hex(head), FIRST);

    let mut new = old;
    new[100..104].copy_from_slice(b"tern");
    let mut sparse = ZERO_PAGE;
    sparse[4095] = 0xaa;
    encoder.push(PageId(40), &new, Hint::Hot).unwrap();
    encoder.push(PageId(41), &old, Hint::Confirm).unwrap();
    for page in 42..45 {
        encoder.push(PageId(page), &ZERO_PAGE, Hint::Cold).unwrap();
    }
    encoder.push(PageId(7), &sparse, Hint::Cold).unwrap();
    let second = encoder.finish(Effort::Raw).bytes.to_vec();
    assert_eq!(hex(&second), SECOND);

    let mut memory = Memory::new(100);
    let mut decoder = decoder(100);
    decoder.decode(&first, &mut memory).unwrap();
    decoder.decode(&second, &mut memory).unwrap();
    assert!(memory.pages[40] == new && memory.pages[41] == old && memory.pages[7] == sparse);
}

/// Absent: pages 40 to 42, then 7 and, at its second version, 8.
const ABSENT: &str = "010b0000000850010308470101880201";
/// What is announced follows, 42 first: a sparse page and zero ones.
const FOLLOWS: &str = "011804000005540250bcf7dede108c553546eca8eabf8e7c0401050202ff1f01aa";

#[test]
fn the_format_of_absent_pages_is_stable() {
    let known = Arc::new(Known::new(100));
    let mut encoder = encoder(&known);
    encoder.push_zero(PageId(8), Hint::Cold).unwrap();
    encoder.finish(Effort::Raw);
    for page in [40, 41, 42, 7, 8] {
        encoder.push_absent(PageId(page), None).unwrap();
    }
    let absent = encoder.finish(Effort::Raw).bytes.to_vec();
    assert_eq!(hex(&absent), ABSENT);
    let mut sparse = ZERO_PAGE;
    sparse[4095] = 0xaa;
    encoder.push(PageId(42), &sparse, Hint::Requested).unwrap();
    for page in [40, 41] {
        encoder.push_zero(PageId(page), Hint::Requested).unwrap();
    }
    let follows = encoder.finish(Effort::Raw).bytes.to_vec();
    assert_eq!(hex(&follows), FOLLOWS);

    let mut memory = Memory::new(100);
    let mut decoder = decoder(100);
    decoder.decode(&absent, &mut memory).unwrap();
    assert_eq!(memory.absent, [7, 8, 40, 41, 42].map(PageId).into());
    decoder.decode(&follows, &mut memory).unwrap();
    assert_eq!(memory.absent, [7, 8].map(PageId).into());
    assert!(memory.pages[42] == sparse);
}

/// A patch, as an encoder makes it that remembers digests only.
const PATCH: &str = "01244200000750028b49be2849c46e6cd78a6730c1e4812f823c32ae1e7474c5dc6d5e978ee4136f4240400707070707070707070707070707070707070707070707070707070707070707070707077465726e070707070707070707070707070707070707070707070707";

#[test]
fn the_format_of_patches_is_stable() {
    let known = Arc::new(Known::new(100));
    let mut encoder = encoder_with(&known, 0, 1 << 20);
    encoder.push(PageId(40), &[7; 4096], Hint::Hot).unwrap();
    encoder.finish(Effort::Raw);
    let mut new = [7; 4096];
    new[100..104].copy_from_slice(b"tern");
    encoder.push(PageId(40), &new, Hint::Hot).unwrap();
    assert_eq!(hex(encoder.finish(Effort::Raw).bytes), PATCH);
}
