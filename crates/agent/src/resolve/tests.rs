//! Decisions, played: what is known, what is refused, what is left on the disk.

use sterna_api::{Decision, VmState};
use sterna_migration::journal::DestinationRecord::{Entitled, Faulting, Running};
use sterna_migration::journal::SourceRecord::{Offered, Serving, Stopping};
use sterna_model::{BlockName, Epoch, Layout};
use sterna_wire::AnswerState;
use sterna_wire::message::Inquire;

use super::rules::{Known, QemuIs, objection};
use super::*;
use crate::jobs::Role;
use crate::journal::{Entry, MemoryRecord, Side};
use crate::recovery::journaled_state;
use crate::registry::{Owner, Record};
use crate::testing::{
    Host, Hosts, Monitor, Sleeper, UUID, destination_of, listen, source_of, state_of_job, vm,
};

const NOWHERE: &str = "address = \"127.0.0.1:1\"\n";

fn job_1() -> JobId {
    "job-1".parse().unwrap()
}

async fn decide(agent: &Arc<Agent>, decision: Decision) -> Result<ResolveView, ApiError> {
    resolve(agent, &job_1(), Some(decision)).await
}

async fn refusal(agent: &Arc<Agent>, decision: Decision) -> String {
    let error = decide(agent, decision).await.unwrap_err();
    assert_eq!(error.exit_code, 3, "{}", error.message);
    error.refusals[0].code.to_string()
}

fn answer_to(agent: &Agent, peer: &str) -> AnswerState {
    let inquire = Inquire { job: job_1(), uuid: UUID, epoch: Epoch(5) };
    journaled_state(agent, &peer.parse().unwrap(), &inquire)
}

/// A VM `web` that the job moves away, in this process.
fn leaving(host: &Host, process: &Sleeper) -> Record {
    let mut record = host.record("web");
    record.process = Some(process.id());
    record.leaving = Some(job_1());
    host.store(&record);
    record
}

/// A VM `web` that the job brings, in this process.
fn arriving(host: &Host, process: &Sleeper) -> Record {
    let mut record = host.record("web");
    record.epoch = Epoch(5);
    record.process = Some(process.id());
    record.owner = Owner::Incoming { job: job_1() };
    host.store(&record);
    record
}

