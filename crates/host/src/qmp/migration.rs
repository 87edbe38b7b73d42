//! Commands on QEMU's own migration, which Sterna uses as its dirty tracker and its loader.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Qmp, QmpError, RunState};

/// How far a migration is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum MigrationStatus {
    /// None was started.
    #[default]
    None,
    /// Connecting.
    Setup,
    /// Iterating.
    Active,
    /// In its last pass.
    Device,
    /// Waits for `migrate-continue`.
    PreSwitchover,
    /// In post-copy.
    PostcopyActive,
    /// Post-copy that lost its connection.
    PostcopyPaused,
    /// Post-copy that takes up again.
    PostcopyRecover,
    /// Being cancelled.
    Cancelling,
    /// Cancelled.
    Cancelled,
    /// Done.
    Completed,
    /// Failed.
    Failed,
    /// Any other, by its name.
    Other(String),
}

impl MigrationStatus {
    /// That nothing goes on any more (or not yet): a new migration can be started.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self, Self::None | Self::Cancelled | Self::Completed | Self::Failed)
    }
}

impl From<String> for MigrationStatus {
    fn from(name: String) -> Self {
        match name.as_str() {
            "none" => Self::None,
            "setup" => Self::Setup,
            "active" => Self::Active,
            "device" => Self::Device,
            "pre-switchover" => Self::PreSwitchover,
            "postcopy-active" => Self::PostcopyActive,
            "postcopy-paused" => Self::PostcopyPaused,
            "postcopy-recover" | "postcopy-recover-setup" => Self::PostcopyRecover,
            "cancelling" => Self::Cancelling,
            "cancelled" => Self::Cancelled,
            "completed" => Self::Completed,
            "failed" => Self::Failed,
            _ => Self::Other(super::error::shortened(&name)),
        }
    }
}

/// What QEMU says of its migration.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct MigrationInfo {
    /// How far it is.
    pub status: MigrationStatus,
    /// Why it failed.
    pub error_desc: Option<String>,
    /// How long its set-up took, in milliseconds.
    pub setup_time: Option<u64>,
    /// How long it runs or ran, in milliseconds.
    pub total_time: Option<u64>,
    /// How long the guest stood, in milliseconds; only when it has completed.
    pub downtime: Option<u64>,
    /// Memory.
    pub ram: Option<RamInfo>,
}

/// What QEMU says of memory in a migration.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct RamInfo {
    /// Bytes that are dirty and not written yet.
    pub remaining: u64,
    /// Bytes in all blocks.
    pub total: u64,
    /// Bytes written to the stream.
    pub transferred: u64,
    /// Dirty syncs so far: rounds.
    pub dirty_sync_count: u64,
    /// Pages dirtied per second, when last measured.
    pub dirty_pages_rate: u64,
    /// Pages of one value.
    pub duplicate: u64,
    /// Pages written in full.
    pub normal: u64,
    /// Bytes in a page.
    pub page_size: u64,
    /// Throughput in Mbit/s.
    pub mbps: f64,
}

/// Parameters to set; `None` stays as it is. The first two exist in every QEMU that we know.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrationParameters {
    /// Bytes per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bandwidth: Option<u64>,
    /// In milliseconds, at most 2,000,000. Never 0: QEMU 7.2 would complete without a dirty sync.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime_limit: Option<u64>,
    /// Bytes per second in post-copy's background; 0 is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_postcopy_bandwidth: Option<u64>,
    /// Which dirty bitmaps migrate, as QEMU's `BitmapMigrationNodeAlias` list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_bitmap_mapping: Option<Value>,
}

/// Each fails as [`Qmp::execute`] does.
impl Qmp {
    /// How far the migration is, outgoing or incoming.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_migrate(&self) -> Result<MigrationInfo, QmpError> {
        self.ask("query-migrate", Value::Null).await
    }

    /// Sets parameters, also while a migration runs.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn set_migration_parameters(
        &self,
        parameters: &MigrationParameters,
    ) -> Result<(), QmpError> {
        let arguments = serde_json::to_value(parameters).map_err(|error| {
            QmpError::protocol("migration parameters as JSON", &error.to_string())
        })?;
        self.tell("migrate-set-parameters", arguments).await
    }

    /// Switches capabilities on (`true`) or off, all or none. Not while a migration runs.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn set_migration_capabilities(
        &self,
        capabilities: &[(&str, bool)],
    ) -> Result<(), QmpError> {
        let list: Vec<Value> = capabilities
            .iter()
            .map(|(name, state)| json!({ "capability": name, "state": state }))
            .collect();
        self.tell("migrate-set-capabilities", json!({ "capabilities": list })).await
    }

    /// The capabilities that are on.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_migration_capabilities(&self) -> Result<Vec<String>, QmpError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Entry {
            capability: String,
            state: bool,
        }
        let entries: Vec<Entry> = self.ask("query-migrate-capabilities", Value::Null).await?;
        Ok(entries.into_iter().filter(|entry| entry.state).map(|entry| entry.capability).collect())
    }

    /// Starts to migrate to `uri` (`unix:PATH`, `fd:NAME`). Returns when it has begun.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn migrate(&self, uri: &str) -> Result<(), QmpError> {
        self.tell("migrate", json!({ "uri": uri })).await
    }

    /// Lets the guest run again after a migration that completed or failed. QEMU says `completed` a moment before it has left its
    /// last pass, and refuses `cont` until then; so this tries until it has, at most for `within`.
    ///
    /// # Errors
    /// As [`Qmp::execute`]; with QEMU's refusal when it is still in its last pass in the end.
    pub async fn cont_after_migration(&self, within: Duration) -> Result<(), QmpError> {
        const TRY_EVERY: Duration = Duration::from_millis(2);
        let until = Instant::now() + within;
        loop {
            let refused = match self.cont().await {
                Err(error @ QmpError::Command { .. }) => error,
                other => return other,
            };
            // The state is asked after the refusal: it may have changed since, then the next attempt tells.
            let state = self.query_status().await?.status;
            let passing = matches!(state, RunState::FinishMigrate | RunState::PostMigrate);
            if !passing || Instant::now() >= until {
                return Err(refused);
            }
            tokio::time::sleep(TRY_EVERY).await;
        }
    }

    /// Lets a QEMU that was started with `-incoming defer` listen at `uri`.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn migrate_incoming(&self, uri: &str) -> Result<(), QmpError> {
        self.tell("migrate-incoming", json!({ "uri": uri })).await
    }

    /// Cancels the outgoing migration. It is over when [`Qmp::query_migrate`] or a MIGRATION event says so.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn migrate_cancel(&self) -> Result<(), QmpError> {
        self.tell("migrate_cancel", Value::Null).await
    }
}
