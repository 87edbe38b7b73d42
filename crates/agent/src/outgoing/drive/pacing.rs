//! QEMU's pace while the guest runs: how often it looks for dirty pages, and when it is let go.
//!
//! After its first pass a held QEMU looks for dirty pages some ten thousand times a second unless its bandwidth is limited
//! to little more than what the guest dirties. A paced QEMU knows of more dirty pages than it has told, so near the end it
//! is let go, and tells; where that would be dangerous (see [`Drive::may_unleash`]), what it says remains is counted instead.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sterna_host::qmp::Accelerator;
use sterna_migration::policy::RoundFacts;
use sterna_model::{ByteCount, PAGE_BYTES, Rate};

use super::Drive;
use crate::outgoing::qemu::Progress;

/// The least that QEMU may write per second: it then syncs a few times a second even if nothing is dirty.
const MIN_PACE_BYTES_PER_SECOND: u64 = 20_000;
/// Where pacing begins.
const FIRST_PACE_BYTES_PER_SECOND: u64 = 128 << 10;
/// As much as no guest dirties for long.
const MAX_PACE_BYTES_PER_SECOND: u64 = 16 << 30;
/// Dirty syncs in a tick that are enough.
const LOOKS_PER_TICK: u64 = 2;
/// While a guest is followed, its QEMU is looked at so often only: nothing is urgent, and hours add up.
const FOLLOWED_LOOK_EVERY: Duration = Duration::from_secs(1);
/// The least that it may write per second then.
const MIN_FOLLOWED_BYTES_PER_SECOND: u64 = 8_000;
/// Dirty syncs that are enough between two such looks.
const FOLLOWED_SYNCS: u64 = 2;
/// A guest that dirties less is calm.
const CALM_BYTES_PER_SECOND: u64 = 2 << 20;
/// Ticks that tell whether a guest is calm: a paced QEMU tells in bursts.
const REMEMBERED_TICKS: usize = 10;
/// What was dirtied in less time than this is divided by this: an idle guest's few pages in a short pass are no storm.
const LEAST_TIME: Duration = Duration::from_millis(500);
/// A rest that takes no longer is near the end: from here on it is measured with nothing under way.
const NEAR_THE_END: Duration = Duration::from_millis(300);
/// What a QEMU tells with the guest stopped in some 20 ms.
const TOLD_AT_ONCE: ByteCount = ByteCount(8 << 20);
/// Four times as much as is untold in each window of 100 ms: neither that nor what is found next uses a window up.
const AMPLE_WINDOWS_PER_SECOND: u64 = 40;
/// The next look for dirty pages has ended by then, or is not waited for.
const LOOK_DEADLINE: Duration = Duration::from_secs(2);
/// QEMU notices a new pace at the end of its 100 ms window; after this it has.
const PACE_DEADLINE: Duration = Duration::from_millis(150);

/// QEMU's pace, and what is known of the guest's.
#[derive(Debug)]
pub(super) struct Pace {
    /// What QEMU may write; none when it is not paced.
    pub(super) bytes_per_second: Option<u64>,
    /// Near the end it is not held back any more.
    pub(super) unleashed: bool,
    /// Dirty syncs when that was last looked at.
    seen_syncs: u64,
    seen_pages: u64,
    seen_at: Instant,
    /// When QEMU's stream began: what is told after its first pass was dirtied since.
    begun: Instant,
    /// Pages that had been told when the first pass was over.
    first_pass_pages: Option<u64>,
    /// What the guest dirtied by tick, and how long that was.
    recent: VecDeque<(ByteCount, Duration)>,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            bytes_per_second: None,
            unleashed: false,
            seen_syncs: 0,
            seen_pages: 0,
            seen_at: Instant::now(),
            begun: Instant::now(),
            first_pass_pages: None,
            recent: VecDeque::with_capacity(REMEMBERED_TICKS),
        }
    }
}