/// What the next agent will read: one that knows a live QEMU cannot be restarted within a test.
fn stored(host: &Host) -> Record {
    serde_json::from_slice(&std::fs::read(host.record_path("web")).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_journal_is_lost_is_resumed_by_decision() {
    let (hosts, qemu) = (Hosts::new(), Sleeper::start());
    let host = hosts.host("alpha", &format!("[peers.beta]\n{NOWHERE}"));
    let record = leaving(&host, &qemu);
    let monitor = Monitor::listen(&record.agent_qmp, "paused");
    let agent = host.start().await;
    let shown = resolve(&agent, &job_1(), None).await.unwrap();
    assert_eq!((shown.role.as_str(), shown.peer.as_deref()), ("source", Some("beta")));
    assert_eq!(shown.qemu.unwrap().run_state.as_deref(), Some("paused"));
    assert!(shown.journal.error.unwrap().contains("job-1.journal"));
    assert_eq!(shown.peers[0].state, None, "beta is not there");
    let refused: Vec<bool> = shown.choices.iter().map(|choice| choice.refused.is_some()).collect();
    assert_eq!(refused, [false; 3]);
    assert!(!monitor.was_told("cont"), "nothing is changed without a decision");

    decide(&agent, Decision::Source).await.unwrap();
    assert!(monitor.was_told("cont"));
    let record = vm(&agent, "web").record();
    assert_eq!((record.owner, record.leaving, record.epoch), (Owner::Here, None, Epoch(6)));
    assert_eq!(state_of_job(&agent), "failed");
    assert_eq!(refusal(&agent, Decision::Lost).await, "job-not-unknown");
    assert!(vm(&agent, "web").live().is_some() && qemu.runs());
    assert_eq!(stored(&host).owner, Owner::Here);
    assert!(host.story().is_settled());
    assert!(host.story().told.last().unwrap().at.is_some(), "each entry has its time");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_other_host_says_counts_more() {
    let (hosts, qemu) = (Hosts::new(), Sleeper::start());
    let beta = hosts.host("beta", &format!("[peers.alpha]\n{NOWHERE}"));
    beta.write_journal(&[destination_of("alpha"), Entry::Destination(Running)]);
    let beta = beta.start().await;
    let peers = format!("[peers.beta]\naddress = {:?}\n", listen(&beta).await);
    let alpha = hosts.host("alpha", &peers);
    let record = leaving(&alpha, &qemu);
    let monitor = Monitor::listen(&record.agent_qmp, "postmigrate");
    let agent = alpha.start().await;
    let shown = resolve(&agent, &job_1(), None).await.unwrap();
    assert_eq!(shown.peers[0].state.as_deref(), Some("running"));
    assert_eq!(refusal(&agent, Decision::Source).await, "peer-has-guest");
    assert_eq!(refusal(&agent, Decision::Lost).await, "peer-has-guest");
    assert!(qemu.runs() && !monitor.was_told("cont"));

    decide(&agent, Decision::Destination).await.unwrap();
    assert!(!qemu.runs());
    let record = vm(&agent, "web").record();
    let moved = Owner::MovedTo { host: "beta".parse().unwrap(), job: job_1() };
    assert_eq!((record.owner, record.process, record.epoch), (moved, None, Epoch(5)));
    assert_eq!(state_of_job(&agent), "done");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_runs_here_is_not_ended() {
    let (hosts, qemu) = (Hosts::new(), Sleeper::start());
    let host = hosts.host("alpha", &format!("[peers.beta]\n{NOWHERE}"));
    let record = leaving(&host, &qemu);
    let _monitor = Monitor::listen(&record.agent_qmp, "running");
    let agent = host.start().await;
    for decision in [Decision::Destination, Decision::Lost] {
        assert_eq!(refusal(&agent, decision).await, "guest-runs-here");
    }
    decide(&agent, Decision::Source).await.unwrap();
    assert!(qemu.runs());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_committed_guest_whose_qemu_is_gone_is_lost_by_decision() {
    let (hosts, mut qemu) = (Hosts::new(), Sleeper::start());
    let host = hosts.host("beta", &format!("[peers.alpha]\n{NOWHERE}"));
    arriving(&host, &qemu);
    qemu.end();
    host.write_journal(&[destination_of("alpha"), Entry::Destination(Entitled)]);
    let agent = host.start().await;
    assert_eq!(refusal(&agent, Decision::Destination).await, "no-qemu-here");
    decide(&agent, Decision::Lost).await.unwrap();
    assert_eq!(vm(&agent, "web").record().owner, Owner::Lost);
    assert_eq!(answer_to(&agent, "alpha"), AnswerState::Unknown, "no copy there is the right one");
    drop(agent);
    let agent = host.start().await;
    assert_eq!(vm(&agent, "web").record().owner, Owner::Lost);
    assert_eq!(state_of_job(&agent), "lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_gives_a_guest_back_says_so_to_the_source() {
    let (hosts, qemu) = (Hosts::new(), Sleeper::start());
    let host = hosts.host("beta", &format!("[peers.alpha]\n{NOWHERE}"));
    let mut record = arriving(&host, &qemu);
    let mut before = host.record("web");
    before.owner = Owner::Ended;
    record.previous = Some(Box::new(before));
    host.store(&record);
    // Nobody answers at its monitor: whether the guest runs in it is not to be told.
    host.write_journal(&[destination_of("alpha"), Entry::Destination(Entitled)]);
    let agent = host.start().await;
    assert_eq!(refusal(&agent, Decision::Destination).await, "qemu-silent");
    decide(&agent, Decision::Source).await.unwrap();
    assert!(!qemu.runs());
    assert_eq!(answer_to(&agent, "alpha"), AnswerState::Discarded);
    assert_eq!(vm(&agent, "web").record().owner, Owner::Ended);
    assert_eq!(state_of_job(&agent), "discarded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_hears_what_its_source_still_has() {
    let (hosts, mut qemu) = (Hosts::new(), Sleeper::start());
    let alpha = hosts.host("alpha", &format!("[peers.beta]\n{NOWHERE}"));
    alpha.write_journal(&[source_of(), Entry::Source(Stopping), Entry::Source(Offered)]);
    let alpha = alpha.start().await;
    let peers = format!("[peers.alpha]\naddress = {:?}\n", listen(&alpha).await);
    let beta = hosts.host("beta", &peers);
    arriving(&beta, &qemu);
    qemu.end();
    beta.write_journal(&[destination_of("alpha"), Entry::Destination(Entitled)]);
    let agent = beta.start().await;
    let shown = resolve(&agent, &job_1(), None).await.unwrap();
    assert_eq!(shown.peers[0].state.as_deref(), Some("offered"));
    assert_eq!(refusal(&agent, Decision::Lost).await, "peer-has-guest", "its copy is whole");
    decide(&agent, Decision::Source).await.unwrap();
    assert_eq!(answer_to(&agent, "alpha"), AnswerState::Discarded, "so it is resumed there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_journal_is_kept_and_a_new_one_answers() {
    let (hosts, qemu) = (Hosts::new(), Sleeper::start());
    let host = hosts.host("beta", &format!("[peers.alpha]\n{NOWHERE}"));
    let record = arriving(&host, &qemu);
    let monitor = Monitor::listen(&record.agent_qmp, "paused");
    let path = host.write_journal(&[destination_of("alpha"), Entry::Destination(Entitled)]);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[30] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let agent = host.start().await;
    decide(&agent, Decision::Destination).await.unwrap();
    assert!(monitor.was_told("cont"));
    assert_eq!(answer_to(&agent, "alpha"), AnswerState::Running);
    let record = vm(&agent, "web").record();
    assert_eq!((record.owner, record.epoch), (Owner::Here, Epoch(6)));
    assert_eq!(std::fs::read(path.with_extension("journal.damaged")).unwrap(), bytes);
    assert_eq!(state_of_job(&agent), "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_waits_for_its_guest_is_not_resumed() {
    let (hosts, qemu) = (Hosts::new(), Sleeper::start());
    let host = hosts.host("beta", &format!("[peers.alpha]\n{NOWHERE}"));
    let record = arriving(&host, &qemu);
    let _monitor = Monitor::listen(&record.agent_qmp, "inmigrate");
    let agent = host.start().await;
    assert_eq!(refusal(&agent, Decision::Destination).await, "guest-not-whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_record_is_damaged_is_found_by_its_name() {
    let hosts = Hosts::new();
    let host = hosts.host("alpha", "");
    let record = host.record("web");
    // The process behind the monitor is this test.
    let monitor = Monitor::listen(&record.agent_qmp, "running");
    host.store(&record);
    std::fs::write(host.record_path("web"), b"{\"name\"").unwrap();
    host.store(&host.record("mail"));
    let agent = host.start().await;
    let view = vm(&agent, "web").view().await;
    assert!(view.unknown_because.unwrap().contains("web.json is damaged"));
    assert_eq!(view.resolve.as_deref(), Some("web"));
    let web: JobId = "web".parse().unwrap();
    let shown = resolve(&agent, &web, None).await.unwrap();
    assert_eq!((shown.job, shown.qemu.unwrap().pid), (None, std::process::id()));

    resolve(&agent, &web, Some(Decision::Source)).await.unwrap();
    let of_web = vm(&agent, "web");
    let record = of_web.record();
    assert_eq!((record.owner, record.uuid), (Owner::Here, UUID));
    assert!(of_web.live().is_some() && !monitor.was_told("cont"));
    assert!(host.record_path("web").with_extension("json.damaged").exists());
    assert_eq!((stored(&host), of_web.view().await.state), (of_web.record(), VmState::Running));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_that_nobody_will_ever_answer_is_settled() {
    let (hosts, qemu) = (Hosts::new(), Sleeper::start());
    let host = hosts.host("alpha", &format!("[peers.beta]\n{NOWHERE}"));
    let record = leaving(&host, &qemu);
    let monitor = Monitor::listen(&record.agent_qmp, "paused");
    host.write_journal(&[source_of(), Entry::Source(Stopping), Entry::Source(Offered)]);
    let agent = host.start().await;
    let mut job = agent.jobs.get(&job_1()).unwrap().watch();
    let offered = job.wait_for(|status| status.phase == "offered");
    tokio::time::timeout(Duration::from_secs(10), offered).await.unwrap().unwrap();
    assert!(!monitor.was_told("cont"), "it waits");
    decide(&agent, Decision::Source).await.unwrap();
    assert!(monitor.was_told("cont"));
    let web = vm(&agent, "web");
    assert_eq!((web.record().owner, web.job()), (Owner::Here, None));
    assert_eq!(state_of_job(&agent), "failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_that_was_cut_off_is_made_again() {
    let (hosts, qemu) = (Hosts::new(), Sleeper::start());
    let host = hosts.host("alpha", &format!("[peers.beta]\n{NOWHERE}"));
    let record = leaving(&host, &qemu);
    let monitor = Monitor::listen(&record.agent_qmp, "paused");
    host.write_journal(&[source_of(), Entry::Resolved(Decision::Destination)]);
    let agent = host.start().await;
    assert!(!monitor.was_told("cont"), "what the journal begins with says nothing by itself");
    assert!(matches!(vm(&agent, "web").record().owner, Owner::Unknown { .. }));
    assert_eq!(state_of_job(&agent), "unknown");
    decide(&agent, Decision::Destination).await.unwrap();
    assert!(!qemu.runs());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_wrong_usage() {
    let hosts = Hosts::new();
    let host = hosts.host("alpha", "");
    host.store(&host.record("mail"));
    let agent = host.start().await;
    for name in ["job-1", "mail"] {
        let error = resolve(&agent, &name.parse().unwrap(), None).await.unwrap_err();
        assert_eq!(error.exit_code, 2, "{}", error.message);
    }
}

/// Two hosts of which the destination's guest waits for pages, and the source's job has ended unknown.
async fn bereft_of_its_source(
    hosts: &Hosts,
    qemu: &Sleeper,
    memory: Option<MemoryRecord>,
) -> (Host, Arc<Agent>, Monitor) {
    let beta = hosts.host("beta", &format!("[peers.alpha]\n{NOWHERE}"));
    beta.write_journal(&[
        destination_of("alpha"),
        Entry::Destination(Entitled),
        Entry::Destination(Faulting),
    ]);
    let beta = beta.start().await;
    let peers = format!("[peers.beta]\naddress = {:?}\n", listen(&beta).await);
    let alpha = hosts.host("alpha", &peers);
    let mut record = leaving(&alpha, qemu);
    record.lose_track(&job_1(), "the destination did not know");
    alpha.store(&record);
    let monitor = Monitor::listen(&record.agent_qmp, "postmigrate");
    let begun = [source_of(), Entry::Source(Stopping)].into_iter();
    let ended = [Entry::Source(Offered), Entry::Ended("the destination did not know".into())];
    let entries: Vec<Entry> = begun.chain(memory.map(Entry::Memory)).chain(ended).collect();
    alpha.write_journal(&entries);
    let agent = alpha.start().await;
    assert_eq!(state_of_job(&agent), "unknown");
    (alpha, agent, monitor)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_whose_job_is_over_serves_again_by_decision() {
    let (hosts, qemu) = (Hosts::new(), Sleeper::start());
    let ram = BlockName::new(b"pc.ram").unwrap();
    let memory = MemoryRecord {
        layout: Layout::new(&[(ram.clone(), 1 << 20)]).unwrap(),
        shared_blocks: vec![ram],
        ram_section: None,
        stream_inode: None,
        keep_ms: None,
    };
    let (alpha, agent, monitor) = bereft_of_its_source(&hosts, &qemu, Some(memory)).await;
    let shown = resolve(&agent, &job_1(), None).await.unwrap();
    assert_eq!(shown.peers[0].state.as_deref(), Some("faulting"));
    let there = shown.choices.iter().find(|choice| choice.guest_is == Decision::Destination);
    assert!(there.unwrap().consequence.contains("the job goes on"), "{there:?}");
    for decision in [Decision::Source, Decision::Lost] {
        assert_eq!(refusal(&agent, decision).await, "peer-has-guest");
    }

    decide(&agent, Decision::Destination).await.unwrap();
    let mut job = agent.jobs.get(&job_1()).unwrap().watch();
    let serving = job.wait_for(|status| status.phase == "serving");
    tokio::time::timeout(Duration::from_secs(10), serving).await.unwrap().unwrap();
    assert!(qemu.runs() && !monitor.was_told("cont") && !monitor.was_told("quit"));
    assert_eq!(vm(&agent, "web").record().job_under_way(), Some(&job_1()));
    // The phase is shown just before its record is durable.
    let until = tokio::time::Instant::now() + Duration::from_secs(10);
    while alpha.story().ended.is_some() && tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let story = alpha.story();
    assert!(!story.is_settled() && story.ended.is_none());
    assert_eq!(story.side, Side::Source(Serving), "and a restart goes on with it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_ran_at_a_host_that_never_comes_back_is_lost_by_decision() {
    let (hosts, qemu) = (Hosts::new(), Sleeper::start());
    let host = hosts.host("alpha", &format!("[peers.beta]\n{NOWHERE}"));
    let record = leaving(&host, &qemu);
    let monitor = Monitor::listen(&record.agent_qmp, "postmigrate");
    let states = [Stopping, Offered, Serving].map(Entry::Source);
    host.write_journal(&[&[source_of()], &states[..]].concat());
    let agent = host.start().await;
    let mut job = agent.jobs.get(&job_1()).unwrap().watch();
    let serving = job.wait_for(|status| status.phase == "serving");
    tokio::time::timeout(Duration::from_secs(10), serving).await.unwrap().unwrap();
    assert_eq!(refusal(&agent, Decision::Source).await, "guest-ran-there");
    assert_eq!(refusal(&agent, Decision::Destination).await, "pages-needed");
    assert!(qemu.runs() && !monitor.was_told("cont"));
    decide(&agent, Decision::Lost).await.unwrap();
    assert!(!qemu.runs());
    assert_eq!(vm(&agent, "web").record().owner, Owner::Lost);
    assert_eq!(state_of_job(&agent), "lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_a_guest_waits_for_are_not_ended_with_their_qemu() {
    let (hosts, qemu) = (Hosts::new(), Sleeper::start());
    let (_alpha, agent, _monitor) = bereft_of_its_source(&hosts, &qemu, None).await;
    assert_eq!(refusal(&agent, Decision::Destination).await, "pages-needed");
    assert!(qemu.runs());
}

#[test]
fn no_decision_makes_a_second_copy_or_ends_the_only_one() {
    let states = [
        AnswerState::Running,
        AnswerState::Faulting,
        AnswerState::Entitled,
        AnswerState::Copying,
        AnswerState::Stopping,
        AnswerState::Returned,
    ];
    for role in [Role::Source, Role::Destination] {
        let here = match role {
            Role::Source => Decision::Source,
            Role::Destination => Decision::Destination,
        };
        for qemu in [QemuIs::Running, QemuIs::Standing, QemuIs::Absent, QemuIs::Waiting] {
            for state in states {
                let known = Known {
                    role,
                    answer: Some(state),
                    peer_is_known: true,
                    qemu,
                    can_serve: true,
                    served: false,
                };
                assert!(objection(&known, here).is_some(), "{known:?}");
                assert!(objection(&known, Decision::Lost).is_some(), "{known:?}");
            }
        }
        for answer in [None, Some(AnswerState::Unknown), Some(AnswerState::Discarded)] {
            let known = Known {
                role,
                answer,
                peer_is_known: true,
                qemu: QemuIs::Running,
                can_serve: false,
                served: false,
            };
            let allowed = Decision::ALL.map(|decision| objection(&known, decision).is_none());
            let only_here = Decision::ALL.map(|decision| decision == here);
            assert_eq!(allowed, only_here, "{known:?}");
        }
    }
    let paused = Known {
        role: Role::Destination,
        answer: Some(AnswerState::Offered),
        peer_is_known: true,
        qemu: QemuIs::Standing,
        can_serve: false,
        served: false,
    };
    let allowed = Decision::ALL.map(|decision| objection(&paused, decision).is_none());
    assert_eq!(allowed, [true, true, false], "the source's copy is whole: nothing is lost");
}
