//! Ctrl-C and SIGTERM: the first rolls back, the second leaves.

use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, Mutex};

use rustix::process::Signal;
use sterna_api::{Request, Response};
use sterna_migration::outcome::{GuestIs, OutcomeName};

use crate::fake_agent::{FakeAgent, Running};
use crate::samples::{done, progress, report, started};

/// An agent whose job goes on until it is cancelled; then it ends with the report.
fn cancellable(end: Response) -> FakeAgent {
    let (cancelled, end) = (Arc::new(Barrier::new(2)), end);
    FakeAgent::start(move |request, mut peer| {
        if let Request::Cancel { .. } = request {
            peer.say(&Response::Text("rolling j1 back".to_owned()));
            cancelled.wait();
        } else {
            peer.say(&started());
            peer.say(&progress("copying", 0, 1.0));
            cancelled.wait();
            peer.say(&end);
        }
    })
}

#[test]
fn an_interrupt_rolls_back() {
    for signal in [Signal::INT, Signal::TERM] {
        let agent = cancellable(report(OutcomeName::Cancelled, GuestIs::Source, None));
        let mut running = Running::start(&mut agent.sterna("migrate web beta -o json"));
        running.wait_for("copying");
        running.send(signal);
        let ran = running.end();
        assert_eq!(ran.code, Some(130), "{}", ran.stderr);
        assert_eq!(ran.json()["outcome"], "cancelled");
        assert!(ran.stderr.contains("interrupted: rolling back"), "{}", ran.stderr);
        assert!(matches!(agent.heard(), Request::Migrate(_)));
        assert_eq!(agent.heard(), Request::Cancel { job: "j1".parse().unwrap() });
    }
}

#[test]
fn an_interrupt_can_be_too_late() {
    let agent = cancellable(done());
    let mut running = Running::start(&mut agent.sterna("migrate web beta"));
    running.wait_for("copying");
    running.send(Signal::INT);
    let ran = running.end();
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("too late to roll back"), "{}", ran.stderr);
}

#[test]
fn a_second_interrupt_leaves_the_job_to_the_agent() {
    let agent = FakeAgent::start(|request, mut peer| match request {
        Request::Cancel { .. } => peer.say(&Response::Text("rolling j1 back".to_owned())),
        _ => {
            peer.say(&started());
            peer.say(&progress("copying", 0, 1.0));
            peer.wait_for_end();
        }
    });
    let mut running = Running::start(&mut agent.sterna("migrate web beta -o json"));
    running.wait_for("copying");
    running.send(Signal::INT);
    running.wait_for("rolling j1 back");
    running.send(Signal::INT);
    let ran = running.end();
    assert_eq!(ran.code, Some(4), "{}", ran.stderr);
    assert_eq!(ran.json()["outcome"], "unknown");
    assert!(ran.stderr.contains("The job j1 goes on in the agent"), "{}", ran.stderr);
}

#[test]
fn an_interrupt_before_the_job_has_a_name_is_not_forgotten() {
    let (go, wait) = channel::<()>();
    let wait = Arc::new(Mutex::new(wait));
    let agent = FakeAgent::start(move |request, mut peer| match request {
        Request::Cancel { .. } => peer.say(&Response::Text("rolling j1 back".to_owned())),
        _ => {
            wait.lock().unwrap().recv().unwrap();
            peer.say(&started());
            peer.wait_for_end();
        }
    });
    let mut running = Running::start(&mut agent.sterna("migrate web beta"));
    assert!(matches!(agent.heard(), Request::Migrate(_)));
    running.send(Signal::INT);
    running.wait_for("interrupted: rolling back");
    go.send(()).unwrap();
    running.wait_for("rolling j1 back");
    assert_eq!(agent.heard(), Request::Cancel { job: "j1".parse().unwrap() });
    running.send(Signal::TERM);
    assert_eq!(running.end().code, Some(4));
}
