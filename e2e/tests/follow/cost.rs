//! What following an idle guest takes from the processors, and what goes over the wire for it: over seconds in `make test`,
//! over hours in a soak.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sterna_e2e::{
    Error, Guest, Pair, Result, Setup, Side, Turn, Vm, expect_that, repository, story,
};

use super::{check_report, follow, switch, wait_for_epochs};

/// A guest that has just booted settles.
const SETTLES: Duration = Duration::from_secs(5);
const MEASURED: Duration = Duration::from_secs(10);
/// The bound for an idle guest.
const MOST_SHARE: f64 = 0.02;
/// What the guest's own processor may take beyond what it took before: an idle one's share varies by two hundredths from one
/// ten seconds to the next, whether it is followed or not.
const MOST_OF_GUEST: f64 = 0.05;
/// How long a soak follows, in minutes, unless `STERNA_FOLLOW_MINUTES` says something else.
const MINUTES: u64 = 180;
/// What is written down at a time.
const STRETCH: Duration = Duration::from_secs(300);
/// What an agent may hold beyond what it held at first: following for hours makes nothing grow.
const GROWTH_BYTES: u64 = 16 << 20;

/// What following an idle guest takes from a processor: QEMU, which looks for dirty pages, and the agent.
#[test]
fn an_idle_guest_is_followed_for_little() -> Result<()> {
    story(&Setup::default(), |pair| {
        let vm = Vm::start(pair, &Guest::new("cheap").load("idle size=16M sweep=5"))?;
        let host = pair.host(Side::Alpha);
        let qemu = Counted::Qemu { pid: vm.pid(), processors: processors(pair, &vm)? };
        let guest = Counted::Processors { pid: vm.pid(), processors: processors(pair, &vm)? };
        let agent = Counted::Process(agent(pair, Side::Alpha)?);
        thread::sleep(SETTLES);
        let [qemu_alone, guest_alone] = shares_of_a_processor(MEASURED, [&qemu, &guest])?;
        follow(pair, &vm)?;
        wait_for_epochs(pair, &vm, 2)?;
        let sent = background(pair, &vm)?;
        let [qemu, guest, agent] = shares_of_a_processor(MEASURED, [&qemu, &guest, &agent])?;
        let sent = background(pair, &vm)? - sent;
        eprintln!(
            "QEMU {qemu_alone:.4} of a processor alone, {qemu:.4} followed; the guest {guest_alone:.4}, {guest:.4}; \
             agent {agent:.4}; {sent} bytes in {} s",
            MEASURED.as_secs()
        );
        let (qemu, guest) = (qemu - qemu_alone, guest - guest_alone);
        expect_that(qemu < MOST_SHARE, "QEMU's share", MOST_SHARE, qemu)?;
        expect_that(guest < MOST_OF_GUEST, "the guest's share", MOST_OF_GUEST, guest)?;
        expect_that(agent < MOST_SHARE, "the agent's share", MOST_SHARE, agent)?;
        host.run(&["unfollow", vm.name()])?.success()?;
        vm.check_still_here(pair)
    })
}

/// For hours, with everything that takes part counted; then the guest is handed over. Writes `e2e/results/followed.json`.
#[test]
fn an_idle_guest_is_followed_for_hours() -> Result<()> {
    if std::env::var_os("STERNA_SOAK").is_none_or(|value| value != "1") {
        eprintln!("skipped: it takes hours; STERNA_SOAK=1 (make soak) runs it");
        return Ok(());
    }
    let minutes = std::env::var("STERNA_FOLLOW_MINUTES").ok().and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs(60 * minutes.unwrap_or(MINUTES));
    // It mostly waits, beside whatever else runs.
    story(&Setup { turn: Turn::AtOnce, ..Setup::default() }, |pair| {
        let mut vm = Vm::start(pair, &Guest::new("patient").load("idle size=64M sweep=60"))?;
        thread::sleep(SETTLES);
        let source = Counted::Process(vm.pid());
        let [alone] = shares_of_a_processor(STRETCH / 5, [&source])?;
        follow(pair, &vm)?;
        wait_for_epochs(pair, &vm, 2)?;
        let agents = [agent(pair, Side::Alpha)?, agent(pair, Side::Beta)?];
        let copy = pair.world().qemus(Side::Beta)?;
        let [copy] = copy[..] else {
            return Err(Error::unexpected("QEMUs at the destination", "one", format!("{copy:?}")));
        };
        let [ours, waiting, theirs] = [agents[0], copy, agents[1]].map(Counted::Process);
        let (mut stretches, mut sum, mut count) = (Vec::new(), 0.0, 0.0);
        while Instant::now() < end {
            let before = background(pair, &vm)?;
            let all = [&source, &ours, &waiting, &theirs];
            let [source, ours, waiting, theirs] = shares_of_a_processor(STRETCH, all)?;
            let together = source - alone + ours + waiting + theirs;
            let held = [anonymous_bytes(agents[0])?, anonymous_bytes(agents[1])?];
            stretches.push(json!({
                "qemu_beyond_alone_percent": percent(source - alone),
                "source_agent_percent": percent(ours),
                "waiting_qemu_percent": percent(waiting),
                "destination_agent_percent": percent(theirs),
                "together_percent": percent(together),
                "sent_bytes": background(pair, &vm)? - before,
                "agents_anonymous_bytes": held,
            }));
            (sum, count) = (sum + together, count + 1.0);
            write(percent(alone), &stretches)?;
            check_growth(&stretches)?;
        }
        // A machine that is busy with something else makes all of them dearer now and then.
        let mean = sum / count;
        expect_that(mean < MOST_SHARE, "the share of all", MOST_SHARE, mean)?;
        let switched = switch(pair, &vm)?;
        switched.check_done()?;
        vm.arrived(pair)?;
        vm.check_works()?;
        check_report(&switched)
    })
}

