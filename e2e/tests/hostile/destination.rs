//! A destination that the user has named, has the right certificate, and then lies: the guest stays where it is.

use std::time::Duration;

use sterna_host::tls::{Connection, LinkOptions, TlsIdentity, read_frame, write_frame};
use sterna_model::{BlockName, Epoch, PageId, Refusal, Root};
use sterna_wire::message::{
    Answer, Applied, Commit, Discarded, Failed, Loaded, Missing, Prepared, Refused, Running,
};
use sterna_wire::{
    AnswerState, FrameKind, FrameReader, FrameWriter, Hello, Message, Reply, Role, Sender, Text,
    Token, Welcome,
};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use crate::bench::Bench;
use crate::caller::{header, offer};
use crate::{Result, expect, run};

/// A move that nobody answers is given up after so many seconds.
const TIMEOUT_S: &str = "4";
const MOVE_LIMIT: Duration = Duration::from_secs(100);

/// How a destination misbehaves.
#[derive(Clone, Debug)]
enum Lie {
    /// Closes instead of answering the hello.
    NoReply,
    /// Answers the hello with these bytes.
    Raw(Vec<u8>),
    /// Answers it with this.
    Reply(Reply),
    /// Welcomes, and says these instead of waiting for anything.
    Says(Vec<Message>),
    /// Welcomes, and sends a frame of this kind.
    Frame(FrameKind),
    /// Welcomes, and says nothing more.
    Silence,
    /// Is ready, and turns the data connections away.
    NoData,
    /// Is ready, and neither reads data nor says anything.
    Deaf,
    /// Is ready, and says these once the data connections are there.
    Then(Vec<Message>),
}

/// Each with what the report says.
fn lies() -> Result<Vec<(Lie, &'static str)>> {
    let root = Root::ZERO_MEMORY;
    let (epoch, other): (_, sterna_model::JobId) = (Epoch(2), "job-0".parse()?);
    let running = Message::Running(Running {
        commit_to_resume_ns: 1,
        peak_anonymous_bytes: 0,
        lacks_pages: 0,
    });
    let loaded = Message::Loaded(Loaded { root, pages_hashed: u64::MAX, load_ms: u64::MAX });
    let answer = Message::Answer(Answer { job: other.clone(), state: AnswerState::Running });
    let welcome = |protocol, names: &[&str]| {
        let capabilities = sterna_wire::Capabilities::new(names).unwrap_or_default();
        Lie::Reply(Reply::Welcome(Welcome { protocol, software: "lies".into(), capabilities }))
    };
    let too_new = sterna_wire::negotiate(&offer(2, 3, &[]), &offer(1, 1, &[]));
    let too_new = too_new.err().unwrap_or_else(|| Refusal::new("none", "", ""));
    let prepared = Message::Prepared(ready()?);
    let missing = Missing { pages: vec![(PageId(u32::MAX), u32::MAX); 4096] };
    let applied = Applied { frames_per_connection: vec![u64::MAX; 64] };
    Ok(vec![
        (Lie::NoReply, "the connection cut off"),
        (Lie::Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()), "misbehaves"),
        (Lie::Raw(header(1, 0, 1 << 30, 0).to_vec()), "at most 16384 bytes"),
        (welcome(7, &[]), "protocol of 1 to 1, found 7"),
        (welcome(1, &["x"]), "only capabilities that were offered"),
        (Lie::Reply(Reply::refused(&too_new)), "protocol-version"),
        (Lie::Frame(FrameKind::Tail), "sent device state"),
        (Lie::Frame(FrameKind::Pages), "a frame of kind Pages"),
        (Lie::Says(vec![running.clone()]), "beta"),
        (Lie::Says(vec![loaded.clone(), running.clone()]), "beta"),
        (Lie::Says(vec![Message::Discarded(Discarded { job: other, epoch })]), "beta"),
        (Lie::Says(vec![answer]), "beta"),
        (Lie::Says(vec![Message::Failed(Failed { error: Text::new("no \u{1b}[31m") })]), "no"),
        (Lie::Says(vec![Message::Commit(Commit { epoch })]), "misbehaves"),
        (Lie::Says(vec![Message::Refused(Refused::new(&[]))]), "beta"),
        (Lie::Says(vec![prepared.clone(), prepared]), "beta"),
        (Lie::Silence, "beta"),
        (Lie::NoData, "beta"),
        (Lie::Deaf, "beta"),
        (Lie::Then(vec![running]), "beta"),
        (Lie::Then(vec![loaded]), "beta"),
        (Lie::Then(vec![Message::Missing(missing); 64]), "beta"),
        (Lie::Then(vec![Message::Applied(applied); 64]), "beta"),
    ])
}

