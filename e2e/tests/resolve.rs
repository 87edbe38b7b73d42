//! What is left of a VM when its record or its job's journal is damaged: that VM is unknown and no other, its guest runs
//! on, `sterna resolve` tells what is known, and one decision settles it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use sterna_e2e::command::wait_for;
use sterna_e2e::{
    Error, Guest, Host, Journals, MOVE_LIMIT, Pair, Phase, Result, Setup, Side, Vm, expect_that,
    story,
};
use sterna_model::Rate;

/// Fast enough for a job to be well under way in a second or two.
const SLOW: Rate = Rate { bytes_per_second: 2_500_000 };
/// 100 Mbit/s.
const LINK: Rate = Rate { bytes_per_second: 12_500_000 };
const UNDER_WAY_BYTES: u64 = 3_000_000;
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_guest_whose_jobs_journal_is_damaged_is_settled_and_runs_on() -> Result<()> {
    story(&Setup::default(), |pair| {
        let mut vm =
            Vm::start(pair, &Guest::new("heir").load("uniform size=24M rate=1M sweep=30"))?;
        let other =
            Vm::start(pair, &Guest::new("bystander").load("uniform size=8M rate=1M sweep=30"))?;
        let job = cut_off_move(pair, &vm)?;
        let journal = pair.host(Side::Alpha).folder().join(format!("state/jobs/{job}.journal"));
        damage(&journal)?;
        pair.host_mut(Side::Alpha).restart()?;

        let host = pair.host(Side::Alpha);
        expect_state(host, "bystander", "running")?;
        let shown = expect_state(host, "heir", "unknown")?;
        let why = shown["unknown_because"].to_string();
        expect_that(why.contains("journal"), "why it is unknown", "its journal", &why)?;
        expect_that(shown["resolve"] == *job, "what resolves it", &job, &shown["resolve"])?;
        let text = host.run(&["vm", "show", "heir"])?.success()?.stdout;
        expect_that(text.contains(&format!("sterna resolve {job}")), "vm show", &job, &text)?;

        let known = host.json(&["resolve", &job])?;
        expect_that(known["qemu"]["run_state"] == "running", "the QEMU here", "running", &known)?;
        expect_that(known["peers"][0]["state"] == "discarded", "beta", "discarded", &known)?;
        refused(host, &job, "lost", "guest-runs-here")?;
        refused(host, &job, "destination", "peer-has-not")?;
        let settled = host.json(&["resolve", &job, "--guest-is", "source"])?;
        expect_that(settled["settled"] == "source", "the decision", "source", &settled)?;
        refused(host, &job, "source", "job-not-unknown")?;

        pair.host_mut(Side::Alpha).restart()?;
        vm.check_still_here(pair)?;
        other.check_works()?;
        pair.world().unshape()?;
        vm.migrate(pair, &[])?;
        vm.check_works()
    })
}

#[test]
fn a_vm_whose_record_is_damaged_is_settled_by_its_name() -> Result<()> {
    story(&Setup::default(), |pair| {
        let mut vm =
            Vm::start(pair, &Guest::new("heir").load("uniform size=16M rate=1M sweep=30"))?;
        pair.host_mut(Side::Alpha).kill9();
        damage(&pair.host(Side::Alpha).folder().join("state/vms/heir.json"))?;
        pair.host_mut(Side::Alpha).restart()?;
        let host = pair.host(Side::Alpha);
        let shown = expect_state(host, "heir", "unknown")?;
        expect_that(shown["resolve"] == "heir", "what resolves it", "heir", &shown["resolve"])?;
        host.json(&["resolve", "heir", "--guest-is", "source"])?;
        vm.check_still_here(pair)?;
        vm.migrate(pair, &[])?;
        vm.check_works()
    })
}

