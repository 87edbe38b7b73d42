//! One of everything, with contents that no default could give.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use sterna_model::{BlockName, Epoch, Layout, PageId, Refusal, Root};

use crate::evidence::{Accelerator, PostCopy};
use crate::hello::{Capabilities, Offer, Role, Welcome};
use crate::message::*;
use crate::{
    AnswerState, Blob, Complete, CpuEvidence, DiskEvidence, Evidence, GuestState, Hashes, Hello,
    Lacking, PageKey, Rejoin, Rejoined, Reply, Sender, Text, Token, Vanished, Verify, Wanted,
};

pub(super) fn offer(protocol_min: u16, protocol_max: u16, software: &str) -> Offer {
    let capabilities = Capabilities::new(&["three-stage", "follow"]).unwrap();
    Offer { protocol_min, protocol_max, software: software.into(), capabilities }
}

pub(super) fn hellos() -> Vec<(&'static str, Hello)> {
    let job = "job-7".parse().unwrap();
    let data = Role::Data { job, token: Token([0xa5; 32]), connection: 3 };
    [("control", Role::Control), ("data", data), ("check", Role::Check)]
        .map(|(name, role)| (name, Hello { offer: offer(1, 1, "0.1.0"), role }))
        .into()
}

pub(super) fn replies() -> Vec<(&'static str, Reply)> {
    let capabilities = Capabilities::new(&["follow"]).unwrap();
    let welcome = Welcome { protocol: 1, software: "0.1.0".into(), capabilities };
    vec![("welcome", Reply::Welcome(welcome)), ("refused", Reply::refused(&refusal()))]
}

pub(super) fn refusal() -> Refusal {
    Refusal::new("option-not-allowed", "expected no -fsdev, found one", "remove it")
}

pub(super) fn block(name: &str) -> BlockName {
    BlockName::new(name.as_bytes()).unwrap()
}

pub(super) fn root() -> Root {
    Root::from_bytes(*b"0123456789abcdef")
}

