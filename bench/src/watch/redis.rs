//! Clients of a guest's redis server: a few connections that read and write values all the time and
//! check every one, before, while and after the guest is moved.
//!
//! ```text
//! parent: RedisClient::start ... finish          child, in the clients' namespace: run
//!   stdin open until finish, stdout: a line once all connections have a reply, at the end the record
//! ```
//!
//! Each connection has keys of its own (key modulo connections), so it knows what each of them must
//! hold: a value that is lost, stale or corrupt is a wrong value. A command is sent when the reply to
//! the one before has come; latencies are collected in windows of 100 ms, by the time of the reply.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use sterna_e2e::{Error, GUEST_ADDRESS, Result, World};

#[path = "../../../guest/src/application/resp.rs"]
mod resp;
#[path = "../../../guest/src/application/value.rs"]
mod value;

use resp::{Reply, RespError, read_reply, write_command};
use value::{key_name, sequence_in, value_of};

/// The hidden option that makes this program such a client; see [`run`] for what follows it.
pub(crate) const OPTION: &str = "--redis-client";
/// Keys that the guest fills by default.
pub(crate) const KEYS: u32 = 65536;
/// The sequence of every value in a server that nobody has written to yet.
const FILLED: u32 = 0;
const PORT: u16 = 6379;
const WINDOW_MS: u32 = 100;
const WINDOW: Duration = Duration::from_millis(WINDOW_MS as u64);
/// An hour of windows; what comes later is only counted.
const MAX_WINDOWS: usize = 36_000;
const MAX_CONNECTIONS: u32 = 64;
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// The first replies of a guest that has just booted.
const FIRST_REPLY_LIMIT: Duration = Duration::from_secs(20);
/// How long replies may take that are under way at the end.
const LAST_REPLY_LIMIT: Duration = Duration::from_secs(5);

/// Replies that came in 100 ms; latencies in microseconds, absent when there was none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Window {
    /// How many.
    pub(crate) replies: u32,
    /// The median latency.
    pub(crate) p50_us: Option<u32>,
    /// One of a hundred took longer.
    pub(crate) p99_us: Option<u32>,
    /// The longest.
    pub(crate) max_us: Option<u32>,
}

/// What the clients have seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct RedisRecord {
    /// Where the first window begins: milliseconds since 1970, as in QEMU's events.
    pub(crate) start_unix_ms: f64,
    /// How long a window is.
    pub(crate) window_ms: u32,
    /// Connections.
    pub(crate) connections: u32,
    /// Values read, and right.
    pub(crate) gets: u64,
    /// Values written.
    pub(crate) sets: u64,
    /// Values that were not what this client had written last.
    pub(crate) wrong_values: u64,
    /// Errors that redis answered.
    pub(crate) refused: u64,
    /// Connections that ended, or that spoke nonsense and were given up.
    pub(crate) disconnects: u64,
    /// Commands without a reply at the end.
    pub(crate) unanswered: u32,
    /// The longest time without any reply, the end included.
    pub(crate) longest_silence_ms: f64,
    /// When that began.
    pub(crate) silence_unix_ms: f64,
    /// The first thing that went wrong, in words.
    pub(crate) first_problem: Option<String>,
    /// Without a gap from the first one on.
    pub(crate) windows: Vec<Window>,
}

impl RedisRecord {
    /// No value was wrong and no connection was lost.
    pub(crate) fn is_sound(&self) -> bool {
        let bad = self.wrong_values + self.refused + self.disconnects + u64::from(self.unanswered);
        bad == 0 && self.gets > 0 && self.sets > 0
    }
}

/// Clients at work; killed when dropped.
#[derive(Debug)]
pub(crate) struct RedisClient(Child);