impl Pace {
    fn remember(&mut self, dirty: ByteCount, elapsed: Duration) {
        self.recent.truncate(REMEMBERED_TICKS - 1);
        self.recent.push_front((dirty, elapsed));
    }

    /// Whether the guest has dirtied little of late, and little altogether, what is untold included.
    fn is_calm(&self, pages: u64, untold: ByteCount) -> bool {
        let altogether = self.first_pass_pages.map(|told| {
            let dirty = pages.saturating_sub(told) * PAGE_BYTES as u64 + untold.0;
            Rate::of(ByteCount(dirty), self.begun.elapsed().max(LEAST_TIME))
        });
        let dirty = self.recent.iter().map(|(dirty, _)| dirty.0).sum();
        let elapsed: Duration = self.recent.iter().map(|(_, elapsed)| *elapsed).sum();
        let of_late = Rate::of(ByteCount(dirty), elapsed.max(LEAST_TIME));
        let rate = altogether.map_or(of_late, |altogether| altogether.max(of_late));
        rate.bytes_per_second < CALM_BYTES_PER_SECOND
    }
}

impl Drive {
    /// The first pass is over.
    pub(super) async fn begin_to_pace(&mut self) {
        self.pace.first_pass_pages = Some(self.counters.pages.load(Ordering::Relaxed));
        self.set_pace(FIRST_PACE_BYTES_PER_SECOND).await;
    }

    /// Lets QEMU write a little more than the guest dirties, so that it looks a few times a second and no more.
    pub(super) async fn pace(&mut self) {
        let over = self.bulk.as_ref().is_some_and(|bulk| bulk.tracker().first_pass_over());
        if !over || self.phase() != "copying" {
            return;
        }
        let elapsed = self.pace.seen_at.elapsed();
        if self.is_following() && elapsed < FOLLOWED_LOOK_EVERY {
            return;
        }
        let pages = self.counters.pages.load(Ordering::Relaxed);
        let dirty = ByteCount((pages - self.pace.seen_pages) * PAGE_BYTES as u64);
        let first = self.pace.seen_pages == 0;
        (self.pace.seen_pages, self.pace.seen_at) = (pages, Instant::now());
        if first {
            return;
        }
        self.gauge.dirty_rate = Rate::of(dirty, elapsed);
        self.pace.remember(dirty, elapsed);
        if self.pace.unleashed {
            if !self.may_unleash(ByteCount(0)) {
                // It was calm, and is not any more. Not at this tick's rate: a tick without a page would be no limit at all.
                self.pace.unleashed = false;
                self.set_pace(FIRST_PACE_BYTES_PER_SECOND).await;
            }
            return;
        }
        let Some(qemu) = &self.qemu else { return };
        let Ok(progress) = qemu.progress().await else { return };
        let looks = progress.syncs.saturating_sub(self.pace.seen_syncs);
        self.pace.seen_syncs = progress.syncs;
        // A stream that was begun anew is not paced yet.
        let unpaced = self.pace.bytes_per_second.is_none();
        let now = self.pace.bytes_per_second.unwrap_or(MIN_PACE_BYTES_PER_SECOND);
        let wanted = if self.is_following() {
            followed_pace(now, looks, progress.remaining_bytes)
        } else if looks > LOOKS_PER_TICK {
            (now * LOOKS_PER_TICK / looks).max(now / 8)
        } else {
            // A pass over what is dirty takes about two ticks.
            progress.remaining_bytes.saturating_mul(5).max(now)
        };
        let least = if self.is_following() {
            MIN_FOLLOWED_BYTES_PER_SECOND
        } else {
            MIN_PACE_BYTES_PER_SECOND
        };
        let wanted = wanted.clamp(least, MAX_PACE_BYTES_PER_SECOND);
        if unpaced || wanted.abs_diff(now) > now / 4 {
            self.set_pace(wanted).await;
        }
    }

