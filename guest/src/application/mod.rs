//! Loads that are programs as people use them: a redis server, an editor, players of sound and video.
//!
//! ```text
//! worker (redis | edit | media): drives programs in the chroot /apps --- News ---> loop: prints
//!        `--- Counters: work done, stalls, lag -------------------------------------^
//! ```
//!
//! The loop prints the lines that every load prints, so that whoever reads them need not know
//! applications: `LOAD READY` once the program truly works; each report period `TICK t=<ms>
//! writes=<units of work> rate=<units/s> gap=<ms>`, then `stalls=` and `stalled=<ms>` (a player stood
//! still so often, so long altogether) and `lag=<ms>` (the longest answer of the program to a key or a
//! command in the period); and after each pass `SWEEP OK n=<passes> pages=<units in it> seq=<units so
//! far>` or `SWEEP BAD …`. Bad stays bad. A unit of work is a command processed (redis), an edit made
//! (edit), a KiB of sound or a picture played (audio, video).

pub(crate) mod digest;
mod document;
mod editor;
mod media;
pub(crate) mod options;
mod passes;
mod player;
mod program;
mod redis;
mod resp;
mod value;

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use self::options::{Application, ApplicationOptions};
use self::passes::{Pass, Passes};
use self::program::ApplicationError;
use crate::disk;
use crate::options::DiskLoad;
use crate::page::{Page, fill_random, mix};
use crate::service::{self, Request};

/// One pass of the loop, as in the other loads.
const TICK: Duration = Duration::from_millis(10);

/// What a worker has to say.
#[derive(Debug)]
enum News {
    /// The program works; what is to be said of it.
    Ready(String),
    /// A pass is over.
    Pass(Pass),
    /// Something was not as it should be, outside of any pass.
    Bad(String),
    /// The worker has ended.
    Ended(ApplicationError),
}

/// Counts since the start, shared with the worker.
#[derive(Debug, Default)]
struct Counters {
    work: AtomicU64,
    stalls: AtomicU64,
    stalled_ms: AtomicU64,
    /// The longest since the last report.
    lag_ms: AtomicU64,
}

/// A worker's end of it.
#[derive(Clone, Debug)]
struct Reporter {
    news: Sender<News>,
    counters: Arc<Counters>,
}

impl Reporter {
    fn ready(&self, words: String) {
        self.tell(News::Ready(words));
    }

    fn pass(&self, pass: Pass) {
        self.tell(News::Pass(pass));
    }

    fn bad(&self, words: String) {
        self.tell(News::Bad(words));
    }

    fn set_work(&self, units: u64) {
        self.counters.work.store(units, Ordering::Relaxed);
    }

    fn set_stalls(&self, stalls: u64, stalled: Duration) {
        self.counters.stalls.store(stalls, Ordering::Relaxed);
        self.counters.stalled_ms.store(millis(stalled), Ordering::Relaxed);
    }

    fn lag(&self, lag: Duration) {
        self.counters.lag_ms.fetch_max(millis(lag), Ordering::Relaxed);
    }

    fn tell(&self, news: News) {
        // The loop lives as long as the program.
        let _ = self.news.send(news);
    }
}

/// Runs the application for ever.
pub(crate) fn run(options: &ApplicationOptions) -> ExitCode {
    let (requests, received) = mpsc::channel();
    let (sender, news) = mpsc::channel();
    let counters = Arc::new(Counters::default());
    let reporter = Reporter { news: sender, counters: Arc::clone(&counters) };
    let ballast = ballast(options);
    start_worker(options.clone(), reporter);
    match news.recv() {
        Ok(News::Ready(words)) => println!("LOAD READY {words}"),
        Ok(News::Ended(error)) => return refused(&error.to_string()),
        other => return refused(&format!("expected a program that works, found {other:?}")),
    }
    service::start(&requests);
    if options.disk == DiskLoad::Check {
        disk::start(options.seed);
    }
    let mut watch = Watch::new(options.report, counters);
    loop {
        watch.pass(&news);
        // Memory that nobody looks at could be taken for memory that nobody needs.
        black_box(&ballast);
        if watch.wait(&received).is_err() {
            // Cannot be: `requests` lives as long as this loop.
            return ExitCode::FAILURE;
        }
    }
}

