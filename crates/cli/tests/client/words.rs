//! The words that are answered once, and those that need no agent.

use std::{env, fs, process};

use serde_json::json;
use sterna_api::{Request, Response, VmState, VmView};

use crate::fake_agent::{FakeAgent, Peer};

#[test]
fn a_connection_that_breaks_is_unknown_only_where_something_was_asked_to_be_done() {
    let agent = FakeAgent::saying(Vec::new());
    for (line, code) in [
        ("migrate web beta", 4),
        ("vm stop web", 4),
        ("cancel j1", 4),
        ("follow web beta", 4),
        ("switch web", 4),
        ("unfollow web", 4),
        ("status web", 1),
        ("vm list", 1),
        ("plan web beta", 1),
    ] {
        assert_eq!(agent.run(line).code, Some(code), "{line}");
    }
}

#[test]
fn an_agent_that_talks_nonsense_is_not_believed() {
    let endless = |_: &Request, mut peer: Peer| {
        for _ in 0..65 {
            peer.say_bytes(&vec![b' '; 1 << 20]);
        }
        peer.wait_for_end();
    };
    let ran = FakeAgent::start(endless).run("vm list");
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("found a longer one"), "{}", ran.stderr);

    let nonsense = |_: &Request, mut peer: Peer| peer.say_bytes(b"{\"type\":\"tea\"}\n");
    let ran = FakeAgent::start(nonsense).run("migrate web beta");
    assert_eq!(ran.code, Some(4));
    assert!(ran.stderr.contains("cannot be read"), "{}", ran.stderr);
}

#[test]
fn vms_are_an_array_or_a_line_each() {
    let vm = VmView {
        name: "web".parse().unwrap(),
        uuid: "0a1b2c3d-0000-4111-8222-ffffffffffff".to_owned(),
        state: VmState::Running,
        pid: Some(7),
        qmp: None,
        serial: None,
        argv: vec!["qemu".to_owned()],
        moved_to: None,
        unknown_because: None,
        resolve: None,
    };
    let agent = FakeAgent::saying(vec![Response::Vms(vec![vm.clone(), vm.clone()])]);
    assert_eq!(agent.run("vm list -o json").json().as_array().map(Vec::len), Some(2));
    assert_eq!(agent.run("vm list -o jsonl").json_lines().len(), 2);
    let agent = FakeAgent::saying(vec![Response::Vm(vm)]);
    let shown = agent.run("vm show web -o json").json();
    assert_eq!(
        (&shown["name"], &shown["state"], &shown["pid"]),
        (&json!("web"), &json!("running"), &json!(7))
    );
    let hostile = VmView { uuid: "\x1b[2J".to_owned(), ..serde_json::from_value(shown).unwrap() };
    let agent = FakeAgent::saying(vec![Response::Vm(hostile)]);
    assert!(agent.run("vm show web").stdout.contains("\\u{1b}[2J"));
}

#[test]
fn a_stream_is_inspected_without_an_agent() {
    let agent = FakeAgent::saying(Vec::new());
    let file = env::temp_dir().join(format!("sterna-cli-stream-{}", process::id()));
    fs::write(&file, b"QEVM\0\0\0\x03").unwrap();
    let ran = agent.run(&format!("stream inspect -o json {}", file.display()));
    fs::remove_file(&file).unwrap();
    assert_eq!(ran.code, Some(1), "a stream that is cut off");
    assert!(ran.json()["end"]["damaged"].is_object(), "{}", ran.stdout);
    let ran = agent.run("stream inspect /nowhere/stream");
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("/nowhere/stream"), "{}", ran.stderr);
}

#[test]
fn pages_and_completions_are_written() {
    let agent = FakeAgent::saying(Vec::new());
    let directory = env::temp_dir().join(format!("sterna-cli-man-{}", process::id()));
    assert_eq!(agent.run(&format!("man {}", directory.display())).code, Some(0));
    let page = fs::read_to_string(directory.join("sterna-migrate.1")).unwrap();
    let has_hidden = directory.join("sterna-completions.1").exists();
    let has_all = ["sterna.1", "sterna-vm-start.1", "sterna-stream-inspect.1"]
        .iter()
        .all(|name| directory.join(name).exists());
    fs::remove_dir_all(&directory).unwrap();
    assert!(page.contains("EXIT CODES") && page.contains("max\\-downtime"), "{page}");
    assert!(has_all && !has_hidden);
    assert!(agent.run("completions bash").stdout.contains("migrate"));
}

#[test]
fn certificates_are_made_without_an_agent() {
    let agent = FakeAgent::saying(Vec::new());
    let directory = env::temp_dir().join(format!("sterna-cli-pki-{}", process::id()));
    let shown = directory.display();
    let codes = [
        format!("pki init {shown}"),
        format!("pki issue {shown} alpha"),
        format!("pki init {shown}"),
    ]
    .map(|line| agent.run(&line).code);
    let has_key = directory.join("alpha/server-key.pem").exists();
    fs::remove_dir_all(&directory).unwrap();
    assert_eq!((codes, has_key), ([Some(0), Some(0), Some(1)], true));
}
