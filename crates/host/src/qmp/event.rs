//! QEMU's events, handed to any number of subscribers, each with a bounded queue of its own.
//!
//! A subscriber that is slow, or a guest that makes QEMU noisy, must not cost memory, and must not push out the events
//! that a migration stands on. So where a queue is full, the oldest event goes that is not one of [`KEY_EVENTS`]; only
//! where there are none but key events, the oldest of those. What was lost is told ([`Delivery::Lagged`]): the subscriber then
//! asks QEMU for its state.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Notify;

/// Events that are kept rather than others: they say whether the guest runs and how far a migration is.
pub const KEY_EVENTS: [&str; 13] = [
    "BLOCK_IO_ERROR",
    "BLOCK_JOB_COMPLETED",
    "BLOCK_JOB_ERROR",
    "BLOCK_JOB_READY",
    "GUEST_CRASHLOADED",
    "GUEST_PANICKED",
    "MIGRATION",
    "MIGRATION_PASS",
    "RESET",
    "RESUME",
    "SHUTDOWN",
    "STOP",
    "SUSPEND",
];

/// Events in a queue, at most.
const MAX_QUEUED: usize = 1024;

/// Bytes on the line of all events in a queue, at most.
const MAX_QUEUED_BYTES: usize = 4 << 20;

/// Something that happened in QEMU.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Event {
    /// Its name (`STOP`).
    pub name: String,
    /// What QEMU says about it; `Null` where it says nothing.
    pub data: Value,
    /// When, on QEMU's wall clock.
    pub timestamp: Timestamp,
}

impl Event {
    /// When it happened, in microseconds since 1970 on the host's wall clock. STOP to RESUME on one host is the downtime.
    #[must_use]
    pub fn micros(&self) -> i64 {
        self.timestamp.seconds.saturating_mul(1_000_000).saturating_add(self.timestamp.microseconds)
    }

    fn is_key(&self) -> bool {
        KEY_EVENTS.binary_search(&self.name.as_str()).is_ok()
    }
}

/// QEMU's wall clock; -1 where the host could not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(default)]
pub struct Timestamp {
    /// Seconds since 1970.
    pub seconds: i64,
    /// And microseconds.
    pub microseconds: i64,
}

/// What a subscriber gets.
#[derive(Clone, Debug, PartialEq)]
pub enum Delivery {
    /// The next event.
    Event(Arc<Event>),
    /// Events were lost here, because this subscriber was too slow.
    Lagged {
        /// How many that are not among [`KEY_EVENTS`].
        minor: u64,
        /// How many of [`KEY_EVENTS`]. Where there are some, ask QEMU for its state.
        key: u64,
    },
    /// The connection is over, and everything before its end was delivered.
    Closed,
}

/// A subscription: the events from the moment it was made on.
#[derive(Debug)]
pub struct Events {
    queue: Arc<Queue>,
}

impl Events {
    /// The next event, once there is one. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Delivery {
        loop {
            if let Some(delivery) = self.try_next() {
                return delivery;
            }
            // An event that arrives between the two lines leaves a permit, so this returns at once.
            self.queue.arrived.notified().await;
        }
    }

    /// The next event, if one is there.
    pub fn try_next(&mut self) -> Option<Delivery> {
        lock(&self.queue.state).take()
    }
}

/// The sending side: all subscriptions of one connection.
#[derive(Debug, Default)]
pub(super) struct Hub {
    state: Mutex<HubState>,
}

#[derive(Debug, Default)]
struct HubState {
    queues: Vec<std::sync::Weak<Queue>>,
    closed: bool,
}

impl Hub {
    pub(super) fn subscribe(&self) -> Events {
        let mut state = lock(&self.state);
        let queue = Arc::new(Queue::default());
        lock(&queue.state).closed = state.closed;
        state.queues.retain(|queue| queue.strong_count() > 0);
        state.queues.push(Arc::downgrade(&queue));
        Events { queue }
    }

    /// Hands an event that took so many bytes on the line to every subscriber.
    pub(super) fn publish(&self, event: Event, line_bytes: usize) {
        let event = Arc::new(event);
        for queue in lock(&self.state).queues.iter().filter_map(std::sync::Weak::upgrade) {
            lock(&queue.state).push(Arc::clone(&event), line_bytes);
            queue.arrived.notify_one();
        }
    }

    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        for queue in state.queues.iter().filter_map(std::sync::Weak::upgrade) {
            lock(&queue.state).closed = true;
            queue.arrived.notify_one();
        }
    }
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<QueueState>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct QueueState {
    events: VecDeque<(Arc<Event>, usize)>,
    bytes: usize,
    lost_minor: u64,
    lost_key: u64,
    closed: bool,
}

impl QueueState {
    fn push(&mut self, event: Arc<Event>, line_bytes: usize) {
        self.events.push_back((event, line_bytes));
        self.bytes += line_bytes;
        while self.events.len() > MAX_QUEUED || self.bytes > MAX_QUEUED_BYTES {
            let minor = self.events.iter().position(|(event, _)| !event.is_key());
            let Some((lost, bytes)) = self.events.remove(minor.unwrap_or(0)) else { return };
            self.bytes -= bytes;
            if lost.is_key() {
                self.lost_key += 1;
            } else {
                self.lost_minor += 1;
            }
        }
    }

    fn take(&mut self) -> Option<Delivery> {
        if self.lost_minor + self.lost_key > 0 {
            let lagged = Delivery::Lagged { minor: self.lost_minor, key: self.lost_key };
            (self.lost_minor, self.lost_key) = (0, 0);
            return Some(lagged);
        }
        if let Some((event, bytes)) = self.events.pop_front() {
            self.bytes -= bytes;
            return Some(Delivery::Event(event));
        }
        self.closed.then_some(Delivery::Closed)
    }
}

/// Locks; a thread that died inside leaves a state that is still whole, since every change above is made in one go.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str) -> Event {
        Event { name: name.into(), ..Event::default() }
    }

    #[test]
    fn key_events_are_sorted() {
        assert!(KEY_EVENTS.is_sorted());
    }

    #[test]
    fn noise_does_not_push_out_what_matters() {
        let hub = Hub::default();
        let mut events = hub.subscribe();
        hub.publish(event("STOP"), 80);
        for _ in 0..5 * MAX_QUEUED {
            hub.publish(event("RTC_CHANGE"), 80);
        }
        let lost = 5 * MAX_QUEUED as u64 + 1 - MAX_QUEUED as u64;
        assert_eq!(events.try_next(), Some(Delivery::Lagged { minor: lost, key: 0 }));
        assert_eq!(events.try_next(), Some(Delivery::Event(Arc::new(event("STOP")))));
        hub.close();
        let rest = std::iter::from_fn(|| events.try_next())
            .take_while(|delivery| *delivery != Delivery::Closed)
            .count();
        assert_eq!(rest, MAX_QUEUED - 1);
    }

    #[test]
    fn large_events_are_bounded_by_their_bytes() {
        let hub = Hub::default();
        let mut events = hub.subscribe();
        hub.publish(event("STOP"), MAX_QUEUED_BYTES);
        hub.publish(event("RESUME"), 100);
        assert_eq!(events.try_next(), Some(Delivery::Lagged { minor: 0, key: 1 }));
        assert_eq!(events.try_next(), Some(Delivery::Event(Arc::new(event("RESUME")))));
        assert_eq!(events.try_next(), None);
    }

    #[test]
    fn a_late_subscriber_learns_of_the_end() {
        let hub = Hub::default();
        hub.close();
        assert_eq!(hub.subscribe().try_next(), Some(Delivery::Closed));
    }
}
