//! The source's bulk side: workers that claim pages from the real tracker, read them, and write them to their connections.
//!
//! As in the agent: a worker claims, *then* reads, then writes; a write returns when the link has taken it. What the
//! destination has is known by content and version; a page whose content did not change is not sent. The page codec is
//! left out: contents travel as numbers. Connections may be given up and made anew (`leaving`).

mod leaving;

use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use sterna_migration::tracker::{Claim, Cursor, Round, Tracker};
use sterna_model::{Instant, PageHash, PageId, Root};

use crate::faults::Side;
use crate::guest::{hash_of, hash_of_absent};
use crate::message::{Message, Sent};
use crate::network::{Closing, ConnectionId};
use crate::plant::Plant;
use crate::world::{Event, Inbound, World};

/// A worker that follows QEMU's first pass and finds little waits so long for more.
const STARVED_WAIT: Duration = Duration::from_micros(300);
/// Reading and encoding a batch takes up to this.
const READING_TAKES: Duration = Duration::from_micros(400);
/// By how much a planted bug reads too early.
const READ_TOO_EARLY: Duration = Duration::from_millis(20);
/// What a page that is not zero counts for.
const PAGE_WIRE_BYTES: u64 = 4096;
/// What any other one does.
const MARK_WIRE_BYTES: u64 = 8;

/// What a worker is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Send the pages of a round.
    Round(Round),
    /// Send all that is left, and compute the root of what was sent.
    Last,
    /// The same, but of what has changed and is not zero only that it is absent.
    Marks,
}

/// A round that all workers are through with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RoundSum {
    /// Its number, from 1.
    pub number: u32,
    /// How long it took.
    pub duration: Duration,
    /// Pages claimed.
    pub pages: u64,
    /// Bytes for the link.
    pub wire_bytes: u64,
    /// After [`Order::Last`]: the root of what was sent.
    pub root: Root,
    /// Frames of each connection so far.
    pub frames: Vec<u64>,
    /// It sent all that was left.
    pub is_last: bool,
}

/// What the destination has of a page, as far as the source knows.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    version: u32,
    content: Option<u64>,
    absent: bool,
}

#[derive(Debug)]
struct Worker {
    connection: ConnectionId,
    order: Option<Order>,
    cursor: Cursor,
    claims: Vec<Claim>,
    /// What was read too early, by a planted bug.
    read_early: Option<Vec<u64>>,
    frames: u64,
    /// Frames that the destination has not acknowledged, and their pages.
    in_flight: VecDeque<(u64, Vec<PageId>)>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Bulk {
    number: u32,
    tracker: Rc<Tracker>,
    known: Vec<Known>,
    workers: Vec<Worker>,
    requested: BTreeSet<PageId>,
    /// Bytes for the link so far.
    pub wire_bytes: u64,
    /// No round sends a page that was sent before: what has changed since stays for the end.
    once: bool,
    /// The round under way is to end.
    is_cut: bool,
    round: RoundSum,
    round_begun: Instant,
    waiting_for: usize,
    /// The agent has not heard yet that all are through with it.
    unheard: bool,
}

/// What a worker does next.
enum Next {
    At(Instant),
    Done,
    Failed,
}

impl Bulk {
    /// Without connections yet. With `once`, rounds send no page twice.
    pub(crate) fn new(tracker: Rc<Tracker>, (pages, once): (u32, bool)) -> Self {
        Self {
            number: 0,
            known: vec![Known::default(); pages as usize],
            round: empty_round(0, 0),
            workers: Vec::new(),
            requested: BTreeSet::new(),
            wire_bytes: 0,
            once,
            is_cut: false,
            round_begun: Instant::default(),
            waiting_for: 0,
            unheard: false,
            tracker,
        }
    }

    /// Whether no round is going on.
    pub(crate) const fn is_idle(&self) -> bool {
        self.waiting_for == 0 && !self.unheard
    }

    /// The agent hears that all workers are through with the round.
    pub(crate) const fn is_heard(&mut self) {
        self.unheard = false;
    }

    /// Whether the last round found nothing to send, and there still is nothing.
    pub(crate) fn has_nothing(&self) -> bool {
        self.is_idle() && self.round.pages == 0 && self.waiting_pages() == 0
    }

    /// Pages that the destination lacks.
    pub(crate) fn waiting_pages(&self) -> u64 {
        u64::from(self.tracker.waiting())
    }

