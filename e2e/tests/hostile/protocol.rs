//! Accepted peers that break the protocol: frames, hellos, versions, messages, jobs that are not theirs.

use std::time::Duration;

use sterna_model::{Epoch, Root, Uuid};
use sterna_wire::message::{Abort, Commit, Discarded, Final, Inquire, Prepare};
use sterna_wire::{
    AnswerState, FrameKind, GuestState, Message, PageKey, Reply, Role, Text, Token, Verify,
};

use crate::bench::Bench;
use crate::caller::{Caller, header, offer};
use crate::{Result, expect, run};

const SOON: Duration = Duration::from_secs(5);
/// The agent lets a peer be silent for 30 s where `link_timeout` is less.
const SILENCE_LIMIT: Duration = Duration::from_secs(40);

pub(crate) fn prepare(job: &str, vm: &str, description: &str) -> Result<Prepare> {
    Ok(Prepare {
        job: job.parse()?,
        vm: vm.parse()?,
        uuid: Uuid([7; 16]),
        epoch: Epoch(5),
        description: description.to_owned(),
        page_key: PageKey([1; 32]),
        connections: 2,
        verify: Verify::Roots,
        link_timeout_ms: 20_000,
        keep_ms: None,
        reuse: false,
        evidence: None,
        post_copy: false,
    })
}

