//! Keeps the link's queue short in post-copy: what is pushed must not stand before a page that the guest waits for.
//!
//! All connections of a job share the link, so what counts is what they have under way together. A push waits until that
//! is within the [`PushWindow`], which learns on the way what the link carries.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sterna_host::tls::DataHandle;
use sterna_migration::push_window::{PushWindow, Pushed};
use sterna_model::{ByteCount, PAGE_BYTES, Rate};

/// A batch takes the link so long at most.
const BATCH: Duration = Duration::from_millis(1);
/// What is under way is looked at so often.
const LOOK: Duration = Duration::from_micros(250);
/// A link that takes nothing for so long is not waited for here: the write itself tells what is wrong with it.
const PATIENCE: Duration = Duration::from_secs(1);

/// See the module. Shared by the workers of a job.
#[derive(Debug, Default)]
pub(super) struct Pacer(Mutex<Option<State>>);

#[derive(Debug)]
struct State {
    begun: Instant,
    links: Vec<DataHandle>,
    window: PushWindow,
    written: ByteCount,
}

/// The right to write; the others wait until it is dropped.
pub(super) struct Turn<'a>(
    #[expect(dead_code, reason = "held, not used")] MutexGuard<'a, Option<State>>,
);

impl Pacer {
    /// The push begins; what is known of the link.
    pub(super) fn begin(&self, links: Vec<DataHandle>, rate: Option<Rate>, round_trip: Duration) {
        let window = PushWindow::new(rate, round_trip);
        let (begun, written) = (Instant::now(), ByteCount(0));
        *self.lock() = Some(State { begun, links, window, written });
    }

    /// Pages in a batch, at most, and at most `most`.
    pub(super) fn batch_pages(&self, most: usize) -> usize {
        let Some(rate) = self.lock().as_ref().map(|state| state.window.rate()) else { return most };
        let bytes = u128::from(rate.bytes_per_second) * BATCH.as_micros() / 1_000_000;
        usize::try_from(bytes / PAGE_BYTES as u128).map_or(most, |pages| pages.clamp(1, most))
    }

    /// Waits until so many bytes may be written.
    pub(super) fn turn(&self, bytes: u64) -> Turn<'_> {
        let mut turn = self.lock();
        if let Some(state) = &mut *turn {
            let begun = Instant::now();
            while !state.may_write(bytes) && begun.elapsed() < PATIENCE {
                std::thread::sleep(LOOK);
            }
            state.written.0 += bytes;
        }
        Turn(turn)
    }

    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn may_write(&mut self, bytes: u64) -> bool {
        // A connection that cannot be asked is not waited for.
        let waiting = self.links.iter().map(|link| link.unacknowledged_bytes().unwrap_or(0) as u64);
        let under_way = ByteCount(waiting.sum());
        let may = under_way.0 + bytes <= self.window.limit().0.max(bytes);
        self.window.note(Pushed {
            now: self.begun.elapsed(),
            delivered: ByteCount(self.written.0.saturating_sub(under_way.0)),
            under_way,
            held_back: !may,
        });
        may
    }
}
