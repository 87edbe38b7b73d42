//! A followed guest: epochs instead of rounds, until the hand-over is asked for.
//!
//! At the end of an epoch the tracker tells which pages were dirtied in it, the predictor learns from that, and of the
//! stale pages the coldest go, as many as the window takes; the others stay marked. Asked for the hand-over, QEMU is let
//! go, and the policy decides: it may be that all that is stale goes in a round, or that there is no time for one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sterna_api::{CopyView, EpochView};
use sterna_migration::policy::{Ablation, EpochFacts, Epochs, HAND_OVER_FIXED, HAND_OVER_GOAL};
use sterna_migration::predictor::Predictor;
use sterna_migration::source::{Fact, Timer};
use sterna_model::{ByteCount, PAGE_BYTES, Rate};

use super::{Drive, HEARD_LATELY};
use crate::config::Lab;
use crate::following::{FOLLOWING, Following, Seen};
use crate::outgoing::bulk::{Bulk, RoundSum};
use crate::outgoing::harm::Harm;

/// A round's pages are spread over this share of their epoch.
const SPREAD_OVER: f64 = 0.5;

/// Where following is.
#[derive(Debug, Default)]
pub(super) struct Epoch {
    epochs: Epochs,
    predictor: Option<Predictor>,
    /// When the present one ends; none before the first.
    ends: Option<Instant>,
    /// The hand-over was asked for.
    handing_over: bool,
    reread: Reread,
    /// What was sent at the end of the last one, a bit for each page.
    sent: Vec<u64>,
    facts: EpochFacts,
    harm: Harm,
    last: Option<(Instant, EpochView)>,
}

impl Epoch {
    /// Before the first; a measurement may leave something out.
    pub(super) fn new(lab: Lab) -> Self {
        let ablation =
            Ablation { prediction: lab.without_prediction, slow_start: lab.without_slow_start };
        Self { epochs: Epochs::without(ablation), ..Self::default() }
    }
}

/// Under TCG each of QEMU's looks may have missed a write: before the hand-over all memory is read once more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reread {
    #[default]
    NotNeeded,
    /// The next round is to be one over all memory.
    Wanted,
    /// The round under way is.
    UnderWay,
}

/// Waits until a followed VM's hand-over is asked for.
pub(super) async fn hand_over_asked(follow: Option<&Arc<Following>>) {
    match follow {
        Some(follow) => follow.hand_over_asked().await,
        None => std::future::pending().await,
    }
}

impl Drive {
    /// Whether the guest is followed, and its hand-over not asked for.
    pub(super) const fn is_following(&self) -> bool {
        self.wanted.follow.is_some() && !self.epoch.handing_over
    }

    /// At the end of a round: whether it read all memory again, or nothing if the next one is to, and has begun.
    pub(super) fn reread(&mut self) -> Option<bool> {
        let reread = std::mem::take(&mut self.epoch.reread);
        if reread != Reread::Wanted {
            return Some(reread == Reread::UnderWay);
        }
        self.begin_to_reread();
        None
    }

    fn begin_to_reread(&mut self) {
        self.epoch.reread = Reread::UnderWay;
        if let Some(bulk) = &mut self.bulk {
            bulk.begin_to_reread();
        }
    }

