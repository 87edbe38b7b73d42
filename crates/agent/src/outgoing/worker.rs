//! A worker: one thread, one encoder, one connection. It claims pages, reads them, encodes them, writes them.
//!
//! Encoding and writing in one thread keeps back-pressure in one place: the write blocks while the link is busy, and
//! nothing queues up before it. With several workers one encodes while another's write blocks. A page always belongs to
//! the same worker, so its versions travel in order.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use sterna_host::tls::{DataStream, FrameStreamError};
use sterna_migration::source::Finish;
use sterna_migration::tracker::{Claim, Cursor, Round};
use sterna_model::{PAGE_BYTES, PageHash, PageId, Root};
use sterna_page_codec::{BatchFacts, Encoder, Governor, Hint, MAX_BATCH_PAGES, PushError, Pushed};
use sterna_wire::{FrameKind, FrameWriter};

use super::looks::Looks;
use super::memory::SourceMemory;
use super::shared::{InFlight, Shared};

/// While QEMU's first pass goes on, a worker that finds little waits so long for more.
const STARVED_WAIT: Duration = Duration::from_micros(300);
/// And this is little.
const STARVED_PAGES: usize = MAX_BATCH_PAGES / 4;
/// A worker with nothing to do waits so long at a time; when its job is dropped it is woken at once.
const IDLE_WAIT: Duration = Duration::from_secs(60);

/// What a worker is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Send the pages of a round.
    Round(Round),
    /// The guest is about to be stopped: mark what is stale and may follow later.
    MarkAhead,
    /// Send the pages of the last round, and compute the root of what was sent.
    Last {
        /// Whether what is stale may follow later.
        finish: Finish,
        /// How it is found out whether to look at pages that are only marked; none: all are looked at.
        looks: Option<Looks>,
    },
    /// The guest runs at the destination: send the pages that it lacks, each so that it can be understood by itself.
    Push,
}

/// What a worker reports.
#[derive(Debug)]
pub(super) enum Report {
    /// It is through with its part of the round.
    RoundDone(RoundDone),
    /// Its connection failed.
    Failed(String),
    /// A page could not be read or encoded: over other connections that would be no better.
    Unusable(String),
}

/// A worker's part of a round.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RoundDone {
    /// Pages that were claimed.
    pub pages: u64,
    /// Bytes handed to TLS, with frame headers.
    pub wire_bytes: u64,
    /// Frames on this connection so far, hello not counted.
    pub frames: u64,
    /// Pages left for the next round because they changed while they waited.
    pub held_back: u64,
    /// After [`Order::Last`]: the root of this worker's pages.
    pub root: Root,
    /// After [`Order::Last`]: pages that were only marked, and follow in post-copy.
    pub absent: u64,
}

/// One worker.
pub(super) struct Worker {
    /// Its number.
    pub number: usize,
    /// What it shares.
    pub shared: Arc<Shared>,
    /// Its connection, after the hello.
    pub link: DataStream,
    /// Numbers its frames.
    pub frames: FrameWriter,
    /// Its encoder.
    pub encoder: Encoder,
    /// Chooses the effort.
    pub governor: Governor,
    /// What the destination has not confirmed.
    pub in_flight: Arc<InFlight>,
    /// Where orders come from.
    pub orders: Receiver<Order>,
    /// Where reports go.
    pub reports: Box<dyn Fn(Report) + Send>,
    /// How it sends.
    pub mode: Mode,
    /// What its looks have found in this stop; none when it looks at all pages.
    pub looks: Option<Looks>,
}

/// How a worker sends pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// With the help of what the destination has.
    #[default]
    Related,
    /// Those that may follow later are marked; others stay as they are.
    MarkingAhead,
    /// Those that may follow later are only marked.
    Marking,
    /// Each by itself: the guest runs at the destination, and changes what is there.
    Alone,
}

impl Mode {
    const fn marks(self) -> bool {
        matches!(self, Self::MarkingAhead | Self::Marking)
    }
}