pub(super) fn prepare() -> Prepare {
    Prepare {
        job: "job-7".parse().unwrap(),
        vm: "web".parse().unwrap(),
        uuid: "0a1b2c3d-0000-4111-8222-ffffffffffff".parse().unwrap(),
        epoch: Epoch(5),
        description: String::from(r#"{"argv":["-m","512"]}"#),
        page_key: PageKey([0x11; 32]),
        connections: 4,
        verify: Verify::Full,
        link_timeout_ms: 90_000,
        evidence: None,
        post_copy: false,
        keep_ms: None,
        reuse: false,
    }
}

pub(super) fn evidence() -> Evidence {
    let disk = DiskEvidence {
        path: "/srv/vm/web.img".into(),
        length_bytes: 16 << 30,
        inode: 77,
        locked_byte: Some(1 << 41),
        world_wide_id: Some("naa.600".into()),
    };
    let cpu = CpuEvidence {
        model: "host".into(),
        features: vec!["aes".into(), "vendor=AuthenticAMD".into()],
        lacks: vec!["sha-ni".into()],
    };
    Evidence {
        accelerator: Accelerator::Kvm,
        cpu: Some(cpu),
        disks: vec![disk],
        post_copy: PostCopy::Planned,
    }
}

pub(super) fn prepared() -> Prepared {
    Prepared {
        token: Token([0x5a; 32]),
        shared_blocks: vec![block("pc.ram")],
        qemu_version: "7.2.0".into(),
        start_ms: 80,
        post_copy: false,
        kept: false,
    }
}

fn complete() -> Complete {
    Complete {
        requests: 1234,
        fault_latency_p50_us: 900,
        fault_latency_p99_us: 4500,
        fault_latency_max_us: 60_000,
        peak_anonymous_bytes: 33 << 20,
    }
}

pub(super) fn stream_head() -> StreamHead {
    StreamHead {
        configuration: Blob::new(vec![0, 0, 0, 1, b'q']).unwrap(),
        layout: Layout::new(&[(block("pc.ram"), 8192), (block("/rom@etc/x"), 4096)]).unwrap(),
        ram_section: RamSection { section: 2, instance: 0 },
    }
}

fn from_source() -> Vec<Message> {
    let (job, uuid) = (prepare().job, prepare().uuid);
    let frames_per_connection = vec![17, 18, 0, u64::MAX];
    let sent = Final {
        root: root(),
        frames_per_connection,
        tail_bytes: 345_678,
        state_bytes: 0,
        guest: GuestState::Paused,
        commands: vec![StreamCommand { command: 11, data: Blob::default() }],
    };
    vec![
        Message::Prepare(prepare()),
        Message::Prepare(Prepare { evidence: Some(evidence()), ..prepare() }),
        Message::StreamHead(stream_head()),
        Message::Final(sent.clone()),
        Message::Final(Final { tail_bytes: 5678, state_bytes: 345_678, ..sent }),
        Message::Commit(Commit { epoch: Epoch(5) }),
        Message::Abort(Abort { reason: Text::new("the user cancelled"), keep: false }),
        Message::Inquire(Inquire { job: job.clone(), uuid, epoch: Epoch(5) }),
        Message::Ping(Echo { nonce: 1, sent_ns: 2 }),
        Message::Answer(Answer { job: prepare().job, state: AnswerState::Offered }),
        Message::Prepare(Prepare { post_copy: true, ..prepare() }),
        Message::Rejoin(Rejoin {
            job: job.clone(),
            uuid,
            epoch: Epoch(5),
            page_key: PageKey([0x22; 32]),
            connections: 4,
        }),
        Message::Answer(Answer { job, state: AnswerState::Serving }),
        Message::Prepare(Prepare { keep_ms: Some(3_600_000), reuse: true, ..prepare() }),
        Message::Abort(Abort { reason: Text::new("a device is plugged in"), keep: true }),
    ]
}

fn from_destination() -> Vec<Message> {
    let job = prepare().job;
    let running =
        Running { commit_to_resume_ns: 1_500_000, peak_anonymous_bytes: 31 << 20, lacks_pages: 0 };
    vec![
        Message::Prepared(prepared()),
        Message::Refused(Refused::new(&[refusal()])),
        Message::Applied(Applied { frames_per_connection: vec![3, 4] }),
        Message::Missing(Missing { pages: vec![(PageId(9), 1), (PageId(u32::MAX), 0)] }),
        Message::Loaded(Loaded { root: root(), pages_hashed: 131_072, load_ms: 31 }),
        Message::Failed(Failed { error: Text::new("QEMU said: \"no\"\n") }),
        Message::Running(running),
        Message::Discarded(Discarded { job: job.clone(), epoch: Epoch(5) }),
        Message::Answer(Answer { job: job.clone(), state: AnswerState::Entitled }),
        Message::Pong(Echo { nonce: 1, sent_ns: 2 }),
        Message::Prepared(Prepared { post_copy: true, ..prepared() }),
        Message::Running(Running { lacks_pages: 70_001, ..running }),
        Message::Wanted(Wanted { pages: vec![PageId(0), PageId(70_000), PageId(u32::MAX)] }),
        Message::Complete(complete()),
        Message::Rejoined(Rejoined { token: Token([0x5b; 32]) }),
        Message::Lacking(Lacking {
            runs: vec![(PageId(9), 1), (PageId(512), u32::MAX - 511)],
            last: false,
        }),
        Message::Lacking(Lacking { runs: Vec::new(), last: true }),
        Message::Vanished(Vanished { reason: Text::new("QEMU exited with status 1") }),
        Message::Answer(Answer { job: job.clone(), state: AnswerState::Faulting }),
        Message::Answer(Answer { job, state: AnswerState::Lost }),
        Message::Prepared(Prepared { kept: true, ..prepared() }),
        Message::Hashes(Hashes {
            first: PageId(512),
            hashes: Blob::new((0..32).collect()).unwrap(),
            last: true,
        }),
    ]
}

/// Every message, with who sends it.
pub(super) fn messages() -> Vec<(Sender, Message)> {
    let source = from_source().into_iter().map(|message| (Sender::Source, message));
    let destination = from_destination().into_iter().map(|message| (Sender::Destination, message));
    source.chain(destination).collect()
}
