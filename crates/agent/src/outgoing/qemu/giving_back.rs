//! A QEMU whose guest stays: its migration ended, the guest in the run state that it was found in, everything that was set
//! for the move taken back.

use std::time::Duration;

use serde_json::json;
use sterna_host::qmp::{MigrationParameters, MigrationStatus, Qmp, QmpError, RunState};
use sterna_migration::source::MayReturn;
use tracing::{debug, warn};

use super::{COMMAND_TIMEOUT, POST_COPY, SourceQemu};

/// QEMU's own hold on the reading end of its stream.
pub(super) const KEPT_DESCRIPTOR: &str = "sterna-migration-reader";
/// QEMU leaves its last pass within this.
const CONT_DEADLINE: Duration = Duration::from_secs(5);
/// A migration that was told to end does so within this.
const CANCEL_DEADLINE: Duration = Duration::from_secs(10);

/// What is put back when the guest stays.
#[derive(Debug)]
pub(super) struct Before {
    pub(super) run_state: RunStateBefore,
    /// The capability for post-copy was on.
    pub(super) post_copy: bool,
    pub(super) max_bandwidth: Option<u64>,
    pub(super) downtime_limit: Option<u64>,
}

impl SourceQemu {
    /// After a completion of QEMU's own: the guest goes on as before, and a new stream can begin.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub(in crate::outgoing) async fn resume_after_completion(&self) -> Result<(), QmpError> {
        end_migration(&self.qmp).await?;
        resume(&self.qmp, self.before.run_state).await
    }

    /// Gives the guest back as it was before the job: migration ended, run state, parameters, announced.
    ///
    /// # Errors
    /// When it is not certain that the guest is as before.
    pub(in crate::outgoing) async fn give_back(
        &self,
        may_return: &MayReturn,
    ) -> Result<(), QmpError> {
        give_back(&self.qmp, self.before.run_state, may_return).await?;
        self.release().await;
        Ok(())
    }

    /// Takes back what was set for the move: parameters, capability, hold. Only a QEMU that is not migrating lets go.
    pub(in crate::outgoing) async fn release(&self) {
        let (max_bandwidth, downtime_limit) =
            (self.before.max_bandwidth, self.before.downtime_limit);
        let parameters =
            MigrationParameters { max_bandwidth, downtime_limit, ..Default::default() };
        if let Err(error) = self.qmp.set_migration_parameters(&parameters).await {
            warn!(%error, "QEMU's migration parameters could not be put back");
        }
        if self.before.post_copy
            && let Err(error) = self.qmp.set_migration_capabilities(&[(POST_COPY, true)]).await
        {
            warn!(%error, "the capability postcopy-ram could not be switched on again");
        }
        self.hold.off(&self.qmp).await;
    }
}

/// Ends any migration and restores the run state. Also what a restarted agent does.
///
/// # Errors
/// When it is not certain that the guest is as before.
pub(crate) async fn give_back(
    qmp: &Qmp,
    before: RunStateBefore,
    _may_return: &MayReturn,
) -> Result<(), QmpError> {
    end_migration(qmp).await?;
    if let Err(error) =
        qmp.execute("closefd", json!({"fdname": KEPT_DESCRIPTOR}), COMMAND_TIMEOUT).await
    {
        debug!(%error, "QEMU kept no reading end");
    }
    resume(qmp, before).await?;
    if let Err(error) = qmp.announce_self().await {
        warn!(%error, "the guest could not be announced on its network");
    }
    Ok(())
}

/// How a guest's run state came about, so that it can be restored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunStateBefore {
    /// It ran.
    pub(crate) guest_ran: bool,
    /// We may have stopped it since.
    pub(crate) stop_sent: bool,
}

/// Lets a guest run on that we, or QEMU's own completion, stopped. One that its user paused stays paused; one that shut
/// down, panicked or met an I/O error meanwhile stays as its QEMU left it.
async fn resume(qmp: &Qmp, before: RunStateBefore) -> Result<(), QmpError> {
    let ours = match qmp.query_status().await?.status {
        RunState::PostMigrate | RunState::FinishMigrate => before.guest_ran,
        RunState::Paused => before.guest_ran && before.stop_sent,
        _ => false,
    };
    if ours { qmp.cont_after_migration(CONT_DEADLINE).await } else { Ok(()) }
}

async fn end_migration(qmp: &Qmp) -> Result<(), QmpError> {
    let until = tokio::time::Instant::now() + CANCEL_DEADLINE;
    let mut cancelled = false;
    loop {
        let status = qmp.query_migrate().await?.status;
        if status.is_over() || matches!(status, MigrationStatus::None) {
            return Ok(());
        }
        if !cancelled {
            qmp.migrate_cancel().await?;
            cancelled = true;
        }
        if tokio::time::Instant::now() > until {
            return Err(QmpError::Timeout {
                command: "migrate_cancel".into(),
                waited: CANCEL_DEADLINE,
            });
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
