//! One connection to redis: commands, replies, and what each key must hold.

use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::resp::{Reply, RespError, read_reply, write_command};
use super::value::{key_name, sequence_in, value_of};
use super::{Setup, Shared};

/// The sequence of every value in a server that nobody has written to yet.
const FILLED: u32 = 0;
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// One connection and what its keys hold.
pub(super) struct Worker {
    address: SocketAddr,
    index: u32,
    stride: u32,
    /// By key / stride: the sequence that was written last; none where it is not known.
    pub(super) known: Vec<Option<u32>>,
    random: u64,
}

/// What one command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Read,
    Written,
    Wrong(String),
    Refused(String),
}

impl Worker {
    pub(super) fn new(setup: &Setup, index: u32) -> Self {
        let own_keys = (setup.keys - index).div_ceil(setup.connections);
        let random = (u64::from(index) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let known = vec![Some(FILLED); own_keys as usize];
        Self { address: setup.address, index, stride: setup.connections, known, random }
    }

    /// Talks until it is told to stop; a connection that ends is made anew.
    pub(super) fn work(&mut self, shared: &Shared) {
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

    pub(super) fn key(&self, slot: usize) -> u32 {
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
    pub(super) fn judge(
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