    /// Lets the round under way end, with what its workers have in their hands.
    pub(crate) const fn cut_short(&mut self) {
        self.is_cut = true;
    }

    /// The pages that were marked absent.
    pub(crate) fn absent_pages(&self) -> BTreeSet<PageId> {
        let numbered = (0..).map(PageId).zip(&self.known);
        numbered.filter_map(|(page, known)| known.absent.then_some(page)).collect()
    }

    /// The workers' connections.
    pub(crate) fn connections(&self) -> Vec<ConnectionId> {
        self.workers.iter().map(|worker| worker.connection).collect()
    }

    /// The destination asks for pages again.
    pub(crate) fn request(&mut self, pages: &[(PageId, u32)]) {
        for (page, version) in pages {
            let Some(known) = self.known.get_mut(page.index()) else { continue };
            // An older version than the one sent last is not missed.
            if known.version <= *version {
                known.content = None;
                self.requested.insert(*page);
                self.tracker.give_back(*page);
            }
        }
    }

    fn order(&mut self, order: Order, now: Instant) {
        self.round = empty_round(self.round.number + 1, self.workers.len());
        self.round.is_last = matches!(order, Order::Last | Order::Marks);
        self.is_cut = false;
        self.round_begun = now;
        self.waiting_for = self.workers.len();
        self.unheard = true;
        for (number, worker) in self.workers.iter_mut().enumerate() {
            worker.order = Some(order);
            worker.cursor = self.tracker.cursor(number);
        }
    }

    fn work(&mut self, at: usize, world: &mut World) -> Next {
        let worker = &mut self.workers[at];
        let Some(order) = worker.order else { return Next::Done };
        if !worker.claims.is_empty() {
            return self.send(at, world);
        }
        if self.is_cut {
            worker.order = None;
            self.end_part(at);
            return Next::Done;
        }
        if world.errs(Plant::ReadBeforeClaim) && worker.read_early.is_none() {
            worker.read_early = world.source_memory();
            return Next::At(world.now().after(READ_TOO_EARLY));
        }
        let round = if let Order::Round(round) = order { round } else { Round::Later };
        // Asked before the claim: what is not found after the first pass is over is not there.
        let following = round == Round::First && !self.tracker.first_pass_over();
        let limit = world.setting.batch_pages;
        self.tracker.claim(round, &mut worker.cursor, limit, &mut worker.claims);
        let at_end = worker.cursor.is_at_end(&self.tracker);
        if !worker.claims.is_empty() {
            if following && at_end {
                worker.cursor.rewind();
            }
            let reading = world.random.time(Duration::ZERO, READING_TAKES);
            return Next::At(world.now().after(reading));
        }
        worker.read_early = None;
        match (following, at_end) {
            (true, true) => worker.cursor.rewind(),
            (false, true) => {
                worker.order = None;
                self.end_part(at);
                return Next::Done;
            }
            _ => {}
        }
        Next::At(world.now().after(STARVED_WAIT))
    }

    fn send(&mut self, at: usize, world: &mut World) -> Next {
        let worker = &mut self.workers[at];
        let claims = std::mem::take(&mut worker.claims);
        let early = worker.read_early.take();
        let marks = worker.order == Some(Order::Marks);
        let in_round = matches!(worker.order, Some(Order::Round(_)));
        self.round.pages += claims.len() as u64;
        let mut batch = Vec::new();
        for claim in claims {
            let page = claim.page;
            let content = match &early {
                _ if claim.zero => 0,
                Some(contents) => contents[page.index()],
                None => world.read_source(page),
            };
            let whole = self.requested.remove(&page);
            let known = &mut self.known[page.index()];
            if known.content == Some(content) && !whole {
                continue;
            }
            // What was lost on its way was not sent, as far as the destination goes.
            if self.once && in_round && known.content.is_some() && !whole {
                self.tracker.give_back(page);
                continue;
            }
            known.version += 1;
            known.absent = marks && content != 0;
            known.content = Some(content).filter(|_| !known.absent);
            let (content, absent) = (known.content.unwrap_or(0), known.absent);
            let bytes = if content == 0 { MARK_WIRE_BYTES } else { PAGE_WIRE_BYTES };
            self.wire_bytes += bytes;
            self.round.wire_bytes += bytes;
            if !absent {
                world.page_is_sent(page);
            }
            batch.push(Sent { page, version: known.version, content, absent, whole });
        }
        if batch.is_empty() {
            return Next::At(world.now().after(Duration::from_micros(5)));
        }
        worker.frames += 1;
        let pages = batch.len();
        worker.in_flight.push_back((worker.frames, batch.iter().map(|sent| sent.page).collect()));
        world.note(|| format!("worker {at} sends {pages} pages"));
        match world.send(worker.connection, Side::Source, Message::Pages(batch)) {
            Some(_) if world.errs(Plant::NoBackPressure) => {
                Next::At(world.now().after(STARVED_WAIT))
            }
            Some(taken) => Next::At(taken),
            None => Next::Failed,
        }
    }

