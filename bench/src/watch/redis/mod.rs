//! Clients of a guest's redis server: a few connections that read and write values all the time and
//! check every one, before, while and after the guest is moved.
//!
//! ```text
//! parent: RedisClient::start ... finish      child: run --> Worker (a connection each) --> Recorder
//! ```
//!
//! Each connection has keys of its own (key modulo connections), so it knows what each of them must
//! hold: a value that is lost, stale or corrupt is a wrong value. A command is sent when the reply to
//! the one before has come; latencies are collected in windows of 100 ms, by the time of the reply.

mod recorder;
#[cfg(test)]
mod tests;
mod worker;

#[path = "../../../../guest/src/application/resp.rs"]
mod resp;
#[path = "../../../../guest/src/application/value.rs"]
mod value;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sterna_e2e::{Error, GUEST_ADDRESS, Result, World};

use super::child::{self, Client};
use crate::machine;
use recorder::Recorder;
use worker::Worker;

/// The hidden option that makes this program such a client; see [`run`] for what follows it.
pub(crate) const OPTION: &str = "--redis-client";
/// Keys that the guest fills by default.
pub(crate) const KEYS: u32 = 65536;
const PORT: u16 = 6379;
const WINDOW_MS: u32 = 100;
const MAX_CONNECTIONS: u32 = 64;
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
pub(crate) struct RedisClient(Client);

impl RedisClient {
    /// Starts them against the server of a guest whose values nobody has written to yet, and waits until
    /// each connection has a reply.
    ///
    /// # Errors
    /// The server does not answer.
    pub(crate) fn start(world: &World, connections: u32, keys: u32) -> Result<Self> {
        let guest: IpAddr = GUEST_ADDRESS
            .parse()
            .map_err(|error| Error::unexpected("the guest", "an address", error))?;
        let words =
            [SocketAddr::new(guest, PORT).to_string(), connections.to_string(), keys.to_string()];
        let [address, connections, keys] = &words;
        let words = [OPTION, address, connections, keys];
        Client::start(world, "clients of redis", &words).map(Self)
    }

    /// Ends them.
    ///
    /// # Errors
    /// They have ended by themselves.
    pub(crate) fn finish(self) -> Result<RedisRecord> {
        self.0.finish()
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
    child::begun();
    child::until_finished();
    shared.stop.store(true, Ordering::Relaxed);
    let end = Instant::now();
    while workers.iter().any(|worker| !worker.is_finished()) && end.elapsed() < LAST_REPLY_LIMIT {
        thread::sleep(Duration::from_millis(1));
    }
    let unanswered = workers.iter().filter(|worker| !worker.is_finished()).count();
    let record = shared.recorder().finish(u32::try_from(unanswered).unwrap_or(u32::MAX));
    child::tell(&record)
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
        let recorder = Mutex::new(Recorder::new(machine::unix_ms()?, setup.connections));
        Ok(Self { stop: AtomicBool::new(false), begun: AtomicU32::new(0), recorder })
    }

    fn recorder(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
