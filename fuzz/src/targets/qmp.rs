//! What a hostile or broken QEMU answers, through the whole client: lines, replies, events, typed results.
//!
//! The input is a script: its first byte chooses where in the list of commands the client begins; then parts, divided by
//! NUL, which no JSON has. The first part is sent at once, each further one after a command; `@ID@` becomes that
//! command's id. QEMU closes where its script ends, or where a part does not answer the command, so nobody ever waits.

use std::cell::RefCell;
use std::future::Future;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use serde_json::{Value, json};
use sterna_host::qmp::{Delivery, MigrationStatus, Qmp, QmpError, RunState};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::mutate::Mutator;
use crate::signature::of_error;
use crate::{Made, Outcome, Target};

pub(super) const TARGET: Target = Target {
    name: "qmp",
    about: "what a hostile or broken QEMU answers over QMP",
    run,
    make,
    mutators: &[Mutator::Lines],
    tokens: TOKENS,
    max_bytes: 16 << 10,
    borrowed: &[],
};

#[rustfmt::skip]
const TOKENS: &[&[u8]] = &[
    b"@ID@", b"{\"return\":{},\"id\":\"@ID@\"}\r\n", b"{\"return\":[],\"id\":\"@ID@\"}\n",
    b"{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"},\"id\":\"@ID@\"}\n", b"\"return\":null", b"\0", b"\n",
    b"{\"event\":\"STOP\"}\n",
    b"{\"event\":\"X\",\"timestamp\":{\"seconds\":9223372036854775807,\"microseconds\":1000001}}\n",
    b"\"status\":\"running\"", b"\"UUID\":\"x\"", b"[[[[", b"-1", b"1e309", b"\x1b[2J", b"\"\\ud800\"",
];

/// A reply comes at once or never.
const SOON: Duration = Duration::from_secs(1);
const ERROR_BYTES: usize = 2048;
/// Characters of QEMU's that an error or a state keeps.
const MAX_SHOWN: usize = 201;

#[derive(Arbitrary, Debug)]
struct Script {
    begins_at: u8,
    early: Vec<Said>,
    answers: Vec<(Vec<Said>, bool, u64, String)>,
}

#[derive(Arbitrary, Debug)]
enum Said {
    Event(u8, i64, i64),
    Strange(String),
    LateReply,
    WrongId(u64),
}

const EVENTS: [&str; 5] = ["STOP", "RESUME", "MIGRATION", "RTC_CHANGE", "NEVER_HEARD_OF"];

/// The commands in the order in which the client goes through them, and a result of each.
fn result(at: usize, number: u64, text: &str) -> Value {
    match at % COMMANDS {
        0 => json!({"running": number & 1 == 0, "status": text, "singlestep": false}),
        1 => {
            json!({"status": "active", "ram": {"remaining": number, "mbps": 1.5, "page-size": 4096}, "setup-time": 3})
        }
        2 => {
            json!([{"cpu-index": 0, "thread-id": number >> 1, "qom-path": text, "target": "x86_64", "props": {}}])
        }
        3 => {
            json!([{"device": text, "removable": true, "inserted": {"file": text, "drv": "raw", "ro": false, "image": {"virtual-size": number}}}])
        }
        4 => json!([{"id": text, "size": number, "share": true, "merge": false}]),
        5 => {
            json!([{"type": "dimm", "data": {"id": text, "memdev": "/objects/m", "size": number}}])
        }
        6 => json!([{"name": text, "alias": "pc", "is-default": true, "cpu-max": 255}]),
        7 => {
            json!({"UUID": format!("{number:08x}-0000-4111-8222-ffffffffffff")[..].chars().rev().take(36).collect::<Vec<_>>().into_iter().rev().collect::<String>()})
        }
        8 => json!({"name": text}),
        9 => json!({"enabled": number & 1 == 0, "present": true}),
        10 => json!({"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": text}),
        11 => {
            json!([{"capability": text, "state": true}, {"capability": "events", "state": false}])
        }
        12 => json!([
            {"name": "migrate-set-capabilities", "meta-type": "command", "arg-type": "1", "ret-type": "0"},
            {"name": "1", "meta-type": "object", "members": [{"name": "capabilities", "type": "[2]"}]},
            {"name": "2", "meta-type": "object", "members": [{"name": "capability", "type": "3"}]},
            {"name": "3", "meta-type": "enum", "values": [text, "events"], "members": [{"name": text}]},
            {"name": text, "meta-type": "event", "arg-type": "0"},
        ]),
        13 => json!(number),
        _ => json!(text),
    }
}

