//! The stop: how the guest is found before it, whether it was ours, and letting QEMU end its stream after it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sterna_host::qmp::{MigrationInfo, MigrationParameters, MigrationStatus, QmpError, RunState};
use tracing::warn;

use super::giving_back::KEPT_DESCRIPTOR;
use super::{COMMAND_TIMEOUT, Hold, RELEASED_DOWNTIME_MS, SourceQemu, UNLIMITED, syncs};

/// With the guest stopped, QEMU looks for dirty pages some thousand times a second, or after a window of 100 ms.
const SYNC_DEADLINE: Duration = Duration::from_millis(500);
/// So many looks after the stop, and everything is known and told.
const SYNCS_WANTED: u64 = 3;

/// How the guest is found before our stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::outgoing) enum Guest {
    /// It runs.
    Runs,
    /// Its user paused it.
    Paused,
    /// QEMU completes by itself.
    StoppedByQemu,
}

/// What QEMU does after our stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// It knows all that is dirty, and waits to be let go.
    Enough,
    /// It does not look; by its downtime limit it looks once more as it ends.
    TooFew,
    /// It has looked, and ends by itself: its user has let it go.
    Ends,
}

/// How our stop went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::outgoing) enum Stop {
    /// The guest stands by our stop; QEMU has not completed before.
    Ours {
        /// Dirty syncs that QEMU had counted when the guest stood.
        syncs: u64,
    },
    /// QEMU completed by itself before our stop took hold.
    TooLate,
}

impl SourceQemu {
    /// Looks once more whether the guest runs, just before it is stopped: its user may have paused it meanwhile.
    ///
    /// # Errors
    /// When it neither runs nor is paused: such a guest cannot be handed over as it is.
    pub(in crate::outgoing) async fn observe_guest(&mut self) -> Result<Guest, QmpError> {
        let status = self.qmp.query_status().await?;
        let guest = match status.status {
            _ if status.running => Guest::Runs,
            RunState::Paused | RunState::Prelaunch => Guest::Paused,
            RunState::FinishMigrate | RunState::PostMigrate => return Ok(Guest::StoppedByQemu),
            other => {
                let expected = "a guest that runs or is paused".to_owned();
                return Err(QmpError::Protocol { expected, found: format!("{other:?}") });
            }
        };
        self.before.run_state.guest_ran = status.running;
        Ok(guest)
    }

    /// Gives QEMU the reading end of its own stream. To be called before [`SourceQemu::stop`], while the guest runs.
    ///
    /// # Errors
    /// When QEMU does not take it.
    pub(in crate::outgoing) async fn keep_reading_end(&mut self) -> Result<(), QmpError> {
        let Some(reading_end) = self.reading_end.take() else { return Ok(()) };
        let name = json!({"fdname": KEPT_DESCRIPTOR});
        self.qmp.execute_with_fd("getfd", name, reading_end.into(), COMMAND_TIMEOUT).await.map(drop)
    }

    /// Stops the guest, and makes sure that it was we who did.
    ///
    /// # Errors
    /// When QEMU does not answer; the guest may then stand or run.
    pub(in crate::outgoing) async fn stop(&mut self) -> Result<Stop, QmpError> {
        self.before.run_state.stop_sent = true;
        self.qmp.stop().await?;
        // Still active after the stop was acknowledged: it cannot have completed before.
        let migration = self.qmp.query_migrate().await?;
        if iterates(&migration) || self.ends_by_our_stop(&migration).await? {
            return Ok(Stop::Ours { syncs: syncs(&migration) });
        }
        Ok(Stop::TooLate)
    }

    /// Whether a QEMU that waits for an acknowledgement ends, which it does only with a guest that stands. It ran just
    /// before; and had somebody let it run since, it would stand by our stop alone, and not as one that was moved.
    async fn ends_by_our_stop(&self, migration: &MigrationInfo) -> Result<bool, QmpError> {
        if self.hold != Hold::Acknowledgement
            || !self.before.run_state.guest_ran
            || matches!(migration.status, MigrationStatus::Failed | MigrationStatus::Cancelled)
        {
            return Ok(false);
        }
        let stands = self.qmp.query_status().await?.status;
        Ok(matches!(stands, RunState::FinishMigrate | RunState::PostMigrate))
    }

    /// Lets QEMU end its stream, after [`SourceQemu::stop`].
    ///
    /// A held QEMU is told to start post-copy. With no capability for post-copy of memory, that means: send the rest of
    /// memory and the device state now, whatever is pending. It takes effect at once, where a raised downtime limit would
    /// wait for the end of QEMU's 100 ms window with the guest stopped. But QEMU, believing that memory follows by
    /// post-copy, does not look for dirty pages once more. So it must have looked after the stop: `syncs` is what it
    /// had counted by then, and the next but one has begun since. One more shows that the pages found are through.
    ///
    /// # Errors
    /// When QEMU does not answer, or ends its stream without having looked after the stop: others may let it go too.
    pub(in crate::outgoing) async fn finish(&self, syncs: u64) -> Result<(), QmpError> {
        if self.hold == Hold::Acknowledgement {
            // It looks once more by itself, and ends.
            return Ok(());
        }
        if self.hold == Hold::Bitmap {
            match self.look_for_syncs(syncs).await? {
                Look::Enough => {
                    return self
                        .qmp
                        .execute("migrate-start-postcopy", Value::Null, COMMAND_TIMEOUT)
                        .await
                        .map(drop);
                }
                Look::Ends => return Ok(()),
                Look::TooFew => {}
            }
        }
        let parameters = MigrationParameters {
            max_bandwidth: Some(UNLIMITED),
            downtime_limit: Some(RELEASED_DOWNTIME_MS),
            ..Default::default()
        };
        self.qmp.set_migration_parameters(&parameters).await
    }

    /// Waits until QEMU has looked for dirty pages often enough; gives up where it does not.
    async fn look_for_syncs(&self, syncs_before: u64) -> Result<Look, QmpError> {
        let begun = Instant::now();
        loop {
            let migration = self.qmp.query_migrate().await?;
            let since = syncs(&migration).saturating_sub(syncs_before);
            let iterates = iterates(&migration);
            let late = begun.elapsed() >= SYNC_DEADLINE;
            match (iterates, since) {
                (true, SYNCS_WANTED..) => return Ok(Look::Enough),
                (false, 1..) => return Ok(Look::Ends),
                (true, _) if late => {
                    warn!(
                        "QEMU does not look for dirty pages with the guest stopped; it is let go by its downtime limit"
                    );
                    return Ok(Look::TooFew);
                }
                (false, 0) if late || migration.status.is_over() => {
                    let expected = "a look for dirty pages after the stop".to_owned();
                    let found = "the end of QEMU's stream, begun by somebody else".to_owned();
                    return Err(QmpError::Protocol { expected, found });
                }
                _ => {}
            }
        }
    }
}

/// Whether its stream is still to come to an end, or even to begin.
fn iterates(migration: &MigrationInfo) -> bool {
    matches!(migration.status, MigrationStatus::Setup | MigrationStatus::Active)
}
