//! The reader: drains QEMU's stream at once, on a thread of its own, and keeps only page numbers.
//!
//! ```text
//! QEMU --socket--> read --> Parser --> page reported --> Tracker (a mark)
//!                                 \--> contents of blocks that cannot be read from outside --> staging
//!                                 \--> head, tail, end --> the drive loop
//! ```
//! QEMU must never wait for us: in its last pass it would wait holding its big lock, with the guest stopped.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sterna_migration::tracker::Tracker;
use sterna_model::{Layout, PageId};
use sterna_page_codec::pack_state;
use sterna_qemu_stream::{Command, Configuration, Event, Parser, RamPartKind, RamSection};

use super::memory::SourceMemory;

/// How long an idle QEMU is waited for in steps that are shorter than a millisecond.
const SHORT_WAIT: Duration = Duration::from_millis(5);
/// QEMU counts what it has written in windows of this length, and waits for the end of one when it has written enough.
const QEMU_WINDOW: Duration = Duration::from_millis(100);
/// A silence after which what comes is a new window's.
const SILENCE: Duration = Duration::from_millis(20);
/// Bytes that are read at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// What the drive loop hears from the reader.
#[derive(Debug)]
pub(super) enum StreamEvent {
    /// The stream's beginning: once.
    Head(Box<Head>),
    /// QEMU has passed on all memory once: from now on it repeats itself as fast as it is let.
    FirstPassOver,
    /// The stream is complete; this is what followed guest memory.
    Completed(Box<Tail>),
    /// The stream broke.
    Broken(String),
}

/// What a stream begins with.
#[derive(Clone, Debug)]
pub(super) struct Head {
    /// The configuration section.
    pub configuration: Configuration,
    /// The RAM section's numbers.
    pub ram: RamSection,
    /// The memory, ready to be read.
    pub memory: Arc<SourceMemory>,
    /// The tracker that the reader marks.
    pub tracker: Arc<Tracker>,
}

/// What a stream ends with.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail {
    /// Commands that the destination's QEMU has to see before the end of guest memory.
    pub commands: Vec<Command>,
    /// Device state, end mark and description; packed or not.
    pub bytes: Vec<u8>,
    /// If packed, the bytes that it was; else 0.
    pub packed_from_bytes: u64,
}

impl Tail {
    /// Packs what is not packed, where that makes it shorter.
    pub(super) fn pack(&mut self) {
        if self.packed_from_bytes == 0
            && let Some(packed) = pack_state(&self.bytes)
        {
            self.packed_from_bytes = self.bytes.len() as u64;
            self.bytes = packed;
        }
    }
}

/// What the reader counts while it reads; the pacer looks at it.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Pages that QEMU reported.
    pub pages: AtomicU64,
    /// Pieces without pages: QEMU had nothing left.
    pub idle_parts: AtomicU64,
    /// When QEMU last began to write after a silence: a paced one does at the start of each of its windows.
    burst: Mutex<Option<Instant>>,
}

impl Counters {
    /// When a paced QEMU will next write, at least `ahead` from now, if it keeps to its windows; none when it has been
    /// silent for longer than one.
    pub(super) fn next_window(&self, ahead: Duration) -> Option<Instant> {
        let last = self.burst.lock().ok().and_then(|burst| *burst)?;
        let next = last + QEMU_WINDOW;
        let now = Instant::now();
        let next = if next < now + ahead { next + QEMU_WINDOW } else { next };
        (last.elapsed() <= QEMU_WINDOW + SILENCE).then_some(next)
    }

    fn burst_began(&self) {
        if let Ok(mut burst) = self.burst.lock() {
            *burst = Some(Instant::now());
        }
    }