/// The destination's agent, without the job's journal for a while, says that it does not know; the source's job ends with
/// that. The journal comes back, and the guest waits for pages that nobody sends, until a person lets the job go on.
#[test]
fn a_guest_that_waits_for_a_source_whose_job_is_over_gets_its_pages() -> Result<()> {
    story(&Setup::default(), |pair| {
        let mut vm =
            Vm::start(pair, &Guest::new("heir").load("uniform size=48M rate=30M sweep=30"))?;
        pair.world().shape(LINK)?;
        let before = Journals::of(pair);
        let words = vm.migrate_words(&["--strategy", "three-stage"]);
        let mut command = pair.host(Side::Alpha).spawn(&words)?;
        let came = Phase::Serving.wait(pair, Side::Alpha, &before, &mut command)?;
        expect_that(came, "the moment", "serving", "the end of the move")?;

        pair.host_mut(Side::Beta).kill9();
        let state = pair.host(Side::Beta).state_dir();
        let journal = only_file_in(&state.join("jobs"))?;
        let kept = [journal.clone(), state.join("vms/heir.json")]
            .map(|path| fs::read(&path).map(|bytes| (path, bytes)));
        fs::remove_file(&journal).map_err(Error::io("taking a journal away"))?;
        pair.host_mut(Side::Beta).restart()?;
        let code = command.wait(MOVE_LIMIT)?.code;
        expect_that(code == Some(4), "the exit code", 4, format!("{code:?}"))?;
        expect_state(pair.host(Side::Alpha), "heir", "unknown")?;
        pair.host_mut(Side::Beta).kill9();
        for kept in kept {
            let (path, bytes) = kept.map_err(Error::io("reading a file of the state"))?;
            fs::write(path, bytes).map_err(Error::io("putting a file of the state back"))?;
        }
        pair.host_mut(Side::Beta).restart()?;

        let host = pair.host(Side::Alpha);
        let job = journal.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let known = host.json(&["resolve", &job])?;
        expect_that(known["peers"][0]["state"] == "faulting", "beta", "faulting", &known)?;
        expect_that(known["qemu"]["run_state"] == "postmigrate", "our QEMU", "there", &known)?;
        refused(host, &job, "source", "peer-has-guest")?;
        refused(host, &job, "lost", "peer-has-guest")?;
        host.json(&["resolve", &job, "--guest-is", "destination"])?;
        wait_for("the guest at beta, whole, and nothing at alpha", LIMIT, || {
            let jobs = pair.host(Side::Beta).json(&["jobs"])?;
            let whole = jobs[0]["state"] == "running";
            let gone = pair.world().qemus(Side::Alpha)?.is_empty();
            Ok((whole && gone).then_some(()))
        })?;
        vm.arrived(pair)?;
        vm.check_works()?;
        pair.world().unshape()?;
        vm.migrate(pair, &[])?;
        vm.check_works()
    })
}

fn only_file_in(folder: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).map_err(Error::io("reading the jobs' folder"))?;
    let files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    match &files[..] {
        [file] => Ok(file.clone()),
        other => Err(Error::unexpected("the jobs' folder", "one journal", format!("{other:?}"))),
    }
}

/// A move whose source agent dies in the middle; gives its job.
fn cut_off_move(pair: &mut Pair, vm: &Vm) -> Result<String> {
    pair.world().shape(SLOW)?;
    let before = pair.world().counters(Side::Alpha)?;
    let output = pair.host(Side::Alpha).run(&vm.migrate_words(&["--detach"]))?.success()?;
    let job = output.json()?["job"].as_str().unwrap_or_default().to_owned();
    pair.world().wait_for_sent(Side::Alpha, before, UNDER_WAY_BYTES, LIMIT)?;
    pair.host_mut(Side::Alpha).kill9();
    Ok(job)
}

/// Changes a byte that was on the disk already.
fn damage(path: &Path) -> Result<()> {
    let mut bytes = fs::read(path).map_err(Error::io("reading a file of the state"))?;
    bytes[40] ^= 1;
    bytes[1] = b'#';
    fs::write(path, bytes).map_err(Error::io("damaging a file of the state"))
}

fn expect_state(host: &Host, name: &str, state: &str) -> Result<Value> {
    let shown = host.vm(name)?;
    expect_that(shown["state"] == state, "the VM's state", state, &shown)?;
    Ok(shown)
}

fn refused(host: &Host, job: &str, decision: &str, code: &str) -> Result<()> {
    let output = host.run(&["resolve", job, "--guest-is", decision])?;
    let is_so = output.code == Some(3) && output.stderr.contains(code);
    expect_that(is_so, "the decision", format!("exit code 3: {code}"), format!("{output:?}"))
}