    fn end_part(&mut self, at: usize) {
        if self.round.is_last {
            for page in self.tracker.pages_of(at) {
                let known = self.known.get(page.index()).copied().unwrap_or_default();
                let present = known.content.map_or(PageHash::ZERO, hash_of);
                let hash = if known.absent { hash_of_absent() } else { present };
                self.round.root.replace(page, PageHash::ZERO, hash);
            }
        }
        self.waiting_for -= 1;
    }
}

impl World {
    /// Lets the workers begin the next round; the first one follows QEMU's first pass, also when it is begun anew.
    pub(crate) fn begin_next_round(&mut self) {
        let Some(bulk) = &self.bulk else { return };
        let is_first = bulk.round.number == 0 || !bulk.tracker.first_pass_over();
        self.begin_round(Order::Round(if is_first { Round::First } else { Round::Later }));
    }

    /// Lets the workers begin a round.
    pub(crate) fn begin_round(&mut self, order: Order) {
        let now = self.now();
        let Some(bulk) = self.bulk.as_mut() else { return };
        if order != Order::Round(Round::First) {
            bulk.tracker.begin_round();
        }
        bulk.order(order, now);
        let (number, workers, round) = (bulk.number, bulk.workers.len(), bulk.round.number);
        self.note(|| format!("round {round} begins: {order:?}"));
        for worker in 0..workers {
            self.clock.after(Duration::from_micros(10), Event::Work(number, worker));
        }
    }

    /// A worker goes on.
    pub(crate) fn work(&mut self, number: u32, worker: usize) {
        let (now, stalled) = (self.now(), self.host(Side::Source).stalled_until);
        if self.bulk.as_ref().is_none_or(|bulk| bulk.number != number) {
            return;
        }
        if stalled > now {
            return self.clock.at(stalled, Event::Work(number, worker));
        }
        let Some(mut bulk) = self.bulk.take() else { return };
        let next = bulk.work(worker, self);
        let ended = matches!(next, Next::Done) && bulk.waiting_for == 0;
        if ended {
            for (frames, worker) in bulk.round.frames.iter_mut().zip(&bulk.workers) {
                *frames = worker.frames;
            }
            bulk.round.duration = now.since(bulk.round_begun);
        }
        let sum = bulk.round.clone();
        self.bulk = Some(bulk);
        match next {
            Next::At(at) => self.clock.at(at, Event::Work(number, worker)),
            Next::Done if ended => self.tell(Side::Source, Inbound::Round(number, sum)),
            Next::Done => {}
            Next::Failed => {
                let why = format!("data connection {worker} is broken");
                self.tell(Side::Source, Inbound::WorkerFailed(number, why));
            }
        }
    }

    /// The job is over: workers end, and their connections.
    pub(crate) fn abandon_bulk(&mut self, how: Closing) {
        let Some(bulk) = self.bulk.take() else { return };
        for worker in bulk.workers {
            self.close(worker.connection, Side::Source, how);
        }
    }

    /// A page of the source's guest, read from outside.
    pub(crate) fn read_source(&mut self, page: PageId) -> u64 {
        let now = self.now();
        let Some(qemu) = self.host(Side::Source).qemu.as_mut() else { return 0 };
        qemu.until(now);
        qemu.guest.read(page)
    }

    fn source_memory(&mut self) -> Option<Vec<u64>> {
        let now = self.now();
        let qemu = self.host(Side::Source).qemu.as_mut()?;
        qemu.until(now);
        Some(qemu.guest.memory.clone())
    }
}

fn empty_round(number: u32, workers: usize) -> RoundSum {
    RoundSum {
        number,
        duration: Duration::ZERO,
        pages: 0,
        wire_bytes: 0,
        root: Root::ZERO_MEMORY,
        frames: vec![0; workers],
        is_last: false,
    }
}
