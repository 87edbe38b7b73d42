//! How a QEMU is held in its iterations.
//!
//! From 8.1 on by the capability `switchover-ack`: while its guest runs, QEMU does not complete before the reader of its
//! stream agrees, which we never do; once the guest is stopped it completes by itself, and looks for dirty pages then.
//! Older ones by a null block node of 1 TiB with a dirty bitmap whose migration counts as pending bytes, so that QEMU never
//! finds that the rest fits its downtime limit. (Newer ones look for dirty pages only where it fits: held by that they
//! would not look at all.) That also serves where the guest is paused, which `switchover-ack` does not hold. Where a QEMU
//! has neither, pacing keeps spontaneous completions rare; they must be expected either way, and are never handed over.
//! So a completion is always ours: the guest is stopped first, and QEMU ends only after that is acknowledged.

use serde_json::{Value, json};
use sterna_host::qmp::{MigrationParameters, Qmp, QmpError, Schema};
use tracing::{debug, warn};

use super::COMMAND_TIMEOUT;

const HOLD_NODE: &str = "sterna-hold";
const HOLD_BITMAP: &str = "sterna-hold";
/// The hold's size and granularity: 2 MiB of bitmap, 1 TiB of pending bytes.
const HOLD_BYTES: u64 = 1 << 40;
const HOLD_GRANULARITY_BYTES: u64 = 1 << 16;
/// The capabilities by which a newer QEMU is held.
const ACKNOWLEDGED: [&str; 2] = ["return-path", "switchover-ack"];
/// The capability by which an older one is held.
const BITMAPS: &str = "dirty-bitmaps";

/// What keeps QEMU in its iterations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// Nothing but its pace.
    Pace,
    /// Pending bytes that never go.
    Bitmap,
    /// That we do not agree, as long as the guest runs.
    Acknowledgement,
}

impl Hold {
    /// Holds a QEMU whose guest runs or is paused by the best that it has.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub(super) async fn on(qmp: &Qmp, schema: &Schema, guest_runs: bool) -> Result<Self, QmpError> {
        let can_acknowledge = ACKNOWLEDGED.iter().all(|name| schema.has_migration_capability(name));
        if can_acknowledge && guest_runs {
            qmp.set_migration_capabilities(&ACKNOWLEDGED.map(|name| (name, true))).await?;
            return Ok(Self::Acknowledgement);
        }
        let can_hold = schema.has_migration_capability(BITMAPS)
            && schema.has_blockdev_driver("null-co")
            && schema.has_command("block-dirty-bitmap-add");
        if can_hold {
            match add_bitmap(qmp).await {
                Ok(()) => return Ok(Self::Bitmap),
                Err(error) => warn!(%error, "QEMU cannot be held by a bitmap; it is only paced"),
            }
        }
        Ok(Self::Pace)
    }

    /// Takes back what was set for it, of a QEMU that is not migrating any more.
    pub(super) async fn off(self, qmp: &Qmp) {
        match self {
            Self::Pace => {}
            Self::Bitmap => {
                if let Err(error) = qmp.set_migration_capabilities(&[(BITMAPS, false)]).await {
                    warn!(%error, "the capability dirty-bitmaps could not be switched off again");
                }
                remove_bitmap(qmp).await;
            }
            Self::Acknowledgement => {
                let off = ACKNOWLEDGED.map(|name| (name, false));
                if let Err(error) = qmp.set_migration_capabilities(&off).await {
                    warn!(%error, "QEMU's migration capabilities could not be put back");
                }
            }
        }
    }
}

async fn add_bitmap(qmp: &Qmp) -> Result<(), QmpError> {
    // A job that was cut off may have left one.
    remove_bitmap(qmp).await;
    let node = json!({"driver": "null-co", "node-name": HOLD_NODE, "size": HOLD_BYTES});
    run(qmp, "blockdev-add", node).await?;
    let bitmap =
        json!({"node": HOLD_NODE, "name": HOLD_BITMAP, "granularity": HOLD_GRANULARITY_BYTES});
    run(qmp, "block-dirty-bitmap-add", bitmap).await?;
    let mapping = json!([{"node-name": HOLD_NODE, "alias": HOLD_NODE, "bitmaps": [{"name": HOLD_BITMAP, "alias": HOLD_BITMAP}]}]);
    let parameters =
        MigrationParameters { block_bitmap_mapping: Some(mapping), ..Default::default() };
    qmp.set_migration_parameters(&parameters).await?;
    qmp.set_migration_capabilities(&[(BITMAPS, true)]).await
}

async fn remove_bitmap(qmp: &Qmp) {
    for (command, arguments) in [
        ("block-dirty-bitmap-remove", json!({"node": HOLD_NODE, "name": HOLD_BITMAP})),
        ("blockdev-del", json!({"node-name": HOLD_NODE})),
    ] {
        if let Err(error) = run(qmp, command, arguments).await {
            debug!(%error, command, "no hold to remove");
        }
    }
}

async fn run(qmp: &Qmp, command: &str, arguments: Value) -> Result<Value, QmpError> {
    qmp.execute(command, arguments, COMMAND_TIMEOUT).await
}