#[test]
fn a_destination_that_lies_gets_no_guest() -> Result<()> {
    run(async {
        let bench = Bench::start_as("alpha", "link_timeout = 5")?;
        let words = ["vm", "start", "web", "--", "qemu-system-x86_64", "-machine", "pc-i440fx-7.2"];
        // A size of which QEMU 7.2 does not lose pages under TCG.
        let more = ["-accel", "tcg", "-m", "16376k", "-nodefaults", "-display", "none"];
        let (code, said) = bench.sterna(&[&words[..], &more[..]].concat())?;
        expect(code == 0, "a guest that starts", &said)?;
        let beta = bench.identity("beta")?;
        let before = bench.usage()?;
        for (lie, found) in lies()? {
            let begun = std::time::Instant::now();
            let report = move_to(&bench, &beta, &lie).await;
            let lie: String = format!("{lie:?}").chars().take(80).collect();
            let (code, report) = report.map_err(|error| format!("{lie}: {error}"))?;
            eprintln!("{:.1?} {code} {lie}", begun.elapsed());
            let words = report.to_string();
            expect(code == 1 || code == 3, &format!("a failure after {lie}"), &(code, &words))?;
            expect(report["guest_is"] == "source", &format!("the guest here after {lie}"), &words)?;
            expect(words.contains(found), &format!("{found:?} after {lie}"), &words)?;
            let (_, shown) = bench.sterna(&["vm", "show", "web", "-o", "json"])?;
            let shown: serde_json::Value = serde_json::from_str(&shown)?;
            expect(shown["state"] == "running", &format!("a guest that runs after {lie}"), &shown)?;
        }
        bench.is_well(before, &[]).await
    })
}

/// Moves the guest to a destination that lies; gives the exit code and the report.
async fn move_to(bench: &Bench, beta: &TlsIdentity, lie: &Lie) -> Result<(i32, serde_json::Value)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let to = format!("beta={}", listener.local_addr()?);
    let serving = tokio::spawn(serve(listener, beta.clone(), lie.clone()));
    let words = ["migrate", "web", &to, "--timeout", TIMEOUT_S, "--connections", "2", "-o", "json"];
    let mut command = tokio::process::Command::new(sterna_e2e::sterna()?);
    command.args(words).env("STERNA_AGENT", bench.folder().join("run/s.sock"));
    let output = tokio::time::timeout(MOVE_LIMIT, command.kill_on_drop(true).output());
    let output = output.await.map_err(|_| "the move does not end")??;
    serving.abort();
    let report = serde_json::from_slice(&output.stdout)?;
    Ok((output.status.code().unwrap_or(-1), report))
}

async fn serve(listener: TcpListener, beta: TlsIdentity, lie: Lie) {
    while let Ok((socket, _)) = listener.accept().await {
        let (beta, lie) = (beta.clone(), lie.clone());
        // What goes wrong here is the liar's: the agent may hang up at any time.
        tokio::spawn(async move { drop(receive(socket, &beta, lie).await) });
    }
}

