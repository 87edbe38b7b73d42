//! Peers that ask, over real connections.

use sterna_model::{Epoch, JobId};
use sterna_wire::message::{Echo, Final};
use sterna_wire::{AnswerState, GuestState, PageKey, Verify};

use super::*;
use crate::journal::{Entry, files};
use crate::peer::{self, Destination};
use crate::testing::{Host, Hosts, UUID, destination_of, listen};

const PEERS: &str = "[peers.alpha]\naddress = \"127.0.0.1:1\"\naccept = true\n";
const SOON: Duration = Duration::from_secs(10);

fn prepare(job: &str) -> Prepare {
    Prepare {
        job: job.parse().unwrap(),
        vm: "web".parse().unwrap(),
        uuid: UUID,
        epoch: Epoch(5),
        description: "{}".into(),
        page_key: PageKey([1; 32]),
        connections: 1,
        verify: Verify::Roots,
        link_timeout_ms: 20_000,
        keep_ms: None,
        reuse: false,
        evidence: None,
        post_copy: false,
    }
}

/// Says something to beta as alpha, and waits for the answer.
async fn ask(hosts: &Hosts, beta: &Arc<Agent>, said: &[Message]) -> Option<Message> {
    let alpha = hosts.host("alpha", "").start().await;
    let to = Destination { name: "beta".parse().unwrap(), address: listen(beta).await };
    let connected = peer::connect(&alpha.identity, &to, Role::Control, alpha.link_options());
    let (greeted, _) = connected.await.unwrap();
    let (sender, mut inbox) = mpsc::channel(MAX_UNREAD);
    let link = Link::start(greeted, Sender::Destination, sender);
    for message in said {
        link.send(message).await.unwrap();
    }
    match tokio::time::timeout(SOON, inbox.recv()).await.unwrap() {
        Some(Inbound::Message(message)) => Some(*message),
        _ => None,
    }
}

async fn beta(hosts: &Hosts) -> (Host, Arc<Agent>) {
    let host = hosts.host("beta", PEERS);
    let agent = host.start().await;
    (host, agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_job_leaves_nothing() {
    let hosts = Hosts::new();
    let (host, agent) = beta(&hosts).await;
    let answer = ask(&hosts, &agent, &[Message::Prepare(prepare("job-1"))]).await;
    let Some(Message::Refused(refused)) = answer else { panic!("{answer:?}") };
    assert_eq!(refused.refusals[0].code, "description-malformed");
    assert!(agent.jobs.all().is_empty() && agent.incoming(&"job-1".parse().unwrap()).is_none());
    assert!(files(&host.state_dir()).unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_journal_is_here_is_not_begun_again() {
    let hosts = Hosts::new();
    let (host, agent) = beta(&hosts).await;
    // Of a job that is remembered nowhere else.
    host.write_journal(&[destination_of("alpha"), Entry::Ended(String::new())]);
    let answer = ask(&hosts, &agent, &[Message::Prepare(prepare("job-1"))]).await;
    let Some(Message::Refused(refused)) = answer else { panic!("{answer:?}") };
    // The reasons of all kinds come together.
    let codes: Vec<_> = refused.refusals.iter().map(|refusal| refusal.code.as_str()).collect();
    assert_eq!(codes, ["job-known", "description-malformed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_and_questions_are_answered_before_a_job_begins() {
    let hosts = Hosts::new();
    let (_host, agent) = beta(&hosts).await;
    let echo = Echo { nonce: 7, sent_ns: 1 };
    assert_eq!(ask(&hosts, &agent, &[Message::Ping(echo)]).await, Some(Message::Pong(echo)));
    let job: JobId = "job-1".parse().unwrap();
    let inquire = Inquire { job: job.clone(), uuid: UUID, epoch: Epoch(5) };
    let answer = ask(&hosts, &agent, &[Message::Inquire(inquire)]).await;
    let state = AnswerState::Unknown;
    assert_eq!(answer, Some(Message::Answer(Answer { job, state })));
    let out_of_turn = Final {
        root: sterna_model::Root::ZERO_MEMORY,
        frames_per_connection: Vec::new(),
        tail_bytes: 0,
        state_bytes: 0,
        guest: GuestState::Running,
        commands: Vec::new(),
    };
    assert_eq!(ask(&hosts, &agent, &[Message::Final(out_of_turn)]).await, None, "it is closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_smaller_silence_limit_counts() {
    let hosts = Hosts::new();
    let (_host, agent) = beta(&hosts).await;
    assert_eq!(agent.silence_limit(20_000), Duration::from_secs(20));
    assert_eq!(agent.silence_limit(3_600_000), agent.config.limits.link_timeout);
}

/// Of a guest that runs here, only the peer that sent it is told, and only about this guest in this epoch.
#[tokio::test(flavor = "multi_thread")]
async fn another_peers_job_is_unknown_to_whoever_asks() {
    for (sent_by, uuid, epoch, expected) in [
        ("alpha", UUID, Epoch(5), AnswerState::Discarded),
        ("gamma", UUID, Epoch(5), AnswerState::Unknown),
        ("alpha", sterna_model::Uuid([8; 16]), Epoch(5), AnswerState::Unknown),
        ("alpha", UUID, Epoch(6), AnswerState::Unknown),
    ] {
        let hosts = Hosts::new();
        let (host, agent) = beta(&hosts).await;
        let record = sterna_migration::journal::DestinationRecord::Discarded;
        host.write_journal(&[destination_of(sent_by), Entry::Destination(record)]);
        let job: JobId = "job-1".parse().unwrap();
        let inquire = Inquire { job: job.clone(), uuid, epoch };
        let answer = ask(&hosts, &agent, &[Message::Inquire(inquire)]).await;
        assert_eq!(answer, Some(Message::Answer(Answer { job, state: expected })), "{sent_by}");
    }
}
