//! A host: its agent's inbox, its disk, its QEMU, and what is wrong with it.

use std::collections::VecDeque;
use std::time::Duration;

use sterna_model::Instant;

use crate::disk::{Crash, Disk};
use crate::qemu::Qemu;
use crate::world::Inbound;

/// What the next command to a QEMU meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// A refusal.
    Refused,
    /// Silence.
    Hangs,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Host {
    /// The agent runs.
    pub up: bool,
    /// Its lives so far.
    pub lives: u32,
    /// It takes connections.
    pub listening: bool,
    /// The host itself is there, and says so when nobody listens.
    pub powered: bool,
    /// What its loop has not heard yet.
    pub inbox: VecDeque<Inbound>,
    /// Its disk.
    pub disk: Disk,
    /// Its QEMU for the guest, dead or alive.
    pub qemu: Option<Qemu>,
    /// It is about to end before its time.
    pub crash: Option<(Crash, Duration)>,
    /// It does nothing until then.
    pub stalled_until: Instant,
    /// What its next command meets.
    pub fate: Option<Fate>,
    /// What its next sync takes.
    pub slow_sync: Option<Duration>,
    /// Steps of its agent.
    pub steps: u32,
    /// Records that it has begun.
    pub appends: u32,
    /// Steps since the last of them.
    pub steps_since_append: u32,
    /// Its agent is about to go on.
    pub poll_pending: bool,
}

impl Host {
    /// One whose agent runs.
    pub(crate) fn new(qemu: Option<Qemu>) -> Self {
        Self {
            up: true,
            lives: 0,
            listening: false,
            powered: true,
            inbox: VecDeque::new(),
            disk: Disk::default(),
            qemu,
            crash: None,
            stalled_until: Instant::default(),
            fate: None,
            slow_sync: None,
            steps: 0,
            appends: 0,
            steps_since_append: 0,
            poll_pending: false,
        }
    }
}
