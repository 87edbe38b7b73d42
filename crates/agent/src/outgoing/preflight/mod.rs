//! What is looked at before anything is touched: the VM's description, and the reasons not to move it.
//!
//! ```text
//! options -----------------------------> check_options --\
//! QEMU --QMP--> snapshot --> guest, hotplug --------------+--> refusals, told with the destination's
//! arguments + facts --> description --> destination ------/
//!                           \--> evidence --^
//! ```

mod evidence;
mod guest;
mod hotplug;
mod snapshot;
#[cfg(test)]
mod tests;

use serde_json::json;
use sterna_api::{MigrateOptions, Strategy};
use sterna_host::memory::{BlockMemory, ram_of};
use sterna_host::qmp::{Accelerator, BlockDevice, MemoryBackend, Qmp, QmpError};
use sterna_model::{BlockName, ByteCount, Refusal};
use sterna_qemu_args::{Description, RunningFacts};

use crate::registry::Record;
use crate::vm::Live;
use evidence::Collected;
use snapshot::Snapshot;

/// Names of one kind that a refusal lists; more are counted.
const MAX_LISTED: usize = 8;

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
    /// What the destination can judge by.
    pub evidence: Collected,
}

/// What looking at a VM gives.
#[derive(Debug)]
pub(super) struct Examined {
    /// What would be moved; none when the VM cannot even be described.
    pub subject: Option<Subject>,
    /// Why it cannot be, as far as this side knows.
    pub refusals: Vec<Refusal>,
}

impl Examined {
    /// Nothing is known but this.
    pub(super) fn refused(refusals: Vec<Refusal>) -> Self {
        Self { subject: None, refusals }
    }
}

/// Looks at the options: what this version cannot do is refused by name.
#[must_use]
pub(super) fn check_options(options: &MigrateOptions) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let mut refuse =
        |code, reason: String, remedy| refusals.push(Refusal::new(code, reason, remedy));
    if options.strategy == Strategy::Liveness {
        let reason = "the strategy liveness is not there yet".to_owned();
        refuse("strategy-unavailable", reason, "use --strategy precopy or three-stage");
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
pub(super) async fn examine(record: &Record, live: &Live) -> Examined {
    match look(record, live).await {
        Ok(examined) => examined,
        Err(error) => Examined::refused(vec![silent(&error)]),
    }
}

async fn look(record: &Record, live: &Live) -> Result<Examined, String> {
    let failed = |error: QmpError| error.to_string();
    let snapshot = Snapshot::take(&live.qmp).await.map_err(failed)?;
    let facts = running_facts(record, &live.qmp, &snapshot).await?;
    let accelerator = live.qmp.query_kvm().await.map_err(failed)?;
    let mut refusals = guest::refusals(&snapshot, facts.ram_bytes, accelerator)?;
    let description = match Description::from_argv(&record.definition, &facts) {
        Ok(description) => description,
        Err(more) => {
            refusals.extend(more);
            return Ok(Examined::refused(refusals));
        }
    };
    refusals.extend(hotplug::refusals(&snapshot, &description)?);
    let evidence = evidence::collect(&live.qmp, &description, accelerator).await;
    let (ram_block, ram_bytes) = (facts.ram_block, facts.ram_bytes);
    let subject = Subject { description, ram_block, ram_bytes, accelerator, evidence };
    Ok(Examined { subject: Some(subject), refusals })
}

/// Opens the main memory for reading. Where that is not permitted, contents are held within the budget instead.
pub(super) async fn open_memory(live: &Live, subject: &Subject) -> Vec<(BlockName, BlockMemory)> {
    let block = subject.ram_block.clone();
    match ram_of(&live.process, &live.qmp, &block, subject.ram_bytes.0).await {
        Ok(memory) => vec![(block, memory)],
        Err(error) => {
            tracing::warn!(%block, %error, "guest memory cannot be read from outside; contents are held");
            Vec::new()
        }
    }
}

async fn running_facts(
    record: &Record,
    qmp: &Qmp,
    snapshot: &Snapshot,
) -> Result<RunningFacts, String> {
    let failed = |error: QmpError| error.to_string();
    let machine = qmp.qom_get("/machine", "type").await.map_err(failed)?;
    let machine = machine.as_str().unwrap_or_default();
    let backends = qmp.query_memdev().await.map_err(failed)?;
    // Empty where NUMA nodes bring all memory.
    let bound = qmp.qom_get("/machine", "memory-backend").await.unwrap_or_default();
    let main = main_backend(&backends, bound.as_str().unwrap_or_default())
        .ok_or("expected a memory backend, found none")?;
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
        image_formats: formats(&snapshot.get::<Vec<BlockDevice>>("block")?),
    })
}

/// The backend that the machine's memory is bound to, by its id or path; else the first that QEMU tells of.
fn main_backend<'b>(backends: &'b [MemoryBackend], bound: &str) -> Option<&'b MemoryBackend> {
    let id = bound.rsplit('/').next();
    backends.iter().find(|backend| backend.id.as_deref() == id).or_else(|| backends.first())
}

/// The formats that QEMU found in images; whoever opens them again need not look.
fn formats(devices: &[BlockDevice]) -> Vec<(String, String)> {
    let images = devices.iter().filter_map(|device| device.inserted.as_ref());
    let known = images.filter(|image| matches!(&*image.drv, "raw" | "qcow2"));
    known.map(|image| (image.file.clone(), image.drv.clone())).collect()
}

/// Some names, and how many there are more.
fn listed<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let (mut text, mut count) = (String::new(), 0_usize);
    for name in names {
        if count < MAX_LISTED {
            let between = if count > 0 { ", " } else { "" };
            text.push_str(between);
            text.extend(name.chars().filter(|char| !char.is_control()).take(120));
        }
        count += 1;
    }
    match count.saturating_sub(MAX_LISTED) {
        0 => text,
        more => format!("{text} and {more} more"),
    }
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
