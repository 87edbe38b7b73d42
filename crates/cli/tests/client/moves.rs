//! `sterna migrate`, `plan` and `watch`: outputs and exit codes.

use std::fs::File;
use std::process::Stdio;

use serde_json::json;
use sterna_api::{ApiError, Plan, Request, Response};
use sterna_migration::outcome::{GuestIs, OutcomeName};

use crate::fake_agent::{FakeAgent, Ran};
use crate::samples::{done, progress, refusal, report, started};

#[test]
fn a_move_ends_with_a_summary() {
    let agent = FakeAgent::saying(vec![started(), progress("copying", 100, 45.0), done()]);
    let ran = agent.run("migrate web beta");
    assert_eq!(ran.code, Some(0));
    assert!(ran.stdout.starts_with("web moved from alpha to beta\n"), "{}", ran.stdout);
    assert!(ran.stdout.contains("\n  downtime  45.2 ms\n"), "{}", ran.stdout);
    let (time, line) = ran.stderr.trim_end().split_once(' ').unwrap();
    assert!(time.len() == 20 && time.ends_with('Z'), "{time}");
    assert!(line.starts_with("copying, round 1: 45.0 %, "), "{line}");
    assert!(matches!(agent.heard(), Request::Migrate(request) if request.name.as_str() == "web"));
}

#[test]
fn a_switch_ends_with_one_report() {
    let ran = FakeAgent::saying(vec![started(), done()]).run("switch web beta -o json");
    assert_eq!(ran.code, Some(0));
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["outcome"], "done");
    let refusals = vec![refusal()];
    let agent = FakeAgent::saying(vec![Response::Error(ApiError::refused(refusals))]);
    let ran = agent.run("switch web beta -o json");
    assert_eq!(ran.code, Some(3));
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&report["vm"], &report["outcome"]), (&json!("web"), &json!("refused")));
    assert_eq!(report["guest_is"], "source");
    assert!(matches!(agent.heard(), Request::Switch { name, .. } if name.as_str() == "web"));
}

#[test]
fn exit_codes_tell_the_outcome() {
    for (outcome, guest_is, code, message) in [
        (OutcomeName::Done, GuestIs::Destination, 0, ""),
        (OutcomeName::Failed, GuestIs::Source, 1, "web is on alpha, as it was before"),
        (OutcomeName::Lost, GuestIs::Lost, 1, "web runs nowhere"),
        (OutcomeName::Refused, GuestIs::Source, 3, "web was not moved"),
        (OutcomeName::Unknown, GuestIs::Paused, 4, "web stands still on alpha"),
        (OutcomeName::Cancelled, GuestIs::Source, 130, "rolled back"),
    ] {
        let agent = FakeAgent::saying(vec![started(), report(outcome, guest_is, None)]);
        for line in ["migrate web beta", "watch j1", "migrate web beta -o json"] {
            let ran = agent.run(line);
            assert_eq!(ran.code, Some(code), "{line}: {outcome:?}");
            assert!(ran.stderr.contains(message), "{line}: {}", ran.stderr);
        }
    }
}

#[test]
fn json_is_exactly_one_report() {
    let failed = report(OutcomeName::Failed, GuestIs::Source, Some("the link was cut"));
    let agent = FakeAgent::saying(vec![started(), progress("copying", 0, 1.0), failed]);
    let ran = agent.run("migrate web beta -o json");
    let report = ran.json();
    assert_eq!(report["outcome"], "failed");
    assert_eq!(report["error"], "the link was cut");
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("copying"), "{}", ran.stderr);
}

#[test]
fn a_refusal_before_the_job_is_a_report_too() {
    let agent = FakeAgent::saying(vec![Response::Error(ApiError::refused(vec![refusal()]))]);
    let ran = agent.run("migrate web beta -o json");
    let expected = json!({
        "job": null, "vm": "web", "strategy": "auto", "source": null, "destination": "beta",
        "started_at": null, "outcome": "refused", "guest_is": "source",
        "error": "refused: no-such-peer: beta is not configured (add [peers.beta])",
        "refusals": [refusal()],
    });
    assert_eq!(ran.json(), expected);
    assert_eq!(ran.code, Some(3));
    assert!(ran.stderr.contains("remedy: add [peers.beta]"), "{}", ran.stderr);
}

