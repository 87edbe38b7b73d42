//! Bounded memory (law 3): what an agent or a connection holds stays below a limit that the setting gives.
//!
//! Checks the highest value of each gauge: pages on a data connection that were written and have not arrived, what an
//! agent's loop has not heard yet, pages asked for again, those who get a job's answers, effects to be performed, entries
//! of a journal.
//!
//! Does not check bytes of processes (the report and the benchmark do), nor peers that flood: the peer here is an agent.

use std::time::Duration;

use crate::faults::Setting;

/// Something that could grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gauge {
    /// Pages written to a connection that have not arrived.
    PagesInFlight,
    /// Events that an agent has not heard.
    Inbox,
    /// Pages asked for again.
    Missing,
    /// Connections that get a job's answers.
    Askers,
    /// Effects to be performed.
    Effects,
    /// Entries of a journal.
    JournalEntries,
}

const GAUGES: usize = 6;

/// Limits and highest values.
#[derive(Debug)]
pub(crate) struct Bounds {
    limits: [usize; GAUGES],
    highest: [usize; GAUGES],
}

impl Gauge {
    const fn index(self) -> usize {
        match self {
            Self::PagesInFlight => 0,
            Self::Inbox => 1,
            Self::Missing => 2,
            Self::Askers => 3,
            Self::Effects => 4,
            Self::JournalEntries => 5,
        }
    }
}

impl Bounds {
    pub(super) fn new(setting: &Setting) -> Self {
        let way = setting.one_way + setting.jitter + Duration::from_millis(1);
        let underway = way.as_nanos() / setting.page_time.as_nanos().max(1);
        let batches = 3 * setting.batch_pages;
        let in_flight = usize::try_from(underway).unwrap_or(usize::MAX).saturating_add(batches);
        let limits = [in_flight, 300, setting.pages as usize, 6, 16, 24];
        Self { limits, highest: [0; GAUGES] }
    }

    /// Notes a value; tells when it is the first above its limit.
    pub(crate) fn gauge(&mut self, gauge: Gauge, value: usize) -> Option<String> {
        let (limit, highest) = (self.limits[gauge.index()], &mut self.highest[gauge.index()]);
        let before = *highest;
        *highest = before.max(value);
        (value > limit && before <= limit)
            .then(|| format!("{gauge:?}: expected at most {limit}, found {value}"))
    }
}
