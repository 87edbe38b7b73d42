//! The words of keeping: told to those who know them only, from the right side, within their limits.

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;
use sterna_model::PageId;

use super::samples::{prepare, prepared};
use crate::keep::{HASH_BYTES, Hashes, KEEP};
use crate::limits::{MAX_HASH_BYTES, MAX_KEEP_MS};
use crate::message::{Abort, Message, MessageError, Prepare, Prepared};
use crate::{Blob, Capabilities, Sender, Text};

fn hashes(first: u32, bytes: Vec<u8>) -> Message {
    let hashes = Blob::new(bytes).unwrap();
    Message::Hashes(Hashes { first: PageId(first), hashes, last: false })
}

fn out_of_range(sender: Sender, message: &Message) -> &'static str {
    let sent = message.encode().unwrap_err();
    let received = Message::decode(&serde_json::to_vec(message).unwrap(), sender).unwrap_err();
    assert_eq!(sent, received);
    match sent {
        MessageError::Range { what, .. } => what,
        other => panic!("expected a range, found {other}"),
    }
}

#[test]
fn only_who_knows_of_it_is_told() {
    let without = Capabilities::default();
    let with = Capabilities::new(&[KEEP]).unwrap();
    let asked = Message::Prepare(Prepare { keep_ms: Some(1000), reuse: true, ..prepare() });
    assert_eq!(asked.clone().for_peer(&with), asked);
    assert_eq!(asked.for_peer(&without), Message::Prepare(prepare()));
    let told = Message::Prepared(Prepared { kept: true, ..prepared() });
    assert_eq!(told.clone().for_peer(&with), told);
    assert_eq!(told.for_peer(&without), Message::Prepared(prepared()));
    let abort = |keep| Message::Abort(Abort { reason: Text::new("later"), keep });
    assert_eq!(abort(true).for_peer(&with), abort(true));
    assert_eq!(abort(true).for_peer(&without), abort(false));
}

#[test]
fn hashes_are_whole_bounded_and_of_pages_that_can_be() {
    assert_eq!(
        out_of_range(Sender::Destination, &hashes(0, vec![0; 17])),
        "bytes beyond whole hashes"
    );
    let last = hashes(u32::MAX, vec![7; HASH_BYTES]);
    assert_eq!(Message::decode(&last.encode().unwrap(), Sender::Destination).as_ref(), Ok(&last));
    let Message::Hashes(of_last) = last else { panic!("another message") };
    let pages: Vec<_> = of_last.pages().collect();
    assert_eq!(pages, [(PageId(u32::MAX), [7; HASH_BYTES])]);
    let beyond = hashes(u32::MAX, vec![7; 2 * HASH_BYTES]);
    assert_eq!(out_of_range(Sender::Destination, &beyond), "hashes");
    let full = hashes(9, vec![0xff; MAX_HASH_BYTES]);
    assert_eq!(Message::decode(&full.encode().unwrap(), Sender::Destination), Ok(full));
    assert_eq!(Blob::<MAX_HASH_BYTES>::new(vec![0; MAX_HASH_BYTES + 1]), None);
    assert!(Message::decode(&hashes(0, Vec::new()).encode().unwrap(), Sender::Source).is_err());
}

#[test]
fn nothing_is_kept_for_ever() {
    for keep_ms in [0, MAX_KEEP_MS + 1] {
        let prepare = Message::Prepare(Prepare { keep_ms: Some(keep_ms), ..prepare() });
        assert_eq!(out_of_range(Sender::Source, &prepare), "keep_ms");
    }
}

proptest! {
    #[test]
    fn pages_and_hashes_belong_together(first in 0..u32::MAX - 300, count in 0..300_usize, last: bool) {
        let bytes: Vec<u8> = (0..count).flat_map(|at| [u8::try_from(at % 251).unwrap(); HASH_BYTES]).collect();
        let message = Message::Hashes(Hashes { first: PageId(first), hashes: Blob::new(bytes).unwrap(), last });
        let decoded = Message::decode(&message.encode().unwrap(), Sender::Destination).unwrap();
        prop_assert_eq!(&decoded, &message);
        let Message::Hashes(hashes) = decoded else { panic!("another message") };
        let pages: Vec<_> = hashes.pages().collect();
        prop_assert_eq!(pages.len(), count);
        for (at, (page, hash)) in pages.into_iter().enumerate() {
            prop_assert_eq!(page.index(), first as usize + at);
            prop_assert_eq!(hash, [u8::try_from(at % 251).unwrap(); HASH_BYTES]);
        }
    }
}
