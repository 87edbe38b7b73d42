//! Whether a VM can be taken: everything that can be looked at before anything is touched. All reasons not to are told
//! together.
//!
//! ```text
//! Prepare --description--> rebuilt by the allow-list --> files, disks (shared?), program --> its QEMU, asked once
//!         \--evidence-------------------------------------^--------------------------------^  (machine, CPU)
//! this host: memory, names, limits
//! ```

mod files;
mod host;
mod program;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use sterna_host::qmp::Accelerator;
use sterna_model::Refusal;
use sterna_qemu_args::{Description, Policy, PolicyError, inputs_here, program_of, rebuild};
use sterna_wire::Evidence;
use sterna_wire::evidence;
use sterna_wire::message::Prepare;

use super::qemu::Checked;
use crate::agent::Agent;
use crate::place::Place;
use crate::registry::Owner;
use crate::vm::Vm;

pub(crate) use program::Programs;

/// Looks whether a VM can be taken. Nothing is touched.
///
/// # Errors
/// All reasons not to take it.
pub(crate) async fn look(agent: &Agent, prepare: &Prepare) -> Result<Checked, Vec<Refusal>> {
    let description = read_description(&prepare.description).map_err(|refusal| vec![refusal])?;
    let evidence = prepare.evidence.as_ref();
    let mut refusals = Vec::new();
    let previous = agent.registry.get(&prepare.vm);
    refusals.extend(previous.as_ref().and_then(|vm| taken(vm)));
    refusals.extend(evidence.and_then(|evidence| host::cannot_wait_for_pages(evidence.post_copy)));
    let place = Place::of(&agent.config.run_dir, &agent.config.state_dir, &prepare.vm);
    let (stay, roots) = (place.next_stay(), agent.roots());
    let (policy, here) = rules(agent, &place, &stay, &roots).map_err(|error| {
        let remedy = "look at the destination's configuration";
        vec![Refusal::new("destination-not-ready", error.to_string(), remedy)]
    })?;
    let rebuilt = rebuild(&description, &policy, &here);
    let memory = host::memory_of(&description, rebuilt.as_ref().ok());
    refusals.extend(host::too_large(&agent.config.limits, memory));
    let inputs = inputs_here(&description, &policy, &here);
    let images = rebuilt.as_ref().map_or_else(|_| &inputs, |rebuilt| &rebuilt.inputs);
    // They may lie on a network that does not answer.
    refusals.extend(tokio::task::block_in_place(|| {
        let mut found = files::refusals(&inputs, &roots, &agent.config.accept.shared, evidence);
        found.extend(files::images_refused(images, &roots));
        found
    }));
    // A program that is none is among what the rebuilding refuses.
    let mut program = None;
    if let Ok((name, path)) = program_of(&description, &policy, &here) {
        match program::find(&name, path.as_deref()) {
            Ok(found) => {
                refusals.extend(against_program(agent, &found, &description, evidence).await);
                program = Some(found);
            }
            Err(refusal) => refusals.push(refusal),
        }
    }
    match (rebuilt, program) {
        (Ok(rebuilt), Some(program)) if refusals.is_empty() => {
            let previous = previous.map(|vm| vm.record());
            Ok(Checked { rebuilt, program, place, stay, previous })
        }
        (rebuilt, _) => {
            refusals.extend(rebuilt.err().unwrap_or_default());
            Err(refusals)
        }
    }
}

/// What is against the guest in this host's QEMU.
async fn against_program(
    agent: &Agent,
    program: &Path,
    description: &Description,
    evidence: Option<&Evidence>,
) -> Vec<Refusal> {
    match agent.programs.ask(program, accelerator(description, evidence)).await {
        Ok(able) => program::refusals(&able, description, evidence),
        Err(error) => vec![program::unable(&error)],
    }
}

/// Why a VM of the same name that is known here is in the way, if it is.
pub(super) fn taken(vm: &Vm) -> Option<Refusal> {
    let owner = vm.record().owner;
    if vm.live().is_none()
        && vm.record().process.is_none()
        && vm.job().is_none()
        && matches!(owner, Owner::MovedTo { .. } | Owner::Ended | Owner::Here | Owner::Lost)
    {
        return None;
    }
    let reason = format!("a VM named {} is here already ({owner:?})", vm.record().name);
    let remedy = "stop the VM of that name at the destination, or rename one";
    Some(Refusal::new("name-taken", reason, remedy))
}

fn read_description(text: &str) -> Result<Description, Refusal> {
    serde_json::from_str(text).map_err(|error| {
        let reason = format!("the source's description of the VM cannot be read: {error}");
        Refusal::new("description-malformed", reason, "upgrade the older of both agents")
    })
}

/// What the configuration allows, and where the VM's own files go.
fn rules(
    agent: &Agent,
    place: &Place,
    stay: &Path,
    roots: &[PathBuf],
) -> Result<(Policy, sterna_qemu_args::Place), PolicyError> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let roots: Vec<String> = roots.iter().map(|root| text(root)).collect();
    let policy = Policy::new(&roots, &agent.config.paths, &agent.config.accept.options)?;
    Ok((policy, sterna_qemu_args::Place::new(&text(&place.sockets), &text(stay))?))
}

/// What executes the guest at its source must do so here: as the source says, or as it was asked for first.
fn accelerator(description: &Description, evidence: Option<&Evidence>) -> Accelerator {
    match evidence.map(|evidence| evidence.accelerator) {
        Some(evidence::Accelerator::Kvm) => Accelerator::Kvm,
        Some(evidence::Accelerator::Tcg) => Accelerator::Tcg,
        None if description.accelerators().first().is_some_and(|name| name == "kvm") => {
            Accelerator::Kvm
        }
        None => Accelerator::Tcg,
    }
}
