//! What a restarted agent could not do at once, tried again while it serves: a QEMU whose monitor did not answer, a guest
//! that could not be resumed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Opened, Settled, is_silent, open, under_way};
use crate::agent::Agent;
use crate::jobs::Job;
use crate::registry::Owner;
use crate::vm::{Live, Vm};

/// Between two attempts.
const AGAIN_EVERY: Duration = Duration::from_millis(500);

/// Connects to a QEMU that did not answer, as soon as it does, or notices its end.
pub(super) async fn attach(agent: Arc<Agent>, vm: Arc<Vm>) {
    while is_silent(&vm) {
        tokio::time::sleep(AGAIN_EVERY).await;
        let record = vm.record();
        let Some(id) = record.process else { return };
        match id.find() {
            Ok(Some(process)) => {
                if let Ok(live) = Live::attach(process, &record.agent_qmp).await {
                    tracing::info!(vm = %record.name, "its QEMU answers again");
                    vm.attach(live);
                    agent.watch(&vm);
                }
            }
            Ok(None) => {
                tracing::warn!(vm = %record.name, "its QEMU, which did not answer, has ended");
                vm.ended(|owner| if *owner == Owner::Here { Owner::Ended } else { owner.clone() });
                agent.remember(&vm);
            }
            Err(_) => {}
        }
    }
}

/// Brings a job to its end as soon as that can be done. Its VM is the job's until then. To be called before anybody is
/// listened to.
pub(super) fn settle(agent: &Arc<Agent>, job: Arc<Job>, vm: Option<Arc<Vm>>, path: PathBuf) {
    job.set_phase("recovering");
    if let Some(vm) = &vm {
        // Nobody was listened to yet, so no other job has it.
        let _ = vm.begin_job(job.id());
    }
    tokio::spawn(keep_settling(Arc::clone(agent), job, vm, path));
}

async fn keep_settling(agent: Arc<Agent>, job: Arc<Job>, vm: Option<Arc<Vm>>, path: PathBuf) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(AGAIN_EVERY) => {}
            // A person settles it.
            () = job.give_up_requested() => {
                return vm.iter().for_each(|vm| vm.end_job());
            }
        }
        match open(&path) {
            Ok(Some(Opened::UnderWay(journal, story))) => {
                if let Settled::Yes = under_way(&agent, &job, journal, story).await {
                    break;
                }
            }
            Ok(_) => break,
            // A disk that cannot be read now may be read later.
            Err(error) => tracing::debug!(job = %job.id(), %error, "its journal cannot be read"),
        }
    }
    // One that went on to ask its peer keeps it.
    if let Some(vm) = vm.filter(|_| job.ended_in().is_some()) {
        vm.end_job();
    }
}
