//! A source that is accepted, has a real QEMU prepared for its guest, and then does harm: that QEMU goes, the reason says
//! what was expected and found, and the guest that runs beside it is as it was.

use std::fs;
use std::time::{Duration, Instant};

use sterna_host::tls::TlsIdentity;
use sterna_model::{BlockName, ByteCount, Epoch, Layout, Root};
use sterna_qemu_args::{Description, RunningFacts};
use sterna_wire::message::{Commit, Final, Inquire, Prepared, RamSection, StreamHead};
use sterna_wire::{AnswerState, Blob, FrameKind, GuestState, Message, Role};

use crate::bench::Bench;
use crate::caller::Caller;
use crate::protocol::prepare;
use crate::{Result, expect, run};

pub(crate) const MACHINE: &str = "pc-i440fx-7.2";
pub(crate) const RAM_BYTES: u64 = 16 << 20;
/// QEMU's start, and its end.
const LIMIT: Duration = Duration::from_secs(30);
/// More than an agent takes of device state: 64 MiB in frames of 256 KiB.
const TAIL_FRAMES: usize = 257;

/// What a source does to a job that is prepared, and what the agent says then.
const HARM: [(Harm, &str); 17] = [
    (Harm::GarbagePages, "expected"),
    (Harm::WrongFrame, "expected a frame of pages"),
    (Harm::WrongConnection, "expected a data connection of 0 to 1"),
    (Harm::ConnectionTwice, "expected a data connection of 0 to 1, each once"),
    (Harm::HeadTwice, "head twice"),
    (Harm::OtherMemory, "expected"),
    (Harm::HugeMemory, "expected at most"),
    (Harm::DamagedConfiguration, "expected"),
    (Harm::OtherMachine, "QEMU"),
    (Harm::TooMuchState, "expected at most 67108864 bytes of device state"),
    (Harm::DamagedState, "QEMU"),
    (Harm::UnpackableState(100_000), "expected one zstd frame of 100000 bytes of device state"),
    (Harm::UnpackableState(u64::MAX), "expected at most 67108864 bytes of device state"),
    (Harm::EarlyCommit, ""),
    (Harm::OtherEpoch, "expected a commit of epoch"),
    (Harm::OutOfTurn, "out of turn"),
    (Harm::Gone, ""),
];

#[derive(Clone, Copy, Debug)]
enum Harm {
    GarbagePages,
    WrongFrame,
    WrongConnection,
    ConnectionTwice,
    HeadTwice,
    OtherMemory,
    HugeMemory,
    DamagedConfiguration,
    OtherMachine,
    TooMuchState,
    DamagedState,
    UnpackableState(u64),
    EarlyCommit,
    OtherEpoch,
    OutOfTurn,
    Gone,
}

#[test]
fn a_source_that_does_harm_costs_its_own_guest_only() -> Result<()> {
    run(async {
        let bench = Bench::start("")?;
        start_bystander(&bench)?;
        let alpha = bench.identity("alpha")?;
        let before = bench.usage()?;
        for (number, (harm, found)) in HARM.into_iter().enumerate() {
            let job = format!("job-{number}");
            let said = do_harm(&bench, &alpha, &job, harm).await;
            let said = said.map_err(|error| format!("{harm:?}: {error}"))?;
            wait_for_end(&bench, &job).await.map_err(|error| format!("{harm:?}: {error}"))?;
            let (_, jobs) = bench.sterna(&["jobs", "-o", "json"])?;
            let words = said + &jobs;
            expect(words.contains(found), &format!("{found:?} after {harm:?}"), &words)?;
            expect(!words.contains("unknown"), "no doubt", &words)?;
            check_bystander(&bench)?;
        }
        bench.is_well(before, &["the job has ended here"]).await
    })
}

