//! Restarts, played: what a crash left on the disk, and what a restarted agent makes of it.

use std::time::Duration;

use sterna_host::durable::DurableLog;
use sterna_migration::journal::DestinationRecord::{Discarded, Entitled, Running};
use sterna_migration::journal::SourceRecord::{self, Offered, Returned, Stopping};
use sterna_model::Epoch;
use sterna_wire::AnswerState;
use sterna_wire::message::Inquire;

use super::*;
use crate::registry::ProcessId;
use crate::testing::{
    Hosts, Monitor, Sleeper, UUID, destination_of, listen, source_of, state_of_job, vm,
};

fn answer_to(agent: &Agent, peer: &str) -> AnswerState {
    let inquire = Inquire { job: "job-1".parse().unwrap(), uuid: UUID, epoch: Epoch(5) };
    journaled_state(agent, &peer.parse().unwrap(), &inquire)
}

fn job_1() -> JobId {
    "job-1".parse().unwrap()
}

fn is_unknown(vm: &Vm) -> bool {
    matches!(vm.record().owner, Owner::Unknown { .. })
}

/// A VM `web` that begins to arrive in epoch 5, with this process.
fn arriving(host: &crate::testing::Host, process: &Sleeper) -> Record {
    let mut record = host.record("web");
    record.epoch = Epoch(5);
    record.process = Some(process.id());
    record.owner = Owner::Incoming { job: job_1() };
    record
}

/// A VM `web` that the job moves away, with this process.
fn leaving(host: &crate::testing::Host, process: &Sleeper) -> Record {
    let mut record = host.record("web");
    record.process = Some(process.id());
    record.leaving = Some(job_1());
    record
}

#[tokio::test(flavor = "multi_thread")]
async fn the_orphan_of_a_crash_in_the_destinations_start_is_removed() {
    let (hosts, qemu) = (Hosts::new(), Sleeper::start());
    let host = hosts.host("beta", "");
    host.write_journal(&[destination_of("alpha"), Entry::Process(qemu.id())]);
    let agent = host.start().await;
    assert!(!qemu.runs(), "no registry knew it");
    assert_eq!(host.story().side, Side::Destination(Discarded));
    assert_eq!(answer_to(&agent, "alpha"), AnswerState::Discarded);
    assert_eq!(state_of_job(&agent), "discarded");
}

/// A full disk may keep *discarded* out of the journal: who asks must not wait for the next restart.
#[tokio::test(flavor = "multi_thread")]
async fn how_a_job_ended_is_answered_though_the_journal_lacks_it() {
    let hosts = Hosts::new();
    let host = hosts.host("beta", "");
    let agent = host.start().await;
    host.write_journal(&[destination_of("alpha")]);
    let peer = "alpha".parse().unwrap();
    let job = agent.jobs.begin(job_1(), "web".parse().unwrap(), peer, Role::Destination);
    assert_eq!(answer_to(&agent, "alpha"), AnswerState::Prepared, "it is under way");
    job.end("discarded", Some("the disk is full".into()), None);
    assert_eq!(answer_to(&agent, "alpha"), AnswerState::Discarded);
    assert_eq!(answer_to(&agent, "gamma"), AnswerState::Unknown, "another's job");
}

