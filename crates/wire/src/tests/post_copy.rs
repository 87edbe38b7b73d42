//! The words of post-copy: told to those who know them only, from the right side, within their limits.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;
use sterna_model::{Epoch, PageId};

use super::samples::{prepare, prepared};
use crate::limits::{MAX_CONNECTIONS, MAX_LACKING_RUNS, MAX_WANTED_PAGES};
use crate::message::{Answer, Message, MessageError, Prepare, Prepared, Running};
use crate::post_copy::{Complete, Lacking, POST_COPY, Rejoin, Rejoined, Vanished, Wanted};
use crate::{AnswerState, Capabilities, PageKey, Sender, Text, Token};

const BEYOND: u64 = 1 << 32;

fn survives(sender: Sender, message: &Message) {
    let payload = message.encode().unwrap();
    assert_eq!(Message::decode(&payload, sender).as_ref(), Ok(message));
}

/// What neither goes out nor comes in, because of this range.
fn is_out_of_range(sender: Sender, message: &Message) -> (&'static str, u64, u64, u64) {
    let sent = message.encode().unwrap_err();
    let received = Message::decode(&serde_json::to_vec(message).unwrap(), sender).unwrap_err();
    assert_eq!(sent, received);
    match sent {
        MessageError::Range { what, least, most, found } => (what, least, most, found),
        other => panic!("expected a range, found {other}"),
    }
}

fn rejoin(connections: u16) -> Message {
    let Prepare { job, uuid, epoch, page_key, .. } = prepare();
    Message::Rejoin(Rejoin { job, uuid, epoch, page_key, connections })
}

fn lacking(runs: Vec<(PageId, u32)>) -> Message {
    Message::Lacking(Lacking { runs, last: false })
}

fn any_run() -> impl Strategy<Value = (PageId, u32)> {
    any::<u32>().prop_flat_map(|first| (Just(PageId(first)), 1..=(u32::MAX - first).max(1)))
}

fn any_message() -> impl Strategy<Value = (Sender, Message)> {
    let source = prop_oneof![
        any::<bool>().prop_map(|post_copy| Message::Prepare(Prepare { post_copy, ..prepare() })),
        (any::<[u8; 32]>(), any::<u64>(), 1..=64_u16).prop_map(|(key, epoch, connections)| {
            let Prepare { job, uuid, .. } = prepare();
            let (epoch, page_key) = (Epoch(epoch), PageKey(key));
            Message::Rejoin(Rejoin { job, uuid, epoch, page_key, connections })
        }),
    ];
    let pages = proptest::collection::vec(any::<u32>().prop_map(PageId), 0..=MAX_WANTED_PAGES);
    let runs = proptest::collection::vec(any_run(), 0..700);
    let destination = prop_oneof![
        any::<bool>().prop_map(|post_copy| Message::Prepared(Prepared { post_copy, ..prepared() })),
        any::<[u64; 3]>().prop_map(|[commit_to_resume_ns, peak_anonymous_bytes, lacks_pages]| {
            let lacks_pages = lacks_pages % 3;
            Message::Running(Running { commit_to_resume_ns, peak_anonymous_bytes, lacks_pages })
        }),
        pages.prop_map(|pages| Message::Wanted(Wanted { pages })),
        any::<[u64; 5]>().prop_map(|[requests, p50, p99, max, peak_anonymous_bytes]| {
            Message::Complete(Complete {
                requests,
                fault_latency_p50_us: p50,
                fault_latency_p99_us: p99,
                fault_latency_max_us: max,
                peak_anonymous_bytes,
            })
        }),
        any::<[u8; 32]>().prop_map(|token| Message::Rejoined(Rejoined { token: Token(token) })),
        (runs, any::<bool>()).prop_map(|(runs, last)| Message::Lacking(Lacking { runs, last })),
        ".{0,200}".prop_map(|text| Message::Vanished(Vanished { reason: Text::new(&text) })),
    ];
    prop_oneof![
        source.prop_map(|message| (Sender::Source, message)),
        destination.prop_map(|message| (Sender::Destination, message)),
    ]
}

proptest! {
    #[test]
    fn any_message_survives((sender, message) in any_message()) {
        survives(sender, &message);
    }
}

/// An agent without the capability gets, and gives, the messages that there have always been.
#[test]
fn who_does_not_know_post_copy_hears_nothing_of_it() {
    let knows = Capabilities::new(&[POST_COPY]).unwrap();
    let others = Capabilities::new(&["evidence"]).unwrap();
    let offer = Message::Prepare(Prepare { post_copy: true, ..prepare() });
    assert_eq!(offer.clone().for_peer(&knows), offer);
    assert_eq!(offer.for_peer(&others), Message::Prepare(prepare()));
    let taken = Message::Prepared(Prepared { post_copy: true, ..prepared() });
    assert_eq!(taken.clone().for_peer(&knows), taken);
    assert_eq!(taken.for_peer(&others), Message::Prepared(prepared()));
    let never = Message::Prepare(prepare());
    assert_eq!(never.clone().for_peer(&knows), never, "it is the source that may");
    let running = Message::Running(Running {
        commit_to_resume_ns: 1,
        peak_anonymous_bytes: 2,
        lacks_pages: 0,
    });
    for message in [never, Message::Prepared(prepared()), running] {
        let text = String::from_utf8(message.encode().unwrap()).unwrap();
        assert!(!text.contains("post_copy") && !text.contains("lacks"), "{text}");
    }
}

