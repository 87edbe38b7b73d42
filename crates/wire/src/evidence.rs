//! What a source knows of its guest beyond the description, for the destination to judge by before anything is begun.
//!
//! It travels in a Prepare between agents that both name the capability [`EVIDENCE`]; to an older one it is left out.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::blob::is_clean;
use crate::limits::{
    MAX_CPU_FEATURE_BYTES, MAX_CPU_FEATURES, MAX_EVIDENCE_DISKS, MAX_EVIDENCE_PATH_BYTES,
    MAX_VERSION_BYTES,
};
use crate::message::MessageError;

/// The capability of agents that tell and judge evidence.
pub const EVIDENCE: &str = "evidence";

/// What is known of a guest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// What executes it.
    pub accelerator: Accelerator,
    /// Its processors; none where its QEMU does not tell, or no model is named.
    pub cpu: Option<CpuEvidence>,
    /// The disk images that its QEMU has open; at most [`MAX_EVIDENCE_DISKS`].
    pub disks: Vec<DiskEvidence>,
    /// Whether it is to run at the destination before all its memory is there.
    pub post_copy: PostCopy,
}

/// What executes a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    /// The host's kernel.
    Kvm,
    /// QEMU itself.
    Tcg,
}

/// When a guest runs at the destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PostCopy {
    /// When all its memory is there.
    Never,
    /// Before.
    Planned,
}

/// What a guest sees of its processors.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuEvidence {
    /// The model, as `-cpu` names it.
    pub model: String,
    /// For a model that takes over what the host has (`host`, `max`): names of features that are on, and `vendor=...` and
    /// the like. At most [`MAX_CPU_FEATURES`].
    pub features: Vec<String>,
    /// Features of the model that the source lacks itself; at most [`MAX_CPU_FEATURES`].
    pub lacks: Vec<String>,
}

/// What can be known of a disk image without reading it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskEvidence {
    /// As the description writes it; all of them have at most [`MAX_EVIDENCE_PATH_BYTES`] together.
    pub path: String,
    /// Its length.
    pub length_bytes: u64,
    /// Its number in its file system.
    pub inode: u64,
    /// The byte that the source's agent has locked since, chosen at random: who sees the lock looks at the same file.
    pub locked_byte: Option<u64>,
    /// What a block device calls itself all over the world, where it does.
    pub world_wide_id: Option<String>,
}

impl Evidence {
    pub(crate) fn check_limits(&self) -> Result<(), MessageError> {
        let within = |what, most: usize, found: usize| match found <= most {
            true => Ok(()),
            false => {
                let (most, found) = (most as u64, found as u64);
                Err(MessageError::Range { what, least: 0, most, found })
            }
        };
        if let Some(cpu) = &self.cpu {
            within("bytes of the CPU model", MAX_VERSION_BYTES, cpu.model.len())?;
            for list in [&cpu.features, &cpu.lacks] {
                within("CPU features", MAX_CPU_FEATURES, list.len())?;
                let longest = list.iter().map(String::len).max().unwrap_or_default();
                within("bytes of a CPU feature", MAX_CPU_FEATURE_BYTES, longest)?;
            }
        }
        within("disks", MAX_EVIDENCE_DISKS, self.disks.len())?;
        let path_bytes = self.disks.iter().map(|disk| disk.path.len()).sum();
        within("bytes of disks' paths", MAX_EVIDENCE_PATH_BYTES, path_bytes)?;
        let ids = || self.disks.iter().filter_map(|disk| disk.world_wide_id.as_ref());
        let longest = ids().map(String::len).max().unwrap_or_default();
        within("bytes of a world wide id", MAX_VERSION_BYTES, longest)?;
        let cpu = self.cpu.iter().flat_map(|cpu| cpu.features.iter().chain(&cpu.lacks));
        let models = self.cpu.iter().map(|cpu| &cpu.model);
        let texts = cpu.chain(models).chain(ids());
        match texts.flat_map(|text| text.chars()).all(|char| char.is_ascii() && is_clean(char)) {
            true => Ok(()),
            false => Err(MessageError::Unprintable { what: "evidence" }),
        }
    }
}