#[test]
fn frames_that_are_none_end_their_connection_only() -> Result<()> {
    run(async {
        let bench = Bench::start("")?;
        let alpha = bench.identity("alpha")?;
        let before = bench.usage()?;
        let control = FrameKind::Control as u8;
        let json = |text: &str| {
            let length = u32::try_from(text.len()).unwrap_or(0);
            [&header(control, 0, length, 1)[..], text.as_bytes()].concat()
        };
        let nested = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        let many = format!("{{\"type\":[{}0]}}", "0,".repeat(70_000));
        let after_hello: [(Vec<u8>, &str); 14] = [
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "expected a frame to start with"),
            (header(control, 1, 2, 1).to_vec(), "without flags"),
            (header(9, 0, 2, 1).to_vec(), "found kind 9"),
            (header(control, 0, 2, 7).to_vec(), "expected frame number 1, found 7"),
            (header(control, 0, 2, 0).to_vec(), "expected frame number 1, found 0"),
            (header(control, 0, (1 << 20) + 1, 1).to_vec(), "at most 1048576 bytes"),
            (header(control, 0, u32::MAX, 1).to_vec(), "found 4294967295 bytes"),
            (header(FrameKind::Hello as u8, 0, 2, 1).to_vec(), "expected a Hello as frame 0"),
            (header(FrameKind::Pages as u8, 0, 0, 1).to_vec(), "found a frame of kind Pages"),
            (header(FrameKind::Tail as u8, 0, 0, 1).to_vec(), "found a frame of kind Tail"),
            (json("not json"), "expected a JSON object"),
            (json(&nested), "nested at most"),
            (json(&many), "values in a JSON document"),
            (json(r#"{"type":"hibernate"}"#), "hibernate"),
        ];
        for (bytes, found) in after_hello {
            let mut caller = Caller::call(&bench, &alpha, Role::Control).await?;
            caller.send_raw(&bytes).await?;
            caller.wait_for_close(SOON).await.map_err(|error| format!("{found}: {error}"))?;
            bench.is_well(before, &["alpha misbehaves", found]).await?;
        }
        // Half a frame, and then nothing more.
        let mut caller = Caller::call(&bench, &alpha, Role::Control).await?;
        caller.send_raw(&header(control, 0, 1 << 20, 1)).await?;
        caller.send_raw(&vec![b' '; 1 << 19]).await?;
        drop(caller);
        bench.is_well(before, &["found the connection cut off"]).await
    })
}

#[test]
fn hellos_that_are_none() -> Result<()> {
    run(async {
        let bench = Bench::start("")?;
        let alpha = bench.identity("alpha")?;
        let before = bench.usage()?;
        let hello = FrameKind::Hello as u8;
        let with = |text: &str| {
            let length = u32::try_from(text.len()).unwrap_or(0);
            [&header(hello, 0, length, 0)[..], text.as_bytes()].concat()
        };
        let role = |role: &str, range: &str| {
            with(&format!(
                r#"{{"offer":{{{range},"software":"x","capabilities":[]}},"role":{role}}}"#
            ))
        };
        let range = r#""protocol_min":1,"protocol_max":1"#;
        let cases: [(Vec<u8>, &str); 7] = [
            (header(FrameKind::Control as u8, 0, 2, 0).to_vec(), "expected a Hello as frame 0"),
            (header(hello, 0, (16 << 10) + 1, 0).to_vec(), "at most 16384 bytes"),
            (with("[]"), "expected a JSON object"),
            (with("{}"), "missing field"),
            (role(r#"{"type":"gossip"}"#, range), "gossip"),
            (role(r#"{"type":"control"}"#, r#""protocol_min":0,"protocol_max":1"#), "found 0 to 1"),
            (role(r#"{"type":"control"}"#, r#""protocol_min":3,"protocol_max":2"#), "found 3 to 2"),
        ];
        for (bytes, found) in cases {
            let mut caller = Caller::connect(&bench, &alpha).await?;
            caller.send_raw(&bytes).await?;
            caller.wait_for_close(SOON).await.map_err(|error| format!("{found}: {error}"))?;
            bench.is_well(before, &["alpha misbehaves", found]).await?;
        }
        Ok(())
    })
}

#[test]
fn versions_that_meet_and_versions_that_do_not() -> Result<()> {
    run(async {
        let bench = Bench::start("")?;
        let alpha = bench.identity("alpha")?;
        let before = bench.usage()?;
        // The release after this one: its N-1 is what we speak, and what only it knows is left out.
        let mut next = Caller::connect(&bench, &alpha).await?;
        let reply = next.hello(&offer(1, 2, &["from-the-future"]), Role::Control).await?;
        let Reply::Welcome(welcome) = reply else {
            return Err(format!("expected a welcome, found {reply:?}").into());
        };
        expect(welcome.protocol == 1, "protocol 1", &welcome)?;
        expect(welcome.capabilities.iter().next().is_none(), "no capability", &welcome)?;
        next.ping().await?;
        drop(next);
        for (min, max) in [(2, 3), (7, 9), (u16::MAX, u16::MAX)] {
            let mut caller = Caller::connect(&bench, &alpha).await?;
            let reply = caller.hello(&offer(min, max, &[]), Role::Control).await?;
            let Reply::Refused { refusal } = reply else {
                return Err(format!("expected a refusal, found {reply:?}").into());
            };
            expect(refusal.code == "protocol-version", "protocol-version", &refusal)?;
            let names_both = refusal.reason.contains("1 to 1")
                && refusal.reason.contains(&format!("{min} to {max} (hostile 1)"));
            expect(names_both, "both ranges", &refusal)?;
            let says_what = refusal.remedy.contains(&format!("protocol {min} or newer"));
            expect(says_what, "what to do", &refusal)?;
            caller.wait_for_close(SOON).await?;
        }
        bench.is_well(before, &["alpha was refused", "found 2 to 3"]).await
    })
}

#[test]
fn messages_out_of_turn_begin_nothing() -> Result<()> {
    run(async {
        let bench = Bench::start("")?;
        let alpha = bench.identity("alpha")?;
        let before = bench.usage()?;
        let last = Final {
            root: Root::ZERO_MEMORY,
            frames_per_connection: vec![u64::MAX; 64],
            tail_bytes: u64::MAX,
            state_bytes: 0,
            guest: GuestState::Running,
            commands: Vec::new(),
        };
        let out_of_turn = [
            Message::Commit(Commit { epoch: Epoch(5) }),
            Message::Abort(Abort { reason: Text::new("\u{1b}[2J"), keep: false }),
            Message::Final(last),
            // The destination's to say.
            Message::Discarded(Discarded { job: "job-1".parse()?, epoch: Epoch(5) }),
        ];
        for message in out_of_turn {
            for role in [Role::Control, Role::Check] {
                let mut caller = Caller::call(&bench, &alpha, role).await?;
                caller.send(&message).await?;
                caller
                    .wait_for_close(SOON)
                    .await
                    .map_err(|error| format!("{message:?}: {error}"))?;
            }
        }
        bench.is_well(before, &["alpha misbehaves", "found commit", "found final"]).await?;
        expect(bench.sterna(&["jobs", "-o", "json"])?.1.trim() == "[]", "no job", &bench.log())
    })
}

#[test]
fn data_and_questions_about_jobs_of_nobody() -> Result<()> {
    run(async {
        let bench = Bench::start("")?;
        let alpha = bench.identity("alpha")?;
        let before = bench.usage()?;
        let data = Role::Data { job: "job-1".parse()?, token: Token([0; 32]), connection: 0 };
        let refusal = Caller::refused(&bench, &alpha, data).await?;
        expect(refusal.code == "job-unknown", "job-unknown", &refusal)?;
        let mut caller = Caller::call(&bench, &alpha, Role::Control).await?;
        for job in ["job-1", "a.b", "journal"] {
            let (uuid, epoch) = (Uuid([7; 16]), Epoch(5));
            caller.send(&Message::Inquire(Inquire { job: job.parse()?, uuid, epoch })).await?;
            match caller.receive().await? {
                Some(Message::Answer(answer)) if answer.state == AnswerState::Unknown => {}
                other => return Err(format!("expected unknown, found {other:?}").into()),
            }
        }
        drop(caller);
        bench.is_well(before, &["alpha was refused", "no job job-1 of alpha"]).await
    })
}

#[test]
fn whoever_is_greeted_and_then_silent_is_let_go() -> Result<()> {
    run(async {
        let bench = Bench::start("link_timeout = 1")?;
        let alpha = bench.identity("alpha")?;
        let before = bench.usage()?;
        let mut silent = Caller::call(&bench, &alpha, Role::Control).await?;
        let mut once = Caller::call(&bench, &alpha, Role::Control).await?;
        once.ping().await?;
        let mut unheard = Caller::connect(&bench, &alpha).await?;
        unheard.wait_for_close(SILENCE_LIMIT).await?;
        silent.wait_for_close(SILENCE_LIMIT).await?;
        once.wait_for_close(SILENCE_LIMIT).await?;
        let said = ["alpha does not answer our hello", "within 30 s, found silence"];
        bench.is_well(before, &said).await
    })
}