const COMMANDS: usize = 15;

fn make(noise: &mut Unstructured<'_>) -> arbitrary::Result<Made> {
    let script = Script::arbitrary(noise)?;
    let mut out = vec![script.begins_at];
    script.early.iter().take(3).for_each(|said| said.put(&mut out));
    line(
        &mut out,
        &json!({"QMP": {
            "version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "x"}, "capabilities": ["oob"],
        }}),
    );
    out.push(0);
    line(&mut out, &json!({"return": {}, "id": "@ID@"}));
    let start = usize::from(script.begins_at);
    for (at, (noise, refuses, number, text)) in script.answers.iter().take(6).enumerate() {
        out.push(0);
        noise.iter().take(4).for_each(|said| said.put(&mut out));
        let text = text.replace('\0', "");
        let answer = if *refuses {
            json!({"error": {"class": "GenericError", "desc": text}, "id": "@ID@"})
        } else {
            json!({"return": result(start + at, *number, &text), "id": "@ID@"})
        };
        line(&mut out, &answer);
    }
    Ok(Made::valid(out))
}

impl Said {
    fn put(&self, out: &mut Vec<u8>) {
        line(
            out,
            &match self {
                Self::Event(which, seconds, microseconds) => json!({
                    "event": EVENTS[usize::from(*which) % EVENTS.len()], "data": {"x": [1]},
                    "timestamp": {"seconds": seconds, "microseconds": microseconds},
                }),
                Self::Strange(text) => json!({"text": text}),
                Self::LateReply => json!({"return": {}, "id": "of-an-earlier-client"}),
                Self::WrongId(number) => json!({"return": {}, "id": number}),
            },
        );
    }
}

fn line(out: &mut Vec<u8>, value: &Value) {
    out.extend_from_slice(value.to_string().as_bytes());
    out.extend_from_slice(b"\r\n");
}

thread_local! {
    static RUNTIME: RefCell<Option<Runtime>> = const { RefCell::new(None) };
}

fn run(input: &[u8]) -> Outcome {
    let Some((start, script)) = input.split_first() else { return Outcome::refused("empty") };
    let fresh = || tokio::runtime::Builder::new_current_thread().enable_all().build().ok();
    // Taken out meanwhile: after a panic the next input gets a new one.
    let Some(runtime) = RUNTIME.take().or_else(fresh) else { super::broken(&"no runtime") };
    let outcome = runtime.block_on(async {
        let Ok((ours, theirs)) = UnixStream::pair() else { super::broken(&"no sockets") };
        let (outcome, ()) = tokio::join!(client(ours, usize::from(*start)), serve(theirs, script));
        outcome
    });
    RUNTIME.set(Some(runtime));
    outcome
}

/// QEMU's side.
async fn serve(stream: UnixStream, script: &[u8]) {
    let mut parts = script.split(|byte| *byte == 0);
    let mut stream = BufReader::new(stream);
    let mut said = parts.next().unwrap_or_default().to_vec();
    let mut part = if greets(&said) { parts.next() } else { None };
    loop {
        // The client may be gone: then there is nothing left to read.
        let _ = stream.write_all(&said).await;
        let Some(next) = part else { return };
        let mut command = String::new();
        if !matches!(stream.read_line(&mut command).await, Ok(1..)) {
            return;
        }
        let id = serde_json::from_str::<Value>(&command).ok();
        let id = id.as_ref().and_then(|command| command["id"].as_str()).unwrap_or_default();
        said = String::from_utf8_lossy(next).replace("@ID@", id).into_bytes();
        part = if answers(&said, id) { parts.next() } else { None };
    }
}

