//! `sterna resolve`: a VM whose owner nobody but a person can know. Tells all that is known, and settles it as the person
//! decides, with what the other host says as the only objection.
//!
//! ```text
//! dossier    what the journal, the registry, QEMU and the other host say
//! rules      which decisions these forbid, and what each one does         pure
//! settling   the decision, journalled first
//! ```
//!
//! A decision that is cut off in its middle leaves the VM unknown: its record changes last. It is then made again.

mod dossier;
mod peers;
mod rules;
mod settling;
#[cfg(test)]
mod tests;

pub(crate) use rules::word_of;

use std::sync::Arc;
use std::time::Duration;

use sterna_api::{ApiError, Choice, Decision, JournalView, QemuView, ResolveView};
use sterna_model::{JobId, Refusal};

use crate::agent::Agent;
use dossier::{Dossier, Qemu, Told};

/// A drive loop leaves a job that it was asked to leave within this.
const LEAVES_WITHIN: Duration = Duration::from_secs(5);

/// Tells what is known, and settles it if a decision is given.
///
/// # Errors
/// With exit code 2 when there is no such job, 3 when it is not unknown or the decision is refused, 4 when the decision
/// could not be carried out: the VM is then still unknown.
pub(crate) async fn resolve(
    agent: &Arc<Agent>,
    id: &JobId,
    decision: Option<Decision>,
) -> Result<ResolveView, ApiError> {
    let found = Dossier::find(agent, id)?;
    let Some(decision) = decision else {
        let dossier = Dossier::gather(agent, found).await;
        return Ok(view(agent, &dossier, None));
    };
    let name = found.vm_name().clone();
    let busy = || ApiError::failed(format!("the VM {name} is being started or settled; wait"));
    let _reserved = agent.registry.reserve(&name).ok_or_else(busy)?;
    let dossier = Dossier::gather(agent, found).await;
    if let Some(refusal) = rules::objection(&dossier.known(), decision) {
        return Err(ApiError::refused(vec![refusal]));
    }
    leave_job(&dossier).await?;
    settling::settle(agent, &dossier, decision).await.map_err(|why| {
        let message = format!("{name} is still unknown: {why}; `sterna resolve {id}` tells more");
        ApiError { exit_code: 4, ..ApiError::failed(message) }
    })?;
    Ok(view(agent, &dossier, Some(decision)))
}

/// A job that still asks the other host is left as it is, before anything else is done with its VM.
async fn leave_job(dossier: &Dossier) -> Result<(), ApiError> {
    let (Some(job), Some(vm)) = (&dossier.found.job, &dossier.found.vm) else { return Ok(()) };
    if vm.job().is_none() {
        return Ok(());
    }
    job.request_give_up();
    let until = tokio::time::Instant::now() + LEAVES_WITHIN;
    while vm.job().is_some() {
        if tokio::time::Instant::now() > until {
            let why = format!("the job {} does not leave its VM; try again", job.id());
            return Err(ApiError { exit_code: 4, ..ApiError::failed(why) });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn view(agent: &Agent, dossier: &Dossier, settled: Option<Decision>) -> ResolveView {
    let found = &dossier.found;
    let choices = match settled {
        Some(_) => Vec::new(),
        None => Decision::ALL.map(|decision| choice(agent, dossier, decision)).to_vec(),
    };
    ResolveView {
        job: found.id.clone(),
        vm: found.vm_name().clone(),
        host: agent.config.name.to_string(),
        role: dossier.role_word().to_owned(),
        peer: dossier.peer.as_ref().map(ToString::to_string),
        why: found.why(),
        journal: journal_view(agent, dossier),
        registry: found.registry_in_words(agent),
        qemu: qemu_view(&dossier.qemu),
        peers: dossier.answers.clone(),
        choices,
        settled,
    }
}

fn choice(agent: &Agent, dossier: &Dossier, decision: Decision) -> Choice {
    let subject = dossier.found.resolve_word();
    let peer = dossier.peer.as_ref().map_or("the other host", |peer| peer.as_str());
    let refused: Option<Refusal> = rules::objection(&dossier.known(), decision);
    Choice {
        guest_is: decision,
        command: format!("sterna resolve {subject} --guest-is {decision}"),
        consequence: rules::consequence(
            &dossier.known(),
            decision,
            agent.config.name.as_str(),
            peer,
        ),
        refused,
    }
}

fn journal_view(agent: &Agent, dossier: &Dossier) -> JournalView {
    let path = dossier.found.id.as_ref().map(|id| {
        crate::journal::path_of(&agent.config.state_dir, id).to_string_lossy().into_owned()
    });
    match &dossier.found.journal {
        Told::Story(story) => JournalView { path, error: None, states: story.told.clone() },
        Told::Nothing(why) => JournalView { path, error: Some(why.clone()), states: Vec::new() },
    }
}

fn qemu_view(qemu: &Qemu) -> Option<QemuView> {
    let pid = |process: &sterna_host::process::Process| u32::try_from(process.pid()).unwrap_or(0);
    match qemu {
        Qemu::None => None,
        Qemu::Silent(process, why) => {
            Some(QemuView { pid: pid(process), run_state: None, error: Some(why.clone()) })
        }
        Qemu::Speaks(live, status) => {
            let run_state = Some(rules::run_state_word(&status.status));
            Some(QemuView { pid: pid(&live.process), run_state, error: None })
        }
    }
}
