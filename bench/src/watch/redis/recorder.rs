//! What the clients of redis have seen, as it grows: counts, silences, windows of latencies.

use std::time::{Duration, Instant};

use super::worker::Outcome;
use super::{RedisRecord, WINDOW_MS, Window};

const WINDOW: Duration = Duration::from_millis(WINDOW_MS as u64);
/// An hour of windows; what comes later is only counted.
pub(super) const MAX_WINDOWS: usize = 36_000;

/// The record as it grows.
#[derive(Debug)]
pub(super) struct Recorder {
    start: Instant,
    pub(super) record: RedisRecord,
    /// Of the window that is open: the one after the last of the record.
    pub(super) latencies_us: Vec<u32>,
    last_reply: Duration,
}

impl Recorder {
    pub(super) fn new(start_unix_ms: f64, connections: u32) -> Self {
        let record = RedisRecord {
            start_unix_ms,
            window_ms: WINDOW_MS,
            connections,
            ..RedisRecord::default()
        };
        Self { start: Instant::now(), record, latencies_us: Vec::new(), last_reply: Duration::ZERO }
    }

    pub(super) fn take(&mut self, now: Instant, latency: Duration, outcome: Outcome) {
        self.reply_at(now.saturating_duration_since(self.start), latency);
        match outcome {
            Outcome::Read => self.record.gets += 1,
            Outcome::Written => self.record.sets += 1,
            Outcome::Wrong(words) => {
                self.record.wrong_values += 1;
                self.note(words);
            }
            Outcome::Refused(words) => {
                self.record.refused += 1;
                self.note(words);
            }
        }
    }

    /// A reply at that time since the start.
    pub(super) fn reply_at(&mut self, at: Duration, latency: Duration) {
        self.close_windows_before(at);
        self.note_silence(at);
        if self.record.windows.len() < MAX_WINDOWS {
            self.latencies_us.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
        }
    }

    fn note_silence(&mut self, now: Duration) {
        let silence_ms = now.saturating_sub(self.last_reply).as_secs_f64() * 1e3;
        // The time until the first reply is the server's start.
        if silence_ms > self.record.longest_silence_ms && !self.last_reply.is_zero() {
            self.record.longest_silence_ms = silence_ms;
            let began_ms = self.last_reply.as_secs_f64() * 1e3;
            self.record.silence_unix_ms = self.record.start_unix_ms + began_ms;
        }
        self.last_reply = now.max(self.last_reply);
    }

    pub(super) fn note(&mut self, words: String) {
        self.record.first_problem.get_or_insert(words);
    }

    pub(super) fn close_windows_before(&mut self, now: Duration) {
        let current = now.as_millis() / u128::from(WINDOW_MS);
        while (self.record.windows.len() as u128) < current
            && self.record.windows.len() < MAX_WINDOWS
        {
            self.record.windows.push(Window::of(&mut self.latencies_us));
            self.latencies_us.clear();
        }
    }

    /// The record up to now. What has only failed before the server was there is no problem.
    pub(super) fn finish(&mut self, unanswered: u32) -> RedisRecord {
        let now = self.start.elapsed();
        self.close_windows_before(now + WINDOW);
        self.note_silence(now);
        self.record.unanswered = unanswered;
        if self.record.is_sound() {
            self.record.first_problem = None;
        }
        self.record.clone()
    }
}

impl Window {
    fn of(latencies_us: &mut [u32]) -> Self {
        latencies_us.sort_unstable();
        let count = latencies_us.len();
        // The nearest rank: the smallest latency that so many percent do not exceed.
        let percentile = |percent: usize| {
            latencies_us.get((count * percent).div_ceil(100).saturating_sub(1)).copied()
        };
        Self {
            replies: u32::try_from(count).unwrap_or(u32::MAX),
            p50_us: percentile(50),
            p99_us: percentile(99),
            max_us: latencies_us.last().copied(),
        }
    }
}
