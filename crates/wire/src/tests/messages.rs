//! Messages: they survive the wire, come from the right side only, and end at their limits.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;
use sterna_model::{Epoch, Layout, PageId, Refusal, Root};

use super::samples::{block, evidence, messages, prepare, root, stream_head};
use crate::limits::*;
use crate::message::*;
use crate::{
    AnswerState, Blob, Capabilities, CpuEvidence, DiskEvidence, Evidence, GuestState, PageKey,
    Sender, Text, Token, Verify,
};

fn survives(sender: Sender, message: &Message) {
    let payload = message.encode().unwrap();
    assert_eq!(Message::decode(&payload, sender).as_ref(), Ok(message));
}

/// Both ways hold the same limit: what cannot be sent is not taken either.
fn is_refused(sender: Sender, message: &Message) -> MessageError {
    let sent = message.encode().unwrap_err();
    let received = Message::decode(&serde_json::to_vec(message).unwrap(), sender).unwrap_err();
    assert_eq!(sent, received);
    sent
}

fn any_message() -> impl Strategy<Value = (Sender, Message)> {
    let frames = || proptest::collection::vec(any::<u64>(), 0..=MAX_FRAME_COUNTS);
    let text = || ".{0,200}".prop_map(|text: String| Text::new(&text));
    let root = || any::<[u8; 16]>().prop_map(Root::from_bytes);
    let guest =
        any::<bool>().prop_map(|runs| if runs { GuestState::Running } else { GuestState::Paused });
    let page = (any::<u32>().prop_map(PageId), any::<u32>());
    let source = prop_oneof![
        (".{0,500}", any::<[u8; 32]>(), 1..=64_u16, any::<u64>()).prop_map(
            |(description, key, connections, epoch)| Message::Prepare(Prepare {
                description,
                page_key: PageKey(key),
                connections,
                epoch: Epoch(epoch),
                verify: Verify::Roots,
                ..prepare()
            })
        ),
        any_stream_head().prop_map(Message::StreamHead),
        (
            root(),
            frames(),
            any::<(u64, u64)>(),
            guest,
            proptest::collection::vec(any_command(), 0..5)
        )
            .prop_map(
                |(root, frames_per_connection, (tail_bytes, state_bytes), guest, commands)| {
                    Message::Final(Final {
                        root,
                        frames_per_connection,
                        tail_bytes,
                        state_bytes,
                        guest,
                        commands,
                    })
                }
            ),
        (text(), any::<bool>()).prop_map(|(reason, keep)| Message::Abort(Abort { reason, keep })),
        any::<[u64; 2]>().prop_map(|[nonce, sent_ns]| Message::Ping(Echo { nonce, sent_ns })),
    ];
    let destination = prop_oneof![
        (any::<[u8; 32]>(), "[ -~]{0,128}", any::<u64>()).prop_map(|(token, version, start_ms)| {
            Message::Prepared(Prepared {
                token: Token(token),
                shared_blocks: vec![block("pc.ram")],
                qemu_version: version,
                start_ms,
                post_copy: false,
                kept: false,
            })
        }),
        proptest::collection::vec((".{0,70}", ".{0,400}", ".{0,400}"), 0..40).prop_map(|all| {
            let one = |(code, reason, remedy): &(String, String, String)| {
                Refusal::new(code, reason.as_str(), remedy.as_str())
            };
            Message::Refused(Refused::new(&all.iter().map(one).collect::<Vec<_>>()))
        }),
        frames().prop_map(|frames_per_connection| {
            Message::Applied(Applied { frames_per_connection })
        }),
        proptest::collection::vec(page, 0..500)
            .prop_map(|pages| Message::Missing(Missing { pages })),
        (root(), any::<u64>(), any::<u64>()).prop_map(|(root, pages_hashed, load_ms)| {
            Message::Loaded(Loaded { root, pages_hashed, load_ms })
        }),
        text().prop_map(|error| Message::Failed(Failed { error })),
    ];
    prop_oneof![
        source.prop_map(|message| (Sender::Source, message)),
        destination.prop_map(|message| (Sender::Destination, message)),
    ]
}