/// Begins a job and does harm to it; gives what the agent says about that.
async fn do_harm(bench: &Bench, alpha: &TlsIdentity, job: &str, harm: Harm) -> Result<String> {
    let (mut source, prepared) = begin(bench, alpha, job, "victim").await?;
    let data = async |connection| {
        let role = Role::Data { job: job.parse()?, token: prepared.token, connection };
        Caller::call(bench, alpha, role).await
    };
    // Connections live until the agent has spoken.
    let mut kept = Vec::new();
    match harm {
        Harm::GarbagePages => {
            source.send(&head(MACHINE, "pc.ram", RAM_BYTES)?).await?;
            let mut link = data(0).await?;
            link.send_frame(FrameKind::Pages, &[0xa5; 4096]).await?;
            kept.push(link);
        }
        Harm::WrongFrame => {
            source.send(&head(MACHINE, "pc.ram", RAM_BYTES)?).await?;
            let mut link = data(0).await?;
            link.send_frame(FrameKind::Control, b"{}").await?;
            kept.push(link);
        }
        Harm::WrongConnection => kept.push(data(2).await?),
        Harm::ConnectionTwice => kept.extend([data(1).await?, data(1).await?]),
        Harm::HeadTwice => {
            source.send(&head(MACHINE, "pc.ram", RAM_BYTES)?).await?;
            source.send(&head(MACHINE, "pc.ram", RAM_BYTES)?).await?;
        }
        Harm::OtherMemory => source.send(&head(MACHINE, "pc.ram", RAM_BYTES * 2)?).await?,
        Harm::HugeMemory => source.send(&head(MACHINE, "pc.rom", 1 << 40)?).await?,
        Harm::DamagedConfiguration => {
            let Message::StreamHead(mut head) = head(MACHINE, "pc.ram", RAM_BYTES)? else {
                return Err("no head".into());
            };
            head.configuration = Blob::new(vec![7, 255, 255, 255, 255, b'q']).ok_or("too long")?;
            source.send(&Message::StreamHead(head)).await?;
        }
        Harm::OtherMachine => {
            source.send(&head("pc-q35-7.2", "pc.ram", RAM_BYTES)?).await?;
            kept.extend([data(0).await?, data(1).await?]);
            source.send(&last(0)).await?;
        }
        Harm::TooMuchState => {
            for _ in 0..TAIL_FRAMES {
                // It may have had enough, and closed the connection.
                if source.send_frame(FrameKind::Tail, &[0; 256 << 10]).await.is_err() {
                    break;
                }
            }
        }
        Harm::DamagedState => {
            source.send(&head(MACHINE, "pc.ram", RAM_BYTES)?).await?;
            kept.extend([data(0).await?, data(1).await?]);
            source.send_frame(FrameKind::Tail, &[0xee; 4096]).await?;
            source.send(&last(4096)).await?;
        }
        Harm::UnpackableState(state_bytes) => {
            source.send(&head(MACHINE, "pc.ram", RAM_BYTES)?).await?;
            kept.extend([data(0).await?, data(1).await?]);
            source.send_frame(FrameKind::Tail, &[0xee; 4096]).await?;
            source.send(&packed(4096, state_bytes)).await?;
        }
        Harm::EarlyCommit => source.send(&Message::Commit(Commit { epoch: Epoch(5) })).await?,
        Harm::OtherEpoch => source.send(&Message::Commit(Commit { epoch: Epoch(6) })).await?,
        Harm::OutOfTurn => {
            source.send(&Message::Prepare(prepare(job, "victim", &description()?)?)).await?;
        }
        Harm::Gone => return Ok(String::new()),
    }
    let said = last_words(&mut source).await;
    drop(kept);
    said
}

