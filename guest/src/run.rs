//! The loop: write, sweep a little, report, answer, sleep until the next tick.
//!
//! Prints `LOAD READY`, then `TICK t=<ms> writes=<pages> rate=<MiB/s> gap=<ms>` each report
//! period: the time on the guest's clock, page writes since the start, the rate achieved and the
//! longest time between two passes of the loop in the period. The lines of the sweep and the disk
//! come in between. Lines are short because an emulated serial port is slow.

use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::disk;
use crate::options::{DiskLoad, Options, Rate};
use crate::pace::Pacer;
use crate::page::PAGE_BYTES;
use crate::service::{self, Request};
use crate::sweep::Sweep;
use crate::working_set::WorkingSet;
use crate::writer::Writer;

/// One pass of the loop.
const TICK: Duration = Duration::from_millis(10);
/// Longest time that one pass may write, so that the rest of the loop is not starved.
const WRITE_SLICE: Duration = Duration::from_millis(6);

/// Fills the working set and runs the load for ever.
pub(crate) fn run(options: &Options) -> ExitCode {
    let (requests, received) = mpsc::channel();
    let start = Instant::now();
    let set = WorkingSet::filled(options);
    println!("LOAD READY pages={} fill={}ms", set.len(), start.elapsed().as_millis());
    service::start(&requests);
    if options.disk == DiskLoad::Check {
        disk::start(options.seed);
    }
    let mut load = Load::new(options, set);
    loop {
        load.pass();
        if load.wait(&received).is_err() {
            // Cannot be: `requests` lives as long as this loop.
            return ExitCode::FAILURE;
        }
    }
}

struct Load {
    set: WorkingSet,
    writer: Writer,
    pacer: Pacer,
    sweep: Sweep,
    sweep_percent: u8,
    rate: Rate,
    period: Duration,
    clock: Clock,
}

/// Times of the loop itself.
struct Clock {
    start: Instant,
    pass: Instant,
    report: Instant,
    reported_writes: u64,
    longest_gap: Duration,
}

impl Load {
    fn new(options: &Options, set: WorkingSet) -> Self {
        let now = Instant::now();
        Self {
            set,
            writer: Writer::new(options),
            pacer: Pacer::new(options.rate),
            sweep: Sweep::default(),
            sweep_percent: options.sweep_percent,
            rate: options.rate,
            period: Duration::from_millis(options.report_ms),
            clock: Clock {
                start: now,
                pass: now,
                report: now,
                reported_writes: 0,
                longest_gap: Duration::ZERO,
            },
        }
    }

    fn pass(&mut self) {
        let now = Instant::now();
        let gap = now - self.clock.pass;
        self.clock.pass = now;
        self.clock.longest_gap = self.clock.longest_gap.max(gap);
        self.pacer.advance(gap);
        if self.writer.is_active() {
            self.write(now);
        }
        let share = u32::from(self.sweep.share_percent(self.sweep_percent));
        if share > 0 {
            self.sweep.run_slice(&mut self.set, TICK * share / 100, self.period);
        }
        if now - self.clock.report >= self.period {
            println!("TICK {}", self.report(now));
        }
    }

    fn write(&mut self, since: Instant) {
        while since.elapsed() < WRITE_SLICE {
            for _ in 0..4 {
                if !self.pacer.take_page() {
                    return;
                }
                if let Err(bad) = self.writer.write_one(&mut self.set) {
                    self.sweep.note_bad(bad);
                }
            }
        }
    }

    /// The line of counts; starts a new report period.
    fn report(&mut self, now: Instant) -> String {
        let writes = self.writer.writes();
        let bytes = (writes - self.clock.reported_writes) * PAGE_BYTES as u64;
        let elapsed_us = (now - self.clock.report).as_micros().max(1);
        let tenths = (u128::from(bytes) * 10_000_000 / elapsed_us) >> 20;
        let line = format!(
            "t={} writes={writes} rate={}.{} gap={}",
            (now - self.clock.start).as_millis(),
            tenths / 10,
            tenths % 10,
            self.clock.longest_gap.as_millis(),
        );
        self.clock.report = now;
        self.clock.reported_writes = writes;
        self.clock.longest_gap = Duration::ZERO;
        line
    }

    fn stats(&self) -> String {
        format!(
            "t={} writes={} sweeps={} bad={}",
            self.clock.start.elapsed().as_millis(),
            self.writer.writes(),
            self.sweep.completed(),
            self.sweep.bad_total(),
        )
    }

    /// Sleeps for the rest of the tick or until a request comes.
    fn wait(&mut self, received: &Receiver<Request>) -> Result<(), RecvTimeoutError> {
        let rest = match self.rate {
            Rate::Max if self.writer.is_active() => Duration::ZERO,
            _ => TICK.saturating_sub(self.clock.pass.elapsed()),
        };
        match received.recv_timeout(rest) {
            Ok(Request::Sweep(reply)) => self.sweep.request(reply),
            Ok(Request::Stats(reply)) => {
                // Whoever asked may have gone away.
                let _ = reply.send(self.stats());
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(error @ RecvTimeoutError::Disconnected) => return Err(error),
        }
        Ok(())
    }
}
