//! The destination's QEMU with pages absent: the stream that feeds them to it, the requests that come back, its completion.
//!
//! The stream is a pipe that the agent writes and QEMU reads: in order, a little later. What is in it when it breaks is lost,
//! and only QEMU knows what it has placed. A guest that runs is looked at now and then, ever more rarely while it does not
//! need anything; when it waits for an absent page QEMU asks for that page, once, and again over each new stream.

use std::time::Duration;

use sterna_model::{Instant, PageId};

use crate::faults::{Moment, Side};
use crate::world::{Event, Inbound, World};

/// A page is in the pipe for so long.
const PIPE_TAKES_LEAST: Duration = Duration::from_micros(5);
const PIPE_TAKES_MOST: Duration = Duration::from_millis(5);
/// Between two looks at a guest that needs nothing.
const LOOK_SOON: Duration = Duration::from_micros(500);
const LOOK_LATE: Duration = Duration::from_millis(50);

/// What is in the pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fed {
    /// A page, with its content.
    Page(PageId, u64),
    /// The stream's end: there is no more.
    End,
}

/// The agent's end of the pipe.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pipe {
    last_arrival: Instant,
}

impl World {
    /// Whether the destination's guest lacks pages.
    pub(crate) fn is_lacking(&self) -> bool {
        let qemu = self.hosts[Side::Destination.index()].qemu.as_ref();
        qemu.is_some_and(crate::qemu::Qemu::is_lacking)
    }

    /// The destination's guest is its own and lacks pages: faults that wait for this moment count from here.
    pub(crate) fn lacking_begins(&mut self) {
        self.lacking_since = Some(self.now());
        self.moment_comes(|moment| match moment {
            Moment::Lacking(after) => Some(after),
            _ => None,
        });
        self.look_again(LOOK_SOON);
    }

    /// Writes to the pipe.
    pub(crate) fn feed(&mut self, fed: Fed) {
        let takes = self.random.time_of_any_scale(PIPE_TAKES_LEAST, PIPE_TAKES_MOST);
        let at = self.now().after(takes).max(self.pipe.last_arrival.after(Duration::from_nanos(1)));
        self.pipe.last_arrival = at;
        let qemu = self.hosts[Side::Destination.index()].qemu.as_ref();
        let Some(postcopy) = qemu.and_then(|qemu| qemu.postcopy) else { return };
        self.clock.at(at, Event::Fed(postcopy.stream, fed));
    }

    /// QEMU reads from the pipe.
    pub(crate) fn fed(&mut self, stream: u32, fed: Fed) {
        let now = self.now();
        let Some(qemu) = self.host(Side::Destination).qemu.as_mut().filter(|qemu| qemu.alive)
        else {
            return;
        };
        if !qemu.postcopy.is_some_and(|now| now.stream == stream && !now.broken) {
            return;
        }
        match fed {
            Fed::Page(page, content) => {
                qemu.until(now);
                let waited = qemu.guest.waits_for() == Some(page);
                let was_absent = qemu.guest.place(page, content);
                self.check_placed(page, content, was_absent);
                if waited {
                    self.look_again(LOOK_SOON);
                }
            }
            Fed::End if qemu.guest.lacking() == 0 => {
                qemu.until(now);
                qemu.end_postcopy();
                self.note(|| "the destination's QEMU has every page".into());
                self.check_complete();
                self.tell(Side::Destination, Inbound::QemuComplete);
            }
            Fed::End => self.feed_breaks(),
        }
    }

    /// The pipe breaks, and QEMU lives.
    pub(crate) fn feed_breaks(&mut self) {
        let Some(qemu) = self.host(Side::Destination).qemu.as_mut() else { return };
        if qemu.alive && qemu.is_lacking() {
            qemu.break_feed();
            self.tell(Side::Destination, Inbound::FeedBroken);
        }
    }

    /// Lets the guest be looked at after a time, which grows.
    fn look_again(&mut self, after: Duration) {
        self.look_turn += 1;
        self.clock.after(after, Event::Look(self.look_turn, after));
    }

    /// Looks whether the guest needs an absent page.
    pub(crate) fn look(&mut self, turn: u64, waited: Duration) {
        if turn != self.look_turn || !self.is_lacking() {
            return;
        }
        let now = self.now();
        let Some(qemu) = self.host(Side::Destination).qemu.as_mut().filter(|qemu| qemu.alive)
        else {
            return;
        };
        qemu.until(now);
        let soon = qemu.guest.write_every().clamp(LOOK_SOON, LOOK_LATE);
        match qemu.guest.waits_for() {
            // It goes on when that page is placed.
            Some(page) => self.tell(Side::Destination, Inbound::Requested(page)),
            None => self.look_again((waited * 2).clamp(soon, LOOK_LATE)),
        }
    }

    /// What QEMU says when it takes pages by a new stream: what it lacks, and what its guest waits for.
    pub(crate) fn recovered(&self) -> (Vec<PageId>, Option<PageId>) {
        let qemu = self.hosts[Side::Destination.index()].qemu.as_ref();
        let Some(qemu) = qemu else { return (Vec::new(), None) };
        (qemu.guest.absent_pages().collect(), qemu.guest.waits_for())
    }
}