#[test]
fn a_job_is_its_sources_alone() -> Result<()> {
    run(async {
        let bench = Bench::start("")?;
        let (alpha, gamma) = (bench.identity("alpha")?, bench.identity("gamma")?);
        let before = bench.usage()?;
        let (mut source, prepared) = begin(&bench, &alpha, "job-1", "victim").await?;
        // Gamma has even got hold of the token.
        let role = Role::Data { job: "job-1".parse()?, token: prepared.token, connection: 0 };
        let refusal = Caller::refused(&bench, &gamma, role).await?;
        expect(refusal.code == "job-unknown", "job-unknown", &refusal)?;
        let about = prepare("job-1", "victim", "{}")?;
        let inquire = Inquire { job: about.job, uuid: about.uuid, epoch: about.epoch };
        let mut stranger = Caller::call(&bench, &gamma, Role::Control).await?;
        stranger.send(&Message::Inquire(inquire.clone())).await?;
        let answer = stranger.receive().await?;
        let is_so =
            matches!(&answer, Some(Message::Answer(it)) if it.state == AnswerState::Unknown);
        expect(is_so, "an answer that gives nothing away", &answer)?;
        drop(stranger);
        for (identity, job, vm, code) in [
            (&gamma, "job-1", "other", "job-known"),
            (&alpha, "job-1", "victim", "job-known"),
            (&gamma, "job-2", "victim", "name-taken"),
            (&alpha, "job-2", "victim", "name-taken"),
        ] {
            let mut caller = Caller::call(&bench, identity, Role::Control).await?;
            caller.send(&Message::Prepare(prepare(job, vm, &description()?)?)).await?;
            match caller.receive().await? {
                Some(Message::Refused(no)) if no.refusals.iter().any(|no| no.code == code) => {}
                other => return Err(format!("expected {code}, found {other:?}").into()),
            }
        }
        for identity in [&gamma, &alpha] {
            let mut caller = Caller::call(&bench, identity, Role::Control).await?;
            caller.send(&Message::Commit(Commit { epoch: Epoch(5) })).await?;
            caller.wait_for_close(LIMIT).await?;
        }
        // After all that, the job is as it was.
        source.ping().await?;
        // Only its own source may ask for its end: who asks has nothing to commit, so the job is discarded.
        let mut again = Caller::call(&bench, &alpha, Role::Control).await?;
        again.send(&Message::Inquire(inquire)).await?;
        let answer = again.receive().await?;
        expect(matches!(answer, Some(Message::Discarded(_))), "a discarded job", &answer)?;
        drop((source, again));
        wait_for_end(&bench, "job-1").await?;
        bench.is_well(before, &["gamma was refused", "gamma misbehaves"]).await
    })
}

#[test]
fn jobs_at_the_same_time_stay_within_the_limit() -> Result<()> {
    run(async {
        let bench = Bench::start("jobs = 2")?;
        let (alpha, before) = (bench.identity("alpha")?, bench.usage()?);
        let description = description()?;
        let mut callers = Vec::new();
        for _ in 0..12 {
            callers.push(Caller::call(&bench, &alpha, Role::Control).await?);
        }
        // All at once: six jobs, each asked for twice.
        for (number, caller) in callers.iter_mut().enumerate() {
            let (job, vm) = (format!("job-{}", number / 2), format!("vm-{number}"));
            caller.send(&Message::Prepare(prepare(&job, &vm, &description)?)).await?;
        }
        let mut begun = 0;
        for caller in &mut callers {
            match caller.receive().await? {
                Some(Message::Prepared(_)) => begun += 1,
                Some(Message::Refused(no)) => {
                    let code = &no.refusals[0].code;
                    expect(code == "too-many-jobs" || code == "job-known", "a limit", &no)?;
                }
                other => return Err(format!("expected an answer, found {other:?}").into()),
            }
        }
        expect(begun == 2, "2 jobs", &begun)?;
        drop(callers);
        bench.is_well(before, &["too-many-jobs"]).await
    })
}

