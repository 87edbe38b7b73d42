//! Coding of what differs between two contents of a page.
//!
//! ```text
//! body := { skip: varint (equal bytes), length: varint (differing bytes, at least 1), length bytes }*
//! ```
//!
//! The bytes are either the XOR of old and new content, or the new content itself: [`Coding`]. What follows the last
//! run is equal.

use alloc::vec::Vec;
use core::ops::Range;

use sterna_model::{PAGE_BYTES, Page};

use crate::FormatError;
use crate::bytes::{Bytes, put_length};

/// Bytes in a chunk: the unit of change where the old content is known only by digests.
///
/// A write of 8 bytes to a page of random data was measured to cost 102 bytes, header included (see
/// examples/throughput.rs), for 256 bytes of digests a page. Nearly all such deltas have one chunk, so chunks of 32 bytes
/// would make that 70 and 512, chunks of 128 bytes 166 and 128. 64 is the coarsest that stays below 150 bytes a page
/// with digests of a guest of 256 MiB within 20 MiB, and a line of the processor's cache.
pub(crate) const CHUNK_BYTES: usize = 64;
/// Chunks in a page: one bit each in a `u64`.
pub(crate) const CHUNKS: usize = PAGE_BYTES / CHUNK_BYTES;

/// Equal bytes that end a run. Fewer are cheaper to send than the header of another run.
const MIN_SKIP_BYTES: usize = 4;

/// What the bytes of a body are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Coding {
    /// To be XORed onto the old content.
    Xor,
    /// To replace the old content.
    Replace,
}

/// Appends the XOR of two contents to `out`, unless that takes more than `limit_bytes`; then `out` is as before.
pub(crate) fn encode_xor(
    old: &Page,
    new: &Page,
    limit_bytes: usize,
    out: &mut Vec<u8>,
) -> Option<usize> {
    if differing_words(old, new) > limit_bytes {
        return None;
    }
    let start = out.len();
    let mut done = 0;
    while let Some(first) = next_difference(old, new, done) {
        let end = end_of_run(old, new, first);
        if out.len() - start + (end - first) > limit_bytes {
            break;
        }
        put_length(out, first - done);
        put_length(out, end - first);
        out.extend(old[first..end].iter().zip(&new[first..end]).map(|(old, new)| old ^ new));
        done = end;
    }
    settle(out, start, limit_bytes, next_difference(old, new, done).is_none())
}

/// Appends the chunks of `new` whose bit is set in `changed`, unless that takes more than `limit_bytes`.
pub(crate) fn encode_chunks(
    changed: u64,
    new: &Page,
    limit_bytes: usize,
    out: &mut Vec<u8>,
) -> Option<usize> {
    if changed.count_ones() as usize * CHUNK_BYTES > limit_bytes {
        return None;
    }
    let start = out.len();
    let mut done = 0;
    while done < CHUNKS && changed >> done != 0 {
        let first = done + (changed >> done).trailing_zeros() as usize;
        let end = first + (changed >> first).trailing_ones() as usize;
        put_length(out, (first - done) * CHUNK_BYTES);
        put_length(out, (end - first) * CHUNK_BYTES);
        out.extend_from_slice(&new[first * CHUNK_BYTES..end * CHUNK_BYTES]);
        done = end;
    }
    settle(out, start, limit_bytes, true)
}

/// Turns the old content in `page` into the new one.
pub(crate) fn apply(body: &[u8], coding: Coding, page: &mut Page) -> Result<(), FormatError> {
    each_run(body, |at, run| match coding {
        Coding::Replace => page[at].copy_from_slice(run),
        Coding::Xor => page[at].iter_mut().zip(run).for_each(|(old, xor)| *old ^= xor),
    })
}

/// Whether a body that is not applied could have been.
pub(crate) fn check(body: &[u8]) -> Result<(), FormatError> {
    each_run(body, |_, _| {})
}

/// Where each run lies in the page, and its bytes.
fn each_run(body: &[u8], mut each: impl FnMut(Range<usize>, &[u8])) -> Result<(), FormatError> {
    let mut bytes = Bytes::new(body);
    let mut at = 0;
    while !bytes.is_empty() {
        let first = at + bytes.length("skip of a run", PAGE_BYTES - at)?;
        let length = bytes.length("length of a run", PAGE_BYTES - first)?;
        if length == 0 {
            return Err(FormatError::EmptyRun);
        }
        let run = bytes.take(length, "bytes of a run")?;
        at = first + length;
        each(first..at, run);
    }
    Ok(())
}

