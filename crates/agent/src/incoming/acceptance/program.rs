//! This host's QEMU: whether it is there, is no older than the source's, knows the machine type, and gives the guest the
//! processors that it has.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use sterna_host::qmp::{Accelerator, CpuFeatures, Program, ProgramError, VersionNumber};
use sterna_model::Refusal;
use sterna_qemu_args::{Declared, Description};
use sterna_wire::{CpuEvidence, Evidence};
use tokio::sync::Mutex;

/// Features that a refusal lists; more are counted.
const MAX_LISTED: usize = 12;

/// What this host's QEMUs can be. Each is asked once, and again when its file has changed.
#[derive(Debug, Default)]
pub(crate) struct Programs(Mutex<HashMap<(PathBuf, Accelerator), Asked>>);

#[derive(Clone, Debug)]
struct Asked {
    changed_at: Option<SystemTime>,
    program: Arc<Program>,
}

impl Programs {
    /// What `program` can be. One is asked at a time, however many peers want to know.
    ///
    /// # Errors
    /// When it does not start with this accelerator, or does not tell.
    pub(super) async fn ask(
        &self,
        program: &Path,
        accelerator: Accelerator,
    ) -> Result<Arc<Program>, ProgramError> {
        let changed_at = std::fs::metadata(program).and_then(|file| file.modified()).ok();
        let mut known = self.0.lock().await;
        let key = (program.to_path_buf(), accelerator);
        if let Some(asked) = known.get(&key).filter(|asked| asked.changed_at == changed_at) {
            return Ok(Arc::clone(&asked.program));
        }
        let answer = Arc::new(Program::ask(program, accelerator).await?);
        known.insert(key, Asked { changed_at, program: Arc::clone(&answer) });
        Ok(answer)
    }

    /// Asks this host's usual QEMU before anybody wants to know: a tenth of a second less for the first move.
    pub(crate) async fn ask_ahead(&self) {
        let Ok(program) = find(&format!("qemu-system-{}", std::env::consts::ARCH), None) else {
            return;
        };
        for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
            // What cannot be had is told when a guest wants it.
            if let Err(error) = self.ask(&program, accelerator).await {
                tracing::debug!(%error, ?accelerator, "QEMU does not tell what it can be");
            }
        }
    }
}

/// The program here: at the path that a mapping says, else of this name among the system's programs.
///
/// # Errors
/// When there is none.
pub(super) fn find(name: &str, mapped: Option<&str>) -> Result<PathBuf, Refusal> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = match mapped.map(PathBuf::from) {
        Some(program) => program.is_file().then_some(program),
        None => std::env::split_paths(&path)
            .chain(["/usr/bin".into(), "/usr/libexec".into()])
            .map(|folder| folder.join(name))
            .find(|candidate| candidate.is_file()),
    };
    found.ok_or_else(|| {
        let reason = format!("expected the program {name} at the destination, found none");
        let remedy = "install QEMU at the destination, or map its path in [paths]";
        Refusal::new("qemu-missing", reason, remedy)
    })
}

/// Why a program that does not tell what it can be is not used.
pub(super) fn unable(error: &ProgramError) -> Refusal {
    let remedy = "check that the destination's QEMU works, and that its user may use /dev/kvm if the guest does";
    Refusal::new("qemu-unusable", error.to_string(), remedy)
}