/// Why a worker cannot go on.
#[derive(Debug, thiserror::Error)]
enum WorkerError {
    #[error(transparent)]
    Link(#[from] FrameStreamError),
    #[error("cannot read guest memory: {0}")]
    Memory(#[from] io::Error),
    #[error("the job is over")]
    Abandoned,
    #[error("cannot encode a page: {0}")]
    Encode(#[from] PushError),
}

impl Worker {
    /// Works until the orders end.
    pub(super) fn run(mut self) {
        let mut scratch = Scratch::default();
        loop {
            let order = match self.orders.recv_timeout(IDLE_WAIT) {
                Ok(order) => order,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let done = match order {
                Order::Round(round) => self.send_round(round, &mut scratch),
                Order::MarkAhead => self.mark_ahead(&mut scratch),
                Order::Last { finish, looks } => {
                    self.looks = looks;
                    self.last(finish, &mut scratch)
                }
                Order::Push => self.push(&mut scratch),
            };
            let failed = done.is_err();
            let marks_ahead = order == Order::MarkAhead;
            (self.reports)(match done {
                Ok(done) => Report::RoundDone(done),
                Err(error @ (WorkerError::Memory(_) | WorkerError::Encode(_))) => {
                    Report::Unusable(error.to_string())
                }
                Err(error) => Report::Failed(error.to_string()),
            });
            if marks_ahead {
                self.shared.has_marked();
            }
            if failed {
                return;
            }
        }
        // The destination learns that nothing more will come; that the link may be gone by now does not matter.
        let _ = self.link.finish();
    }

    fn send_round(
        &mut self,
        round: Round,
        scratch: &mut Scratch,
    ) -> Result<RoundDone, WorkerError> {
        // After a stop that QEMU forestalled it marks no longer.
        self.mode = Mode::Related;
        self.round(round, scratch)
    }

    fn round(&mut self, round: Round, scratch: &mut Scratch) -> Result<RoundDone, WorkerError> {
        let shared = Arc::clone(&self.shared);
        let tracker = &shared.tracker;
        let mut done = RoundDone::default();
        let mut cursor = tracker.cursor(self.number);
        loop {
            // Asked before the claim: what is not found after the first pass is over is not there.
            let following = round == Round::First && !tracker.first_pass_over();
            if shared.is_abandoned() {
                return Err(WorkerError::Abandoned);
            }
            if shared.is_cut_short() {
                break;
            }
            let held_back = self.claim(round, &mut cursor, scratch);
            done.pages += scratch.claims.len() as u64;
            done.wire_bytes += self.send(scratch).inspect_err(|_| self.take_back(scratch))?;
            if !following {
                done.held_back += u64::from(held_back);
            }
            if scratch.claims.is_empty() && cursor.is_at_end(tracker) && !following {
                break;
            }
            if following && cursor.is_at_end(tracker) {
                cursor.rewind();
            }
            if following && scratch.claims.len() < STARVED_PAGES {
                std::thread::sleep(STARVED_WAIT);
            }
        }
        done.frames = self.frames.frames() - 1;
        Ok(done)
    }

    /// Pages that were claimed and not sent are to be sent all the same, whoever does it: their marks are gone.
    fn take_back(&self, scratch: &Scratch) {
        for claim in &scratch.claims {
            self.shared.known.forget(claim.page);
            self.shared.tracker.give_back(claim.page);
        }
    }

    fn mark_ahead(&mut self, scratch: &mut Scratch) -> Result<RoundDone, WorkerError> {
        self.mode = Mode::MarkingAhead;
        self.looks = Some(Looks::default());
        self.round(Round::Content, scratch)
    }

    fn last(&mut self, finish: Finish, scratch: &mut Scratch) -> Result<RoundDone, WorkerError> {
        self.mode = match finish {
            Finish::PreCopy => Mode::Related,
            Finish::PostCopy => Mode::Marking,
        };
        let mut done = self.round(Round::Later, scratch)?;
        for page in self.shared.tracker.pages_of(self.number) {
            let hash = self.shared.known.get(page).map_or(PageHash::ZERO, |entry| entry.hash);
            done.root.replace(page, PageHash::ZERO, hash);
            if hash == PageHash::ABSENT {
                done.absent += 1;
                self.shared.tracker.give_back(page);
            }
        }
        Ok(done)
    }

    fn push(&mut self, scratch: &mut Scratch) -> Result<RoundDone, WorkerError> {
        self.mode = Mode::Alone;
        let hot = self.round(Round::Hot, scratch)?;
        let others = self.round(Round::Later, scratch)?;
        let (pages, wire_bytes) = (hot.pages + others.pages, hot.wire_bytes + others.wire_bytes);
        Ok(RoundDone { pages, wire_bytes, ..others })
    }

    fn claim(&self, round: Round, cursor: &mut Cursor, scratch: &mut Scratch) -> u32 {
        scratch.claims.clear();
        let mut limit = self.shared.limiter.batch_pages(MAX_BATCH_PAGES);
        if self.mode == Mode::Alone {
            limit = self.shared.pacer.batch_pages(limit);
        }
        let held_back = self.shared.tracker.claim(round, cursor, limit, &mut scratch.claims);
        if self.mode == Mode::MarkingAhead {
            scratch.claims.retain(|claim| {
                // A page that is sent now might be sent once more after the stop.
                let follows = !claim.zero && self.shared.is_deferrable(claim.page);
                if !follows {
                    self.shared.tracker.give_back(claim.page);
                }
                follows
            });
        }
        held_back
    }

    /// Sends the claimed pages; gives the bytes that went to the connection.
    fn send(&mut self, scratch: &mut Scratch) -> Result<u64, WorkerError> {
        if scratch.claims.is_empty() {
            return Ok(0);
        }
        let begun = Instant::now();
        self.read_and_push(scratch)?;
        let pushed = Instant::now();
        let batch = self.encoder.finish(self.governor.effort());
        let finished = Instant::now();
        self.shared.totals.add(&batch.stats);
        if batch.bytes.is_empty() {
            return Ok(0);
        }
        std::thread::sleep(self.shared.limiter.wait_for(batch.bytes.len() as u64, finished));
        let wire_bytes = (batch.bytes.len() + sterna_wire::HEADER_BYTES) as u64;
        let turn = match self.mode {
            Mode::Alone => Some(self.shared.pacer.turn(wire_bytes)),
            Mode::Related | Mode::MarkingAhead | Mode::Marking => {
                self.in_flight.push(self.frames.frames(), batch.sent);
                None
            }
        };
        self.link.write_frame(&mut self.frames, FrameKind::Pages, batch.bytes)?;
        drop(turn);
        self.governor.observe(&BatchFacts {
            body_bytes: batch.stats.body_bytes,
            wire_bytes,
            prepare: pushed - begun,
            finish: finished - pushed,
            blocked: finished.elapsed(),
            processors: self.shared.processors(),
        });
        self.shared.totals.note_sent(batch.bytes.len(), batch.sent.len());
        Ok(wire_bytes)
    }

    fn read_and_push(&mut self, scratch: &mut Scratch) -> Result<(), WorkerError> {
        let read = self.read(scratch)?;
        let Scratch { claims, tasks, contents, hashes } = scratch;
        let contents = &contents.as_chunks::<PAGE_BYTES>().0[..read];
        self.encoder.hash(contents, hashes);
        let mut read = contents.iter().zip(&*hashes);
        let mut next = || read.next().ok_or_else(|| io::Error::other("fewer pages were read"));
        for (claim, task) in claims.iter().zip(&*tasks) {
            match task {
                Task::Zero => drop(self.encoder.push_zero(claim.page, self.hint(*claim))?),
                Task::Send => {
                    let (content, hash) = next()?;
                    self.encoder.push_hashed(claim.page, content, *hash, self.hint(*claim))?;
                }
                Task::Mark => {
                    let (_, hash) = next()?;
                    let follows = self.mark(claim.page, Some(*hash))?;
                    if let Some(looks) = &mut self.looks {
                        looks.note(!follows);
                    }
                }
                Task::MarkUnseen => drop(self.mark(claim.page, None)?),
            }
        }
        Ok(())
    }

    /// Tells whether the page follows.
    fn mark(&mut self, page: PageId, hash: Option<PageHash>) -> Result<bool, PushError> {
        // A page that was marked before stays as it is.
        if self.shared.known.get(page).is_some_and(|entry| entry.hash == PageHash::ABSENT) {
            return Ok(true);
        }
        let follows = self.encoder.push_absent(page, hash)? == Pushed::Absent;
        if follows {
            self.shared.mark(page);
        }
        Ok(follows)
    }

    /// Tells what is to be done with each claimed page, and reads those that have to be looked at, one behind the other. Gives
    /// how many that are.
    fn read(&mut self, scratch: &mut Scratch) -> Result<usize, WorkerError> {
        let Scratch { claims, tasks, contents, .. } = scratch;
        let looks = !self.mode.marks() || self.looks.as_mut().is_none_or(Looks::pay);
        let mut read = 0;
        let mut rest = &claims[..];
        tasks.clear();
        while let Some(first) = rest.first() {
            let run = run_length(rest, &self.shared.memory);
            let (now, later) = rest.split_at(run);
            rest = later;
            let task = self.task(now, *first, looks);
            tasks.resize(tasks.len() + run, task);
            if task.reads() {
                let into = &mut contents[read * PAGE_BYTES..][..run * PAGE_BYTES];
                self.shared.memory.read(first.page, into)?;
                read += run;
            }
        }
        Ok(read)
    }

    /// Of a run, which lies in one block.
    fn task(&self, run: &[Claim], first: Claim, looks: bool) -> Task {
        let marks = self.mode.marks() && self.shared.is_deferrable(first.page);
        let has_nothing = |claim: &Claim| {
            let known = self.shared.known.get(claim.page);
            known.is_none_or(|entry| entry.hash == PageHash::ABSENT)
        };
        match marks {
            _ if first.zero => Task::Zero,
            // The destination has nothing of them to compare with.
            true if !looks || run.iter().all(has_nothing) => Task::MarkUnseen,
            true => Task::Mark,
            false => Task::Send,
        }
    }

    fn hint(&self, claim: Claim) -> Hint {
        let alone = self.mode == Mode::Alone || self.shared.is_unchecked();
        if alone || self.shared.was_requested(claim.page) {
            Hint::Requested
        } else if claim.hot {
            Hint::Hot
        } else {
            Hint::Cold
        }
    }
}

/// How many of the first claims can be treated alike: all zero, or neighbours in one block.
fn run_length(claims: &[Claim], memory: &SourceMemory) -> usize {
    let alike = |pair: &&[Claim]| {
        let (one, next) = (pair[0], pair[1]);
        one.zero == next.zero && (one.zero || memory.are_neighbours(one.page, next.page))
    };
    claims.len().min(1) + claims.windows(2).take_while(alike).count()
}

/// What a claimed page is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    /// Zero, without a look.
    Zero,
    /// What it is.
    Send,
    /// Only marked, unless the destination has it.
    Mark,
    /// Only marked, without a look.
    MarkUnseen,
}

impl Task {
    const fn reads(self) -> bool {
        matches!(self, Self::Send | Self::Mark)
    }
}

/// A worker's buffers, kept from batch to batch.
struct Scratch {
    claims: Vec<Claim>,
    /// One for each claim.
    tasks: Vec<Task>,
    /// Of the claims that are read, and what they hash to.
    contents: Vec<u8>,
    hashes: Vec<PageHash>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            claims: Vec::with_capacity(MAX_BATCH_PAGES),
            tasks: Vec::with_capacity(MAX_BATCH_PAGES),
            contents: vec![0; MAX_BATCH_PAGES * PAGE_BYTES],
            hashes: vec![PageHash::ZERO; MAX_BATCH_PAGES],
        }
    }
}
