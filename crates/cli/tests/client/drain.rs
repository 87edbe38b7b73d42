//! `sterna migrate --all`: which VMs are moved, how many at a time, what ends it, and what is printed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use sterna_api::{ApiError, Report, Request, Response, VmState, VmView};
use sterna_migration::outcome::{GuestIs, OutcomeName};

use crate::fake_agent::{FakeAgent, Peer, Running};
use crate::samples::{progress, refusal, report, started};

/// How long a fake move takes.
const MOVE: Duration = Duration::from_millis(150);

fn vm(name: &str, state: VmState) -> VmView {
    VmView {
        name: name.parse().unwrap(),
        uuid: "0a1b2c3d-0000-4111-8222-ffffffffffff".to_owned(),
        state,
        pid: Some(7),
        qmp: None,
        serial: None,
        argv: vec!["qemu".to_owned()],
        moved_to: None,
        unknown_because: None,
        resolve: None,
    }
}

fn running(names: &[&str]) -> Vec<VmView> {
    names.iter().map(|name| vm(name, VmState::Running)).collect()
}

fn ended(name: &str, outcome: OutcomeName) -> Response {
    let guest_is = match outcome {
        OutcomeName::Done => GuestIs::Destination,
        OutcomeName::Unknown => GuestIs::Paused,
        _ => GuestIs::Source,
    };
    let Response::Report(sample) = report(outcome, guest_is, None) else { panic!("no report") };
    Response::Report(Box::new(Report { vm: name.parse().unwrap(), ..*sample }))
}

/// An agent with these VMs; a move ends after a while as `end` says.
fn agent(
    vms: Vec<VmView>,
    end: impl Fn(&str) -> Response + Clone + Send + 'static,
) -> (FakeAgent, Arc<AtomicUsize>) {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let agent = FakeAgent::start(move |request: &Request, mut peer: Peer| match request {
        Request::VmList => peer.say(&Response::Vms(vms.clone())),
        Request::Migrate(request) => {
            let under_way = now.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(under_way, Ordering::SeqCst);
            peer.say(&started());
            peer.say(&progress("copying", 0, 1.0));
            thread::sleep(MOVE);
            now.fetch_sub(1, Ordering::SeqCst);
            peer.say(&end(request.name.as_str()));
        }
        other => panic!("{other:?}"),
    });
    (agent, seen)
}

#[test]
fn all_that_run_or_are_paused_are_moved_a_few_at_a_time() {
    let mut vms = running(&["a", "b", "c", "d"]);
    vms.push(vm("paused", VmState::Paused));
    vms.push(vm("gone", VmState::Migrated));
    vms.push(vm("off", VmState::Stopped));
    for (words, parallel) in [("", 2), (" --parallel 3", 3)] {
        let (agent, most) = agent(vms.clone(), |name| ended(name, OutcomeName::Done));
        let ran = agent.run(&format!("migrate --all beta -o json{words}"));
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        let printed = ran.json();
        let reports = printed["reports"].as_array().unwrap();
        let mut names: Vec<_> = reports.iter().map(|it| it["vm"].as_str().unwrap()).collect();
        names.sort_unstable();
        assert_eq!(names, ["a", "b", "c", "d", "paused"]);
        assert_eq!(
            (&printed["destination"], &printed["not_begun"]),
            (&"beta".into(), &serde_json::json!([]))
        );
        assert_eq!(most.load(Ordering::SeqCst), parallel);
        assert!(ran.stderr.contains(" paused: copying, round 1: "), "{}", ran.stderr);
    }
}

#[test]
fn it_goes_on_after_failures_and_refusals() {
    let end = |name: &str| match name {
        "a" => ended(name, OutcomeName::Failed),
        "b" => Response::Error(ApiError::refused(vec![refusal()])),
        _ => ended(name, OutcomeName::Done),
    };
    let (agent, _) = agent(running(&["a", "b", "c"]), end);
    let ran = agent.run("migrate --all beta");
    assert_eq!(ran.code, Some(1));
    assert!(ran.stdout.ends_with("1 of 3 VMs moved to beta\n"), "{}", ran.stdout);
    assert!(ran.stdout.contains("c moved from alpha to beta\n"), "{}", ran.stdout);
    assert!(ran.stderr.contains("sterna: a was not moved"), "{}", ran.stderr);
    assert!(ran.stderr.contains("sterna: b: refused, for 1 reason"), "{}", ran.stderr);
}

#[test]
fn nothing_more_is_begun_after_an_unknown_outcome() {
    let end = |name: &str| match name {
        "a" => ended(name, OutcomeName::Unknown),
        _ => ended(name, OutcomeName::Done),
    };
    let (agent, _) = agent(running(&["a", "b", "c"]), end);
    let ran = agent.run("migrate --all beta --parallel 1 -o json");
    assert_eq!(ran.code, Some(4));
    let printed = ran.json();
    assert_eq!(printed["reports"].as_array().map(Vec::len), Some(1));
    let left: Vec<_> =
        printed["not_begun"].as_array().unwrap().iter().map(|it| &it["vm"]).collect();
    assert_eq!(left, ["b", "c"]);
    assert!(ran.stderr.contains("b was not moved: the outcome of a move before is not known"));
}

#[test]
fn a_host_with_room_for_fewer_jobs_gets_fewer_at_a_time() {
    let under_way = Arc::new(Mutex::new(BTreeMap::new()));
    let agent = FakeAgent::start(move |request: &Request, mut peer: Peer| match request {
        Request::VmList => peer.say(&Response::Vms(running(&["a", "b", "c"]))),
        Request::Migrate(request) => {
            let is_full = {
                let mut jobs = under_way.lock().unwrap();
                let is_full = !jobs.is_empty();
                if !is_full {
                    jobs.insert(request.name.clone(), ());
                }
                is_full
            };
            if is_full {
                let many = sterna_model::Refusal::new("too-many-jobs", "found 1", "wait");
                return peer.say(&Response::Error(ApiError::refused(vec![many])));
            }
            peer.say(&started());
            thread::sleep(MOVE);
            under_way.lock().unwrap().remove(&request.name);
            peer.say(&ended(request.name.as_str(), OutcomeName::Done));
        }
        other => panic!("{other:?}"),
    });
    let ran = agent.run("migrate --all beta -o jsonl");
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let lines = ran.json_lines();
    assert_eq!(lines.iter().filter(|line| line["type"] == "report").count(), 3);
    assert_eq!(lines.last().unwrap()["type"], "drained");
}

#[test]
fn an_interrupt_begins_no_more_and_rolls_back() {
    let agent = FakeAgent::start(|request: &Request, mut peer: Peer| match request {
        Request::VmList => peer.say(&Response::Vms(running(&["a", "b"]))),
        Request::Migrate(request) => {
            peer.say(&started());
            peer.say(&progress("copying", 0, 1.0));
            thread::sleep(10 * MOVE);
            peer.say(&ended(request.name.as_str(), OutcomeName::Cancelled));
        }
        Request::Cancel { .. } => peer.say(&Response::Text("rolling j1 back".to_owned())),
        other => panic!("{other:?}"),
    });
    let mut command = Running::start(&mut agent.sterna("migrate --all beta --parallel 1 -o json"));
    command.wait_for("a: copying");
    command.send(Signal::INT);
    let ran = command.end();
    assert_eq!(ran.code, Some(130), "{}", ran.stderr);
    let printed = ran.json();
    assert_eq!(printed["reports"][0]["outcome"], "cancelled");
    assert_eq!(printed["not_begun"][0]["vm"], "b");
    assert!(ran.stderr.contains("rolling j1 back"), "{}", ran.stderr);
}