impl RedisClient {
    /// Starts them against the server of a guest whose values nobody has written to yet, and waits until
    /// each connection has a reply.
    ///
    /// # Errors
    /// The server does not answer.
    pub(crate) fn start(world: &World, connections: u32, keys: u32) -> Result<Self> {
        let program =
            std::env::current_exe().map_err(Error::io("asking for this program's path"))?;
        let mut command = world.command_of_client(&program);
        let address = SocketAddr::new(
            GUEST_ADDRESS
                .parse()
                .map_err(|error| Error::unexpected("the guest", "an address", error))?,
            PORT,
        );
        command.args([OPTION, &address.to_string(), &connections.to_string(), &keys.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut client = Self(command.spawn().map_err(Error::io("starting the clients of redis"))?);
        let mut first = [0];
        match client.0.stdout.as_mut().map(|output| output.read_exact(&mut first)) {
            Some(Ok(())) => Ok(client),
            _ => {
                Err(Error::unexpected("the clients of redis", "a reply on each connection", "none"))
            }
        }
    }

    /// Ends them.
    ///
    /// # Errors
    /// They have ended by themselves.
    pub(crate) fn finish(mut self) -> Result<RedisRecord> {
        drop(self.0.stdin.take());
        let mut text = String::new();
        if let Some(Err(error)) =
            self.0.stdout.as_mut().map(|output| output.read_to_string(&mut text))
        {
            return Err(Error::io("reading what the clients of redis have seen")(error));
        }
        serde_json::from_str(&text)
            .map_err(|error| Error::unexpected("the clients of redis", "their record", error))
    }
}

impl Drop for RedisClient {
    fn drop(&mut self) {
        // Both fail only when they have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The child's part: `ADDRESS:PORT CONNECTIONS KEYS`, until the input is closed; prints the record.
///
/// # Errors
/// The words are others, or a connection has no reply at all.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let setup = Setup::parse(arguments)?;
    let shared = Arc::new(Shared::new(&setup)?);
    let workers: Vec<_> = (0..setup.connections)
        .map(|index| {
            let (mut worker, shared) = (Worker::new(&setup, index), Arc::clone(&shared));
            thread::spawn(move || worker.work(&shared))
        })
        .collect();
    let start = Instant::now();
    while shared.begun.load(Ordering::Relaxed) < setup.connections {
        if start.elapsed() > FIRST_REPLY_LIMIT {
            let found = shared.recorder().record.first_problem.clone().unwrap_or_default();
            return Err(Error::unexpected("redis", "a reply on each connection", found));
        }
        thread::sleep(Duration::from_millis(1));
    }
    // The parent waits for this sign; that it has gone is no matter here.
    let _ = std::io::stdout().write_all(b"\n").and_then(|()| std::io::stdout().flush());
    // Whatever comes from there, its end is what counts.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    shared.stop.store(true, Ordering::Relaxed);
    let end = Instant::now();
    while workers.iter().any(|worker| !worker.is_finished()) && end.elapsed() < LAST_REPLY_LIMIT {
        thread::sleep(Duration::from_millis(1));
    }
    let unanswered = workers.iter().filter(|worker| !worker.is_finished()).count();
    let record = shared.recorder().finish(u32::try_from(unanswered).unwrap_or(u32::MAX));
    let text = serde_json::to_string(&record)
        .map_err(|error| Error::unexpected("the clients of redis", "JSON", error))?;
    println!("{text}");
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setup {
    address: SocketAddr,
    connections: u32,
    keys: u32,
}

impl Setup {
    fn parse(words: &[String]) -> Result<Self> {
        let parsed = match words {
            [address, connections, keys] => {
                address.parse().ok().zip(connections.parse().ok()).zip(keys.parse().ok())
            }
            _ => None,
        };
        let setup =
            parsed.map(|((address, connections), keys)| Self { address, connections, keys });
        let in_range = |setup: &Self| {
            (1..=MAX_CONNECTIONS).contains(&setup.connections) && setup.keys >= setup.connections
        };
        setup.filter(in_range).ok_or_else(|| {
            Error::unexpected(OPTION, "ADDRESS:PORT CONNECTIONS KEYS", format!("{words:?}"))
        })
    }
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    /// Connections that had a reply.
    begun: AtomicU32,
    recorder: Mutex<Recorder>,
}

impl Shared {
    fn new(setup: &Setup) -> Result<Self> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now =
            now.map_err(|error| Error::unexpected("the clock", "a time after 1970", error))?;
        let recorder = Mutex::new(Recorder::new(now.as_secs_f64() * 1e3, setup.connections));
        Ok(Self { stop: AtomicBool::new(false), begun: AtomicU32::new(0), recorder })
    }

    fn recorder(&self) -> std::sync::MutexGuard<'_, Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection and what its keys hold.
struct Worker {
    address: SocketAddr,
    index: u32,
    stride: u32,
    /// By key / stride: the sequence that was written last; none where it is not known.
    known: Vec<Option<u32>>,
    random: u64,
}

/// What one command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Read,
    Written,
    Wrong(String),
    Refused(String),
}

impl Worker {
    fn new(setup: &Setup, index: u32) -> Self {
        let own_keys = (setup.keys - index).div_ceil(setup.connections);
        let random = (u64::from(index) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let known = vec![Some(FILLED); own_keys as usize];
        Self { address: setup.address, index, stride: setup.connections, known, random }
    }

    /// Talks until it is told to stop; a connection that ends is made anew.
    fn work(&mut self, shared: &Shared) {
        let mut has_begun = false;
        while !shared.stop.load(Ordering::Relaxed) {
            if let Err(error) = self.talk(shared, &mut has_begun) {
                let mut recorder = shared.recorder();
                // Before the first reply the server may not be there yet.
                recorder.record.disconnects += u64::from(has_begun);
                recorder.note(error.to_string());
                drop(recorder);
                thread::sleep(RECONNECT_PAUSE);
            }
        }
    }

    fn talk(
        &mut self,
        shared: &Shared,
        has_begun: &mut bool,
    ) -> std::result::Result<(), RespError> {
        let mut writer = TcpStream::connect_timeout(&self.address, CONNECT_LIMIT)?;
        writer.set_nodelay(true)?;
        let mut reader = BufReader::new(writer.try_clone()?);
        while !shared.stop.load(Ordering::Relaxed) {
            let (slot, is_set) = self.choose();
            let sequence = self.known[slot].filter(|_| is_set).map(|known| known.wrapping_add(1));
            let command = self.command(slot, sequence);
            // Until the reply has come nobody knows what it holds.
            let before = self.known[slot].take();
            let start = Instant::now();
            writer.write_all(&command)?;
            let reply = read_reply(&mut reader)?;
            let latency = start.elapsed();
            let outcome = self.judge(slot, sequence, before, reply);
            shared.recorder().take(Instant::now(), latency, outcome);
            if !*has_begun {
                *has_begun = true;
                shared.begun.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// A slot of the table and whether it is to be written.
    fn choose(&mut self) -> (usize, bool) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let slot = (self.random >> 20) % self.known.len().max(1) as u64;
        (usize::try_from(slot).unwrap_or(0), self.random >> 10 & 1 == 1)
    }

    fn key(&self, slot: usize) -> u32 {
        u32::try_from(slot).unwrap_or(0) * self.stride + self.index
    }

    /// A SET of that sequence, or a GET.
    fn command(&self, slot: usize, sequence: Option<u32>) -> Vec<u8> {
        let key = self.key(slot);
        let name = key_name(key);
        let mut command = Vec::new();
        match sequence {
            Some(sequence) => {
                let value = value_of(key, sequence);
                write_command(&[b"SET", name.as_bytes(), &value], &mut command);
            }
            None => write_command(&[b"GET", name.as_bytes()], &mut command),
        }
        command
    }

    /// What the reply to a SET of `sequence`, or to a GET, means for a key that held `before`.
    fn judge(
        &mut self,
        slot: usize,
        sequence: Option<u32>,
        before: Option<u32>,
        reply: Reply,
    ) -> Outcome {
        let key = self.key(slot);
        match (sequence, reply) {
            (Some(_), Reply::Text(word)) if word == "OK" => {
                self.known[slot] = sequence;
                Outcome::Written
            }
            (_, Reply::Refused(words)) => {
                self.known[slot] = before;
                Outcome::Refused(words)
            }
            (None, Reply::Bulk(Some(bytes))) => match sequence_in(key, &bytes) {
                Ok(found) => {
                    self.known[slot] = Some(found);
                    match before {
                        Some(expected) if expected != found => Outcome::Wrong(format!(
                            "key {key}: expected sequence {expected}, found {found}"
                        )),
                        _ => Outcome::Read,
                    }
                }
                Err(error) => Outcome::Wrong(format!("key {key}: {error}")),
            },
            (_, other) => {
                let found: String = format!("{other:?}").chars().take(80).collect();
                Outcome::Wrong(format!("key {key}: found {found}"))
            }
        }
    }
}

/// The record as it grows.
#[derive(Debug)]
struct Recorder {
    start: Instant,
    record: RedisRecord,
    /// Of the window that is open: the one after the last of the record.
    latencies_us: Vec<u32>,
    last_reply: Duration,
}

impl Recorder {
    fn new(start_unix_ms: f64, connections: u32) -> Self {
        let record = RedisRecord {
            start_unix_ms,
            window_ms: WINDOW_MS,
            connections,
            ..RedisRecord::default()
        };
        Self { start: Instant::now(), record, latencies_us: Vec::new(), last_reply: Duration::ZERO }
    }

    fn take(&mut self, now: Instant, latency: Duration, outcome: Outcome) {
        self.reply_at(now.saturating_duration_since(self.start), latency);
        match outcome {
            Outcome::Read => self.record.gets += 1,
            Outcome::Written => self.record.sets += 1,
            Outcome::Wrong(words) => {
                self.record.wrong_values += 1;
                self.note(words);
            }
            Outcome::Refused(words) => {
                self.record.refused += 1;
                self.note(words);
            }
        }
    }

    /// A reply at that time since the start.
    fn reply_at(&mut self, at: Duration, latency: Duration) {
        self.close_windows_before(at);
        self.note_silence(at);
        if self.record.windows.len() < MAX_WINDOWS {
            self.latencies_us.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
        }
    }

    fn note_silence(&mut self, now: Duration) {
        let silence_ms = now.saturating_sub(self.last_reply).as_secs_f64() * 1e3;
        // The time until the first reply is the server's start.
        if silence_ms > self.record.longest_silence_ms && !self.last_reply.is_zero() {
            self.record.longest_silence_ms = silence_ms;
            let began_ms = self.last_reply.as_secs_f64() * 1e3;
            self.record.silence_unix_ms = self.record.start_unix_ms + began_ms;
        }
        self.last_reply = now.max(self.last_reply);
    }

    fn note(&mut self, words: String) {
        self.record.first_problem.get_or_insert(words);
    }

    fn close_windows_before(&mut self, now: Duration) {
        let current = now.as_millis() / u128::from(WINDOW_MS);
        while (self.record.windows.len() as u128) < current
            && self.record.windows.len() < MAX_WINDOWS
        {
            self.record.windows.push(Window::of(&mut self.latencies_us));
            self.latencies_us.clear();
        }
    }

    /// The record up to now. What has only failed before the server was there is no problem.
    fn finish(&mut self, unanswered: u32) -> RedisRecord {
        let now = self.start.elapsed();
        self.close_windows_before(now + WINDOW);
        self.note_silence(now);
        self.record.unanswered = unanswered;
        if self.record.is_sound() {
            self.record.first_problem = None;
        }
        self.record.clone()
    }
}

impl Window {
    fn of(latencies_us: &mut [u32]) -> Self {
        latencies_us.sort_unstable();
        let count = latencies_us.len();
        // The nearest rank: the smallest latency that so many percent do not exceed.
        let percentile = |percent: usize| {
            latencies_us.get((count * percent).div_ceil(100).saturating_sub(1)).copied()
        };
        Self {
            replies: u32::try_from(count).unwrap_or(u32::MAX),
            p50_us: percentile(50),
            p99_us: percentile(99),
            max_us: latencies_us.last().copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn worker() -> Worker {
        let setup = Setup { address: (Ipv4Addr::LOCALHOST, 1).into(), connections: 3, keys: 10 };
        Worker::new(&setup, 1)
    }

    #[test]
    fn windows_have_ranks_and_no_gaps() {
        let mut recorder = Recorder::new(1000.0, 1);
        for n in 1..=100 {
            recorder.reply_at(ms(50), Duration::from_micros(n));
        }
        recorder.reply_at(ms(370), ms(320));
        recorder.close_windows_before(ms(400));
        let windows = &recorder.record.windows;
        let first = Window { replies: 100, p50_us: Some(50), p99_us: Some(99), max_us: Some(100) };
        assert_eq!(windows[..3], [first, Window::default(), Window::default()]);
        let last = Some(320_000);
        assert_eq!(windows[3..], [Window { replies: 1, p50_us: last, p99_us: last, max_us: last }]);
    }

    #[test]
    fn the_longest_silence_is_between_replies_and_has_a_time() {
        let mut recorder = Recorder::new(1000.0, 1);
        for at in [500, 510, 790, 800] {
            recorder.reply_at(ms(at), ms(1));
        }
        let record = &recorder.record;
        assert!((record.longest_silence_ms - 280.0).abs() < 1e-6, "{record:?}");
        assert!((record.silence_unix_ms - 1510.0).abs() < 1e-6, "{record:?}");
    }

    #[test]
    fn windows_end_somewhere() {
        let mut recorder = Recorder::new(0.0, 1);
        recorder.reply_at(Duration::from_secs(1_000_000), ms(1));
        assert_eq!((recorder.record.windows.len(), recorder.latencies_us.len()), (MAX_WINDOWS, 0));
    }

    #[test]
    fn connections_share_the_keys() {
        let setup = Setup { address: (Ipv4Addr::LOCALHOST, 1).into(), connections: 3, keys: 10 };
        let mut keys: Vec<u32> = (0..3)
            .map(|index| Worker::new(&setup, index))
            .flat_map(|worker| {
                (0..worker.known.len()).map(|slot| worker.key(slot)).collect::<Vec<_>>()
            })
            .collect();
        keys.sort_unstable();
        assert_eq!(keys, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn a_stale_a_foreign_and_a_lost_value_are_wrong() {
        let mut worker = worker();
        let key = worker.key(2);
        let held = |sequence| Reply::Bulk(Some(value_of(key, sequence)));
        assert_eq!(worker.judge(2, None, None, held(4)), Outcome::Read);
        assert_eq!(
            worker.judge(2, Some(5), Some(4), Reply::Text("OK".to_owned())),
            Outcome::Written
        );
        assert_eq!(worker.known[2], Some(5));
        assert_eq!(worker.judge(2, None, Some(5), held(5)), Outcome::Read);
        let foreign = Reply::Bulk(Some(value_of(key + 1, 5)));
        for reply in [held(4), foreign, Reply::Bulk(None), Reply::Text("OK".to_owned())] {
            let outcome = worker.judge(2, None, Some(5), reply);
            assert!(matches!(outcome, Outcome::Wrong(_)), "{outcome:?}");
        }
        let refused = worker.judge(2, Some(6), Some(5), Reply::Refused("OOM".to_owned()));
        assert_eq!((refused, worker.known[2]), (Outcome::Refused("OOM".to_owned()), Some(5)));
    }

    #[test]
    fn a_connection_that_ends_is_counted_and_made_anew() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let setup = Setup { address: listener.local_addr().unwrap(), connections: 1, keys: 1 };
        let shared = Arc::new(Shared::new(&setup).unwrap());
        let for_worker = Arc::clone(&shared);
        let worker = thread::spawn(move || Worker::new(&setup, 0).work(&for_worker));
        let serve = |mut client: TcpStream, has_asked: &dyn Fn()| {
            let mut buffer = [0; 4096];
            let length = client.read(&mut buffer).unwrap();
            has_asked();
            let mut held = b"$1000\r\n".to_vec();
            held.extend(value_of(0, 0));
            held.extend(b"\r\n");
            let is_get = buffer[..length].starts_with(b"*2");
            client.write_all(if is_get { &held } else { b"+OK\r\n" }).unwrap();
        };
        serve(listener.accept().unwrap().0, &|| {});
        serve(listener.accept().unwrap().0, &|| shared.stop.store(true, Ordering::Relaxed));
        worker.join().unwrap();
        let record = shared.recorder().finish(0);
        assert_eq!(record.gets + record.sets, 2);
        assert_eq!((record.disconnects, record.wrong_values, record.is_sound()), (1, 0, false));
        assert!(record.first_problem.is_some(), "{record:?}");
    }

    #[test]
    fn words_of_another_kind_are_refused() {
        let parse = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            Setup::parse(&words)
        };
        assert_eq!(parse("127.0.0.1:6379 4 65536").unwrap().keys, KEYS);
        for line in
            ["127.0.0.1 4 9", "127.0.0.1:1 0 9", "127.0.0.1:1 65 99", "127.0.0.1:1 4 3", "x"]
        {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
