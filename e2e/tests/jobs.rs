//! A job seen from beside: begun and left alone, watched, reported, cancelled too late; and no faster than asked.

use std::thread;
use std::time::{Duration, Instant};

use sterna_e2e::command::{Output, Running};
use sterna_e2e::{Guest, MOVE_LIMIT, Move, Pair, Result, Setup, Side, Vm, expect_that, story};
use sterna_model::Rate;

/// Fast enough for a job to be well under way in a second or two.
const SLOW: Rate = Rate { bytes_per_second: 2_500_000 };
const UNDER_WAY_BYTES: u64 = 3_000_000;
const LIMIT: Duration = Duration::from_secs(60);
/// `--bandwidth`: 24 Mbit/s.
const RATE_WORD: &str = "24M";
const RATE: f64 = 3_000_000.0;
/// What is measured on the wire has headers too, and a second can have a burst more than the one before.
const MEAN_TOLERANCE: f64 = 1.05;
const SECOND_TOLERANCE: f64 = 1.3;
const DETACHED_LIMIT: Duration = Duration::from_secs(5);

#[test]
fn a_move_is_no_faster_than_its_bandwidth() -> Result<()> {
    story(&Setup::default(), |pair| {
        let guest = Guest::new("modest").load("uniform size=24M rate=300K sweep=30");
        let mut vm = Vm::start(pair, &guest)?;
        let words = vm.migrate_words(&["--bandwidth", RATE_WORD]);
        let mut command = pair.host(Side::Alpha).spawn(&words)?;
        let sent = sent_by_the_second(pair, &mut command)?;
        Move::of(command.wait(MOVE_LIMIT)?)?.check_done()?;
        vm.arrived(pair)?;
        vm.check_works()?;
        eprintln!("bytes in each second: {sent:.0?}");
        let seconds = sent.len() - 1;
        assert!(seconds >= 4, "too short to be measured: {sent:?}");
        let whole = &sent[..seconds];
        let most = whole.iter().copied().fold(0.0, f64::max);
        expect_that(most <= RATE * SECOND_TOLERANCE, "bytes in a second", RATE, most)?;
        #[allow(clippy::cast_precision_loss, reason = "some seconds")]
        let mean = whole.iter().sum::<f64>() / seconds as f64;
        let is_so = (RATE * 0.7..=RATE * MEAN_TOLERANCE).contains(&mean);
        expect_that(is_so, "bytes in a second on average", RATE, mean)
    })
}

#[test]
fn a_detached_job_goes_on_and_is_watched() -> Result<()> {
    story(&Setup::default(), |pair| {
        let guest = Guest::new("watched").load("uniform size=16M rate=1M sweep=30");
        let mut vm = Vm::start(pair, &guest)?;
        pair.world().shape(SLOW)?;
        let job = detach(pair, &vm)?;
        let host = pair.host(Side::Alpha);
        let early = host.run(&["report", &job, "-o", "json"])?;
        expect_that(
            early.code == Some(1),
            "a report before the end",
            "exit code 1",
            shown(&early),
        )?;
        // In another form at the destination, which has no report.
        let there = pair.host(Side::Beta).spawn(&["watch", &job])?;
        let watched = host.spawn(&["watch", &job, "-o", "json"])?;
        pair.world().unshape()?;
        let watched = Move::of(watched.wait(MOVE_LIMIT)?)?;
        watched.check_done()?;
        let there = there.wait(LIMIT)?.success()?;
        expect_that(there.stdout.contains(&job), "watch at the destination", &job, shown(&there))?;
        vm.arrived(pair)?;
        let report = host.json(&["report", &job])?;
        expect_that(report == watched.report, "sterna report", &watched.report, &report)?;
        let again = Move::of(host.run(&["watch", &job, "-o", "json"])?)?;
        expect_that(again.report == report, "watch after the end", &report, &again.report)?;
        check_cancel_is_refused(pair, &job, "done")?;
        vm.check_works()
    })
}

