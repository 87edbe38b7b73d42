//! What the service manager is told (systemd's notification protocol): ready, stopping, alive, and a line of what goes on.
//! Without a service manager nothing is said.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use sterna_api::VmState;

use crate::agent::Agent;

/// The status line is looked at this often; it is sent when it has changed.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// Everything is recovered, and both sockets are listened to.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The agent ends; guests run on.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("ends; guests run on")]);
}

/// Keeps the status line true, for as long as the agent runs.
pub(crate) async fn keep_status(agent: Arc<Agent>) {
    let mut told = String::new();
    let mut tick = tokio::time::interval(STATUS_EVERY);
    loop {
        tick.tick().await;
        let status = status(&agent).await;
        if status != told {
            tell(&[NotifyState::Status(&status)]);
            told = status;
        }
    }
}

/// What goes on, in a line.
pub(crate) async fn status(agent: &Agent) -> String {
    let mut states = Vec::new();
    for vm in agent.registry.all() {
        states.push(vm.view().await.state);
    }
    in_words(&states, agent.jobs.running())
}

/// Tells the service manager that the agent is alive, twice in each period that it allows: the timer and the threads that
/// serve it are those of all jobs.
pub(crate) async fn keep_alive() {
    let Some(allowed) = sd_notify::watchdog_enabled() else { return };
    let mut tick = tokio::time::interval((allowed / 2).max(Duration::from_millis(1)));
    loop {
        tick.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

fn in_words(vms: &[VmState], jobs: usize) -> String {
    let running = vms.iter().filter(|state| **state == VmState::Running).count();
    let unknown = vms.iter().filter(|state| **state == VmState::Unknown).count();
    let mut words = format!("{running} VMs run here, {jobs} jobs under way");
    if unknown > 0 {
        words.push_str(&format!(", {unknown} VMs unknown: see `sterna vm list`"));
    }
    words
}

fn tell(states: &[NotifyState<'_>]) {
    // Without a service manager this does nothing.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_counts_what_matters() {
        let vms = [VmState::Running, VmState::Running, VmState::Paused, VmState::Migrated];
        assert_eq!(in_words(&vms, 1), "2 VMs run here, 1 jobs under way");
        let unknown = in_words(&[VmState::Unknown], 0);
        assert_eq!(
            unknown,
            "0 VMs run here, 0 jobs under way, 1 VMs unknown: see `sterna vm list`"
        );
    }
}
