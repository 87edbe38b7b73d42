//! What is looked at before anything is touched: the VM's description, and the reasons not to move it.

use std::time::Duration;

use serde_json::{Value, json};
use sterna_api::{MigrateOptions, Strategy};
use sterna_host::memory::{BlockMemory, main_ram_of};
use sterna_host::qmp::{Accelerator, Qmp, RunState};
use sterna_model::{BlockName, ByteCount, Refusal};
use sterna_qemu_args::{Description, RunningFacts};

use crate::registry::Record;
use crate::vm::Live;

const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// QEMU's dirty bitmap is synced by words of so many bytes of guest memory where a block is a multiple of it.
const FAST_SYNC_BYTES: u64 = 256 << 10;
/// The first major version whose sync does not forget the TLB of TCG.
const FIRST_COHERENT_MAJOR: u64 = 9;

/// A VM that can be moved, as far as this side knows.
#[derive(Debug)]
pub(super) struct Subject {
    /// What the destination is told.
    pub description: Description,
    /// Its main memory.
    pub ram_block: BlockName,
    /// Its length.
    pub ram_bytes: ByteCount,
    /// What executes the guest.
    pub accelerator: Accelerator,
}

/// Looks at the options: what this version cannot do is refused by name.
#[must_use]
pub(super) fn check_options(options: &MigrateOptions) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let mut refuse =
        |code, reason: String, remedy| refusals.push(Refusal::new(code, reason, remedy));
    if let strategy @ (Strategy::Liveness | Strategy::ThreeStage) = options.strategy {
        let reason = format!("the strategy {strategy:?} is not there yet");
        refuse("strategy-unavailable", reason, "use --strategy precopy");
    }
    if options.with_disks {
        let reason = "moving disks is not there yet".to_owned();
        refuse(
            "disks-unavailable",
            reason,
            "put the disks on storage that both hosts share, and leave --with-disks out",
        );
    }
    refusals
}

/// Looks at the VM.
///
/// # Errors
/// All reasons not to move it.
pub(super) async fn examine(record: &Record, live: &Live) -> Result<Subject, Vec<Refusal>> {
    let facts = running_facts(record, &live.qmp).await.map_err(|error| vec![silent(&error)])?;
    let accelerator =
        live.qmp.query_kvm().await.map_err(|error| vec![silent(&error.to_string())])?;
    let mut refusals = match hindrances(&live.qmp, facts.ram_bytes, accelerator).await {
        Ok(refusals) => refusals,
        Err(error) => vec![silent(&error)],
    };
    let (ram_block, ram_bytes) = (facts.ram_block.clone(), facts.ram_bytes);
    match Description::from_argv(&record.definition, &facts) {
        Ok(description) if refusals.is_empty() => {
            Ok(Subject { description, ram_block, ram_bytes, accelerator })
        }
        Ok(_) => Err(refusals),
        Err(more) => {
            refusals.extend(more);
            Err(refusals)
        }
    }
}

/// Opens the main memory for reading. Where that is not permitted, contents are held within the budget instead.
pub(super) async fn open_memory(live: &Live, subject: &Subject) -> Vec<(BlockName, BlockMemory)> {
    let block = subject.ram_block.clone();
    match main_ram_of(&live.process, &live.qmp, &block, subject.ram_bytes.0).await {
        Ok(memory) => vec![(block, memory)],
        Err(error) => {
            tracing::warn!(%block, %error, "guest memory cannot be read from outside; contents are held");
            Vec::new()
        }
    }
}

async fn running_facts(record: &Record, qmp: &Qmp) -> Result<RunningFacts, String> {
    let failed = |error: sterna_host::qmp::QmpError| error.to_string();
    let machine = qmp.qom_get("/machine", "type").await.map_err(failed)?;
    let machine = machine.as_str().unwrap_or_default();
    let backends = qmp.query_memdev().await.map_err(failed)?;
    let main = backends.first().ok_or("expected a memory backend, found none")?;
    let name = main.id.clone().ok_or("expected the main memory to have a name, found none")?;
    let version = qmp.query_version().await.map_err(failed)?;
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    Ok(RunningFacts {
        machine_type: machine.strip_suffix("-machine").unwrap_or(machine).to_owned(),
        ram_block: BlockName::new(name.as_bytes()).map_err(|error| error.to_string())?,
        ram_bytes: ByteCount(main.size),
        qemu_version: version.to_string(),
        program_path: record.definition.first().cloned(),
        working_dir: Some(text(&record.directory)),
        agent_qmp: Some(text(&record.agent_qmp)),
        image_formats: Vec::new(),
    })
}

/// What keeps this QEMU from being moved now.
async fn hindrances(
    qmp: &Qmp,
    ram_bytes: ByteCount,
    accelerator: Accelerator,
) -> Result<Vec<Refusal>, String> {
    let failed = |error: sterna_host::qmp::QmpError| error.to_string();
    let mut refusals = Vec::new();
    let migration =
        qmp.execute("query-migrate", Value::Null, COMMAND_TIMEOUT).await.map_err(failed)?;
    for reason in migration["blocked-reasons"].as_array().into_iter().flatten() {
        let reason =
            format!("QEMU cannot move this VM: {}", reason.as_str().unwrap_or("no reason given"));
        refusals.push(Refusal::new(
            "qemu-blocked",
            reason,
            "remove the device or option that QEMU names",
        ));
    }
    if matches!(
        migration["status"].as_str(),
        Some("setup" | "active" | "device" | "pre-switchover" | "cancelling")
    ) {
        let reason = format!("another migration of this VM is going on ({})", migration["status"]);
        refusals.push(Refusal::new("migration-active", reason, "wait for it, or cancel it"));
    }
    let status = qmp.query_status().await.map_err(failed)?;
    if !matches!(
        status.status,
        RunState::Running | RunState::Paused | RunState::Prelaunch | RunState::Suspended
    ) {
        let reason = format!("expected a guest that runs or is paused, found {:?}", status.status);
        refusals.push(Refusal::new("guest-state", reason, "resume the guest, or start it again"));
    }
    let version = qmp.query_version().await.map_err(failed)?;
    let forgetful = u64::from(version.qemu.major) < FIRST_COHERENT_MAJOR
        && ram_bytes.0.is_multiple_of(FAST_SYNC_BYTES);
    if forgetful && accelerator == Accelerator::Tcg {
        let reason = format!(
            "QEMU {version} under TCG loses dirty pages of a memory whose size ({ram_bytes}) is a multiple of 256 KiB"
        );
        let remedy = "use KVM, QEMU 9.0 or later, or a memory size such as 262136k";
        refusals.push(Refusal::new("qemu-loses-pages", reason, remedy));
    }
    Ok(refusals)
}

fn silent(error: &str) -> Refusal {
    Refusal::new(
        "qemu-silent",
        error,
        "look at the VM's QEMU: its monitor does not answer as expected",
    )
}

/// The description as it travels.
///
/// # Errors
/// When it cannot be written, which no description of ours comes to.
pub(super) fn describe(description: &Description) -> Result<String, Refusal> {
    serde_json::to_string(description)
        .map_err(|error| silent(&json!(error.to_string()).to_string()))
}