#[test]
fn a_description_that_reaches_for_other_files_is_refused() -> Result<()> {
    run(async {
        let bench = Bench::start("")?;
        let (alpha, before) = (bench.identity("alpha")?, bench.usage()?);
        let vm = bench.folder().join("vm");
        fs::write(vm.join("evil.qcow2"), overlay_of("/etc/shadow"))?;
        fs::write(vm.join("json.qcow2"), overlay_of("json:{\"driver\":\"nbd\",\"host\":\"h\"}"))?;
        std::os::unix::fs::symlink("/etc/shadow", vm.join("link"))?;
        rustix::fs::mkfifoat(rustix::fs::CWD, vm.join("pipe"), 0o600.into())?;
        let at = |name: &str| vm.join(name).display().to_string();
        let cases = [
            (
                format!("-drive file={},format=qcow2", at("evil.qcow2")),
                "image-not-allowed",
                "/etc/shadow",
            ),
            (
                format!("-drive file={},format=qcow2", at("json.qcow2")),
                "image-not-allowed",
                "json:",
            ),
            (
                format!(
                    "-blockdev driver=raw,node-name=r,file.driver=file,file.filename={} -blockdev driver=qcow2,node-name=q,file=r",
                    at("evil.qcow2")
                ),
                "image-not-allowed",
                "/etc/shadow",
            ),
            (format!("-drive file={},format=raw", at("link")), "file-missing", "symbolic link"),
            (format!("-drive file={},format=raw", at("pipe")), "file-missing", "a pipe"),
            (format!("-drive file={}/../../x,format=raw", at("a")), "path-not-allowed", ".."),
            ("-drive file=/etc/shadow,format=raw".into(), "path-not-allowed", "/etc/shadow"),
            ("-kernel /proc/self/fd/0".into(), "path-not-allowed", "/proc"),
            ("-device loader,file=/etc/shadow,addr=0".into(), "device-not-allowed", "loader"),
            (
                "-netdev tap,id=n,ifname=t,script=/bin/sh,downscript=no".into(),
                "value-not-allowed",
                "/bin/sh",
            ),
            ("-plugin /usr/share/x.so".into(), "option-not-allowed", "-plugin"),
            ("-readconfig /usr/share/x".into(), "option-not-allowed", "-readconfig"),
        ];
        let mut caller = Caller::call(&bench, &alpha, Role::Check).await?;
        for (line, code, culprit) in cases {
            let description = described(line.split(' '))?;
            caller.send(&Message::Prepare(prepare("job-1", "victim", &description)?)).await?;
            let answer = caller.receive().await?;
            let is_so = matches!(&answer, Some(Message::Refused(no))
                if no.refusals.iter().any(|no| no.code == code && no.reason.contains(culprit)));
            expect(is_so, &format!("{code} for {line}"), &answer)?;
        }
        // The same images are no danger as raw bytes.
        let line = format!("-drive file={},format=raw,if=none,id=d", at("evil.qcow2"));
        let description = described(line.split(' '))?;
        caller.send(&Message::Prepare(prepare("job-1", "victim", &description)?)).await?;
        let answer = caller.receive().await?;
        let is_so = matches!(&answer, Some(Message::Refused(no)) if no.refusals.is_empty());
        expect(is_so, "no refusal", &answer)?;
        drop(caller);
        bench.is_well(before, &[]).await
    })
}