/// Keeps what was appended after `start` if it is whole and within the limit, and tells its length.
fn settle(out: &mut Vec<u8>, start: usize, limit_bytes: usize, whole: bool) -> Option<usize> {
    let length = out.len() - start;
    if whole && length <= limit_bytes {
        return Some(length);
    }
    out.truncate(start);
    None
}

/// Words that differ: each costs at least a byte, so this is a bound from below. The oldest vector instructions have
/// comparisons of 32 bits, hence the size.
fn differing_words(old: &Page, new: &Page) -> usize {
    let words = old.as_chunks::<4>().0.iter().zip(new.as_chunks::<4>().0);
    let differ = |(old, new): (&[u8; 4], &[u8; 4])| {
        u32::from(u32::from_ne_bytes(*old) != u32::from_ne_bytes(*new))
    };
    words.map(differ).fold(0, u32::wrapping_add) as usize
}

fn next_difference(old: &Page, new: &Page, from: usize) -> Option<usize> {
    let mut at = from;
    while at < PAGE_BYTES {
        if let (Some(a), Some(b)) = (old[at..].first_chunk::<8>(), new[at..].first_chunk::<8>()) {
            let xor = u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
            if xor != 0 {
                return Some(at + xor.trailing_zeros() as usize / 8);
            }
            at += 8;
        } else if old[at] != new[at] {
            return Some(at);
        } else {
            at += 1;
        }
    }
    None
}

/// Where the run of differing bytes that starts at `first` ends: before [`MIN_SKIP_BYTES`] equal ones, or the page's end.
fn end_of_run(old: &Page, new: &Page, first: usize) -> usize {
    let mut end = first + 1;
    let mut at = end;
    while at < PAGE_BYTES && at - end < MIN_SKIP_BYTES {
        at += 1;
        if old[at - 1] != new[at - 1] {
            end = at;
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;
    use sterna_model::ZERO_PAGE;

    #[test]
    fn eight_bytes_cost_eleven() {
        let mut new = ZERO_PAGE;
        new[1000..1008].copy_from_slice(&[1, 0, 3, 4, 5, 6, 7, 8]);
        let mut body = Vec::new();
        assert_eq!(encode_xor(&ZERO_PAGE, &new, 100, &mut body), Some(11));
        assert_eq!(body[..3], [0xe8, 0x07, 8]);
    }

    #[test]
    fn what_does_not_fit_leaves_nothing() {
        let new = [3; PAGE_BYTES];
        let mut body = vec![9];
        assert_eq!(encode_xor(&ZERO_PAGE, &new, PAGE_BYTES, &mut body), None);
        assert_eq!(encode_chunks(u64::MAX, &new, PAGE_BYTES, &mut body), None);
        assert_eq!(body, [9]);
        assert_eq!(encode_chunks(u64::MAX, &new, PAGE_BYTES + 8, &mut body), Some(PAGE_BYTES + 3));
    }

    #[test]
    fn runs_beyond_the_page_are_refused() {
        let mut page = ZERO_PAGE;
        for body in [&[0, 0][..], &[1], &[0, 2, 7], &[0xff, 0x1f, 2, 1, 1], &[0x81, 0x20, 1, 1]] {
            assert!(apply(body, Coding::Xor, &mut page).is_err(), "{body:?}");
        }
        assert_eq!(apply(&[0xff, 0x1f, 1, 5], Coding::Replace, &mut page), Ok(()));
        assert_eq!(page[4095], 5);
    }

    proptest! {
        #[test]
        fn both_codings_restore_the_page(
            writes in prop::collection::vec((0..PAGE_BYTES, any::<u8>()), 0..300), fill: u8,
        ) {
            let old = [fill; PAGE_BYTES];
            let mut new = old;
            let mut changed = 0_u64;
            for (at, byte) in writes {
                new[at] = byte;
                changed |= 1 << (at / CHUNK_BYTES);
            }
            let mut body = Vec::new();
            let mut page = old;
            encode_xor(&old, &new, 8192, &mut body).unwrap();
            apply(&body, Coding::Xor, &mut page).unwrap();
            prop_assert!(page == new);
            body.clear();
            page = old;
            encode_chunks(changed, &new, 8192, &mut body).unwrap();
            apply(&body, Coding::Replace, &mut page).unwrap();
            prop_assert!(page == new);
        }
    }
}