fn check_growth(stretches: &[Value]) -> Result<()> {
    let held = |stretch: Option<&Value>, agent: usize| {
        stretch.and_then(|it| it["agents_anonymous_bytes"][agent].as_u64()).unwrap_or(0)
    };
    for agent in [0, 1] {
        let (first, now) = (held(stretches.first(), agent), held(stretches.last(), agent));
        expect_that(now < first + GROWTH_BYTES, "an agent's memory", first + GROWTH_BYTES, now)?;
    }
    Ok(())
}

fn write(alone_percent: f64, stretches: &[Value]) -> Result<()> {
    let result = json!({
        "guest": "256 MiB, idle",
        "stretch_seconds": STRETCH.as_secs(),
        "minutes": stretches.len() as u64 * STRETCH.as_secs() / 60,
        "qemu_alone_percent": alone_percent,
        "stretches": stretches,
    });
    let path = repository().join("e2e/results/followed.json");
    fs::write(path, format!("{result:#}\n")).map_err(Error::io("writing what following took"))
}

fn agent(pair: &Pair, side: Side) -> Result<u32> {
    let pid = pair.host(side).agent_pid();
    pid.ok_or_else(|| Error::unexpected("the agent", "a pid", "none"))
}

fn background(pair: &Pair, vm: &Vm) -> Result<u64> {
    let status = pair.host(vm.at()).json(&["status", vm.name()])?;
    let sent = status.pointer("/copy/background_bytes").and_then(Value::as_u64);
    sent.ok_or_else(|| Error::unexpected("background_bytes", "a number", &status))
}

/// With two decimals.
fn percent(share: f64) -> f64 {
    (share * 10_000.0).round() / 100.0
}

/// Whose time is counted.
#[derive(Debug)]
enum Counted {
    /// A whole process.
    Process(u32),
    /// A QEMU without the threads that are its guest's processors.
    Qemu { pid: u32, processors: Vec<u64> },
    /// Those threads.
    Processors { pid: u32, processors: Vec<u64> },
}

impl Counted {
    /// Hundredths of a second, by which the kernel counts for everybody.
    fn ticks(&self) -> Result<f64> {
        match self {
            Self::Process(pid) => ticks_of(&format!("/proc/{pid}/stat")),
            Self::Qemu { pid, processors } => {
                Ok(ticks_of(&format!("/proc/{pid}/stat"))? - ticks_of_threads(*pid, processors)?)
            }
            Self::Processors { pid, processors } => ticks_of_threads(*pid, processors),
        }
    }
}

/// The threads that run a guest's processors.
fn processors(pair: &Pair, vm: &Vm) -> Result<Vec<u64>> {
    let told = vm.qmp(pair)?.command("query-cpus-fast")?;
    let threads = told.as_array().into_iter().flatten().map(|cpu| cpu["thread-id"].as_u64());
    let threads: Option<Vec<u64>> = threads.collect();
    let threads = threads.filter(|threads| !threads.is_empty());
    threads.ok_or_else(|| Error::unexpected("query-cpus-fast", "threads", told))
}

/// What each takes of a processor, over some time.
fn shares_of_a_processor<const N: usize>(over: Duration, of: [&Counted; N]) -> Result<[f64; N]> {
    let ticks = || of.iter().map(|counted| counted.ticks()).collect::<Result<Vec<f64>>>();
    let (before, begun) = (ticks()?, Instant::now());
    thread::sleep(over);
    let (after, elapsed) = (ticks()?, begun.elapsed().as_secs_f64());
    Ok(std::array::from_fn(|at| (after[at] - before[at]) / 100.0 / elapsed))
}

fn ticks_of_threads(pid: u32, threads: &[u64]) -> Result<f64> {
    let ticks = threads.iter().map(|thread| ticks_of(&format!("/proc/{pid}/task/{thread}/stat")));
    ticks.sum()
}

fn ticks_of(path: &str) -> Result<f64> {
    let stat = fs::read_to_string(path).map_err(Error::io(path.to_owned()))?;
    let after_name = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
    let ticks = after_name.split(' ').skip(11).take(2).map(str::parse::<f64>);
    let ticks: std::result::Result<Vec<f64>, _> = ticks.collect();
    ticks
        .map(|ticks| ticks.iter().sum())
        .map_err(|error| Error::unexpected(path.to_owned(), "user and system ticks", error))
}

fn anonymous_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).map_err(Error::io(path.clone()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| Error::unexpected(path, "RssAnon", status))
}