fn any_command() -> impl Strategy<Value = StreamCommand> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..300);
    (any::<u16>(), bytes).prop_map(|(command, data)| {
        let data = Blob::new(data).unwrap();
        StreamCommand { command, data }
    })
}

fn any_stream_head() -> impl Strategy<Value = StreamHead> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..300);
    (bytes, any::<[u32; 2]>(), proptest::collection::vec(1_u64..1000, 1..20)).prop_map(
        |(configuration, [section, instance], pages)| {
            let named = |(number, pages): (usize, &u64)| {
                (block(&format!("block \"{number}\\")), pages * 4096)
            };
            let blocks: Vec<_> = pages.iter().enumerate().map(named).collect();
            StreamHead {
                configuration: Blob::new(configuration).unwrap(),
                layout: Layout::new(&blocks).unwrap(),
                ram_section: RamSection { section, instance },
            }
        },
    )
}

proptest! {
    #[test]
    fn any_message_survives((sender, message) in any_message()) {
        survives(sender, &message);
    }
}

#[test]
fn one_of_each_survives_and_comes_from_one_side_only() {
    for (sender, message) in messages() {
        survives(sender, &message);
        let lost = matches!(&message, Message::Answer(answer) if answer.state == AnswerState::Lost);
        let both = lost || matches!(message.name(), "inquire" | "ping" | "pong");
        let other = match sender {
            Sender::Source => Sender::Destination,
            Sender::Destination => Sender::Source,
        };
        let result = Message::decode(&message.encode().unwrap(), other);
        assert_eq!(result.is_ok(), both, "{message:?}");
        if !both {
            let name = message.name();
            assert_eq!(result, Err(MessageError::Sender { name, sender: other }));
        }
    }
}

#[test]
fn the_name_is_the_type_in_the_document() {
    for (_, message) in messages() {
        let start = format!("{{\"type\":\"{}\"", message.name());
        assert!(message.encode().unwrap().starts_with(start.as_bytes()));
    }
}

#[test]
fn an_unknown_job_or_a_lost_guest_may_be_answered_by_either() {
    for state in [AnswerState::Unknown, AnswerState::Lost] {
        let message = Message::Answer(Answer { job: prepare().job, state });
        survives(Sender::Source, &message);
        survives(Sender::Destination, &message);
    }
}

#[test]
fn a_message_at_all_its_limits_fits_in_a_frame() {
    let name = |number: usize| block(&format!("{number:04}{}", "\"".repeat(251)));
    let blocks: Vec<_> = (0..sterna_model::MAX_BLOCKS).map(|n| (name(n), 4096)).collect();
    let command =
        StreamCommand { command: 1, data: Blob::new(vec![1; MAX_COMMAND_BYTES]).unwrap() };
    let head = StreamHead {
        configuration: Blob::new(vec![2; MAX_CONFIGURATION_BYTES]).unwrap(),
        layout: Layout::new(&blocks).unwrap(),
        ..stream_head()
    };
    survives(Sender::Source, &Message::StreamHead(head));
    let last = Final {
        root: root(),
        frames_per_connection: vec![u64::MAX; MAX_FRAME_COUNTS],
        tail_bytes: u64::MAX,
        state_bytes: 0,
        guest: GuestState::Running,
        commands: vec![command; MAX_COMMANDS],
    };
    survives(Sender::Source, &Message::Final(last));
    let description = "\u{1}".repeat(MAX_DESCRIPTION_BYTES);
    let evidence = Some(evidence_at_its_limits());
    survives(Sender::Source, &Message::Prepare(Prepare { description, evidence, ..prepare() }));
    let refusal = Refusal::new(&"\"".repeat(99), "\n".repeat(9999), "\n".repeat(9999));
    survives(Sender::Destination, &Message::Refused(Refused::new(&vec![refusal; 99])));
    let error = Text::new(&"\"".repeat(9999));
    survives(Sender::Destination, &Message::Failed(Failed { error }));
    let pages = vec![(PageId(u32::MAX), u32::MAX); MAX_MISSING_PAGES];
    survives(Sender::Destination, &Message::Missing(Missing { pages }));
    let frames_per_connection = vec![u64::MAX; MAX_FRAME_COUNTS];
    survives(Sender::Destination, &Message::Applied(Applied { frames_per_connection }));
    let shared_blocks = (0..sterna_model::MAX_BLOCKS).map(name).collect();
    let qemu_version = "x".repeat(MAX_VERSION_BYTES);
    let token = Token([0; 32]);
    let (start_ms, post_copy, kept) = (u64::MAX, true, true);
    let prepared = Prepared { token, shared_blocks, qemu_version, start_ms, post_copy, kept };
    survives(Sender::Destination, &Message::Prepared(prepared));
}

