//! The link in real time: one thread that sleeps until a packet comes or is due.
//!
//! A turn of the loop forwards all that is due, waits for the next event or the next packet's time
//! (to the nanosecond, by `ppoll`; the kernel adds some 50 us), and reads what has come.

use std::io;
use std::os::fd::AsFd;
use std::time;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::{TimeSpec, TimeVal, TimeValLike};
use sterna_model::{ByteCount, Instant};
use tun_rs::SyncDevice;

use crate::devices::Wires;
use crate::direction::Direction;
use crate::link::Link;
use crate::report::{DirectionReport, Lateness, Report};

/// Longer than any packet: IP knows no longer ones.
const PACKET_MAX_BYTES: usize = 1 << 16;
/// Packets read from one device before the other one and the clock have their turn.
const READ_BATCH: usize = 64;

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// A signal asked for it.
    Signal,
    /// Standard input was closed: its parent has gone, or wants it to end.
    InputClosed,
    /// A device has gone, as when its namespace was removed.
    DeviceGone,
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}")]
pub struct RunError {
    doing: &'static str,
    source: io::Error,
}

/// Moves packets until a signal (SIGINT, SIGTERM), the end of standard input, or the end of a device.
///
/// # Errors
/// The system refuses to wait, or to hand over signals.
pub fn run(link: &Link, wires: &Wires) -> Result<(Ending, Report), RunError> {
    let signals = take_signals().map_err(failed("taking signals"))?;
    let input = io::stdin();
    let mut machine = Machine::new(link, wires);
    let ending = loop {
        machine.forward_due();
        let [first, second] = &wires.ends;
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut events = [
            readable(first.as_fd()),
            readable(second.as_fd()),
            readable(signals.as_fd()),
            readable(input.as_fd()),
        ];
        match ppoll(&mut events, machine.time_to_sleep(), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(failed("waiting for packets")(error)),
        }
        let [first, second, signal, input] = events.map(|event| event.revents());
        if is_set(signal) {
            break Ending::Signal;
        }
        if is_set(input) && has_ended() {
            break Ending::InputClosed;
        }
        let read = machine.read(0, first).and_then(|()| machine.read(1, second));
        if read.is_err() {
            break Ending::DeviceGone;
        }
    };
    let report = machine.report().map_err(failed("asking for the time used"))?;
    Ok((ending, report))
}

/// Both directions; the first one begins at the first device.
struct Machine<'w> {
    ends: &'w [SyncDevice; 2],
    directions: [Half; 2],
    start: time::Instant,
    buffer: Vec<u8>,
}

struct Half {
    direction: Direction<Box<[u8]>>,
    lateness: Lateness,
    refused_packets: u64,
}

impl<'w> Machine<'w> {
    fn new(link: &Link, wires: &'w Wires) -> Self {
        let directions = link.directions().map(|direction| Half {
            direction,
            lateness: Lateness::default(),
            refused_packets: 0,
        });
        let buffer = vec![0; PACKET_MAX_BYTES];
        Self { ends: &wires.ends, directions, start: time::Instant::now(), buffer }
    }

    fn forward_due(&mut self) {
        let [first, second] = self.ends;
        for (half, far_end) in self.directions.iter_mut().zip([second, first]) {
            loop {
                let now = now(self.start);
                let Some((due, packet)) = half.direction.take_due(now) else { break };
                half.lateness.add(now.since(due));
                if far_end.send(&packet).is_err() {
                    half.refused_packets += 1;
                }
            }
        }
    }

    /// None when nothing is under way.
    fn time_to_sleep(&self) -> Option<TimeSpec> {
        let arrivals = self.directions.iter().filter_map(|half| half.direction.next_arrival());
        let next = arrivals.min()?;
        Some(TimeSpec::from_duration(next.since(now(self.start))))
    }

    /// Reads what has come to one device; fails when the device has gone.
    fn read(&mut self, end: usize, revents: Option<PollFlags>) -> io::Result<()> {
        if !is_set(revents) {
            return Ok(());
        }
        for _ in 0..READ_BATCH {
            let length = match self.ends[end].recv(&mut self.buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let packet = self.buffer[..length].into();
            let length = ByteCount(length as u64);
            self.directions[end].direction.offer(now(self.start), length, packet);
        }
        Ok(())
    }

    fn report(&self) -> Result<Report, Errno> {
        let usage = getrusage(UsageWho::RUSAGE_SELF)?;
        let used: TimeVal = usage.user_time() + usage.system_time();
        let directions = self.directions.each_ref().map(|half| DirectionReport {
            counters: half.direction.counters(),
            refused_packets: half.refused_packets,
            under_way_packets: half.direction.under_way() as u64,
            late_mean_micros: half.lateness.mean_micros(),
            late_max_micros: half.lateness.max_micros(),
        });
        let elapsed_seconds = self.start.elapsed().as_secs_f64();
        let cpu_micros = u32::try_from(used.num_microseconds()).unwrap_or(u32::MAX);
        Ok(Report { elapsed_seconds, cpu_seconds: f64::from(cpu_micros) / 1e6, directions })
    }
}

fn now(start: time::Instant) -> Instant {
    Instant::default().after(start.elapsed())
}

/// From now on they come as events.
fn take_signals() -> Result<SignalFd, Errno> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// Whether standard input has ended; what it says is nobody's business.
fn has_ended() -> bool {
    let mut ignored = [0; 512];
    // An error will not go away either.
    io::Read::read(&mut io::stdin(), &mut ignored).map_or(true, |length| length == 0)
}

fn is_set(revents: Option<PollFlags>) -> bool {
    revents.is_none_or(|revents| !revents.is_empty())
}

fn failed(doing: &'static str) -> impl FnOnce(Errno) -> RunError {
    move |errno| RunError { doing, source: errno.into() }
}
