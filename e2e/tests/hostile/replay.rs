//! Messages of a job that is over, said again, by its own source and by somebody else: they are no beginning of anything,
//! so their connection ends, and the guest, the journals and the registry stay as they are.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use sterna_host::tls::TlsIdentity;
use sterna_model::{Epoch, JobId, Uuid};
use sterna_wire::message::{Abort, Commit, Inquire};
use sterna_wire::{AnswerState, Message, Role, Text};

use crate::bench::Bench;
use crate::caller::Caller;
use crate::guest::{MACHINE, RAM_BYTES, begin, head, last, wait_for_end};
use crate::protocol::prepare;
use crate::{Result, expect, run};

const LIMIT: Duration = Duration::from_secs(20);

/// A job that is over, as its journal has it.
#[derive(Clone, Debug)]
struct Over {
    job: JobId,
    vm: &'static str,
    uuid: Uuid,
    epoch: Epoch,
    is: AnswerState,
}

/// All that a message could have touched on a host.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    vms: Value,
    jobs: Value,
    files: BTreeMap<String, Vec<u8>>,
}

#[test]
fn a_replayed_final_or_commit_of_a_job_that_is_over_touches_nothing() -> Result<()> {
    run(async {
        let beta = Bench::start("")?;
        let alpha = beta.start_beside("alpha")?;
        let jobs = [move_a_guest(&alpha, &beta)?, discard_a_job(&beta).await?];
        let (before, seen) = (beta.usage()?, [Seen::on(&alpha)?, Seen::on(&beta)?]);
        expect(seen[1].vms[0]["state"] == "running", "a guest that has arrived", &seen[1].vms)?;
        for name in ["alpha", "gamma"] {
            let identity = beta.identity(name)?;
            for job in &jobs {
                say_again(&beta, &identity, job).await?;
                conversation_again(&beta, &identity, job, name == "alpha").await?;
            }
        }
        // Its source has handed the guest over, and is asked to take one by nobody else either.
        say_again(&alpha, &alpha.identity("gamma")?, &jobs[0]).await?;
        expect([Seen::on(&alpha)?, Seen::on(&beta)?] == seen, "hosts as before", &seen)?;
        let said = ["alpha misbehaves", "gamma misbehaves", "found final", "found commit"];
        beta.is_well(before, &said).await
    })
}

/// Each message of a job alone, on a connection of its own, for the job's epoch and those beside it.
async fn say_again(bench: &Bench, identity: &TlsIdentity, job: &Over) -> Result<()> {
    let commit = |epoch| Message::Commit(Commit { epoch: Epoch(epoch) });
    let messages = [
        commit(job.epoch.0),
        commit(job.epoch.0 - 1),
        commit(job.epoch.0 + 1),
        last(0),
        head(MACHINE, "pc.ram", RAM_BYTES)?,
        Message::Abort(Abort { reason: Text::new("said again"), keep: false }),
    ];
    for message in messages {
        let mut caller = Caller::call(bench, identity, Role::Control).await?;
        caller.send(&message).await?;
        let answer = caller.receive().await;
        let is_so = matches!(answer, Ok(None) | Err(_));
        expect(is_so, &format!("no answer to {}", message.name()), &answer)?;
    }
    Ok(())
}

/// The whole of a job: after a question that only its source gets an answer to, and after its beginning.
async fn conversation_again(
    bench: &Bench,
    identity: &TlsIdentity,
    job: &Over,
    is_its_source: bool,
) -> Result<()> {
    let commit = Message::Commit(Commit { epoch: job.epoch });
    let mut caller = Caller::call(bench, identity, Role::Control).await?;
    let (uuid, epoch) = (job.uuid, job.epoch);
    caller.send(&Message::Inquire(Inquire { job: job.job.clone(), uuid, epoch })).await?;
    let answer = caller.receive().await?;
    let expected = if is_its_source { job.is } else { AnswerState::Unknown };
    let is_so = matches!(&answer, Some(Message::Answer(it)) if it.state == expected);
    expect(is_so, &format!("{expected:?}"), &answer)?;
    caller.send(&commit).await?;
    caller.wait_for_close(LIMIT).await?;

    let mut caller = Caller::call(bench, identity, Role::Control).await?;
    let again = prepare(job.job.as_str(), job.vm, "{}")?;
    caller.send(&Message::Prepare(again)).await?;
    let answer = caller.receive().await?;
    let is_so = matches!(&answer, Some(Message::Refused(no))
        if no.refusals.iter().any(|no| no.code == "job-known"));
    expect(is_so, "job-known", &answer)?;
    // It may have closed the connection already.
    for message in [last(0), commit] {
        let _ = caller.send(&message).await;
    }
    caller.wait_for_close(LIMIT).await
}

/// A job that went well: a real guest, moved from one agent to the other.
fn move_a_guest(alpha: &Bench, beta: &Bench) -> Result<Over> {
    let words = ["vm", "start", "web", "--", "qemu-system-x86_64", "-machine", MACHINE];
    // A size of which QEMU 7.2 does not lose pages under TCG.
    let more = ["-accel", "tcg", "-m", "16376k", "-nodefaults", "-display", "none"];
    let (code, said) = alpha.sterna(&[&words[..], &more[..]].concat())?;
    expect(code == 0, "a guest that starts", &said)?;
    let to = format!("beta={}", beta.address());
    let (code, said) = alpha.sterna(&["migrate", "web", &to])?;
    expect(code == 0, "a guest that moves", &said)?;
    let record: Value =
        serde_json::from_slice(&fs::read(beta.folder().join("state/vms/web.json"))?)?;
    let (uuid, epoch) = (record["uuid"].as_str(), record["epoch"].as_u64());
    let (_, jobs) = beta.sterna(&["jobs", "-o", "json"])?;
    let jobs: Value = serde_json::from_str(&jobs)?;
    expect(jobs[0]["state"] == "running", "a job that went well", &jobs)?;
    Ok(Over {
        job: jobs[0]["job"].as_str().ok_or("no job")?.parse()?,
        vm: "web",
        uuid: uuid.ok_or("no uuid")?.parse()?,
        epoch: Epoch(epoch.ok_or("no epoch")?),
        is: AnswerState::Running,
    })
}

/// A job that was prepared, and broken off.
async fn discard_a_job(beta: &Bench) -> Result<Over> {
    let (mut source, _) = begin(beta, &beta.identity("alpha")?, "job-1", "victim").await?;
    source.send(&Message::Abort(Abort { reason: Text::new("not today"), keep: false })).await?;
    wait_for_end(beta, "job-1").await?;
    let begun = prepare("job-1", "victim", "{}")?;
    let (job, uuid, epoch) = (begun.job, begun.uuid, begun.epoch);
    Ok(Over { job, vm: "victim", uuid, epoch, is: AnswerState::Discarded })
}

impl Seen {
    fn on(bench: &Bench) -> Result<Self> {
        let json = |words: &[&str]| -> Result<Value> {
            Ok(serde_json::from_str(&bench.sterna(&[words, &["-o", "json"]].concat())?.1)?)
        };
        let mut files = BTreeMap::new();
        for folder in ["state/jobs", "state/vms"] {
            add_files(&bench.folder().join(folder), &mut files)?;
        }
        Ok(Self { vms: json(&["vm", "list"])?, jobs: json(&["jobs"])?, files })
    }
}

fn add_files(folder: &Path, files: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        files.insert(path.display().to_string(), fs::read(&path)?);
    }
    Ok(())
}