fn evidence_at_its_limits() -> Evidence {
    let evidence = evidence();
    let features = vec!["\"".repeat(MAX_CPU_FEATURE_BYTES); MAX_CPU_FEATURES];
    let model = "\"".repeat(MAX_VERSION_BYTES);
    let path = "\u{1}".repeat(MAX_EVIDENCE_PATH_BYTES / MAX_EVIDENCE_DISKS);
    let disk = DiskEvidence {
        path,
        length_bytes: u64::MAX,
        inode: u64::MAX,
        locked_byte: Some(u64::MAX),
        world_wide_id: Some(model.clone()),
    };
    let cpu = Some(CpuEvidence { model, features: features.clone(), lacks: features });
    Evidence { cpu, disks: vec![disk; MAX_EVIDENCE_DISKS], ..evidence }
}

#[test]
fn evidence_above_a_limit_is_an_error_that_names_it() {
    let refused = |change: &dyn Fn(&mut Evidence)| {
        let mut evidence = evidence();
        change(&mut evidence);
        let evidence = Some(evidence);
        is_refused(Sender::Source, &Message::Prepare(Prepare { evidence, ..prepare() }))
    };
    let range = |change: &dyn Fn(&mut Evidence), expected: &'static str| {
        let wrong = refused(change);
        assert!(matches!(wrong, MessageError::Range { what, .. } if what == expected), "{wrong}");
    };
    let disk = || evidence().disks[0].clone();
    range(&|one| one.disks = vec![disk(); MAX_EVIDENCE_DISKS + 1], "disks");
    range(
        &|one| one.disks[0].path = "x".repeat(MAX_EVIDENCE_PATH_BYTES + 1),
        "bytes of disks' paths",
    );
    range(&|one| one.disks[0].world_wide_id = Some("x".repeat(129)), "bytes of a world wide id");
    let cpu = |change: &dyn Fn(&mut CpuEvidence), expected| {
        range(&|one| one.cpu.as_mut().into_iter().for_each(change), expected);
    };
    cpu(&|cpu| cpu.model = "x".repeat(129), "bytes of the CPU model");
    cpu(&|cpu| cpu.features = vec![String::new(); MAX_CPU_FEATURES + 1], "CPU features");
    cpu(&|cpu| cpu.lacks = vec!["x".repeat(MAX_CPU_FEATURE_BYTES + 1)], "bytes of a CPU feature");
    let unprintable = refused(&|one| one.disks[0].world_wide_id = Some("\u{1b}".into()));
    assert_eq!(unprintable, MessageError::Unprintable { what: "evidence" });
}

/// An agent without the capability gets the message that it has always got.
#[test]
fn evidence_is_told_to_those_who_know_it_only() {
    let with = Message::Prepare(Prepare { evidence: Some(evidence()), ..prepare() });
    let knows = Capabilities::new(&["evidence"]).unwrap();
    assert_eq!(with.clone().for_peer(&knows), with);
    assert_eq!(with.for_peer(&Capabilities::default()), Message::Prepare(prepare()));
}

