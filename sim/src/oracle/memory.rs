//! Memory equality (law 2): when the destination takes the guest over, its memory and devices are those that stood at the
//! source, page by page, but for pages that are absent (the placement oracle's matter).
//!
//! It knows the source's memory itself, not what either agent believes was sent: a page that was never reported, claimed
//! or written is seen, though both roots agree.
//!
//! Does not check the bytes of pages (contents are numbers here: the page codec, the frames and QEMU's stream have tests
//! of their own), blocks that QEMU has to be fed, torn reads, disks.

use sterna_model::PageId;

use super::Oracle;
use crate::world::World;

/// Whether it was looked at: only the first moment counts, since the guest then goes on.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    checked: bool,
}

impl World {
    pub(super) fn check_memory(&mut self) {
        if std::mem::replace(&mut self.oracles.memory.checked, true) {
            return;
        }
        let [source, destination] = &self.hosts;
        let (Some(ours), Some(theirs)) = (&source.qemu, &destination.qemu) else { return };
        let is_absent = |page| theirs.guest.is_absent(page);
        let pairs = ours.guest.memory.iter().zip(&theirs.guest.memory).enumerate();
        let differing: Vec<usize> =
            pairs.filter(|(_, (ours, theirs))| ours != theirs).map(|(page, _)| page).collect();
        let differing: Vec<usize> = differing
            .into_iter()
            .filter(|page| u32::try_from(*page).is_ok_and(|page| !is_absent(PageId(page))))
            .collect();
        let (expected, found) = (ours.guest.device, theirs.guest.device);
        if let Some(first) = differing.first() {
            let count = differing.len();
            let why = format!("{count} pages differ at the destination, the first is {first}");
            self.blame(Oracle::Memory, why);
        } else if expected != found {
            let why = format!("the devices differ: expected {expected}, found {found}");
            self.blame(Oracle::Memory, why);
        }
    }
}