/// A qcow2 header that names this backing file, said to be raw.
fn overlay_of(backing: &str) -> Vec<u8> {
    let length = u32::try_from(backing.len()).unwrap_or_default();
    let mut image = vec![0; 4096];
    image[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    image[8..16].copy_from_slice(&2048_u64.to_be_bytes());
    image[16..20].copy_from_slice(&length.to_be_bytes());
    image[100..104].copy_from_slice(&104_u32.to_be_bytes());
    image[104..115].copy_from_slice(b"\xe2\x79\x2a\xca\0\0\0\x03raw");
    image[2048..2048 + backing.len()].copy_from_slice(backing.as_bytes());
    image
}

/// A guest that runs on the host, has nothing to do with any of this, and is to go on.
fn start_bystander(bench: &Bench) -> Result<()> {
    let words = ["vm", "start", "bystander", "--", "qemu-system-x86_64", "-accel", "tcg"];
    let more = ["-m", "8M", "-nodefaults", "-display", "none"];
    let (code, said) = bench.sterna(&[&words[..], &more[..]].concat())?;
    expect(code == 0, "a guest that starts", &said)
}

fn check_bystander(bench: &Bench) -> Result<()> {
    let (_, list) = bench.sterna(&["vm", "list", "-o", "json"])?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    let is_so = list.as_array().is_some_and(|vms| vms.len() == 1)
        && list[0]["name"] == "bystander"
        && list[0]["state"] == "running";
    expect(is_so, "the guest beside it, and no other", &list)
}

/// Begins a job whose QEMU then waits.
pub(crate) async fn begin(
    bench: &Bench,
    identity: &TlsIdentity,
    job: &str,
    vm: &str,
) -> Result<(Caller, Prepared)> {
    let mut source = Caller::call(bench, identity, Role::Control).await?;
    source.send(&Message::Prepare(prepare(job, vm, &description()?)?)).await?;
    match source.receive().await? {
        Some(Message::Prepared(prepared)) => {
            expect(qemus(bench, vm)? == 1, "a QEMU that waits", &qemus(bench, vm)?)?;
            Ok((source, prepared))
        }
        other => Err(format!("expected it to be prepared, found {other:?}").into()),
    }
}

/// All that the agent still says on the job's connection.
async fn last_words(source: &mut Caller) -> Result<String> {
    let start = Instant::now();
    let mut words = String::new();
    while start.elapsed() < LIMIT {
        match source.receive().await {
            Ok(Some(Message::Discarded(_))) => return Ok(words),
            Ok(Some(Message::Failed(failed))) => words.push_str(&failed.error.to_string()),
            Ok(Some(Message::Running(_) | Message::Loaded(_))) => {
                return Err("the agent took the guest".into());
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return Ok(words),
        }
    }
    Err("the agent does not end the job".into())
}

/// Waits until a job is over and nothing is left of it.
pub(crate) async fn wait_for_end(bench: &Bench, job: &str) -> Result<()> {
    let start = Instant::now();
    loop {
        let (_, jobs) = bench.sterna(&["jobs", "-o", "json"])?;
        let jobs: serde_json::Value = serde_json::from_str(&jobs)?;
        let found = jobs.as_array().into_iter().flatten().find(|it| it["job"] == job).cloned();
        let is_over = found.as_ref().is_some_and(|it| it["state"] == "discarded");
        if is_over && qemus(bench, "victim")? == 0 {
            return Ok(());
        }
        if start.elapsed() > LIMIT {
            let left = qemus(bench, "victim")?;
            return Err(format!("expected a discarded job, found {found:?}, {left} QEMUs").into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Processes of QEMU that a VM of this name has on the bench.
fn qemus(bench: &Bench, vm: &str) -> Result<usize> {
    let mark = format!("{}/run/", bench.folder().display());
    let is_one = |entry: &fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains("qemu-system") && line.contains(&mark) && line.contains(vm)
    };
    Ok(fs::read_dir("/proc")?.flatten().filter(is_one).count())
}

pub(crate) fn description() -> Result<String> {
    described([])
}

/// A description with these words besides.
fn described<'w>(besides: impl IntoIterator<Item = &'w str>) -> Result<String> {
    let words = ["qemu-system-x86_64", "-machine", MACHINE, "-accel", "tcg", "-m", "16M"];
    let more = ["-nodefaults", "-display", "none"];
    let argv: Vec<String> =
        words.into_iter().chain(more).chain(besides).map(str::to_owned).collect();
    let facts = RunningFacts {
        machine_type: MACHINE.to_owned(),
        ram_block: BlockName::new(b"pc.ram")?,
        ram_bytes: ByteCount(RAM_BYTES),
        qemu_version: "7.2.0".to_owned(),
        program_path: None,
        working_dir: None,
        agent_qmp: None,
        image_formats: Vec::new(),
    };
    let described = Description::from_argv(&argv, &facts);
    Ok(serde_json::to_string(&described.map_err(|refusals| format!("{refusals:?}"))?)?)
}

pub(crate) fn head(machine: &str, block: &str, bytes: u64) -> Result<Message> {
    let length = u32::try_from(machine.len())?.to_be_bytes();
    let configuration = [&[7], &length[..], machine.as_bytes()].concat();
    Ok(Message::StreamHead(StreamHead {
        configuration: Blob::new(configuration).ok_or("too long")?,
        layout: Layout::new(&[(BlockName::new(block.as_bytes())?, bytes)])?,
        ram_section: RamSection { section: 2, instance: 0 },
    }))
}

pub(crate) fn last(tail_bytes: u64) -> Message {
    packed(tail_bytes, 0)
}

/// As [`last`], of device state that was packed from so many bytes.
fn packed(tail_bytes: u64, state_bytes: u64) -> Message {
    Message::Final(Final {
        root: Root::ZERO_MEMORY,
        frames_per_connection: vec![0, 0],
        tail_bytes,
        state_bytes,
        guest: GuestState::Running,
        commands: Vec::new(),
    })
}