async fn receive(socket: TcpStream, beta: &TlsIdentity, lie: Lie) -> Result<()> {
    let mut liar = Liar::take(socket, beta).await?;
    let is_data = matches!(liar.role, Role::Data { .. });
    match (lie, is_data) {
        (Lie::NoReply, _) | (Lie::NoData, true) => return Ok(()),
        (Lie::Raw(bytes), _) => liar.connection.stream().write_all(&bytes).await?,
        (Lie::Reply(reply), _) => liar.reply(&reply).await?,
        (Lie::Deaf | Lie::Silence, true) => liar.welcome().await?,
        (Lie::Then(_), true) => {
            liar.welcome().await?;
            return liar.read_on().await;
        }
        (Lie::Silence, false) => liar.welcome().await?,
        (Lie::Frame(kind), _) => {
            liar.welcome().await?;
            let Liar { connection, writer, .. } = &mut liar;
            write_frame(connection.stream(), writer, kind, &[0; 16]).await?;
        }
        (Lie::Says(messages), _) => {
            liar.welcome().await?;
            liar.say(&messages).await?;
        }
        (Lie::NoData | Lie::Deaf, false) => {
            liar.welcome().await?;
            liar.say(&[Message::Prepared(ready()?)]).await?;
        }
        (Lie::Then(messages), false) => {
            liar.welcome().await?;
            liar.say(&[Message::Prepared(ready()?)]).await?;
            // A ping shows that the data connections are there.
            while !matches!(liar.hear().await?, Message::Ping(_)) {}
            tokio::time::sleep(Duration::from_millis(300)).await;
            liar.say(&messages).await?;
            return liar.read_on().await;
        }
    }
    // Open for as long as anybody waits.
    tokio::time::sleep(MOVE_LIMIT).await;
    drop(liar);
    Ok(())
}

fn ready() -> Result<Prepared> {
    Ok(Prepared {
        token: Token([9; 32]),
        shared_blocks: vec![BlockName::new(b"pc.ram")?],
        qemu_version: "7.2.0".to_owned(),
        start_ms: u64::MAX,
        post_copy: false,
        kept: false,
    })
}

/// One connection of the agent that the liar has taken.
struct Liar {
    connection: Connection,
    reader: FrameReader,
    writer: FrameWriter,
    role: Role,
}

impl Liar {
    async fn take(socket: TcpStream, beta: &TlsIdentity) -> Result<Self> {
        let mut connection = Connection::accept(socket, beta, LinkOptions::default()).await?;
        let mut reader = FrameReader::new();
        read_frame(connection.stream(), &mut reader).await?;
        let hello = Hello::decode(reader.frame().ok_or("no hello")?.payload)?;
        Ok(Self { connection, reader, writer: FrameWriter::new(), role: hello.role })
    }

    async fn reply(&mut self, reply: &Reply) -> Result<()> {
        let payload = reply.encode()?;
        let stream = self.connection.stream();
        Ok(write_frame(stream, &mut self.writer, FrameKind::Hello, &payload).await?)
    }

    async fn welcome(&mut self) -> Result<()> {
        let ours = offer(1, 1, &[]);
        self.reply(&Reply::to_offer(&ours, &ours)).await
    }

    async fn say(&mut self, messages: &[Message]) -> Result<()> {
        for message in messages {
            let (payload, stream) = (message.encode()?, self.connection.stream());
            write_frame(stream, &mut self.writer, FrameKind::Control, &payload).await?;
        }
        Ok(())
    }

    async fn hear(&mut self) -> Result<Message> {
        if !read_frame(self.connection.stream(), &mut self.reader).await? {
            return Err("the agent has closed the connection".into());
        }
        let frame = self.reader.frame().ok_or("no frame")?;
        Ok(Message::decode(frame.payload, Sender::Source)?)
    }

    /// Reads whatever comes, to the end.
    async fn read_on(&mut self) -> Result<()> {
        while read_frame(self.connection.stream(), &mut self.reader).await? {}
        Ok(())
    }
}