#[test]
fn one_above_a_limit_is_an_error_that_names_it() {
    let source = |message: Message, expected: &'static str| {
        let wrong = is_refused(Sender::Source, &message);
        assert!(matches!(wrong, MessageError::Range { what, .. } if what == expected), "{wrong}");
    };
    let with = |change: fn(&mut Prepare)| {
        let mut prepare = prepare();
        change(&mut prepare);
        Message::Prepare(prepare)
    };
    source(with(|one| one.connections = 0), "connections");
    source(with(|one| one.connections = 65), "connections");
    source(with(|one| one.link_timeout_ms = 0), "link_timeout_ms");
    source(with(|one| one.link_timeout_ms = MAX_LINK_TIMEOUT_MS + 1), "link_timeout_ms");
    let long = with(|one| one.description = "x".repeat(MAX_DESCRIPTION_BYTES + 1));
    source(long, "bytes of description");
    let command = StreamCommand { command: 1, data: Blob::default() };
    let commands = vec![command; MAX_COMMANDS + 1];
    let sent = Final {
        root: root(),
        frames_per_connection: vec![0; MAX_FRAME_COUNTS],
        tail_bytes: 0,
        state_bytes: 0,
        guest: GuestState::Running,
        commands: Vec::new(),
    };
    source(Message::Final(Final { commands, ..sent.clone() }), "commands");
    let frames_per_connection = vec![0; MAX_FRAME_COUNTS + 1];
    source(Message::Final(Final { frames_per_connection, ..sent }), "frames_per_connection");
}

#[test]
fn one_above_a_limit_is_refused_from_the_destination_too() {
    let range = |message: Message, expected: &'static str| {
        let wrong = is_refused(Sender::Destination, &message);
        assert!(matches!(wrong, MessageError::Range { what, .. } if what == expected), "{wrong}");
    };
    let pages = vec![(PageId(1), 1); MAX_MISSING_PAGES + 1];
    range(Message::Missing(Missing { pages }), "pages");
    let frames_per_connection = vec![0; MAX_FRAME_COUNTS + 1];
    range(Message::Applied(Applied { frames_per_connection }), "frames_per_connection");
    let refusal = super::samples::refusal();
    range(Message::Refused(Refused { refusals: vec![refusal.clone(); 33] }), "refusals");
    let prepared = |blocks: usize, version: String| {
        let shared_blocks = vec![block("a"); blocks];
        let token = Token([0; 32]);
        Message::Prepared(Prepared {
            token,
            shared_blocks,
            qemu_version: version,
            start_ms: 0,
            post_copy: true,
            kept: false,
        })
    };
    range(prepared(1025, String::new()), "shared_blocks");
    range(prepared(0, "x".repeat(129)), "bytes of qemu_version");
    let unprintable = is_refused(Sender::Destination, &prepared(0, "\u{7}".into()));
    assert_eq!(unprintable, MessageError::Unprintable { what: "qemu_version" });
    let code = "x".repeat(MAX_REFUSAL_CODE_BYTES + 1);
    let refusals = vec![Refusal { code, ..refusal }];
    let long = is_refused(Sender::Destination, &Message::Refused(Refused { refusals }));
    assert_eq!(long, MessageError::Unprintable { what: "refusals" });
}

#[test]
fn too_many_refusals_become_one_that_counts_them() {
    let refused = Refused::new(&vec![super::samples::refusal(); MAX_REFUSALS + 8]);
    assert_eq!(refused.refusals.len(), MAX_REFUSALS);
    let last = refused.refusals.last().unwrap();
    assert_eq!(last.reason, "expected nothing to refuse, found 9 more");
    assert_eq!(Refused::new(&vec![super::samples::refusal(); MAX_REFUSALS]).refusals.len(), 32);
}

#[test]
fn texts_are_cut_and_cannot_drive_a_terminal() {
    assert_eq!(Text::new("a\u{1b}[2Jb\n").as_str(), "a?[2Jb\n");
    assert_eq!(Text::new(&"é".repeat(4000)).as_str().len(), MAX_TEXT_BYTES);
    let long = format!("{:?}", "x".repeat(MAX_TEXT_BYTES + 1));
    assert!(serde_json::from_str::<Text>(&long).is_err());
    assert_eq!(serde_json::from_str::<Text>(r#""\u001b""#).unwrap().as_str(), "?");
}