#[test]
fn each_state_is_of_its_side() {
    use AnswerState::{
        Copying, Discarded, Entitled, Faulting, Gone, Lost, Offered, Prepared, Returned, Running,
        Serving, Stopping, Unknown,
    };
    let sides = |state: AnswerState| {
        let answer = Message::Answer(Answer { job: prepare().job, state });
        let payload = answer.encode().unwrap();
        [Sender::Source, Sender::Destination].map(|side| Message::decode(&payload, side).is_ok())
    };
    for state in [Copying, Stopping, Offered, Serving, Gone, Returned] {
        assert_eq!(sides(state), [true, false], "{state:?}");
    }
    for state in [Prepared, Entitled, Faulting, Running, Discarded] {
        assert_eq!(sides(state), [false, true], "{state:?}");
    }
    for state in [Lost, Unknown] {
        assert_eq!(sides(state), [true, true], "{state:?}");
    }
}

#[test]
fn a_message_at_all_its_limits_fits_in_a_frame() {
    let pages = vec![PageId(u32::MAX); MAX_WANTED_PAGES];
    survives(Sender::Destination, &Message::Wanted(Wanted { pages }));
    let last = PageId(u32::MAX);
    survives(Sender::Destination, &lacking(vec![(last, 1); MAX_LACKING_RUNS]));
    survives(Sender::Destination, &lacking(vec![(PageId(1), u32::MAX); MAX_LACKING_RUNS]));
    survives(Sender::Source, &rejoin(64));
    let reason = Text::new(&"\"".repeat(9999));
    survives(Sender::Destination, &Message::Vanished(Vanished { reason }));
}

#[test]
fn one_above_a_limit_is_an_error_that_names_it() {
    let destination = |message: &Message| is_out_of_range(Sender::Destination, message);
    let pages = vec![PageId(1); MAX_WANTED_PAGES + 1];
    let wanted = destination(&Message::Wanted(Wanted { pages }));
    assert_eq!(wanted, ("wanted pages", 0, 1024, 1025));
    let runs = destination(&lacking(vec![(PageId(1), 1); MAX_LACKING_RUNS + 1]));
    assert_eq!(runs, ("runs", 0, 16_384, 16_385));
    for connections in [0, 65] {
        let found = is_out_of_range(Sender::Source, &rejoin(connections));
        assert_eq!(found, ("connections", 1, MAX_CONNECTIONS as u64, connections.into()));
    }
}

#[test]
fn a_run_has_pages_and_ends_where_numbers_do() {
    let found = |first, count| {
        is_out_of_range(Sender::Destination, &lacking(vec![(PageId(0), 1), (PageId(first), count)]))
    };
    assert_eq!(found(7, 0), ("pages of a run", 1, BEYOND - 7, 0));
    assert_eq!(found(u32::MAX, 2), ("pages of a run", 1, 1, 2));
    assert_eq!(found(512, u32::MAX), ("pages of a run", 1, BEYOND - 512, BEYOND - 1));
}

#[test]
fn what_is_no_word_of_post_copy_is_an_error() {
    for wrong in [
        r#"{"type":"wanted","pages":[[1,1]]}"#,
        r#"{"type":"wanted","pages":[-1]}"#,
        r#"{"type":"wanted","pages":[4294967296]}"#,
        r#"{"type":"wanted"}"#,
        r#"{"type":"lacking","runs":[[1]],"last":true}"#,
        r#"{"type":"lacking","runs":[[1,2,3]],"last":true}"#,
        r#"{"type":"lacking","runs":[[1,2]]}"#,
        r#"{"type":"lacking","runs":[[1,2]],"last":1}"#,
        r#"{"type":"rejoined","token":"5b"}"#,
        r#"{"type":"running","commit_to_resume_ns":1,"peak_anonymous_bytes":2,"lacks_pages":null}"#,
        r#"{"type":"running","commit_to_resume_ns":1,"peak_anonymous_bytes":2,"lacks_pages":-1}"#,
        r#"{"type":"complete","requests":1}"#,
        r#"{"type":"answer","job":"job-7","state":"Lost"}"#,
    ] {
        let result = Message::decode(wrong.as_bytes(), Sender::Destination);
        assert!(matches!(result, Err(MessageError::Json(_))), "{wrong}: {result:?}");
    }
    let list = |runs: usize| format!("[[1,1]{}]", ",[1,1]".repeat(runs - 1));
    let flood = format!(r#"{{"type":"lacking","runs":{},"last":true}}"#, list(100_000));
    let error = format!("{}", Message::decode(flood.as_bytes(), Sender::Destination).unwrap_err());
    assert!(error.contains("at most 65536 values"), "{error}");
}

#[test]
fn secrets_are_not_printed() {
    let rejoined = Message::Rejoined(Rejoined { token: Token([0xab; 32]) });
    for message in [rejoin(1), rejoined] {
        let printed = format!("{message:?}");
        assert!(printed.contains("secret") && !printed.contains("171"), "{printed}");
    }
}
