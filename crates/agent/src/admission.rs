//! Who gets a place: connections that have not proven who they are, and connections of a peer that has.
//!
//! A stranger costs a descriptor and a handshake, so there is room for some of them at a time, and the newest always gets a
//! place: the oldest of the address that holds most places loses its own. A handshake takes milliseconds, so an honest
//! peer has long been greeted when its turn to go would come, and a flood from one address takes places from itself only.
//!
//! A peer that was greeted has a name to answer for. It may have a place for each job and some more.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sterna_model::HostName;
use tokio::sync::Notify;

/// Connections that are not greeted yet, at most.
const MAX_STRANGERS: usize = 256;
/// Connections of a peer beside those of its jobs: questions, checks, jobs that are over.
const MAX_IDLE_VISITS: usize = 32;
/// Complaints about connections in a second that the log gets one by one.
const MAX_COMPLAINTS: u32 = 20;

/// The places.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    strangers: Mutex<Strangers>,
    visits: Mutex<HashMap<HostName, usize>>,
    complaints: Mutex<Complaints>,
}

#[derive(Debug, Default)]
struct Strangers {
    next: u64,
    /// Oldest first.
    waiting: Vec<Place>,
}

#[derive(Debug)]
struct Place {
    number: u64,
    from: Block,
    lost: Arc<Notify>,
}

/// What one user of the network can be expected to have: an address, or with IPv6 a /64 of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Block([u8; 8]);

#[derive(Debug, Default)]
struct Complaints {
    since: Option<Instant>,
    count: u32,
}

/// A stranger's place; given up when dropped.
#[derive(Debug)]
pub(crate) struct Stranger {
    admission: Arc<Admission>,
    number: u64,
    lost: Arc<Notify>,
}

/// A peer's place; given up when dropped.
#[derive(Debug)]
pub(crate) struct Visit {
    admission: Arc<Admission>,
    peer: HostName,
}

/// How the log is to be told of a connection that was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Complaint {
    /// In a line of its own.
    Told,
    /// Not: there were too many this second.
    Counted,
    /// In a line of its own, after one that tells of so many that were only counted.
    AfterSome(u32),
}

impl Admission {
    /// Gives a connection from this address a place, if need be one that another one loses.
    pub(crate) fn stranger(self: &Arc<Self>, from: IpAddr) -> Stranger {
        let mut strangers = lock(&self.strangers);
        while strangers.waiting.len() >= MAX_STRANGERS {
            let Some(index) = strangers.least_welcome() else { break };
            strangers.waiting.remove(index).lost.notify_one();
        }
        let (number, lost) = (strangers.next, Arc::new(Notify::new()));
        strangers.next += 1;
        strangers.waiting.push(Place { number, from: Block::of(from), lost: Arc::clone(&lost) });
        Stranger { admission: Arc::clone(self), number, lost }
    }

    /// Gives a peer a place, where `jobs` are allowed at a time.
    ///
    /// # Errors
    /// With how many it may have, when it has them all.
    pub(crate) fn visit(self: &Arc<Self>, peer: &HostName, jobs: usize) -> Result<Visit, usize> {
        let most = MAX_IDLE_VISITS.saturating_add(jobs);
        let mut visits = lock(&self.visits);
        let count = visits.entry(peer.clone()).or_default();
        if *count >= most {
            return Err(most);
        }
        *count += 1;
        Ok(Visit { admission: Arc::clone(self), peer: peer.clone() })
    }

    /// Whether one more complaint goes to the log: a flood must not fill the disk either.
    pub(crate) fn complain(&self, now: Instant) -> Complaint {
        let mut complaints = lock(&self.complaints);
        let is_same_second = complaints
            .since
            .is_some_and(|since| now.duration_since(since) < Duration::from_secs(1));
        if !is_same_second {
            let untold = complaints.count.saturating_sub(MAX_COMPLAINTS);
            *complaints = Complaints { since: Some(now), count: 1 };
            return if untold > 0 { Complaint::AfterSome(untold) } else { Complaint::Told };
        }
        complaints.count = complaints.count.saturating_add(1);
        if complaints.count > MAX_COMPLAINTS { Complaint::Counted } else { Complaint::Told }
    }
}

