//! What is looked at while a guest moves, the same way whoever moves it.
//!
//! ```text
//! wire counters   bytes, from the interface
//! events          STOP and RESUME of both QEMUs, on one clock
//! processes       CPU seconds and anonymous memory of agents and QEMUs
//! work            what the guest itself says it has done
//! prober, redis   what clients see, where the load has some
//! followed        what following costs, and what it harms
//! ```

mod child;
pub(crate) mod events;
pub(crate) mod followed;
pub(crate) mod prober;
pub(crate) mod processes;
pub(crate) mod redis;
pub(crate) mod work;

use std::thread;
use std::time::Duration;

use sterna_e2e::{Counters, Error, GuestLog, Result, Side, World};

use crate::record::Measured;
use crate::tables::{Client, Load};
use prober::Prober;
use processes::Processes;
use redis::RedisClient;
use work::Work;

/// What boot has left to do is done by then, and the guest has shown how fast it works.
pub(crate) const SETTLE: Duration = Duration::from_millis(2500);
/// Of redis's clients.
const CONNECTIONS: u32 = 4;

/// Everything that watches a move from outside.
#[derive(Debug)]
pub(crate) struct Watch<'w> {
    world: &'w World,
    counted: Counters,
    processes: Processes,
    aftermath: Aftermath,
}

/// What goes on after the move: the guest may still be slower for it, and clients see that.
#[derive(Debug)]
pub(crate) struct Aftermath {
    work: Work,
    prober: Option<Prober>,
    redis: Option<RedisClient>,
}

impl<'w> Watch<'w> {
    /// Waits until the guest is at its work, and begins.
    ///
    /// # Errors
    /// A tool fails, or the guest does not answer.
    pub(crate) fn start(world: &'w World, load: &Load, log: &GuestLog) -> Result<Self> {
        let (mut prober, mut redis) = (None, None);
        match load.client {
            Client::Nobody => {}
            Client::Prober => prober = Some(Prober::start(world)?),
            Client::Redis => redis = Some(RedisClient::start(world, CONNECTIONS, redis::KEYS)?),
        }
        thread::sleep(SETTLE);
        let aftermath = Aftermath { work: Work::start(log)?, prober, redis };
        let processes = Processes::watch(world)?;
        Ok(Self { world, counted: world.counters(Side::Alpha)?, processes, aftermath })
    }

    /// Ends, right after the move, and notes what was seen. Gives what is left to be seen.
    ///
    /// # Errors
    /// A tool fails.
    pub(crate) fn finish(self, measured: &mut Measured) -> Result<Aftermath> {
        let now = self.world.counters(Side::Alpha)?;
        measured.sent_bytes = Some(now.sent_bytes - self.counted.sent_bytes);
        measured.received_bytes = Some(now.received_bytes - self.counted.received_bytes);
        measured.usage = Some(self.processes.finish());
        Ok(self.aftermath)
    }
}

impl Aftermath {
    /// Waits until it is over, and notes what was seen.
    ///
    /// # Errors
    /// The guest is damaged or stands still, or a client saw what it must not.
    pub(crate) fn finish(
        self,
        log: &GuestLog,
        downtime_ms: f64,
        measured: &mut Measured,
    ) -> Result<()> {
        measured.lost_work_s = self.work.lost_s(log, downtime_ms)?;
        measured.recovery = self.work.recovery(log, downtime_ms)?;
        measured.probed = self.prober.map(Prober::finish).transpose()?;
        measured.redis = self.redis.map(RedisClient::finish).transpose()?;
        match &measured.redis {
            Some(redis) if !redis.is_sound() => {
                let found = redis.first_problem.clone().unwrap_or_else(|| format!("{redis:?}"));
                Err(Error::unexpected("redis", "every value as it was written", found))
            }
            _ => Ok(()),
        }
    }
}