    async fn set_pace(&mut self, bytes_per_second: u64) {
        let Some(qemu) = &self.qemu else { return };
        match qemu.pace(Some(bytes_per_second)).await {
            Ok(()) => self.pace.bytes_per_second = Some(bytes_per_second),
            Err(error) => tracing::debug!(%error, "QEMU could not be paced"),
        }
    }

    /// At the end of a round that leaves little: what counts is what is dirty when nothing is under way any more, since
    /// that would be ahead of the rest.
    pub(super) async fn look_closer(&mut self, facts: &mut RoundFacts) {
        let near = facts.link_rate.time_for(facts.rest_bytes) <= NEAR_THE_END;
        if near {
            self.wait_for_the_link().await;
        }
        let mut untold = self.untold().await;
        if near && !self.pace.unleashed && self.may_unleash(untold) {
            self.unleash().await;
            untold = ByteCount(0);
        }
        if let Some(bulk) = &self.bulk {
            self.gauge.recount(facts, bulk, untold.0 / PAGE_BYTES as u64);
        }
    }

    /// What a paced QEMU knows to be dirty and has not told.
    async fn untold(&self) -> ByteCount {
        if self.pace.bytes_per_second.is_none() {
            return ByteCount(0);
        }
        ByteCount(self.progress().await.map_or(0, |now| now.remaining_bytes))
    }

    /// Whether QEMU may look for dirty pages as often as it can while the guest runs. Under TCG each look can miss a write
    /// that is under way (QEMU's own race, seen without any code of ours: a stale page in 4 of 5 runs of 7,000 looks
    /// beside a guest that dirties 20 MB/s, in 0 of 6 runs of less than ten looks). So a busy guest under TCG is stopped
    /// with QEMU still paced, and stands up to 100 ms longer.
    fn may_unleash(&self, untold: ByteCount) -> bool {
        !self.looks_may_miss()
            || self.pace.is_calm(self.counters.pages.load(Ordering::Relaxed), untold)
    }

    /// Lets QEMU go as fast as it can from here on. It notices at the end of its window; until then the guest runs.
    async fn unleash(&mut self) {
        let Some(qemu) = &self.qemu else { return };
        match qemu.pace(None).await {
            Ok(()) => self.counters.wait_for_idle(PACE_DEADLINE).await,
            Err(error) => tracing::warn!(%error, "QEMU could not be let go"),
        }
        self.pace.bytes_per_second = None;
        self.pace.unleashed = true;
    }

    /// The hand-over of a followed guest is asked for: QEMU tells all that it knows to be dirty, at once where that is not
    /// dangerous.
    pub(super) async fn hurry(&mut self) {
        let untold = self.untold().await;
        if self.may_unleash(untold) {
            return self.unleash().await;
        }
        let pace = untold.0.saturating_mul(10).max(FIRST_PACE_BYTES_PER_SECOND);
        self.set_pace(pace.min(MAX_PACE_BYTES_PER_SECOND)).await;
    }

    /// Whether QEMU's looks may miss a write that is under way (see [`Drive::may_unleash`]).
    pub(super) fn looks_may_miss(&self) -> bool {
        self.subject.as_ref().is_some_and(|subject| subject.accelerator == Accelerator::Tcg)
    }

    /// Before a stop whose pages need not be sent: QEMU tells nearly all that it knows to be dirty while the guest still
    /// runs. With the guest stopped that would take its time: 75,000 pages took 560 ms. False where the guest writes as
    /// fast as QEMU tells.
    pub(super) async fn catch_up(&mut self) -> bool {
        let Some(mut untold) = self.progress().await.map(|now| now.remaining_bytes) else {
            return true;
        };
        while untold > TOLD_AT_ONCE.0 {
            if !self.pace.unleashed {
                let pace = untold.saturating_mul(10).min(MAX_PACE_BYTES_PER_SECOND);
                self.set_pace(pace).await;
            }
            tokio::time::sleep(PACE_DEADLINE).await;
            let Some(now) = self.progress().await else { return true };
            let before = std::mem::replace(&mut untold, now.remaining_bytes);
            if untold > before / 4 * 3 {
                return false;
            }
        }
        true
    }