impl Strangers {
    /// The oldest of the addresses that hold most places.
    fn least_welcome(&self) -> Option<usize> {
        let mut held: HashMap<Block, usize> = HashMap::new();
        for place in &self.waiting {
            *held.entry(place.from).or_default() += 1;
        }
        let most = held.values().copied().max()?;
        self.waiting.iter().position(|place| held.get(&place.from) == Some(&most))
    }
}

impl Stranger {
    /// Waits until the place is lost to a newer connection.
    pub(crate) async fn crowded_out(&self) {
        self.lost.notified().await;
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        lock(&self.admission.strangers).waiting.retain(|place| place.number != self.number);
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut visits = lock(&self.admission.visits);
        if let Some(count) = visits.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                visits.remove(&self.peer);
            }
        }
    }
}

impl Block {
    fn of(address: IpAddr) -> Self {
        let mut block = [0; 8];
        match address.to_canonical() {
            IpAddr::V4(address) => block[..4].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => block.copy_from_slice(&address.octets()[..8]),
        }
        Self(block)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    async fn is_lost(stranger: &Stranger) -> bool {
        let soon = Duration::from_millis(1);
        tokio::time::timeout(soon, stranger.crowded_out()).await.is_ok()
    }

    #[tokio::test]
    async fn a_flood_takes_places_from_itself_only() {
        let admission = Arc::new(Admission::default());
        let honest = admission.stranger(address("10.0.0.1"));
        let flood: Vec<_> =
            (0..3 * MAX_STRANGERS).map(|_| admission.stranger(address("10.0.0.2"))).collect();
        assert!(!is_lost(&honest).await);
        assert!(is_lost(&flood[0]).await);
        let (lost, kept) = flood.split_at(2 * MAX_STRANGERS + 1);
        assert!(is_lost(&lost[lost.len() - 1]).await, "the oldest went first");
        assert!(!is_lost(&kept[0]).await);
        assert_eq!(lock(&admission.strangers).waiting.len(), MAX_STRANGERS);
        drop((honest, flood));
        assert!(lock(&admission.strangers).waiting.is_empty());
    }

    #[tokio::test]
    async fn a_network_of_ipv6_addresses_counts_as_one() {
        let admission = Arc::new(Admission::default());
        let honest = admission.stranger(address("2001:db8:1::1"));
        let many: Vec<_> = (0..2 * MAX_STRANGERS)
            .map(|number| admission.stranger(address(&format!("2001:db8:2::{number:x}"))))
            .collect();
        assert!(!is_lost(&honest).await);
        assert!(is_lost(&many[0]).await);
        let mapped = Block::of(address("::ffff:10.0.0.2"));
        assert_eq!(mapped, Block::of(address("10.0.0.2")));
    }

    #[test]
    fn a_peer_has_so_many_places_and_gets_them_back() {
        let admission = Arc::new(Admission::default());
        let (alpha, beta) = ("alpha".parse().unwrap(), "beta".parse().unwrap());
        let mut visits: Vec<_> =
            (0..MAX_IDLE_VISITS + 4).map(|_| admission.visit(&alpha, 4).unwrap()).collect();
        assert_eq!(admission.visit(&alpha, 4).unwrap_err(), MAX_IDLE_VISITS + 4);
        assert!(admission.visit(&beta, 4).is_ok(), "another one has its own");
        visits.pop();
        assert!(admission.visit(&alpha, 4).is_ok());
        visits.clear();
        assert!(lock(&admission.visits).is_empty());
    }

    #[test]
    fn complaints_are_counted_when_there_are_too_many() {
        let admission = Admission::default();
        let now = Instant::now();
        let told = (0..50).filter(|_| admission.complain(now) == Complaint::Told).count();
        assert_eq!(told, MAX_COMPLAINTS as usize);
        assert_eq!(admission.complain(now), Complaint::Counted);
        let later = now + Duration::from_secs(2);
        assert_eq!(admission.complain(later), Complaint::AfterSome(51 - MAX_COMPLAINTS));
        assert_eq!(admission.complain(later), Complaint::Told);
    }
}