/// What is against a guest in this QEMU.
pub(super) fn refusals(
    program: &Program,
    description: &Description,
    evidence: Option<&Evidence>,
) -> Vec<Refusal> {
    let cpu = evidence.and_then(|evidence| evidence.cpu.as_ref());
    let declared = Declared::of(description);
    [
        older(program, description),
        machine_unknown(program, &description.machine_type),
        cpu.and_then(|cpu| cpu_differs(program.whole_cpu.as_ref()?, cpu, &declared.cpu_without)),
        model_unknown(program, declared.cpu_model.as_deref()),
        cpu.and_then(|cpu| cpu_lacks(program, cpu, &declared.cpu_without)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// QEMU loads the state of older ones, not of newer ones. Releases of one series are alike.
fn older(program: &Program, description: &Description) -> Option<Refusal> {
    let VersionNumber { major, minor, .. } = program.version.qemu;
    let there = series(&description.qemu_version)?;
    let reason = format!(
        "expected QEMU {}.{} or newer at the destination, as at the source, found {}",
        there.0, there.1, program.version
    );
    let remedy = "upgrade QEMU at the destination";
    ((major, minor) < there).then(|| Refusal::new("qemu-older", reason, remedy))
}

/// Major and minor number; nothing of a version that is written otherwise.
fn series(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn machine_unknown(program: &Program, machine_type: &str) -> Option<Refusal> {
    let is_it = |alias: &String| alias == machine_type;
    let mut known = program.machines.iter();
    if known.any(|one| one.name == machine_type || one.alias.as_ref().is_some_and(is_it)) {
        return None;
    }
    let reason = format!(
        "QEMU {} at the destination does not know the machine type {machine_type}",
        program.version
    );
    let remedy = "use a QEMU at the destination that knows it, or start the VM with a machine type that both know (-machine)";
    Some(Refusal::new("machine-unknown", reason, remedy))
}

/// Of a model that takes over what the host has, the guest sees all that there is: it must be the same.
fn cpu_differs(
    here: &CpuFeatures,
    there: &CpuEvidence,
    without: &BTreeSet<String>,
) -> Option<Refusal> {
    if !takes_all(&there.model) {
        return None;
    }
    let there_has: BTreeSet<&String> = there.features.iter().collect();
    let lacking = there_has.iter().filter(|name| !here.0.contains(**name));
    let lacking = listed(lacking.map(|name| name.as_str()));
    // What KVM offers beside the processor, old machine types do not pass on.
    let passed_on = |name: &&String| !name.starts_with("kvm") && !without.contains(*name);
    let more = here.0.iter().filter(|name| !there_has.contains(name)).filter(passed_on);
    let more = listed(more.map(String::as_str));
    if lacking.is_empty() && more.is_empty() {
        return None;
    }
    let reason = format!(
        "-cpu {} is another processor here: only at the source: {}; only here: {}",
        there.model,
        or_nothing(lacking),
        or_nothing(more)
    );
    let remedy = "start the VM with a named CPU model that both hosts have (-cpu)";
    Some(Refusal::new("cpu-differs", reason, remedy))
}

fn model_unknown(program: &Program, model: Option<&str>) -> Option<Refusal> {
    let model = model?;
    // Architectures whose QEMU does not tell refuse at the start.
    if program.cpu_models.is_empty() || program.cpu_models.iter().any(|known| known.name == model) {
        return None;
    }
    let shown: String = model.chars().filter(|char| !char.is_control()).take(80).collect();
    let reason =
        format!("QEMU {} at the destination does not know the CPU model {shown}", program.version);
    let remedy = "use a newer QEMU at the destination, or start the VM with another CPU model";
    Some(Refusal::new("cpu-unknown", reason, remedy))
}

/// What the guest has of a named model, this host must have. What its own host lacked, it never had.
fn cpu_lacks(
    program: &Program,
    there: &CpuEvidence,
    without: &BTreeSet<String>,
) -> Option<Refusal> {
    if takes_all(&there.model) {
        return None;
    }
    let known = program.cpu_models.iter().find(|known| known.name == there.model)?;
    let lacking = known.unavailable_features.iter();
    let lacking = lacking.filter(|name| !there.lacks.contains(name) && !without.contains(*name));
    let lacking = listed(lacking.map(String::as_str));
    let reason =
        format!("the destination lacks features of the CPU model {}: {lacking}", there.model);
    let remedy = "start the VM with a CPU model that both hosts have whole, or without these features (-cpu MODEL,-FEATURE)";
    (!lacking.is_empty()).then(|| Refusal::new("cpu-lacks-features", reason, remedy))
}

fn takes_all(model: &str) -> bool {
    matches!(model, "host" | "max")
}

fn or_nothing(text: String) -> String {
    if text.is_empty() { "nothing".to_owned() } else { text }
}

fn listed<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<&str> = names.collect();
    let shown = names[..names.len().min(MAX_LISTED)].join(", ");
    match names.len().saturating_sub(MAX_LISTED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
