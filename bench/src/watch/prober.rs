//! A client that sends the guest a datagram every millisecond and watches for the echo.
//!
//! Datagrams, since a TCP connection that has lost a segment waits longer and longer before it sends it
//! again: it would show its own patience, not the guest's silence.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sterna_e2e::{Error, GUEST_ADDRESS, Result, World};

use super::child::{self, Client};

/// The hidden option that makes this program a prober.
pub(crate) const OPTION: &str = "--probe";
const ECHO_PORT: u16 = 7;
const INTERVAL: Duration = Duration::from_millis(1);
/// The first echo of a guest that has just booted.
const FIRST_ECHO_LIMIT: Duration = Duration::from_secs(20);
/// How often a receiver looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(50);

/// What was seen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Probed {
    /// The longest time between two echoes.
    pub(crate) longest_gap_ms: f64,
    /// Datagrams sent.
    pub(crate) sent: u64,
    /// Datagrams that came back.
    pub(crate) echoed: u64,
}

/// A prober at work; killed when dropped.
#[derive(Debug)]
pub(crate) struct Prober(Client);

impl Prober {
    /// Starts it, and waits for the first echo.
    ///
    /// # Errors
    /// The guest does not answer.
    pub(crate) fn start(world: &World) -> Result<Self> {
        Client::start(world, "prober", &[OPTION]).map(Self)
    }

    /// Ends it.
    ///
    /// # Errors
    /// It has ended by itself.
    pub(crate) fn finish(self) -> Result<Probed> {
        self.0.finish()
    }
}

/// Probes until the input is closed, then prints what was seen: the child's part.
///
/// # Errors
/// No socket, or no echo at all.
pub(crate) fn probe() -> Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).map_err(Error::io("opening a socket"))?;
    socket.connect((GUEST_ADDRESS, ECHO_PORT)).map_err(Error::io("addressing the guest"))?;
    socket.set_read_timeout(Some(LOOK)).map_err(Error::io("setting a time-out"))?;
    let socket = Arc::new(socket);
    let stop = Arc::new(AtomicBool::new(false));
    let sender = {
        let (socket, stop) = (Arc::clone(&socket), Arc::clone(&stop));
        thread::spawn(move || send(&socket, &stop))
    };
    let receiver = {
        let (socket, stop) = (Arc::clone(&socket), Arc::clone(&stop));
        thread::spawn(move || receive(&socket, &stop))
    };
    child::until_finished();
    stop.store(true, Ordering::Relaxed);
    let sent = sender.join().unwrap_or_default();
    let (longest_gap, echoed) = receiver.join().unwrap_or_default();
    let probed = Probed { longest_gap_ms: longest_gap.as_secs_f64() * 1e3, sent, echoed };
    child::tell(&probed)
}

/// Gives how many.
fn send(socket: &UdpSocket, stop: &AtomicBool) -> u64 {
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        // A guest that is down for a moment, or a queue that is full, loses it: that is what is seen.
        let _ = socket.send(&number.to_be_bytes());
        number += 1;
        thread::sleep(INTERVAL);
    }
    number
}

/// Gives the longest time between two echoes, and how many there were. A silence at the end counts.
fn receive(socket: &UdpSocket, stop: &AtomicBool) -> (Duration, u64) {
    let start = Instant::now();
    let (mut longest, mut echoed) = (Duration::ZERO, 0);
    let mut last: Option<Instant> = None;
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        let has_come = socket.recv(&mut buffer).is_ok();
        let now = Instant::now();
        longest = longest.max(last.map_or(Duration::ZERO, |last| now - last));
        if has_come {
            echoed += 1;
            if last.is_none() {
                child::begun();
            }
            last = Some(now);
        } else if last.is_none() && start.elapsed() > FIRST_ECHO_LIMIT {
            std::process::exit(1);
        }
    }
    (longest, echoed)
}