#[test]
fn a_job_that_was_cancelled_says_so_to_who_watches() -> Result<()> {
    story(&Setup::default(), |pair| {
        let guest = Guest::new("watched").load("uniform size=24M rate=1M sweep=30");
        let vm = Vm::start(pair, &guest)?;
        pair.world().shape(SLOW)?;
        let job = detach(pair, &vm)?;
        let host = pair.host(Side::Alpha);
        let watched = host.spawn(&["watch", &job, "-o", "json"])?;
        // Who watches sees it go on before it ends.
        thread::sleep(Duration::from_secs(1));
        host.run(&["cancel", &job])?.success()?;
        Move::of(watched.wait(LIMIT)?)?.check(130, "cancelled", "source")?;
        Move::of(host.run(&["watch", &job, "-o", "json"])?)?.check(130, "cancelled", "source")?;
        check_cancel_is_refused(pair, &job, "cancelled")?;
        vm.check_still_here(pair)
    })
}

#[test]
fn a_job_that_fails_says_so_to_who_watches() -> Result<()> {
    story(&Setup::default(), |pair| {
        let guest = Guest::new("watched").load("uniform size=24M rate=1M sweep=30");
        let vm = Vm::start(pair, &guest)?;
        pair.world().shape(SLOW)?;
        let job = detach(pair, &vm)?;
        let watched = pair.host(Side::Alpha).spawn(&["watch", &job, "-o", "json"])?;
        pair.host_mut(Side::Beta).kill9();
        Move::of(watched.wait(LIMIT)?)?.check(1, "failed", "source")?;
        vm.check_works()?;
        pair.host_mut(Side::Beta).restart()?;
        vm.check_still_here(pair)?;
        let there = pair.host(Side::Beta).run(&["watch", &job])?;
        let is_so = there.code == Some(1) && there.words().contains("discarded");
        expect_that(is_so, "watch at the destination", "exit code 1: discarded", shown(&there))?;
        check_cut_off(pair, &vm)
    })
}

/// A job whose agent died in it: there is no report, and the exit code is the same.
fn check_cut_off(pair: &mut Pair, vm: &Vm) -> Result<()> {
    let job = detach(pair, vm)?;
    pair.host_mut(Side::Alpha).kill9();
    pair.host_mut(Side::Alpha).restart()?;
    let host = pair.host(Side::Alpha);
    for words in [["watch", &job], ["report", &job]] {
        let output = host.run(&words)?;
        let is_so = output.code == Some(1) && output.words().contains("restarted");
        expect_that(is_so, words[0], "exit code 1: the agent was restarted", shown(&output))?;
    }
    vm.check_still_here(pair)
}

/// Begins a move that goes on by itself; gives its job, well under way.
fn detach(pair: &Pair, vm: &Vm) -> Result<String> {
    let before = pair.world().counters(Side::Alpha)?;
    let begun = Instant::now();
    let output = pair.host(Side::Alpha).run(&vm.migrate_words(&["--detach"]))?.success()?;
    let took = begun.elapsed();
    expect_that(took < DETACHED_LIMIT, "migrate --detach", "at once", format!("{took:?}"))?;
    let job = output.json()?["job"].as_str().unwrap_or_default().to_owned();
    let jobs = pair.host(Side::Alpha).json(&["jobs"])?;
    let listed = jobs.as_array().and_then(|jobs| jobs.last()).cloned().unwrap_or_default();
    let goes_on = listed["job"] == *job
        && ["preparing", "copying"].contains(&listed["state"].as_str().unwrap_or_default());
    expect_that(goes_on, "the job", "that it goes on", &jobs)?;
    pair.world().wait_for_sent(Side::Alpha, before, UNDER_WAY_BYTES, LIMIT)?;
    Ok(job)
}

fn check_cancel_is_refused(pair: &Pair, job: &str, state: &str) -> Result<()> {
    let output = pair.host(Side::Alpha).run(&["cancel", job])?;
    let is_so =
        output.code == Some(1) && output.words().contains(&format!("over already: {state}"));
    expect_that(is_so, "cancel after the end", "exit code 1: over already", shown(&output))
}

fn shown(output: &Output) -> String {
    format!("{output:?}")
}

/// What alpha puts on the wire in each second until the command ends.
fn sent_by_the_second(pair: &Pair, command: &mut Running) -> Result<Vec<f64>> {
    let mut sent = Vec::new();
    let mut last = (Instant::now(), pair.world().counters(Side::Alpha)?.sent_bytes);
    while !command.has_ended()? {
        thread::sleep(Duration::from_secs(1));
        let now = (Instant::now(), pair.world().counters(Side::Alpha)?.sent_bytes);
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
        sent.push((now.1 - last.1) as f64 / (now.0 - last.0).as_secs_f64());
        last = now;
    }
    Ok(sent)
}