/// What other programs would hold.
fn ballast(options: &ApplicationOptions) -> Vec<Page> {
    let mut pages = vec![Page::ZERO; options.ballast_pages as usize];
    for (state, page) in (1..).zip(&mut pages) {
        fill_random(mix(options.seed ^ mix(state)) | 1, &mut page.0);
    }
    pages
}

fn start_worker(options: ApplicationOptions, reporter: Reporter) {
    thread::spawn(move || {
        let ended = match options.application {
            Application::Redis => redis::run(&options, &reporter),
            Application::Edit => editor::run(&options, &reporter),
            Application::Audio => media::run("audio", &reporter),
            Application::Video => media::run("video", &reporter),
        };
        let Err(error) = ended;
        reporter.tell(News::Ended(error));
    });
}

fn refused(words: &str) -> ExitCode {
    println!("LOAD REFUSED {words}");
    ExitCode::from(2)
}

/// The loop's own state.
struct Watch {
    counters: Arc<Counters>,
    passes: Passes,
    period: Duration,
    start: Instant,
    tick: Instant,
    report: Instant,
    reported_work: u64,
    longest_gap: Duration,
}

impl Watch {
    fn new(period: Duration, counters: Arc<Counters>) -> Self {
        let now = Instant::now();
        let passes = Passes::default();
        let (reported_work, longest_gap) = (counters.work.load(Ordering::Relaxed), Duration::ZERO);
        Self {
            counters,
            passes,
            period,
            start: now,
            tick: now,
            report: now,
            reported_work,
            longest_gap,
        }
    }

    fn pass(&mut self, news: &Receiver<News>) {
        let now = Instant::now();
        self.longest_gap = self.longest_gap.max(now - self.tick);
        self.tick = now;
        for news in news.try_iter() {
            match news {
                News::Ready(_) => {}
                News::Pass(pass) => {
                    let work = self.counters.work.load(Ordering::Relaxed);
                    println!("SWEEP {}", self.passes.complete(pass, work));
                }
                News::Bad(words) => self.passes.note_bad(words),
                News::Ended(error) => {
                    self.passes.note_bad(format!("the application ended: {error}"))
                }
            }
        }
        if now - self.report >= self.period {
            println!("TICK {}", self.line(now));
        }
    }

    /// The line of counts; starts a new report period.
    fn line(&mut self, now: Instant) -> String {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let work = read(&self.counters.work);
        let elapsed_us = (now - self.report).as_micros().max(1);
        let done = work.saturating_sub(self.reported_work);
        let tenths = u128::from(done) * 10_000_000 / elapsed_us;
        let line = format!(
            "t={} writes={work} rate={}.{} gap={} stalls={} stalled={} lag={}",
            millis(now - self.start),
            tenths / 10,
            tenths % 10,
            millis(self.longest_gap),
            read(&self.counters.stalls),
            read(&self.counters.stalled_ms),
            self.counters.lag_ms.swap(0, Ordering::Relaxed),
        );
        self.report = now;
        self.reported_work = work;
        self.longest_gap = Duration::ZERO;
        line
    }

    /// Sleeps for the rest of the tick or until a request comes.
    fn wait(&mut self, received: &Receiver<Request>) -> Result<(), RecvTimeoutError> {
        match received.recv_timeout(TICK.saturating_sub(self.tick.elapsed())) {
            Ok(Request::Sweep(reply)) => self.passes.request(reply),
            Ok(Request::Stats(reply)) => {
                let work = self.counters.work.load(Ordering::Relaxed);
                let stats =
                    format!("t={} writes={work} {}", millis(self.start.elapsed()), self.passes);
                // Whoever asked may have gone away.
                let _ = reply.send(stats);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(error @ RecvTimeoutError::Disconnected) => return Err(error),
        }
        Ok(())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
