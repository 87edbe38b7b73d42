//! A client of the guest: talks to it all the time over one TCP connection, and remembers the
//! longest silence.
//!
//! The socket has to be opened in the clients' namespace, so it belongs to a `busybox nc` that runs
//! there; this process writes to its input and reads its output.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::command::wait_for;
use crate::world::{GUEST_ADDRESS, World};
use crate::{Error, Result};

const ECHO_PORT: &str = "7";
const CONTROL_PORT: &str = "7000";
const INTERVAL: Duration = Duration::from_millis(1);
/// A probe is its own number.
const PROBE_BYTES: u64 = 8;
/// How long the echo of what was sent last may take.
const LAST_ECHO_LIMIT: Duration = Duration::from_secs(5);

/// What a prober has seen.
#[derive(Clone, Copy, Debug)]
pub struct ProbeReport {
    /// The longest time between two answers.
    pub longest_gap: Duration,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes that came back, all of them over the one connection.
    pub echoed_bytes: u64,
    /// Every byte came back in order, and the connection was never closed.
    pub lived: bool,
}

/// A connection to the guest's echo; closed when dropped.
#[derive(Debug)]
pub struct Prober {
    client: Child,
    shared: Arc<Shared>,
    writer: Option<JoinHandle<ChildStdin>>,
    reader: Option<JoinHandle<Duration>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    sent_bytes: AtomicU64,
    echoed_bytes: AtomicU64,
    is_broken: AtomicBool,
}

impl Prober {
    /// Connects, and begins once the first answer has come.
    ///
    /// # Errors
    /// The guest does not answer in `limit`.
    pub fn start(world: &World, limit: Duration) -> Result<Self> {
        let mut prober = Self::connect(world)?;
        wait_for("the guest's first echo", limit, || {
            if matches!(prober.client.try_wait(), Ok(Some(_))) {
                // Its network may be up before its services are.
                prober = Self::connect(world)?;
            }
            Ok((prober.shared.echoed_bytes.load(Ordering::Relaxed) > 0).then_some(()))
        })?;
        Ok(prober)
    }

    fn connect(world: &World) -> Result<Self> {
        let mut client = connect(world, ECHO_PORT)?;
        let input = client.stdin.take();
        let output = client.stdout.take();
        let shared = Arc::new(Shared::default());
        let for_reader = Arc::clone(&shared);
        let reader = output.map(|output| thread::spawn(move || receive(output, &for_reader)));
        let for_writer = Arc::clone(&shared);
        let writer = input.map(|input| thread::spawn(move || send(input, &for_writer)));
        Ok(Self { client, shared, writer, reader })
    }

    /// Waits until everything that was sent so far has come back.
    ///
    /// # Errors
    /// It does not in `limit`.
    pub fn wait_for_echo(&self, limit: Duration) -> Result<()> {
        let sent = self.shared.sent_bytes.load(Ordering::Relaxed);
        wait_for("the echo of all that was sent", limit, || {
            Ok((self.shared.echoed_bytes.load(Ordering::Relaxed) >= sent).then_some(()))
        })
    }

    /// Ends it.
    #[must_use]
    pub fn finish(mut self) -> ProbeReport {
        self.shared.stop.store(true, Ordering::Relaxed);
        // The input stays open until the last echo: closing it would end the connection.
        let _input = self.writer.take().and_then(|writer| writer.join().ok());
        let all_back = self.wait_for_echo(LAST_ECHO_LIMIT).is_ok();
        let is_open = matches!(self.client.try_wait(), Ok(None));
        self.hang_up();
        let longest_gap = self.reader.take().and_then(|reader| reader.join().ok());
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let is_broken = self.shared.is_broken.load(Ordering::Relaxed);
        ProbeReport {
            longest_gap: longest_gap.unwrap_or(Duration::MAX),
            sent_bytes: read(&self.shared.sent_bytes),
            echoed_bytes: read(&self.shared.echoed_bytes),
            lived: all_back && is_open && !is_broken,
        }
    }

    fn hang_up(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.hang_up();
    }
}

/// Asks the guest's control port: `sweep` (a whole sweep from now on) or `stats`.
///
/// # Errors
/// No answer in `limit`.
pub fn ask_guest(world: &World, question: &str, limit: Duration) -> Result<String> {
    let mut client = connect(world, CONTROL_PORT)?;
    let mut input = client.stdin.take();
    let output = client.stdout.take();
    let line = format!("{question}\n");
    let reader = output.map(|output| thread::spawn(move || first_line(output)));
    let asked = input.as_mut().map(|input| input.write_all(line.as_bytes()));
    let answer = wait_for("an answer of the guest", limit, || {
        Ok(reader.as_ref().is_none_or(JoinHandle::is_finished).then_some(()))
    });
    let _ = client.kill();
    let _ = client.wait();
    answer?;
    let text = reader.and_then(|reader| reader.join().ok()).unwrap_or_default();
    match asked {
        Some(Ok(())) if !text.is_empty() => Ok(text),
        _ => Err(Error::unexpected("the guest's control port", "an answer", format!("{text:?}"))),
    }
}

fn connect(world: &World, port: &str) -> Result<Child> {
    let mut command = world.command_of_client(Path::new("busybox"));
    command.args(["nc", GUEST_ADDRESS, port]);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    piped.spawn().map_err(Error::io("starting busybox nc"))
}

fn send(mut input: ChildStdin, shared: &Shared) -> ChildStdin {
    for number in 0_u64.. {
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        if input.write_all(&number.to_be_bytes()).is_err() {
            shared.is_broken.store(true, Ordering::Relaxed);
            break;
        }
        shared.sent_bytes.fetch_add(PROBE_BYTES, Ordering::Relaxed);
        thread::sleep(INTERVAL);
    }
    input
}

/// Gives the longest time between two answers.
fn receive(mut output: ChildStdout, shared: &Shared) -> Duration {
    let mut buffer = [0; 4096];
    let mut longest = Duration::ZERO;
    let mut last: Option<Instant> = None;
    let mut at_bytes = 0_u64;
    while let Ok(length) = output.read(&mut buffer) {
        if length == 0 {
            break;
        }
        let now = Instant::now();
        longest = longest.max(last.map_or(Duration::ZERO, |last| now - last));
        last = Some(now);
        for byte in &buffer[..length] {
            let expected = (at_bytes / PROBE_BYTES).to_be_bytes();
            if usize::try_from(at_bytes % PROBE_BYTES).is_ok_and(|at| expected[at] != *byte) {
                shared.is_broken.store(true, Ordering::Relaxed);
            }
            at_bytes += 1;
        }
        shared.echoed_bytes.store(at_bytes, Ordering::Relaxed);
    }
    longest
}

fn first_line(mut output: ChildStdout) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while output.read(&mut byte).is_ok_and(|length| length == 1) && byte[0] != b'\n' {
        text.push(byte[0]);
    }
    String::from_utf8_lossy(&text).into_owned()
}