#[test]
fn without_an_agent_nothing_is_touched() {
    let agent = FakeAgent::saying(Vec::new());
    for line in ["migrate web beta", "vm list", "jobs"] {
        let arguments = format!("{line} -o json --agent /nowhere/sterna.sock");
        let ran = agent.run(&arguments);
        assert_eq!(ran.code, Some(1), "{line}");
        assert!(ran.stderr.contains("cannot reach the agent at /nowhere/sterna.sock"), "{line}");
    }
    let report = agent.run("migrate web beta -o json --agent /nowhere/sterna.sock").json();
    assert_eq!((&report["outcome"], &report["guest_is"]), (&json!("failed"), &json!("source")));
}

#[test]
fn a_broken_connection_is_an_unknown_outcome() {
    let agent = FakeAgent::saying(vec![started(), progress("copying", 0, 1.0)]);
    for line in ["migrate web beta -o json", "watch j1 -o json"] {
        let ran = agent.run(line);
        assert_eq!(ran.code, Some(4), "{line}");
        assert!(ran.stderr.contains("`sterna watch j1` follows it"), "{line}: {}", ran.stderr);
        let report = ran.json();
        assert_eq!((&report["job"], &report["outcome"]), (&json!("j1"), &json!("unknown")));
        assert_eq!(report["guest_is"], json!(null));
    }
}

#[test]
fn jsonl_is_one_event_per_line() {
    let agent = FakeAgent::saying(vec![started(), progress("copying", 0, 1.0), done()]);
    let ran = agent.run("migrate web beta -o jsonl");
    let events = ran.json_lines();
    let types: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(types, ["started", "progress", "report"]);
    assert_eq!(events[1]["phase"], "copying");
    assert_eq!(events[2]["outcome"], "done");
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));

    let ran = agent.run("migrate web beta -o jsonl --agent /nowhere/sterna.sock");
    assert_eq!(ran.json_lines()[0]["type"], "report");
}

#[test]
fn progress_is_at_most_a_line_a_second() {
    let mut responses = vec![started()];
    responses.extend((0_u32..100).map(|at| progress("copying", u64::from(at) * 20, f64::from(at))));
    responses.extend([progress("stopping", 1_990, 99.0), done()]);
    let ran = FakeAgent::saying(responses).run("migrate web beta");
    assert_eq!(ran.stderr.lines().count(), 3, "{}", ran.stderr);
}

#[test]
fn a_detached_job_is_named() {
    let agent = FakeAgent::start(|_, mut peer| {
        peer.say(&started());
        peer.wait_for_end();
    });
    assert_eq!(agent.run("migrate web beta --detach").stdout, "j1\n");
    assert_eq!(agent.run("migrate web beta --detach -o json").json(), json!({"job": "j1"}));
    let lines = agent.run("migrate web beta --detach -o jsonl").json_lines();
    assert_eq!(lines, [json!({"type": "started", "job": "j1"})]);
}

#[test]
fn plans_that_refuse_exit_with_3() {
    let plan = |refusals| Plan { strategies: Vec::new(), recommended: None, refusals };
    let agent = FakeAgent::saying(vec![Response::Plan(plan(vec![refusal()]))]);
    for line in ["plan web beta -o json", "migrate web beta --dry-run -o json"] {
        let ran = agent.run(line);
        assert_eq!(ran.code, Some(3), "{line}");
        assert_eq!(ran.json()["refusals"][0]["code"], "no-such-peer");
    }
    let agent = FakeAgent::saying(vec![Response::Plan(plan(Vec::new()))]);
    assert_eq!(agent.run("plan web beta").code, Some(0));
}

#[test]
fn nobody_reading_is_no_failure_and_a_full_disk_is_one() {
    let agent = FakeAgent::saying(vec![started(), done()]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = agent.sterna("migrate web beta -o jsonl").stdout(writer).output().unwrap();
    let ran = Ran::of(output);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));

    let full = File::options().write(true).open("/dev/full").unwrap();
    let output =
        agent.sterna("migrate web beta -o json").stdout(Stdio::from(full)).output().unwrap();
    let ran = Ran::of(output);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("could not be printed"), "{}", ran.stderr);
}
