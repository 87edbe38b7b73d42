//! The links between the two hosts.

use std::time::Duration;

/// A link.
#[derive(Debug)]
pub(crate) struct Link {
    /// Its name in files.
    pub(crate) name: &'static str,
    /// In words.
    pub(crate) title: &'static str,
    /// What it is made of.
    pub(crate) shape: Shape,
    /// How long a stock mode may try; what has not converged by then is not going to.
    pub(crate) patience: Duration,
}

/// How a link is limited, the same in each direction.
#[derive(Debug)]
pub(crate) enum Shape {
    /// As fast as the machine can: a veth.
    Unlimited,
    /// A veth with a token bucket of so many bits per second.
    Rate(&'static str),
    /// A pair of TUN devices with our own emulator between them, since the kernel has no netem.
    Emulated {
        /// Bits per second.
        rate: &'static str,
        /// There and back, when nothing queues.
        round_trip_ms: u32,
        /// Packets lost at random.
        lost_per_million: u32,
    },
}

impl Link {
    /// The rate, if there is one.
    pub(crate) const fn rate(&self) -> Option<&'static str> {
        match self.shape {
            Shape::Unlimited => None,
            Shape::Rate(rate) | Shape::Emulated { rate, .. } => Some(rate),
        }
    }
}

/// Four times what the guest's memory needs at 100 Mbit/s, and more than twice what the slowest mode that converges needs.
const PATIENCE: Duration = Duration::from_secs(45);

pub(super) static UNSHAPED: Link =
    Link { name: "unshaped", title: "unshaped", shape: Shape::Unlimited, patience: PATIENCE };
pub(super) static GIGABIT: Link =
    Link { name: "gigabit", title: "1 Gbit/s", shape: Shape::Rate("1G"), patience: PATIENCE };
pub(super) static FAST: Link =
    Link { name: "100mbit", title: "100 Mbit/s", shape: Shape::Rate("100M"), patience: PATIENCE };
pub(super) static WAN: Link = Link {
    name: "wan",
    title: "20 Mbit/s, 100 ms round trip, 0.1 % loss",
    shape: Shape::Emulated { rate: "20M", round_trip_ms: 100, lost_per_million: 1000 },
    patience: Duration::from_secs(150),
};