/// After a reboot the number of a QEMU may be anybody's, started at the same tick.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_of_before_a_reboot_is_nobodys() {
    let other = Some(sterna_model::Uuid([7; 16]));
    for (boot, is_killed) in [(other, false), (None, true)] {
        let (hosts, qemu) = (Hosts::new(), Sleeper::start());
        let host = hosts.host("beta", "");
        let id = ProcessId { boot, ..qemu.id() };
        assert_eq!(id.find().unwrap().is_some(), is_killed);
        let mut record = arriving(&host, &qemu);
        record.process = Some(id);
        host.store(&record);
        let mut running = host.record("mail");
        running.process = Some(id);
        host.store(&running);
        host.write_journal(&[destination_of("alpha"), Entry::Process(id)]);
        let agent = host.start().await;
        assert_eq!(qemu.runs(), !is_killed, "an earlier build did not remember the boot");
        assert_eq!(state_of_job(&agent), "discarded");
        if boot.is_some() {
            let mail = vm(&agent, "mail").record();
            assert_eq!((mail.owner, mail.process), (Owner::Ended, None));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_was_committed_is_never_discarded_for_lack_of_a_record() {
    let (hosts, qemu) = (Hosts::new(), Sleeper::start());
    let host = hosts.host("beta", "");
    let committed = Entry::Destination(Entitled);
    host.write_journal(&[destination_of("alpha"), Entry::Process(qemu.id()), committed]);
    let agent = host.start().await;
    assert!(qemu.runs());
    assert_eq!(host.story().side, Side::Destination(Entitled));
    assert_eq!(answer_to(&agent, "alpha"), AnswerState::Unknown, "never that it may go on there");
    assert_eq!(state_of_job(&agent), "unknown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_leaves_its_vm_unknown_and_the_others_as_they_are() {
    let (hosts, qemu) = (Hosts::new(), Sleeper::start());
    let host = hosts.host("alpha", "");
    let mut record = host.record("web");
    record.process = Some(qemu.id());
    let _monitor = Monitor::listen(&record.agent_qmp, "running");
    host.store(&record);
    host.store(&host.record("mail"));
    std::fs::write(host.record_path("mail"), b"{\"name\": \"mail\", \x00").unwrap();
    let agent = host.start().await;
    assert!(vm(&agent, "web").live().is_some());
    let mail = vm(&agent, "mail");
    assert!(is_unknown(&mail));
    let refused = crate::machines::stop(&agent, &mail, Duration::ZERO).await.unwrap_err();
    assert_eq!(refused.exit_code, 4);
    assert!(refused.message.contains("mail.json is damaged"), "{}", refused.message);
    agent.remember(&mail);
    let left = std::fs::read(host.record_path("mail")).unwrap();
    assert!(left.ends_with(b"\x00"), "the file is a person's to look at");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_jobs_journal_a_vm_is_unknown_and_left_alone() {
    let (hosts, qemu) = (Hosts::new(), Sleeper::start());
    let host = hosts.host("alpha", "");
    let record = leaving(&host, &qemu);
    let monitor = Monitor::listen(&record.agent_qmp, "paused");
    host.store(&record);
    let agent = host.start().await;
    let web = vm(&agent, "web");
    let Owner::Unknown { job, why } = web.record().owner else { panic!("{web:?}") };
    assert_eq!(job, Some(job_1()));
    assert!(why.contains("job-1.journal is lost") && why.contains("sterna resolve job-1"), "{why}");
    assert!(qemu.runs() && !monitor.was_told("cont"));
    assert!(agent.registry.jobs_of_interest().contains(&job_1()));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_damaged_journal_an_arriving_vm_is_unknown() {
    let (hosts, qemu) = (Hosts::new(), Sleeper::start());
    let host = hosts.host("beta", "");
    let record = arriving(&host, &qemu);
    let monitor = Monitor::listen(&record.agent_qmp, "paused");
    host.store(&record);
    let path = host.write_journal(&[destination_of("alpha"), Entry::Destination(Entitled)]);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[30] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(DurableLog::read(&path).is_err());
    let agent = host.start().await;
    assert!(is_unknown(&vm(&agent, "web")));
    assert!(qemu.runs() && !monitor.was_told("cont"));
    assert_eq!(answer_to(&agent, "alpha"), AnswerState::Unknown);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_was_not_offered_runs_on() {
    for (guest_ran, resumed) in [(true, true), (false, false)] {
        let (hosts, qemu) = (Hosts::new(), Sleeper::start());
        let host = hosts.host("alpha", "");
        let record = leaving(&host, &qemu);
        let monitor = Monitor::listen(&record.agent_qmp, "paused");
        host.store(&record);
        let ran = Entry::GuestRan(guest_ran);
        host.write_journal(&[source_of(), ran, Entry::Source(Stopping)]);
        let agent = host.start().await;
        assert_eq!(monitor.was_told("cont"), resumed);
        assert_eq!(host.story().side, Side::Source(Returned));
        assert_eq!(state_of_job(&agent), "failed");
        let record = vm(&agent, "web").record();
        assert_eq!((record.owner, record.leaving), (Owner::Here, None));
    }
}

/// A guest must not stand until the next restart because its QEMU was busy at this one.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_qemu_does_not_answer_is_resumed_when_it_does() {
    for (name, left, is) in [
        ("alpha", Entry::Source(Stopping), "failed"),
        ("beta", Entry::Destination(Entitled), "running"),
    ] {
        let (hosts, qemu) = (Hosts::new(), Sleeper::start());
        let host = hosts.host(name, "");
        let (record, subject) = match left {
            Entry::Source(_) => (leaving(&host, &qemu), source_of()),
            _ => (arriving(&host, &qemu), destination_of("alpha")),
        };
        host.store(&record);
        host.write_journal(&[subject, left]);
        let agent = host.start().await;
        assert_eq!(state_of_job(&agent), "recovering");
        assert_eq!(vm(&agent, "web").job(), Some(job_1()), "nobody else may move it");
        let monitor = Monitor::listen(&record.agent_qmp, "paused");
        let mut ended = agent.jobs.get(&job_1()).unwrap().watch();
        let over = ended.wait_for(|status| status.ended.is_some());
        drop(tokio::time::timeout(Duration::from_secs(20), over).await.unwrap().unwrap());
        assert!(monitor.was_told("cont"));
        assert_eq!(state_of_job(&agent), is);
        assert_eq!(vm(&agent, "web").record().owner, Owner::Here);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_was_not_offered_and_whose_qemu_died_is_lost() {
    let (hosts, mut qemu) = (Hosts::new(), Sleeper::start());
    let host = hosts.host("alpha", "");
    host.store(&leaving(&host, &qemu));
    qemu.end();
    host.write_journal(&[source_of(), Entry::Source(Stopping)]);
    let mut agent = host.start().await;
    assert_eq!(state_of_job(&agent), "lost");
    assert_eq!(vm(&agent, "web").record().owner, Owner::Lost);
    for _ in 0..2 {
        drop(agent);
        agent = host.start().await;
        assert_eq!(vm(&agent, "web").record().owner, Owner::Lost, "also the next time");
        let job = agent.jobs.get(&job_1()).unwrap().view();
        assert_eq!(job.state, "lost", "also the next time");
        assert!(job.error.is_some_and(|why| why.contains("QEMU ended")));
    }
    // A crash may have kept the last record from the disk, and the registry from hearing of it.
    drop(agent);
    std::fs::remove_file(host.journal_path()).unwrap();
    host.store(&leaving(&host, &qemu));
    host.write_journal(&[source_of(), Entry::Source(Stopping), Entry::Lost("it died".into())]);
    let agent = host.start().await;
    assert_eq!(state_of_job(&agent), "lost");
    assert_eq!(vm(&agent, "web").record().owner, Owner::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entitled_guest_is_resumed_unless_its_user_had_paused_it() {
    for (entries, resumed) in [(vec![], true), (vec![Entry::GuestRan(false)], false)] {
        let (hosts, qemu) = (Hosts::new(), Sleeper::start());
        let host = hosts.host("beta", "");
        let record = arriving(&host, &qemu);
        let monitor = Monitor::listen(&record.agent_qmp, "paused");
        host.store(&record);
        let mut all = vec![destination_of("alpha"), Entry::Process(qemu.id())];
        all.extend(entries);
        all.push(Entry::Destination(Entitled));
        host.write_journal(&all);
        let agent = host.start().await;
        assert_eq!(monitor.was_told("cont"), resumed);
        assert_eq!(vm(&agent, "web").record().owner, Owner::Here);
        assert_eq!(answer_to(&agent, "alpha"), AnswerState::Running);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entitled_guest_whose_qemu_is_gone_is_unknown() {
    let (hosts, mut qemu) = (Hosts::new(), Sleeper::start());
    let host = hosts.host("beta", "");
    host.store(&arriving(&host, &qemu));
    qemu.end();
    host.write_journal(&[destination_of("alpha"), Entry::Destination(Entitled)]);
    let agent = host.start().await;
    assert!(is_unknown(&vm(&agent, "web")));
    assert_eq!(answer_to(&agent, "alpha"), AnswerState::Unknown);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_known_by_the_name_before_is_known_again() {
    let (hosts, qemu) = (Hosts::new(), Sleeper::start());
    let host = hosts.host("beta", "");
    let mut before = host.record("web");
    let moved = Owner::MovedTo { host: "alpha".parse().unwrap(), job: "job-0".parse().unwrap() };
    before.owner = moved.clone();
    let mut record = arriving(&host, &qemu);
    record.previous = Some(Box::new(before));
    let _monitor = Monitor::listen(&record.agent_qmp, "prelaunch");
    host.store(&record);
    host.write_journal(&[destination_of("alpha"), Entry::Process(qemu.id())]);
    let agent = host.start().await;
    assert!(!qemu.runs());
    assert_eq!(vm(&agent, "web").record().owner, moved);
    drop(agent);
    let agent = host.start().await;
    let record = vm(&agent, "web").record();
    assert_eq!((record.owner, record.epoch), (moved, Epoch(4)), "also after another restart");
}

/// The journal's address is the only way to the peer: no configuration names it.
async fn offered_and_answered(theirs: &[Entry], qemu_died: bool) -> (Arc<Agent>, Hosts, Sleeper) {
    let (hosts, mut qemu) = (Hosts::new(), Sleeper::start());
    let beta = hosts.host("beta", "[peers.alpha]\naddress = \"127.0.0.1:1\"\n");
    beta.write_journal(theirs);
    let beta = beta.start().await;
    let address = listen(&beta).await;
    let alpha = hosts.host("alpha", "");
    let record = leaving(&alpha, &qemu);
    alpha.store(&record);
    let monitor = Monitor::listen(&record.agent_qmp, "paused");
    if qemu_died {
        qemu.end();
    }
    alpha.write_journal(&[
        source_of(),
        Entry::PeerAddress(address),
        Entry::Source(Stopping),
        Entry::Source(Offered),
    ]);
    let agent = alpha.start().await;
    let mut ended = agent.jobs.get(&job_1()).unwrap().watch();
    let over = ended.wait_for(|status| status.ended.is_some());
    tokio::time::timeout(Duration::from_secs(20), over).await.unwrap().unwrap();
    let discarded = matches!(theirs.last(), Some(Entry::Destination(Discarded)));
    assert_eq!(monitor.was_told("cont"), discarded && !qemu_died);
    (agent, hosts, qemu)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offered_guest_asks_where_it_was_sent() {
    let theirs = [destination_of("alpha"), Entry::Destination(Running)];
    let (agent, _hosts, qemu) = offered_and_answered(&theirs, false).await;
    assert_eq!(state_of_job(&agent), "done");
    assert!(!qemu.runs(), "the guest is the destination's");
    assert!(matches!(vm(&agent, "web").record().owner, Owner::MovedTo { .. }));

    let theirs = [destination_of("alpha"), Entry::Destination(Discarded)];
    let (agent, _hosts, qemu) = offered_and_answered(&theirs, false).await;
    assert_eq!(state_of_job(&agent), "failed");
    assert!(qemu.runs());
    assert_eq!(vm(&agent, "web").record().owner, Owner::Here);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offered_guest_whose_qemu_died_is_the_destinations_or_lost() {
    let theirs = [destination_of("alpha"), Entry::Destination(Running)];
    let (agent, _hosts, _qemu) = offered_and_answered(&theirs, true).await;
    assert_eq!(state_of_job(&agent), "done");
    assert!(matches!(vm(&agent, "web").record().owner, Owner::MovedTo { .. }));

    let theirs = [destination_of("alpha"), Entry::Destination(Discarded)];
    let (agent, _hosts, _qemu) = offered_and_answered(&theirs, true).await;
    assert_eq!(state_of_job(&agent), "lost");
    assert_eq!(vm(&agent, "web").record().owner, Owner::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_gone_is_ended_here() {
    let (hosts, qemu) = (Hosts::new(), Sleeper::start());
    let host = hosts.host("alpha", "");
    let record = leaving(&host, &qemu);
    let _monitor = Monitor::listen(&record.agent_qmp, "postmigrate");
    host.store(&record);
    host.write_journal(&[source_of(), Entry::Source(SourceRecord::Gone)]);
    let agent = host.start().await;
    assert!(!qemu.runs());
    let record = vm(&agent, "web").record();
    assert!(matches!(record.owner, Owner::MovedTo { .. }) && record.leaving.is_none());
    assert_eq!(record.epoch, Epoch(5));
    assert!(host.story().is_settled());
}
