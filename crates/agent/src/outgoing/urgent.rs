//! What the guest waits for at the destination: requests in, pages out, on a connection of their own.
//!
//! A page that was asked for goes first and alone; the pages after it follow, since who touches one soon touches the next
//! (pre-pull; "bubbling" in Hines and Gopalan, VEE 2009). Their number grows while requests come just behind what was
//! pulled, and shrinks while they do not. The link is theirs for a millisecond at most, and only until the next request:
//! what waits behind them waits with the guest.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use sterna_host::tls::{DataStream, FrameStreamError};
use sterna_migration::tracker::Claim;
use sterna_model::{PAGE_BYTES, PageId};
use sterna_page_codec::{Effort, Encoder, Hint, Level, PushError};
use sterna_wire::{FrameKind, FrameWriter};

use super::shared::Shared;

/// Pages that are pulled after one that was asked for, at most and at first.
const MAX_WINDOW: usize = 32;
const FIRST_WINDOW: u32 = 4;
/// Pages in a frame of pulled pages.
const PULLED_AT_ONCE: usize = 4;

/// See the module. One thread.
pub(super) struct Urgent {
    /// What it shares with the workers.
    pub shared: Arc<Shared>,
    /// Its connection, after the hello.
    pub link: DataStream,
    /// Numbers its frames.
    pub frames: FrameWriter,
    /// Its encoder.
    pub encoder: Encoder,
    /// Whether compressing is worth its time.
    pub effort: Effort,
    /// Pages that are asked for.
    pub requests: Receiver<Vec<PageId>>,
}

/// Why it cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum UrgentError {
    /// The connection.
    #[error(transparent)]
    Link(#[from] FrameStreamError),
    /// The source's memory.
    #[error("cannot read guest memory: {0}")]
    Memory(#[from] io::Error),
    /// The codec.
    #[error("cannot encode a page: {0}")]
    Encode(#[from] PushError),
}

/// How far pages are pulled, and where the last pull ended.
#[derive(Debug)]
struct Window {
    pages: u32,
    end: u32,
}

impl Urgent {
    /// Compresses a little: a page that takes less of a slow link arrives sooner, and on a fast one it costs 20 µs.
    pub(super) const EFFORT: Effort = Effort::Zstd(Level::FAST);

    /// Answers until the requests end.
    ///
    /// # Errors
    /// When a page cannot be read or sent.
    pub(super) fn run(mut self) -> Result<(), UrgentError> {
        let mut window = Window { pages: FIRST_WINDOW, end: 0 };
        let mut next = None;
        while let Some(mut wanted) = next.take().or_else(|| self.requests.recv().ok()) {
            while let Ok(more) = self.requests.try_recv() {
                wanted.extend(more);
            }
            let mut sent = Vec::with_capacity(wanted.len());
            for page in wanted {
                // What is on its way already pulls nothing.
                if let Some(claim) = self.shared.tracker.claim_page(page) {
                    self.send(&[claim])?;
                    sent.push(page);
                }
            }
            let most = self.shared.pacer.batch_pages(MAX_WINDOW);
            for page in sent {
                if next.is_none() {
                    next = self.pull(window.after(page, most))?;
                }
            }
        }
        let _ = self.link.finish();
        Ok(())
    }

    /// Sends these pages, as far as no other request comes: it is given back.
    fn pull(&mut self, pages: core::ops::Range<u32>) -> Result<Option<Vec<PageId>>, UrgentError> {
        let tracker = Arc::clone(&self.shared.tracker);
        let mut claims: Vec<Claim> = Vec::with_capacity(PULLED_AT_ONCE);
        for page in pages.map(PageId) {
            claims.extend(tracker.claim_page(page));
            if claims.len() == PULLED_AT_ONCE {
                self.send(&claims)?;
                claims.clear();
                if let Ok(wanted) = self.requests.try_recv() {
                    return Ok(Some(wanted));
                }
            }
        }
        self.send(&claims)?;
        Ok(None)
    }

    fn send(&mut self, claims: &[Claim]) -> Result<(), UrgentError> {
        if claims.is_empty() {
            return Ok(());
        }
        let mut content = [0; PAGE_BYTES];
        for claim in claims {
            self.shared.memory.read(claim.page, &mut content)?;
            self.encoder.push(claim.page, &content, Hint::Requested)?;
        }
        let batch = self.encoder.finish(self.effort);
        self.shared.totals.add(&batch.stats);
        self.link.write_frame(&mut self.frames, FrameKind::Pages, batch.bytes)?;
        self.shared.totals.note_sent(batch.bytes.len(), batch.sent.len());
        Ok(())
    }
}

impl Window {
    /// The pages to pull after `page`, `most` at most.
    fn after(&mut self, page: PageId, most: usize) -> core::ops::Range<u32> {
        let first = page.0.saturating_add(1);
        let hit = (self.end.saturating_sub(self.pages)..=self.end.saturating_add(self.pages))
            .contains(&page.0);
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        self.pages =
            if hit { self.pages.saturating_mul(2) } else { self.pages / 2 }.clamp(1, most.max(1));
        self.end = first.saturating_add(self.pages);
        first..self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_grows_while_it_hits_and_shrinks_while_it_does_not() {
        let mut window = Window { pages: FIRST_WINDOW, end: 0 };
        let mut page = PageId(1000);
        assert_eq!(window.after(page, MAX_WINDOW), 1001..1003, "a first miss");
        for _ in 0..10 {
            page = PageId(window.end);
            let _ = window.after(page, MAX_WINDOW);
        }
        assert_eq!(window.pages as usize, MAX_WINDOW);
        let _ = window.after(PageId(window.end), 3);
        assert_eq!(window.pages, 3, "a slow link");
        for far in 0..10 {
            let _ = window.after(PageId(100_000 + far * 10_000), MAX_WINDOW);
        }
        assert_eq!(window.pages, 1);
        assert_eq!(window.after(PageId(u32::MAX), MAX_WINDOW), u32::MAX..u32::MAX);
    }
}
