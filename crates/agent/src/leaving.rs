//! The agent's end, with jobs under way: what was not offered is rolled back at once, so that no guest stands still until
//! an agent comes again; what was offered is kept for that agent. Guests run on.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::agent::Agent;
use crate::jobs::{Canceller, Job, Role};

/// Rolling back takes less; what takes longer is left to the next agent.
const LONGEST: Duration = Duration::from_secs(20);
/// An offer is answered within this or not soon.
const OFFERED_LONGEST: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Clients and peers hear how it ended.
const LAST_WORDS_TAKE: Duration = Duration::from_millis(200);

/// Begins no more jobs, and brings those under way to where they may be left.
pub(crate) async fn wind_down(agent: &Arc<Agent>) {
    let mut under_way = agent.jobs.close();
    // The next agent finds what has arrived in its QEMU's memory, and the source begins anew with that.
    under_way.retain(|job| !is_left_as_it_is(agent, job));
    if under_way.is_empty() {
        return;
    }
    tracing::info!(jobs = under_way.len(), "moves that were not offered are rolled back");
    for job in &under_way {
        match job.role() {
            Role::Source => job.request_cancel(Canceller::AgentEnds),
            Role::Destination => {
                if let Some(handle) = agent.incoming(job.id()) {
                    tokio::spawn(async move { handle.agent_ends().await });
                }
            }
        }
    }
    let begun = Instant::now();
    while let Some(limit) = may_take(&under_way) {
        if begun.elapsed() > limit {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    for job in under_way.iter().filter(|job| !job.is_over()) {
        job.span().in_scope(|| {
            tracing::warn!(phase = job.phase(), "the move is left to the next agent");
        });
    }
    tokio::time::sleep(LAST_WORDS_TAKE).await;
}

/// Whether a guest that is followed to this host waits for its hand-over.
fn is_left_as_it_is(agent: &Agent, job: &Job) -> bool {
    let keeps = agent.incoming(job.id()).is_some_and(|handle| handle.keeps);
    job.role() == Role::Destination && keeps && job.phase() == "receiving"
}

/// How long it is worth waiting; not at all when all jobs are over.
fn may_take(jobs: &[Arc<Job>]) -> Option<Duration> {
    let mut open = jobs.iter().filter(|job| !job.is_over()).peekable();
    open.peek()?;
    let is_handed_over = |job: &Arc<Job>| matches!(job.phase(), "offering" | "offered");
    Some(if open.all(is_handed_over) { OFFERED_LONGEST } else { LONGEST })
}
