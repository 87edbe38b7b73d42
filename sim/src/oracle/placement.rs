//! Placement: what is absent when the guest is handed over is placed exactly once, with what stood at the source, and then
//! never touched by anybody but the guest.
//!
//! Checks, at QEMU itself: a page is placed only while it is absent, with the content that the source's guest stood with. When
//! QEMU says that it has everything, and again at the end of the run, every page is what the guest itself wrote last since the
//! hand-over, else what stood at the source. A guest that lacked pages and whose two QEMUs both lived to the end lacks
//! nothing then.
//!
//! Does not check when a page is placed (the progress oracle sees to an end), nor in which order; whether a read would have
//! waited as a write does.

use sterna_model::PageId;

use super::Oracle;
use crate::faults::Side;
use crate::run::ThirdStage;
use crate::world::World;

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Placement {
    /// The destination took the guest while it lacked pages.
    pub lacked: bool,
    /// And lacked nothing any more later.
    pub completed: bool,
    /// The source came again, and was told what is lacking.
    pub rejoined: bool,
}

impl World {
    /// What became of it.
    pub(crate) fn third_stage(&self) -> Option<ThirdStage> {
        let Placement { lacked, completed, rejoined } = self.oracles.placement;
        lacked.then_some(match (completed, rejoined) {
            (false, _) => ThirdStage::Lacking,
            (true, true) => ThirdStage::Rejoined,
            (true, false) => ThirdStage::Whole,
        })
    }

    /// Whether the guest was taken, and never became whole.
    pub(crate) const fn stayed_lacking(&self) -> bool {
        self.oracles.placement.lacked && !self.oracles.placement.completed
    }

    /// The destination takes a guest that lacks pages.
    pub(crate) fn taken_while_lacking(&mut self) {
        self.oracles.placement.lacked = true;
        self.lacking_begins();
    }

    /// QEMU places a page.
    pub(crate) fn check_placed(&mut self, page: PageId, content: u64, was_absent: bool) {
        if !was_absent {
            let why = format!("page {} is placed, and was not absent", page.0);
            self.blame(Oracle::Placement, why);
        }
        let stood = self.hosts[0].qemu.as_ref().map(|qemu| qemu.guest.read(page));
        if stood != Some(content) {
            let why = format!("page {} is placed with {content}, expected {stood:?}", page.0);
            self.blame(Oracle::Placement, why);
        }
    }

    /// QEMU says that it has everything.
    pub(crate) fn check_complete(&mut self) {
        self.oracles.placement.completed = true;
        self.check_whole();
    }

    /// Memory is what stood at the source and what the guest wrote since.
    pub(crate) fn check_whole(&mut self) {
        let [source, destination] = &self.hosts;
        let (Some(ours), Some(theirs)) = (&source.qemu, &destination.qemu) else { return };
        let pages = (0..u32::try_from(theirs.guest.memory.len()).unwrap_or(0)).map(PageId);
        let expected = |page| theirs.guest.own(page).unwrap_or_else(|| ours.guest.read(page));
        let wrong: Vec<PageId> =
            pages.filter(|page| theirs.guest.read(*page) != expected(*page)).collect();
        if let Some(first) = wrong.first() {
            let (found, wanted) = (theirs.guest.read(*first), expected(*first));
            let why = format!(
                "{} pages are not what they should be, the first is {}: expected {wanted}, found {found}",
                wrong.len(),
                first.0
            );
            self.blame(Oracle::Placement, why);
        }
    }

    /// At the end of a run.
    pub(crate) fn check_placement_at_end(&mut self) {
        if self.oracles.placement.completed {
            self.check_whole();
        }
        let alive = [Side::Source, Side::Destination].iter().all(|side| self.is_alive(*side));
        if self.stayed_lacking() && alive {
            self.blame(Oracle::Placement, "the guest lacks pages for ever");
        }
    }
}
