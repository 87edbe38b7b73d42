//! What the destination needs to know of the guest to judge by: what its processors are like, and which images it has
//! open, each with a byte locked that the destination sees only in the very same file.

use std::path::{Path, PathBuf};

use sterna_api::{MigrateOptions, Strategy};
use sterna_host::qmp::{self, Qmp};
use sterna_host::same_file::{ByteLock, identity};
use sterna_qemu_args::{Declared, Description, FileKind, inputs_of};
use sterna_wire::evidence::{Accelerator, CpuEvidence, DiskEvidence, Evidence, PostCopy};
use sterna_wire::limits::{
    MAX_CPU_FEATURE_BYTES, MAX_CPU_FEATURES, MAX_EVIDENCE_DISKS, MAX_EVIDENCE_PATH_BYTES,
};

/// Evidence, and the locks that make it true for as long as this lives.
#[derive(Debug)]
pub(in crate::outgoing) struct Collected {
    /// What is told.
    pub told: Evidence,
    _locks: Vec<ByteLock>,
}

/// Collects what can be known. What cannot be is left out: the destination refuses what it needed it for.
pub(super) async fn collect(
    qmp: &Qmp,
    description: &Description,
    accelerator: qmp::Accelerator,
) -> Collected {
    let cpu = cpu(qmp, &Declared::of(description)).await;
    let (disks, locks) = disks(description);
    let accelerator = match accelerator {
        qmp::Accelerator::Kvm => Accelerator::Kvm,
        qmp::Accelerator::Tcg => Accelerator::Tcg,
    };
    let told = Evidence { accelerator, cpu, disks, post_copy: PostCopy::Never };
    Collected { told, _locks: locks }
}

impl Collected {
    /// The evidence for a move with these options.
    pub(in crate::outgoing) fn for_move(&self, options: &MigrateOptions) -> Evidence {
        let post_copy = match options.strategy {
            Strategy::ThreeStage => PostCopy::Planned,
            Strategy::Auto | Strategy::Precopy | Strategy::Liveness => PostCopy::Never,
        };
        Evidence { post_copy, ..self.told.clone() }
    }
}

/// What the guest sees of its processors, if QEMU tells: not all architectures do.
async fn cpu(qmp: &Qmp, declared: &Declared) -> Option<CpuEvidence> {
    let model = declared.cpu_model.clone()?;
    let kept = |name: &String| {
        name.len() <= MAX_CPU_FEATURE_BYTES
            && name.chars().all(|char| char.is_ascii_graphic() || char == ' ')
            && !declared.cpu_without.contains(&name.replace('_', "-"))
    };
    if matches!(&*model, "host" | "max") {
        let features = qmp.expand_cpu(&model).await.ok()??.0;
        let features = features.into_iter().filter(kept).take(MAX_CPU_FEATURES).collect();
        return Some(CpuEvidence { model, features, lacks: Vec::new() });
    }
    let known = qmp.query_cpu_definitions().await.ok()?;
    let lacks = known.into_iter().find(|known| known.name == model)?.unavailable_features;
    let lacks = lacks.into_iter().filter(kept).take(MAX_CPU_FEATURES).collect();
    Some(CpuEvidence { model, features: Vec::new(), lacks })
}

fn disks(description: &Description) -> (Vec<DiskEvidence>, Vec<ByteLock>) {
    let (mut disks, mut locks) = (Vec::new(), Vec::new());
    let mut path_bytes = 0;
    let images = inputs_of(description).into_iter().filter(|need| need.kind == FileKind::Disk);
    for image in images.take(MAX_EVIDENCE_DISKS) {
        path_bytes += image.source_path.len();
        let known = |disk: &DiskEvidence| disk.path == image.source_path;
        if path_bytes > MAX_EVIDENCE_PATH_BYTES || disks.iter().any(known) {
            continue;
        }
        let path = place(description, &image.source_path);
        let Ok(identity) = identity(&path) else { continue };
        let lock = crate::random::bytes()
            .and_then(|random| ByteLock::take(&path, u64::from_ne_bytes(random)));
        let locked_byte = lock.as_ref().ok().map(|lock| lock.byte);
        if let Err(error) = &lock {
            tracing::warn!(path = %path.display(), %error, "no byte of the image can be locked");
        }
        locks.extend(lock);
        disks.push(DiskEvidence {
            path: image.source_path,
            length_bytes: identity.length_bytes,
            inode: identity.inode,
            locked_byte,
            world_wide_id: identity.world_wide_id,
        });
    }
    (disks, locks)
}

/// The file that a path of the arguments means on this host.
fn place(description: &Description, path: &str) -> PathBuf {
    let folder = description.working_dir.as_deref().unwrap_or("/");
    Path::new(folder).join(path.strip_prefix("file:").unwrap_or(path))
}
