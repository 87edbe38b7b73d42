//! What the guest and its QEMU are at: a state that cannot be moved, a migration that goes on, devices that QEMU itself
//! says cannot move, images that are being worked on, and QEMUs that lose pages.

use serde::Deserialize;
use sterna_host::qmp::{Accelerator, MemoryDevice, RunState, Status, Version};
use sterna_model::{ByteCount, Refusal};

use super::listed;
use super::snapshot::Snapshot;

/// QEMU's dirty bitmap is synced by words of so many bytes of guest memory where a block is a multiple of it.
const FAST_SYNC_BYTES: u64 = 256 << 10;
/// The first major version whose sync does not forget the TLB of TCG.
const FIRST_COHERENT_MAJOR: u32 = 9;

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Migration {
    status: Option<String>,
    blocked_reasons: Vec<String>,
}

/// A block job or an export: whichever keys it has.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct BlockWork {
    #[serde(rename = "type")]
    kind: String,
    /// Of a job, the device or the job.
    device: Option<String>,
    /// Of an export.
    id: Option<String>,
}

/// What keeps the guest from being moved now.
///
/// # Errors
/// When QEMU's answers are none.
pub(super) fn refusals(
    snapshot: &Snapshot,
    ram_bytes: ByteCount,
    accelerator: Accelerator,
) -> Result<Vec<Refusal>, String> {
    let mut refusals = migration(&snapshot.get("migrate")?);
    refusals.extend(memory_devices(&snapshot.get::<Vec<MemoryDevice>>("memory-devices")?));
    refusals.extend(run_state(&snapshot.get("status")?));
    let jobs: Vec<BlockWork> = snapshot.get("block-jobs")?;
    let exports: Vec<BlockWork> = snapshot.get("block-exports")?;
    refusals.extend(block_work(&jobs, &exports));
    refusals.extend(loses_pages(&snapshot.get("version")?, ram_bytes, accelerator));
    Ok(refusals)
}

fn migration(migration: &Migration) -> Vec<Refusal> {
    let blocked = migration.blocked_reasons.iter().map(|reason| {
        let reason = format!("QEMU cannot move this VM: {reason}");
        Refusal::new("qemu-blocked", reason, "remove the device or option that QEMU names")
    });
    let mut refusals: Vec<Refusal> = blocked.take(super::MAX_LISTED).collect();
    let status = migration.status.as_deref().unwrap_or_default();
    if matches!(
        status,
        "setup" | "active" | "device" | "pre-switchover" | "cancelling" | "colo" | "wait-unplug"
    ) || status.starts_with("postcopy-")
    {
        let reason = format!("another migration of this VM is going on ({status})");
        refusals.push(Refusal::new("migration-active", reason, "wait for it, or cancel it"));
    }
    refusals
}

/// Memory that QEMU's stream brings in a way that is not understood, or not at all.
fn memory_devices(devices: &[MemoryDevice]) -> Option<Refusal> {
    let unmovable = devices.iter().filter(|device| device.kind != "dimm").map(|device| {
        let id = device.data.id.as_deref().unwrap_or("without an id");
        format!("{} ({id})", device.kind)
    });
    let unmovable: Vec<String> = unmovable.collect();
    if unmovable.is_empty() {
        return None;
    }
    let reason = format!(
        "expected memory devices that are DIMMs, found {}",
        listed(unmovable.iter().map(String::as_str))
    );
    let remedy =
        "start the VM with pc-dimm instead, or with a disk in the place of persistent memory";
    Some(Refusal::new("memory-device-stays", reason, remedy))
}

fn run_state(status: &Status) -> Option<Refusal> {
    let can_move = matches!(
        status.status,
        RunState::Running | RunState::Paused | RunState::Prelaunch | RunState::Suspended
    );
    let reason = format!("expected a guest that runs or is paused, found {:?}", status.status);
    (!can_move).then(|| Refusal::new("guest-state", reason, "resume the guest, or start it again"))
}

/// What works on the guest's images inside QEMU would end with it, in the middle.
fn block_work(jobs: &[BlockWork], exports: &[BlockWork]) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    if !jobs.is_empty() {
        let names = jobs.iter().map(|job| job.device.as_deref().unwrap_or(&job.kind));
        let reason = format!("QEMU works on images of this VM (block jobs: {})", listed(names));
        let remedy = "let the block jobs end, or cancel them (block-job-cancel)";
        refusals.push(Refusal::new("block-job-active", reason, remedy));
    }
    if !exports.is_empty() {
        let names = exports.iter().map(|export| export.id.as_deref().unwrap_or(&export.kind));
        let reason = format!("QEMU serves images of this VM to others ({})", listed(names));
        let remedy = "end the exports (block-export-del), and start them anew at the destination";
        refusals.push(Refusal::new("block-export-active", reason, remedy));
    }
    refusals
}

fn loses_pages(
    version: &Version,
    ram_bytes: ByteCount,
    accelerator: Accelerator,
) -> Option<Refusal> {
    let forgetful = version.qemu.major < FIRST_COHERENT_MAJOR
        && ram_bytes.0.is_multiple_of(FAST_SYNC_BYTES)
        && accelerator == Accelerator::Tcg;
    let reason = format!(
        "QEMU {version} under TCG loses dirty pages of a memory whose size ({ram_bytes}) is a multiple of 256 KiB"
    );
    let remedy = "use KVM, QEMU 9.0 or later, or a memory size such as 262136k";
    forgetful.then(|| Refusal::new("qemu-loses-pages", reason, remedy))
}
