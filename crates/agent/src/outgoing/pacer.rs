//! Keeps the link's queue short in post-copy: what is pushed must not stand before a page that the guest waits for.
//!
//! All connections of a job share the link, so what counts is what they have under way together. A push waits until
//! that is no more than the link carries in a round trip and [`QUEUE`]; with less the link would stand idle, more only
//! waits in a queue. The rate is measured on the way, so that a first guess does not matter for long.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sterna_host::tls::DataHandle;
use sterna_model::{ByteCount, PAGE_BYTES, Rate};

/// What may wait in the link's queue, beyond what is on its way.
const QUEUE: Duration = Duration::from_millis(3);
/// A batch takes the link so long at most.
const BATCH: Duration = Duration::from_millis(1);
/// Until the link was measured.
const GUESS: Rate = Rate { bytes_per_second: 12_500_000 };
/// The rate is what was delivered in so long, if the link was busy all that time.
const WINDOW: Duration = Duration::from_millis(50);
/// What is under way is looked at so often.
const LOOK: Duration = Duration::from_micros(250);
/// A link that takes nothing for so long is not waited for here: the write itself tells what is wrong with it.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes that may always be under way: a page and what goes with it, twice.
const LEAST_BYTES: u64 = 2 * (PAGE_BYTES as u64 + 256);

/// See the module. Shared by the workers of a job.
#[derive(Debug, Default)]
pub(super) struct Pacer(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    links: Vec<DataHandle>,
    rate: Option<Rate>,
    round_trip: Duration,
    written_bytes: u64,
    window: Option<Window>,
}

/// A stretch of time in which the link had something to carry.
#[derive(Clone, Copy, Debug)]
struct Window {
    begun: Instant,
    delivered_bytes: u64,
}

/// The right to write; the others wait until it is dropped.
pub(super) struct Turn<'a>(#[expect(dead_code, reason = "held, not used")] MutexGuard<'a, State>);

impl Pacer {
    /// What is known of the link when the push begins.
    pub(super) fn begin(&self, links: Vec<DataHandle>, rate: Option<Rate>, round_trip: Duration) {
        *self.lock() = State { links, rate, round_trip, written_bytes: 0, window: None };
    }

    /// Pages in a batch, at most, and at most `most`.
    pub(super) fn batch_pages(&self, most: usize) -> usize {
        let bytes = carried(self.lock().rate.unwrap_or(GUESS), BATCH);
        usize::try_from(bytes / PAGE_BYTES as u64).map_or(most, |pages| pages.clamp(1, most))
    }

    /// Waits until so many bytes may be written.
    pub(super) fn turn(&self, bytes: u64) -> Turn<'_> {
        let mut state = self.lock();
        let begun = Instant::now();
        let mut waited = false;
        loop {
            let under_way = state.under_way();
            if under_way + bytes <= state.target().max(bytes) || begun.elapsed() > PATIENCE {
                break;
            }
            waited = true;
            std::thread::sleep(LOOK);
        }
        state.note(bytes, waited);
        Turn(state)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn under_way(&self) -> u64 {
        // A connection that cannot be asked is not waited for.
        self.links.iter().map(|link| link.unacknowledged_bytes().unwrap_or(0) as u64).sum()
    }

    fn target(&self) -> u64 {
        carried(self.rate.unwrap_or(GUESS), self.round_trip + QUEUE).max(LEAST_BYTES)
    }

    /// Measures the rate over stretches in which each write had to wait: then the link was busy.
    fn note(&mut self, bytes: u64, waited: bool) {
        let now = Instant::now();
        let delivered_bytes = self.written_bytes.saturating_sub(self.under_way());
        self.written_bytes += bytes;
        if !waited {
            // The link took everything at once: it may be faster than was thought.
            if let Some(window) = self.window.take().filter(|window| now - window.begun >= WINDOW) {
                let seen = rate(window, delivered_bytes, now);
                let known = self.rate.unwrap_or(GUESS).bytes_per_second;
                let grown = known + known / 4;
                self.rate = Some(Rate { bytes_per_second: grown.max(seen.bytes_per_second) });
            }
        }
        match self.window {
            None => self.window = Some(Window { begun: now, delivered_bytes }),
            Some(window) if waited && now - window.begun >= WINDOW => {
                self.rate = Some(rate(window, delivered_bytes, now));
                self.window = Some(Window { begun: now, delivered_bytes });
            }
            Some(_) => {}
        }
    }
}

fn rate(window: Window, delivered_bytes: u64, now: Instant) -> Rate {
    let bytes = delivered_bytes.saturating_sub(window.delivered_bytes);
    Rate::of(ByteCount(bytes), now - window.begun)
}

fn carried(rate: Rate, time: Duration) -> u64 {
    let bytes = u128::from(rate.bytes_per_second) * time.as_micros() / 1_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