    /// The job's phase, as users see it.
    pub(super) fn shown_phase(&self, phase: &'static str) -> &'static str {
        if self.is_following() && phase == "copying" { FOLLOWING } else { phase }
    }

    /// A round is over that was sent in the background.
    pub(super) fn background_round_done(&mut self, round: &RoundSum) {
        let Some(bulk) = &self.bulk else { return };
        let facts = self.gauge.background_round_ended(round, bulk);
        self.fact(Fact::RoundEnded(facts));
    }

    /// Called at each tick: an epoch may be over.
    pub(super) fn look_at_epoch(&mut self) {
        if self.wanted.follow.is_none() || self.phase() != "copying" {
            return;
        }
        let now = Instant::now();
        let rests = self.bulk.as_ref().is_some_and(|bulk| {
            bulk.is_linked()
                && bulk.is_idle()
                && bulk.tracker().first_pass_over()
                && !self.again.withholds()
        });
        // A destination that is not heard gets nothing: what is stale meanwhile is found when it is heard again.
        let heard = self.heard_at.elapsed() <= HEARD_LATELY;
        if self.is_following() && rests && heard && self.epoch.ends.is_none_or(|ends| ends <= now) {
            tokio::task::block_in_place(|| self.end_epoch(now));
        }
        self.tell();
    }

    /// Called at each tick: whether the guest has to wait for processors more while pages are sent.
    pub(super) async fn look_at_harm(&mut self) {
        if !self.is_following() || self.epoch.predictor.is_none() {
            return;
        }
        if self.epoch.harm.knows_nobody()
            && let Some(live) = &self.wanted.live
            && let Ok(processors) = live.qmp.query_cpus_fast().await
        {
            let threads = processors.iter().map(|one| one.thread_id).collect::<BTreeSet<_>>();
            self.epoch.harm.watch(live.process.pid(), threads.into_iter().collect());
        }
        let is_sending = self.bulk.as_ref().is_some_and(|bulk| !bulk.is_idle());
        self.epoch.harm.look(is_sending);
    }

    /// Learns from the epoch that is over, and begins the next one with what pays to be sent.
    fn end_epoch(&mut self, now: Instant) {
        let Some(bulk) = &self.bulk else { return };
        let touched = bulk.tracker().take_touched();
        let Some(predictor) = &mut self.epoch.predictor else {
            // What was touched until now was so by the first pass.
            self.epoch.predictor = Some(Predictor::new(bulk.pages()));
            self.epoch.ends = Some(now + self.epoch.epochs.length());
            return;
        };
        predictor.learn(&touched);
        let dirtied_again =
            count(self.epoch.sent.iter().zip(&touched).map(|(one, other)| one & other));
        let facts = EpochFacts {
            stale_bytes: self.gauge.cost_of(bulk.waiting_pages()),
            allowed_bytes: self.allowed(),
            dirtied_again,
            queueing: self.queueing(),
            harm_percent: self.epoch.harm.end_epoch(),
            ..self.epoch.facts
        };
        self.epoch.epochs.ended(&facts);
        let epochs = self.epoch.epochs;
        let Some(predictor) = &self.epoch.predictor else { return };
        let chosen = predictor.choose(
            &bulk.tracker().stale(),
            epochs.limit_per_epoch(),
            epochs.window_pages(),
        );
        self.epoch.facts = EpochFacts {
            eligible_pages: u64::from(chosen.eligible),
            sent_pages: u64::from(chosen.count),
            ..EpochFacts::default()
        };
        self.epoch.ends = Some(now + epochs.length());
        let view = EpochView {
            ended_ms_ago: 0,
            dirtied_pages: count(touched.iter().copied()),
            eligible_pages: u64::from(chosen.eligible),
            sent_pages: u64::from(chosen.count),
            dirtied_again,
            window_pages: epochs.window_pages(),
            next_ms: u64::try_from(epochs.length().as_millis()).unwrap_or(u64::MAX),
            hazard_limit_per_second: epochs.limit_per_second(),
            harm_percent: facts.harm_percent,
        };
        tracing::trace!(?view, "an epoch is over");
        self.epoch.last = Some((now, view));
        let rate = self.spread(chosen.count, epochs.length());
        if let Some(bulk) = self.bulk.as_mut().filter(|_| chosen.count > 0) {
            bulk.leave_unchecked(self.agent.config.lab.without_content_check);
            bulk.begin_round_of(&chosen.pages, Some(rate));
        }
        self.epoch.sent = chosen.pages;
    }

    /// The rate at which so many pages take their share of an epoch, within the job's limit.
    fn spread(&self, pages: u32, length: Duration) -> Rate {
        let bytes = ByteCount(u64::from(pages) * PAGE_BYTES as u64);
        let rate = Rate::of(bytes, length.mul_f64(SPREAD_OVER));
        self.rate().map_or(rate, |limit| limit.min(rate))
    }

    /// What may be stale for the hand-over to be in time: what the link carries meanwhile.
    fn allowed(&self) -> ByteCount {
        let fixed = HAND_OVER_FIXED + self.gauge.round_trip.unwrap_or_default() * 2;
        let left = HAND_OVER_GOAL.saturating_sub(fixed);
        let rate = self.gauge.link_rate().unwrap_or_default().bytes_per_second;
        let millis = u64::try_from(left.as_millis()).unwrap_or(0);
        ByteCount(rate.saturating_mul(millis) / 1000)
    }

    /// How much longer the last message took than the fastest.
    fn queueing(&self) -> Duration {
        let (last, best) = (self.gauge.last_round_trip, self.gauge.round_trip);
        last.zip(best).map_or(Duration::ZERO, |(last, best)| last.saturating_sub(best))
    }

    /// Tells what `status` shows.
    fn tell(&self) {
        let (Some(follow), Some(bulk)) = (&self.wanted.follow, &self.bulk) else { return };
        let copied_once = self.epoch.predictor.is_some();
        let stale_pages = bulk.waiting_pages();
        let stale_wire = self.gauge.cost_of(stale_pages);
        let predicted = || {
            let rate = self.gauge.link_rate()?;
            let fixed = HAND_OVER_FIXED + self.gauge.round_trip.unwrap_or_default() * 2;
            Some(rate.time_for(stale_wire).saturating_add(fixed).as_secs_f64() * 1000.0)
        };
        let copy = CopyView {
            memory_bytes: self.gauge.memory.0,
            stale_pages,
            stale_bytes: stale_pages * PAGE_BYTES as u64,
            stale_wire_bytes: stale_wire.0,
            allowed_wire_bytes: self.allowed().0,
            background_bytes: background(self.gauge.switch, bulk),
            predicted_switch_ms: copied_once.then(predicted).flatten(),
            dirty_bytes_per_second: self.gauge.dirty_rate.bytes_per_second,
            epochs: self.epoch.predictor.as_ref().map_or(0, |it| u64::from(it.epochs())),
            last_epoch: None,
        };
        let away = match &self.away {
            Some(away) => Some((away.since, away.why.clone())),
            // Its connections are not given up yet.
            None => (self.heard_at.elapsed() > HEARD_LATELY)
                .then(|| (self.heard_at, "nothing is heard of the destination".to_owned())),
        };
        follow.tell(Seen { copied_once, copy: Some(copy), epoch: self.epoch.last, away });
    }

    /// The hand-over is asked for: all that is stale goes, and the policy decides from here on.
    pub(super) async fn hand_over(&mut self) {
        self.epoch.handing_over = true;
        if let Some(follow) = &self.wanted.follow {
            follow.begin_hand_over();
        }
        let sent = self.bulk.as_ref().map_or(0, Bulk::wire_bytes);
        self.gauge.switch = Some((Instant::now(), sent));
        self.job.set_phase(self.phase());
        tracing::info!("the hand-over is asked for");
        // Before all memory was copied once it is a move like any other.
        if let Some(bulk) = &self.bulk {
            bulk.set_rate(self.agent.config.limits.bandwidth);
            bulk.leave_unchecked(false);
        }
        let copied_once = self.epoch.predictor.is_some() && !self.again.withholds();
        if !copied_once || self.phase() != "copying" {
            return self.begin_round_if_idle();
        }
        self.hurry().await;
        if self.away.is_some() {
            // As long as the link's timeout it is waited for; what follows then is what would follow now.
            let until = tokio::time::Instant::now() + self.agent.config.limits.link_timeout;
            self.timers.insert(Timer::Away, until);
            self.epoch.reread =
                if self.looks_may_miss() { Reread::Wanted } else { Reread::NotNeeded };
            return;
        }
        match (self.looks_may_miss(), self.bulk.as_ref().is_some_and(Bulk::is_idle)) {
            (true, true) => self.begin_to_reread(),
            (true, false) => self.epoch.reread = Reread::Wanted,
            // A round over nothing, so that the policy decides: what is stale may be more than can go in time.
            (false, true) => self.begin_empty_round(),
            (false, false) => {}
        }
    }

    /// After a broken link: whether the next epoch takes care of what is stale. What was dirtied meanwhile says nothing of
    /// how often that happens in one.
    pub(super) fn epochs_go_on(&mut self) -> bool {
        let Some(bulk) = self.bulk.as_mut().filter(|_| self.epoch.predictor.is_some()) else {
            return false;
        };
        if self.wanted.follow.is_some() && !self.epoch.handing_over {
            drop(bulk.tracker().take_touched());
            self.epoch.sent = Vec::new();
            self.epoch.ends = Some(Instant::now() + self.epoch.epochs.length());
            return true;
        }
        if std::mem::take(&mut self.epoch.reread) != Reread::NotNeeded {
            // All of it again: how far it had come is not known.
            self.begin_to_reread();
            return true;
        }
        false
    }

    fn begin_empty_round(&mut self) {
        let limit = self.agent.config.limits.bandwidth;
        if let Some(bulk) = &mut self.bulk {
            bulk.begin_round_of(&[], limit);
        }
    }

    /// A round that is under way ends by itself, and is followed by others.
    fn begin_round_if_idle(&mut self) {
        let copying = self.phase() == "copying" && !self.again.withholds();
        let begins = |bulk: &&mut Bulk| copying && bulk.is_linked() && bulk.is_idle();
        if let Some(bulk) = self.bulk.as_mut().filter(begins) {
            bulk.begin_round();
        }
    }
}

/// What was sent before the hand-over was asked for.
fn background(switch: Option<(Instant, u64)>, bulk: &Bulk) -> u64 {
    switch.map_or_else(|| bulk.wire_bytes(), |(_, sent)| sent)
}

fn count(words: impl Iterator<Item = u64>) -> u64 {
    words.map(|word| u64::from(word.count_ones())).sum()
}