    /// Waits until QEMU had nothing left after this moment: two pieces without pages, since one may be on its way.
    pub(super) async fn wait_for_idle(&self, limit: Duration) {
        let seen = self.idle_parts.load(Ordering::Acquire);
        let begun = Instant::now();
        while self.idle_parts.load(Ordering::Acquire) < seen + 2 && begun.elapsed() < limit {
            // A timer of the runtime counts in milliseconds, which would be a tenth of the downtime.
            if begun.elapsed() < SHORT_WAIT {
                tokio::task::block_in_place(|| std::thread::sleep(Duration::from_micros(100)));
            } else {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
}

/// Makes the memory and the tracker for a layout, or takes those of the stream before.
pub(super) type Prepare =
    Box<dyn FnMut(&Layout) -> io::Result<(Arc<SourceMemory>, Arc<Tracker>)> + Send>;

/// One stream's reader.
pub(super) struct Reader {
    /// QEMU's end writes here.
    pub stream: UnixStream,
    /// See [`Prepare`].
    pub prepare: Prepare,
    /// See [`Counters`].
    pub counters: Arc<Counters>,
    /// Where events go.
    pub events: Box<dyn Fn(StreamEvent) + Send>,
}

impl Reader {
    /// Reads the stream to its end, and tells how it ended.
    pub(super) fn run(self) {
        let Self { mut stream, prepare, counters, events } = self;
        let mut state = State {
            prepare,
            counters,
            events,
            head: None,
            reported: 0,
            opened: None,
            first_pass_over: false,
            tail: Some(Tail::default()),
            failed: None,
        };
        let end = state.read_all(&mut stream);
        match end {
            Ok(()) => state.complete(),
            Err(why) => {
                (state.events)(StreamEvent::Broken(why));
                // QEMU must not wait for a reader in its last pass: it would hold its big lock meanwhile.
                let _ = io::copy(&mut stream, &mut io::sink());
            }
        }
    }
}

struct State {
    prepare: Prepare,
    counters: Arc<Counters>,
    events: Box<dyn Fn(StreamEvent) + Send>,
    head: Option<Configuration>,
    /// Pages reported, each once in the first stream.
    reported: u32,
    opened: Option<Opened>,
    /// Of this stream; the tracker's is that of the first one.
    first_pass_over: bool,
    /// Until it is handed over.
    tail: Option<Tail>,
    failed: Option<String>,
}

struct Opened {
    memory: Arc<SourceMemory>,
    tracker: Arc<Tracker>,
    pages: u32,
    /// An earlier stream has been through.
    again: bool,
}

impl State {
    fn read_all(&mut self, stream: &mut UnixStream) -> Result<(), String> {
        let mut parser = Parser::new();
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut filled = 0;
        let mut read_at = Instant::now();
        loop {
            let count = match stream.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(format!("cannot read QEMU's stream: {error}")),
            };
            if read_at.elapsed() >= SILENCE {
                self.counters.burst_began();
            }
            read_at = Instant::now();
            filled += count;
            let taken = parser
                .feed(&buffer[..filled], |event| self.take(event))
                .map_err(|error| error.to_string())?;
            if let Some(why) = self.failed.take() {
                return Err(why);
            }
            buffer.copy_within(taken..filled, 0);
            filled -= taken;
        }
        parser.finish().map(drop).map_err(|error| format!("QEMU's stream ended early: {error}"))
    }

    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Page { page, content } => {
                let Some(opened) = &self.opened else { return };
                if let Err(error) = opened.memory.stage(page, content) {
                    self.failed.get_or_insert_with(|| error.to_string());
                }
                self.report(page, false);
            }
            Event::ZeroPage { page } => {
                let Some(opened) = &self.opened else { return };
                if let Err(error) = opened.memory.stage_zero(page) {
                    self.failed.get_or_insert_with(|| error.to_string());
                }
                self.report(page, true);
            }
            Event::RamPart { kind, pages } => self.part_ended(kind, pages),
            Event::Configuration(configuration) => self.head = Some(configuration.clone()),
            Event::Layout { ram, layout } => self.open(ram, layout),
            Event::Command(command) => {
                // What the source says about its own way back is said to us.
                let is_ours = matches!(command, Command::OpenReturnPath | Command::Ping(_));
                if let Some(tail) = self.tail.as_mut().filter(|_| !is_ours) {
                    tail.commands.push(command);
                }
            }
            Event::Tail(bytes) => {
                if let Some(tail) = &mut self.tail {
                    tail.bytes.extend_from_slice(bytes);
                }
            }
            Event::TailComplete => self.complete(),
            Event::RamComplete => {}
        }
    }

    /// Nothing of the guest's state is missing: at the stream's end, or as soon as a packaged device state is whole.
    fn complete(&mut self) {
        if let Some(tail) = self.tail.take() {
            (self.events)(StreamEvent::Completed(Box::new(tail)));
        }
    }

    fn report(&mut self, page: PageId, zero: bool) {
        let Some(opened) = &self.opened else { return };
        // In a stream that was begun anew every page was reported before: whatever is reported counts.
        if opened.tracker.report(page, zero) || opened.again {
            self.reported = self.reported.saturating_add(1);
            if self.reported == opened.pages {
                self.end_first_pass();
            }
        }
    }

    fn end_first_pass(&mut self) {
        if let Some(opened) = self.opened.as_ref().filter(|_| !self.first_pass_over) {
            opened.tracker.end_first_pass();
            self.first_pass_over = true;
            (self.events)(StreamEvent::FirstPassOver);
        }
    }

    fn part_ended(&mut self, kind: RamPartKind, pages: u64) {
        self.counters.pages.fetch_add(pages, Ordering::Relaxed);
        if (kind, pages) != (RamPartKind::Part, 0) {
            return;
        }
        // QEMU had nothing left, even if it left out pages that it knows to be free.
        self.counters.idle_parts.fetch_add(1, Ordering::Release);
        self.end_first_pass();
    }

    fn open(&mut self, ram: RamSection, layout: &Layout) {
        match ((self.prepare)(layout), self.head.take()) {
            (Ok((memory, tracker)), Some(configuration)) => {
                let (pages, head) = (layout.pages(), (Arc::clone(&memory), Arc::clone(&tracker)));
                let again = tracker.first_pass_over();
                self.opened = Some(Opened { memory, tracker, pages, again });
                let (memory, tracker) = head;
                (self.events)(StreamEvent::Head(Box::new(Head {
                    configuration,
                    ram,
                    memory,
                    tracker,
                })));
            }
            (Ok(_), None) => {
                self.failed = Some("QEMU's stream has no configuration section".into())
            }
            (Err(error), _) => self.failed = Some(error.to_string()),
        }
    }
}
