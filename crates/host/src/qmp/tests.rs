//! The client against a scripted server: what QEMU may do wrong, and what it did wrong in some version.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;

use super::message::MAX_LINE_BYTES;
use super::{Delivery, Qmp, QmpError};

const SOON: Duration = Duration::from_secs(5);
const GREETING: &str = r#"{"QMP":{"version":{"qemu":{"micro":1,"minor":2,"major":99},"package":"fake"},"capabilities":["oob","later"]}}"#;

/// The server's end.
struct Fake {
    stream: BufReader<UnixStream>,
}

impl Fake {
    async fn send(&mut self, line: &str) {
        self.stream.write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
    }

    async fn receive(&mut self) -> Value {
        let mut line = String::new();
        assert!(self.stream.read_line(&mut line).await.unwrap() > 0, "client closed");
        serde_json::from_str(&line).unwrap()
    }

    async fn reply(&mut self, to: &Value, result: Value) {
        self.send(&json!({ "return": result, "id": to["id"] }).to_string()).await;
    }
}

async fn connected() -> (Qmp, Fake) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut fake = Fake { stream: BufReader::new(theirs) };
    let serve = async {
        // Some versions send events before the greeting; an earlier client's reply may come as well.
        fake.send(r#"{"timestamp":{"seconds":1,"microseconds":2},"event":"RTC_CHANGE"}"#).await;
        fake.send(r#"{"return":{},"id":"of-an-earlier-client"}"#).await;
        fake.send(GREETING).await;
        let negotiation = fake.receive().await;
        assert_eq!(negotiation["execute"], "qmp_capabilities");
        assert_eq!(negotiation["arguments"]["enable"], json!(["oob"]));
        fake.reply(&negotiation, json!({})).await;
    };
    let (client, ()) = tokio::join!(Qmp::over(ours, SOON), serve);
    let (qmp, greeting) = client.unwrap();
    assert_eq!(greeting.version.qemu.major, 99);
    (qmp, fake)
}

#[tokio::test]
async fn replies_find_their_callers_in_any_order() {
    let (qmp, mut fake) = connected().await;
    let serve = async {
        let first = fake.receive().await;
        let second = fake.receive().await;
        fake.send(r#"{"event":"NEVER_HEARD_OF","data":{"x":[1]},"new-field":{}}"#).await;
        fake.send(r#"{"something":"else"}"#).await;
        fake.reply(&second, json!(second["execute"])).await;
        fake.reply(&first, json!(first["execute"])).await;
    };
    let mut events = qmp.subscribe();
    let (a, b, ()) = tokio::join!(
        qmp.execute("one", Value::Null, SOON),
        qmp.execute("two", json!({"x": 1}), SOON),
        serve
    );
    assert_eq!((a.unwrap(), b.unwrap()), (json!("one"), json!("two")));
    let Delivery::Event(event) = events.next().await else { panic!("no event") };
    assert_eq!((event.name.as_str(), &event.data), ("NEVER_HEARD_OF", &json!({"x": [1]})));
}

#[tokio::test]
async fn a_late_reply_reaches_nobody() {
    let (qmp, mut fake) = connected().await;
    let slow = qmp.execute("slow", Value::Null, Duration::from_millis(30)).await;
    assert!(matches!(slow, Err(QmpError::Timeout { command, .. }) if command == "slow"));
    let slow = fake.receive().await;
    let serve = async {
        let next = fake.receive().await;
        fake.reply(&slow, json!("late")).await;
        fake.reply(&next, json!("right")).await;
    };
    let (next, ()) = tokio::join!(qmp.execute("next", Value::Null, SOON), serve);
    assert_eq!(next.unwrap(), json!("right"));
}

#[tokio::test]
async fn refusals_carry_command_class_and_words() {
    let (qmp, mut fake) = connected().await;
    let serve = async {
        let to = fake.receive().await;
        let error = json!({"class": "CommandNotFound", "desc": "The command x has not been found"});
        fake.send(&json!({ "error": error, "id": to["id"] }).to_string()).await;
    };
    let (refused, ()) = tokio::join!(qmp.execute("x", Value::Null, SOON), serve);
    let refused = refused.unwrap_err();
    assert!(refused.is_unknown_command());
    assert!(refused.to_string().contains("has not been found"), "{refused}");
}

#[tokio::test]
async fn closing_in_the_middle_of_a_command_reaches_every_caller() {
    let (qmp, mut fake) = connected().await;
    let mut events = qmp.subscribe();
    let serve = async {
        fake.receive().await;
        fake.receive().await;
        fake.send(r#"{"event":"SHUTDOWN","data":{"guest":false}}"#).await;
        drop(fake);
    };
    let (a, b, ()) = tokio::join!(
        qmp.execute("a", Value::Null, SOON),
        qmp.execute("b", Value::Null, SOON),
        serve
    );
    assert!(a.unwrap_err().is_closed() && b.unwrap_err().is_closed());
    assert!(qmp.closed().await.is_closed());
    assert!(qmp.execute("c", Value::Null, SOON).await.unwrap_err().is_closed());
    assert!(
        matches!(events.next().await, Delivery::Event(event) if event.name == "SHUTDOWN"),
        "what came before the end is delivered"
    );
    assert_eq!(events.next().await, Delivery::Closed);
}

#[tokio::test]
async fn a_line_without_end_is_refused() {
    let (qmp, mut fake) = connected().await;
    let serve = tokio::spawn(async move {
        let piece = vec![b' '; 1 << 20];
        // The client hangs up once it has had enough, so the last write may fail.
        while fake.stream.write_all(&piece).await.is_ok() {}
    });
    let refused = tokio::time::timeout(SOON, qmp.closed()).await.unwrap();
    assert!(matches!(&refused, QmpError::Protocol { expected, .. }
        if expected.contains(&MAX_LINE_BYTES.to_string())));
    drop(qmp);
    serve.abort();
}

#[tokio::test]
async fn what_is_no_json_ends_the_connection() {
    let (qmp, mut fake) = connected().await;
    let (result, ()) = tokio::join!(qmp.execute("a", Value::Null, SOON), async {
        fake.receive().await;
        fake.send("Hello?").await;
    });
    assert!(matches!(result, Err(QmpError::Protocol { found, .. }) if found.contains("Hello?")));
}

#[tokio::test]
async fn a_qemu_that_does_not_read_costs_a_time_limit_and_no_memory() {
    let (qmp, fake) = connected().await;
    let argument = "x".repeat(1 << 20);
    let started = tokio::time::Instant::now();
    let calls = (0..200).map(|_| {
        let (qmp, argument) = (qmp.clone(), argument.clone());
        tokio::spawn(async move {
            qmp.execute("a", json!({ "x": argument }), Duration::from_millis(200)).await
        })
    });
    for call in calls.collect::<Vec<_>>() {
        assert!(matches!(call.await.unwrap(), Err(QmpError::Timeout { .. })));
    }
    assert!(started.elapsed() < SOON);
    drop(fake);
}

#[tokio::test]
async fn a_cancelled_caller_does_not_break_the_framing() {
    let (qmp, mut fake) = connected().await;
    // Longer than the socket's buffer, so the line is half written when its caller gives up.
    let long = json!({ "x": "y".repeat(4 << 20) });
    let given_up = qmp.execute("long", long, Duration::from_millis(50)).await;
    assert!(matches!(given_up, Err(QmpError::Timeout { .. })));
    let serve = async {
        assert_eq!(fake.receive().await["execute"], "long");
        let next = fake.receive().await;
        fake.reply(&next, json!(7)).await;
    };
    let (next, ()) = tokio::join!(qmp.execute("next", Value::Null, SOON), serve);
    assert_eq!(next.unwrap(), json!(7));
}

#[tokio::test]
async fn a_descriptor_arrives_with_its_command() {
    let (qmp, fake) = connected().await;
    let memory = rustix::fs::memfd_create("passed", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&memory, b"the same file").unwrap();
    let serve = async {
        let stream = fake.stream.into_inner();
        let (bytes, descriptor) = receive_with_descriptor(&stream).await;
        let command: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(command["execute"], "getfd");
        let mut content = [0; 13];
        rustix::io::pread(&descriptor, &mut content, 0).unwrap();
        assert_eq!(&content, b"the same file");
        let mut fake = Fake { stream: BufReader::new(stream) };
        fake.reply(&command, json!({})).await;
        fake
    };
    let call = qmp.execute_with_fd("getfd", json!({ "fdname": "m" }), memory, SOON);
    let (result, _fake) = tokio::join!(call, serve);
    assert_eq!(result.unwrap(), json!({}));
}

async fn receive_with_descriptor(stream: &UnixStream) -> (Vec<u8>, OwnedFd) {
    let receive = || {
        let mut bytes = vec![0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let length = recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
        bytes.truncate(length);
        let descriptors = control.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => rights.collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        Ok((bytes, descriptors.collect::<Vec<_>>()))
    };
    let (bytes, mut descriptors) = stream.async_io(Interest::READABLE, receive).await.unwrap();
    assert_eq!(descriptors.len(), 1);
    (bytes, descriptors.remove(0))
}

#[tokio::test]
async fn no_greeting_is_a_timeout_and_no_socket_names_its_path() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let silent = Qmp::over(ours, Duration::from_millis(30)).await;
    assert!(matches!(silent, Err(QmpError::Timeout { command, .. }) if command == "(greeting)"));
    let path = std::env::temp_dir().join("sterna-there-is-no-such-socket");
    let absent = Qmp::connect(&path, Duration::from_millis(50)).await;
    assert!(matches!(absent, Err(QmpError::Connect { path: named, .. }) if named == path));
}
