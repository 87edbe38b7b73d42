//! What following does to the guest, as far as that is seen from outside: for how much of their time its processors wait for
//! one of the host's, while pages are sent and while none are.

use std::time::Duration;

use sterna_host::usage::{Scheduled, scheduled};

/// With less time on either side there is nothing to compare.
const LEAST: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Harm {
    /// QEMU, and the threads that are the guest's processors.
    threads: Option<(i32, Vec<i64>)>,
    last: Option<Scheduled>,
    /// While none are sent, over all epochs: the latest count most.
    calm: Scheduled,
    /// While pages are sent, in this epoch.
    sending: Scheduled,
}

impl Harm {
    /// Whether it is to be told which threads the guest's processors are.
    pub(super) const fn knows_nobody(&self) -> bool {
        self.threads.is_none()
    }

    /// These threads of this process are the guest's processors.
    pub(super) fn watch(&mut self, pid: i32, threads: Vec<i64>) {
        self.threads = Some((pid, threads));
    }

    /// Looks, and counts what was since the last look.
    pub(super) fn look(&mut self, is_sending: bool) {
        let Some((pid, threads)) = &self.threads else { return };
        let all = threads.iter().filter_map(|thread| scheduled(*pid, *thread).ok());
        let now = all.fold(Scheduled::default(), add);
        let Some(last) = self.last.replace(now) else { return };
        let since = Scheduled {
            ran: now.ran.saturating_sub(last.ran),
            waited: now.waited.saturating_sub(last.waited),
        };
        let into = if is_sending { &mut self.sending } else { &mut self.calm };
        *into = add(*into, since);
    }

    /// An epoch is over: how much more of their time they waited while pages were sent, in percent.
    pub(super) fn end_epoch(&mut self) -> u32 {
        let sending = std::mem::take(&mut self.sending);
        let harm = percent(sending).zip(percent(self.calm));
        self.calm = Scheduled { ran: self.calm.ran / 2, waited: self.calm.waited / 2 };
        harm.map_or(0, |(sending, calm)| sending.saturating_sub(calm))
    }
}

fn add(one: Scheduled, other: Scheduled) -> Scheduled {
    Scheduled { ran: one.ran + other.ran, waited: one.waited + other.waited }
}

/// The share of their time that they waited; none when they had too little.
fn percent(had: Scheduled) -> Option<u32> {
    let all = had.ran + had.waited;
    let share = had.waited.as_nanos() * 100 / all.as_nanos().max(1);
    (all >= LEAST).then(|| u32::try_from(share).unwrap_or(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn had(ran_ms: u64, waited_ms: u64) -> Scheduled {
        Scheduled { ran: Duration::from_millis(ran_ms), waited: Duration::from_millis(waited_ms) }
    }

    #[test]
    fn waiting_more_while_pages_are_sent_is_harm() {
        let harm = |calm, sending| Harm { calm, sending, ..Harm::default() }.end_epoch();
        assert_eq!(harm(had(900, 100), had(150, 50)), 15);
        assert_eq!(harm(had(900, 100), had(90, 10)), 0, "as ever");
        assert_eq!(harm(had(500, 500), had(100, 0)), 0, "less than ever");
    }

    #[test]
    fn little_tells_nothing() {
        let harm = |calm, sending| Harm { calm, sending, ..Harm::default() }.end_epoch();
        assert_eq!(harm(had(900, 0), had(10, 30)), 0);
        assert_eq!(harm(had(10, 0), had(100, 300)), 0);
    }

    #[test]
    fn an_epoch_begins_with_nothing_sent() {
        let mut harm = Harm { calm: had(900, 0), sending: had(100, 100), ..Harm::default() };
        assert_eq!(harm.end_epoch(), 50);
        assert_eq!(harm.end_epoch(), 0);
    }

    #[test]
    fn a_process_is_looked_at() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let mut harm = Harm::default();
        assert!(harm.knows_nobody());
        harm.look(true);
        harm.watch(pid, vec![pid.into(), i64::MAX]);
        harm.look(true);
        harm.look(false);
        assert_eq!(harm.end_epoch(), 0);
    }
}