/// What stands on whole lines.
fn values(said: &[u8]) -> impl Iterator<Item = Value> {
    let lines = said.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok())
}

/// Whether the client begins after this.
fn greets(said: &[u8]) -> bool {
    values(said).any(|value| value["QMP"].is_object())
}

/// Whether the client goes on after this.
fn answers(said: &[u8], id: &str) -> bool {
    let mut answers = values(said).filter(|value| value["id"] == id);
    answers.any(|value| value.get("return").is_some() || value["error"].is_object())
}

/// The agent's side: connects, asks one thing after the other until something goes wrong.
async fn client(stream: UnixStream, start: usize) -> Outcome {
    let qmp = match Qmp::over(stream, SOON).await {
        Ok((qmp, greeting)) => {
            assert!(!greeting.version.to_string().is_empty());
            qmp.with_timeout(SOON)
        }
        Err(error) => return Outcome::refused(format!("greeting: {}", told(&error))),
    };
    let mut events = qmp.subscribe();
    let mut asked = 0;
    let end = loop {
        match ask(&qmp, (start + asked) % COMMANDS).await {
            Ok(()) | Err(QmpError::Command { .. }) if asked < 2 * COMMANDS => asked += 1,
            Ok(()) => break "all answered".to_owned(),
            Err(error) => break told(&error),
        }
    };
    let mut heard = 0;
    while let Some(delivery) = events.try_next() {
        match delivery {
            Delivery::Event(event) => {
                heard += 1;
                let _ = event.micros();
            }
            Delivery::Lagged { .. } => {}
            Delivery::Closed => break,
        }
    }
    assert!(heard <= 1024, "{heard} events wait");
    // A script that was answered to its end closes the connection; only then is everything as it should be.
    let is_good = asked > 0 || end.contains("closed");
    let place = (start + asked) % COMMANDS;
    let text = format!("{place} after {}, {} events, {end}", asked.min(2), heard.min(1));
    if is_good { Outcome::accepted(text) } else { Outcome::refused(text) }
}

/// The kind of error, without what it quotes.
fn told(error: &QmpError) -> String {
    let told = of_error(error, ERROR_BYTES);
    told.split(", found").next().unwrap_or_default().to_owned()
}

async fn ask(qmp: &Qmp, command: usize) -> Result<(), QmpError> {
    match command {
        0 => {
            if let RunState::Other(name) = checked(qmp.query_status()).await?.status {
                assert!(name.chars().count() <= MAX_SHOWN);
            }
            Ok(())
        }
        1 => {
            let info = checked(qmp.query_migrate()).await?;
            if let MigrationStatus::Other(name) = &info.status {
                assert!(name.chars().count() <= MAX_SHOWN && !info.status.is_over());
            }
            Ok(())
        }
        2 => checked(qmp.query_cpus_fast()).await.map(drop),
        3 => checked(qmp.query_block()).await.map(drop),
        4 => checked(qmp.query_memdev()).await.map(drop),
        5 => checked(qmp.query_memory_devices()).await.map(drop),
        6 => checked(qmp.query_machines()).await.map(drop),
        7 => checked(qmp.query_uuid()).await.map(drop),
        8 => checked(qmp.query_name()).await.map(drop),
        9 => checked(qmp.query_kvm()).await.map(drop),
        10 => checked(qmp.query_version()).await.map(|version| drop(version.to_string())),
        11 => checked(qmp.query_migration_capabilities()).await.map(drop),
        12 => checked(qmp.query_schema()).await.map(|schema| {
            let known = schema.has_migration_capability("events") || schema.has_event("STOP");
            let _ = known
                || schema.command_takes("migrate", "uri")
                || schema.has_blockdev_driver("raw");
        }),
        13 => checked(qmp.qom_get("/machine", "type")).await.map(drop),
        _ => checked(qmp.hmp("info status")).await.map(drop),
    }
}

/// A refusal is fit to be told, too.
async fn checked<T>(asked: impl Future<Output = Result<T, QmpError>>) -> Result<T, QmpError> {
    let result = asked.await;
    if let Err(error) = &result {
        let _ = told(error);
    }
    result
}