    /// Just before the stop of a guest that writes as fast as QEMU tells: a look for dirty pages has just ended, so that
    /// QEMU has only to tell what it knows. The look itself takes longer than that, under TCG some 10 µs a page, and the
    /// guest hardly runs meanwhile; made after the stop, it would be seconds of downtime.
    pub(super) async fn wait_for_a_look(&mut self) {
        let Some(before) = self.progress().await else { return };
        if !self.pace.unleashed {
            let pace = before.remaining_bytes.saturating_mul(AMPLE_WINDOWS_PER_SECOND);
            self.set_pace(pace.clamp(FIRST_PACE_BYTES_PER_SECOND, MAX_PACE_BYTES_PER_SECOND)).await;
            tokio::time::sleep(PACE_DEADLINE).await;
        }
        let Some(before) = self.progress().await else { return };
        let begun = Instant::now();
        while begun.elapsed() < LOOK_DEADLINE {
            tokio::time::sleep(Duration::from_millis(1)).await;
            match self.progress().await {
                Some(now) if now.syncs == before.syncs => {}
                _ => return,
            }
        }
    }

    async fn progress(&self) -> Option<Progress> {
        self.qemu.as_ref()?.progress().await.ok()
    }

    /// Just before the stop: nothing is under way that the last pages would have to wait for, and QEMU is let go where
    /// that is not dangerous.
    pub(super) async fn clear_the_way(&mut self) {
        self.wait_for_the_link().await;
        if !self.pace.unleashed && self.may_unleash(self.untold().await) {
            self.unleash().await;
        }
    }
}

/// The pace of a followed guest's QEMU: what it knows to be dirty is told within half a second; with nothing to tell it falls
/// at once to where it looks about twice a second.
const fn followed_pace(now: u64, syncs: u64, remaining_bytes: u64) -> u64 {
    if remaining_bytes > now {
        remaining_bytes.saturating_mul(2)
    } else if syncs > FOLLOWED_SYNCS {
        now.saturating_mul(FOLLOWED_SYNCS) / syncs
    } else {
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(100);

    #[test]
    fn a_guest_is_not_calm_because_of_one_quiet_tick() {
        let mut pace = Pace::default();
        assert!(pace.is_calm(0, ByteCount(0)), "nothing is known against it");
        pace.remember(ByteCount(4 << 20), TICK);
        for _ in 1..REMEMBERED_TICKS {
            pace.remember(ByteCount(0), TICK);
            assert!(!pace.is_calm(0, ByteCount(0)));
        }
        pace.remember(ByteCount(0), TICK);
        assert!(pace.is_calm(0, ByteCount(0)), "that was long ago");
    }

    #[test]
    fn a_burst_of_an_idle_guests_pages_is_no_storm() {
        let mut pace = Pace::default();
        pace.remember(ByteCount(800_000), TICK);
        pace.remember(ByteCount(0), TICK);
        assert!(pace.is_calm(0, ByteCount(0)));
    }

    #[test]
    fn a_followed_qemu_falls_back_at_once_after_a_burst() {
        let burst = followed_pace(8_000, 1, 4 << 20);
        assert_eq!(burst, 8 << 20, "what it knows is told");
        let after = followed_pace(burst, 900, 0);
        assert!(after < 20_000, "{after}: 900 syncs in a second are too many");
        assert_eq!(followed_pace(after, 2, 0), after);
    }

    #[test]
    fn what_is_untold_counts_from_the_first_pass_on() {
        let pace = Pace { first_pass_pages: Some(1000), ..Pace::default() };
        assert!(pace.is_calm(1200, ByteCount(0)), "a few pages of an idle guest");
        assert!(!pace.is_calm(1200, ByteCount(4 << 20)));
        assert!(!pace.is_calm(2000, ByteCount(0)));
    }
}
