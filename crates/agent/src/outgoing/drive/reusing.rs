//! A destination that has the guest's memory from a job that came to nothing: it tells its hashes, and only pages with
//! another hash are sent. QEMU goes through all memory once, at memory speed; a page whose hash is as told costs nothing.

use std::time::Instant;

use sterna_migration::source::Fact;
use sterna_model::{ByteCount, PageHash, PageId, Rate};
use sterna_page_codec::Known;
use sterna_wire::Hashes;

use super::Drive;
use crate::outgoing::reader::Head;

/// Fewer bytes of hashes tell nothing of the link.
const MIN_RATE_SAMPLE_BYTES: u64 = 256 << 10;

/// What the destination tells of what it has.
#[derive(Debug, Default)]
pub(super) struct Reuse {
    /// It will tell, or is at it.
    pub(super) is_awaited: bool,
    /// The stream's head, which waits for it, and what is known so far.
    waiting: Option<(Head, Known)>,
    /// When the first of it came, and how much since, in bytes on the wire.
    began: Option<Instant>,
    told_bytes: u64,
    /// Pages that it has.
    pages: u64,
}

impl Reuse {
    /// Whether hashes are waited for, with a stream that has begun.
    pub(super) const fn is_under_way(&self) -> bool {
        self.waiting.is_some()
    }

    /// What that stream has begun with.
    pub(super) fn head(&self) -> Option<&Head> {
        self.waiting.as_ref().map(|(head, _)| head)
    }
}

impl Drive {
    /// The stream has begun, and the destination was told; it tells now what it has.
    pub(super) fn await_hashes(&mut self, head: Head) {
        let known = Known::new(head.memory.layout().pages());
        // Pages that are not named are zeros there, where it has cleared them itself.
        let blocks = head.memory.layout().blocks().iter();
        for block in blocks.filter(|block| self.shared_blocks.contains(&block.name)) {
            let pages = block.page_numbers().map(PageId);
            pages.for_each(|page| known.record_present(page, PageHash::ZERO));
        }
        self.reuse.waiting = Some((head, known));
    }

    /// Some of what the destination has.
    pub(super) fn hashes(&mut self, hashes: &Hashes) {
        let Some((head, known)) = &self.reuse.waiting else {
            let why = "the destination told hashes out of turn".to_owned();
            return self.fact(Fact::PeerFailed(why));
        };
        let layout = head.memory.layout();
        for (page, hash) in hashes.pages() {
            let block = layout.block_index_of(page).map(|at| &layout.blocks()[at]);
            if !block.is_some_and(|block| self.shared_blocks.contains(&block.name)) {
                let why = format!(
                    "expected hashes of pages that the destination shares, found page {}",
                    page.0
                );
                return self.fact(Fact::PeerFailed(why));
            }
            // A mark is no content.
            let hash = PageHash(hash);
            if hash != PageHash::ABSENT {
                known.record_present(page, hash);
            }
            self.reuse.pages += u64::from(hash != PageHash::ZERO);
        }
        if self.reuse.began.is_some() {
            // In hexadecimal.
            self.reuse.told_bytes += 2 * hashes.hashes.as_bytes().len() as u64;
        }
        self.reuse.began.get_or_insert_with(Instant::now);
        if hashes.last {
            self.all_hashes_came();
        }
    }

    fn all_hashes_came(&mut self) {
        self.reuse.is_awaited = false;
        let (Some((head, known)), Some(began)) = (self.reuse.waiting.take(), self.reuse.began)
        else {
            return;
        };
        let bytes = ByteCount(self.reuse.told_bytes);
        tracing::info!(
            pages = self.reuse.pages,
            "the destination has pages from before: what differs is sent"
        );
        if bytes.0 >= MIN_RATE_SAMPLE_BYTES {
            // Few pages will be sent, too few to tell what the link can do.
            self.gauge.assume_link_rate(Rate::of(bytes, began.elapsed()));
        }
        self.gauge.begins_over_known = true;
        if let Err(why) = self.start_bulk(head, Some(known)) {
            self.fact(Fact::QemuFailed(why));
        }
    }
}
