//! The source's end: pages in, batches out.
//!
//! For each page the encoder asks, in this order: Is it zero? Has the destination this content at this page already?
//! At another page? Does it have an older content of the page that this encoder remembers, and is the difference
//! short? Only what is left travels as a literal, compressed when the caller's effort says so and it pays.
//!
//! Before a switchover to post-copy, a page that is neither zero nor there already is only announced as absent: its
//! content follows once, as a literal, while the guest runs at the destination.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use sterna_model::{PAGE_BYTES, Page, PageHash, PageId, ZERO_PAGE};

use crate::assembly::Assembly;
use crate::bases::{Bases, Change};
use crate::format::{Kind, MAX_BATCH_PAGES, Record, Section};
use crate::runs::encode_xor;
use crate::slots::Heat;
use crate::{Effort, Known, PageKey, page_hash, page_hashes};

/// Longest sparse page: what is written of a page that is zero else. Beyond, zstd does better.
const SPARSE_LIMIT_BYTES: usize = PAGE_BYTES / 8;
/// Contents that this encoder sent last, which later pages of the same connection may refer to before any answer.
const RECENT: usize = 256;

/// What an encoder needs.
#[derive(Clone, Debug)]
pub struct EncoderConfig {
    /// Key of the page hashes of this move.
    pub key: PageKey,
    /// What the destination has, shared by all encoders of the move.
    pub known: Arc<Known>,
    /// Memory for old contents of pages, in bytes; 3 MiB for each of four encoders is a good start.
    pub content_cache_bytes: usize,
    /// Memory for digests of old contents, in bytes; 5 MiB for each of four encoders remembers 280 MiB of guest.
    pub digest_bytes: usize,
}

/// What the caller knows about a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hint {
    /// Nothing: its first time, or a late change.
    Cold,
    /// It was dirtied again after it was sent: worth remembering.
    Hot,
    /// The destination may have it: send the hash only. It asks for the page if that is not what it has.
    Confirm,
    /// The destination asked for it, or it is absent there: send it so that it can be understood without anything sent
    /// before.
    Requested,
}

/// What became of a pushed page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pushed {
    /// A zero page.
    Zero,
    /// The destination has it already: nothing is sent, and no version is used.
    Unchanged,
    /// The hash only, for the destination to confirm.
    Same,
    /// A reference to a page with the same content.
    Ref,
    /// The difference to what the destination has.
    Delta,
    /// The content itself; [`BatchStats`] tells how many were compressed.
    Literal,
    /// Only that the content will follow in post-copy.
    Absent,
}

/// A page that a batch contains, for the acknowledgement ([`Known::acknowledge`]) or the loss ([`Known::forget`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sent {
    /// The page.
    pub page: PageId,
    /// The version that it was sent as.
    pub version: u32,
}

/// Pages by what became of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PageCounts {
    /// Zero pages.
    pub zero: u32,
    /// Not sent, since the destination has them.
    pub unchanged: u32,
    /// Sent as a hash to be confirmed.
    pub same: u32,
    /// Sent as a reference to another page.
    pub reference: u32,
    /// Sent as the difference to an older content.
    pub delta: u32,
    /// Sent compressed, by zstd or as a sparse page.
    pub compressed: u32,
    /// Sent as they are.
    pub raw: u32,
    /// Announced as absent: their content follows in post-copy.
    pub absent: u32,
}

/// What a batch contains.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BatchStats {
    /// Pages pushed, by what became of them.
    pub pages: PageCounts,
    /// Bytes of literals and differences before compression.
    pub body_bytes: u64,
    /// Bytes of the batch.
    pub wire_bytes: u64,
}

/// A finished batch.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// What to send, at most [`MAX_BATCH_BYTES`](crate::MAX_BATCH_BYTES); empty when there is nothing to send.
    pub bytes: &'a [u8],
    /// What it contains.
    pub stats: BatchStats,
    /// The pages that it contains, in the order in which they were pushed.
    pub sent: &'a [Sent],
}

/// There is no memory for the contexts of zstd.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected memory for a zstd context on this host, found none")]
pub struct NoMemory;

/// Why a page was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PushError {
    /// The batch has to be finished first.
    #[error("expected at most {MAX_BATCH_PAGES} pages in a batch, found one more")]
    Full,
    /// The guest has no such page.
    #[error("expected a page below {pages}, found {page:?}")]
    Page {
        /// The page.
        page: PageId,
        /// Pages of the guest.
        pages: u32,
    },
}

/// Turns pages into batches. One for each connection; pages of one stripe always go to the same.
pub struct Encoder {
    key: PageKey,
    known: Arc<Known>,
    bases: Bases,
    recent: Box<[(PageHash, PageId)]>,
    assembly: Assembly,
    sent: Vec<Sent>,
    counts: PageCounts,
    finished: bool,
}

impl core::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Encoder").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl Encoder {
    /// An encoder that remembers nothing yet.
    ///
    /// # Errors
    /// When there is no memory for zstd.
    pub fn new(config: EncoderConfig) -> Result<Self, NoMemory> {
        Ok(Self {
            bases: Bases::new(&config.key, config.content_cache_bytes, config.digest_bytes),
            key: config.key,
            known: config.known,
            recent: vec![(PageHash::ZERO, PageId(0)); RECENT].into(),
            assembly: Assembly::new().ok_or(NoMemory)?,
            sent: Vec::with_capacity(MAX_BATCH_PAGES),
            counts: PageCounts::default(),
            finished: false,
        })
    }

    /// Pages that still fit into the batch.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.finished { MAX_BATCH_PAGES } else { MAX_BATCH_PAGES - self.sent.len() }
    }

    /// Adds a page to the batch, in the cheapest way that the destination will understand.
    ///
    /// # Errors
    /// When the batch is full, or the guest has no such page.
    pub fn push(&mut self, page: PageId, content: &Page, hint: Hint) -> Result<Pushed, PushError> {
        self.push_hashed(page, content, page_hash(&self.key, content), hint)
    }

    /// What pages hash to in this move, for [`Encoder::push_hashed`] and [`Encoder::push_absent`]: many at a time are faster. Fills
    /// `hashes`, of which there are as many as pages, or more.
    pub fn hash(&self, pages: &[Page], hashes: &mut [PageHash]) {
        page_hashes(&self.key, pages, hashes);
    }

    /// The same with the content's hash.
    ///
    /// # Errors
    /// As [`Encoder::push`].
    pub fn push_hashed(
        &mut self,
        page: PageId,
        content: &Page,
        hash: PageHash,
        hint: Hint,
    ) -> Result<Pushed, PushError> {
        if hash == PageHash::ZERO {
            return self.push_zero(page, hint);
        }
        self.admit(page)?;
        let before = self.before(page);
        let pushed = match hint {
            Hint::Confirm => {
                self.add(page, hash, Kind::Same { hash }, 0);
                self.remember(page, hash, content, Heat::Cold);
                Pushed::Same
            }
            Hint::Requested => self.push_alone(page, hash, content),
            Hint::Cold | Hint::Hot if before == Some(hash) => Pushed::Unchanged,
            Hint::Cold => self.push_related(page, before, hash, content, Heat::Cold),
            Hint::Hot => self.push_related(page, before, hash, content, Heat::Hot),
        };
        match pushed {
            Pushed::Unchanged => self.counts.unchanged += 1,
            Pushed::Same => self.counts.same += 1,
            Pushed::Ref => self.counts.reference += 1,
            Pushed::Delta => self.counts.delta += 1,
            Pushed::Zero | Pushed::Literal | Pushed::Absent => {}
        }
        Ok(pushed)
    }

    /// Adds a page that is known to be zero without looking at it.
    ///
    /// # Errors
    /// When the batch is full, or the guest has no such page.
    pub fn push_zero(&mut self, page: PageId, hint: Hint) -> Result<Pushed, PushError> {
        self.admit(page)?;
        let asked = matches!(hint, Hint::Confirm | Hint::Requested);
        if !asked && self.before(page) == Some(PageHash::ZERO) {
            self.counts.unchanged += 1;
            return Ok(Pushed::Unchanged);
        }
        self.counts.zero += 1;
        self.add_to_run(page, PageHash::ZERO, Kind::Zero { count: 1 });
        Ok(Pushed::Zero)
    }

    /// Adds that a page's content will follow in post-copy. With the content's `hash` that is said only of a page that is
    /// neither zero nor what the destination has already; without, of any.
    ///
    /// # Errors
    /// When the batch is full, or the guest has no such page.
    pub fn push_absent(
        &mut self,
        page: PageId,
        hash: Option<PageHash>,
    ) -> Result<Pushed, PushError> {
        if hash == Some(PageHash::ZERO) {
            return self.push_zero(page, Hint::Cold);
        }
        self.admit(page)?;
        if hash.is_some() && hash == self.before(page) {
            self.counts.unchanged += 1;
            return Ok(Pushed::Unchanged);
        }
        self.counts.absent += 1;
        self.add_to_run(page, PageHash::ABSENT, Kind::Absent { count: 1 });
        Ok(Pushed::Absent)
    }

    /// Ends the batch. Infallible: what cannot be compressed goes as it is. The next push begins another batch.
    pub fn finish(&mut self, effort: Effort) -> Batch<'_> {
        if self.finished {
            self.begin();
        }
        self.finished = true;
        let body_bytes = self.assembly.body_bytes() as u64;
        let (bytes, packed) = self.assembly.finish(effort);
        let mut pages = self.counts;
        // Literals were counted as raw when they were pushed.
        pages.raw -= packed;
        pages.compressed += packed;
        let stats = BatchStats { pages, body_bytes, wire_bytes: bytes.len() as u64 };
        Batch { bytes, stats, sent: &self.sent }
    }

    fn begin(&mut self) {
        self.finished = false;
        self.sent.clear();
        self.counts = PageCounts::default();
        self.assembly.clear();
    }

    fn admit(&mut self, page: PageId) -> Result<(), PushError> {
        if self.finished {
            self.begin();
        }
        let pages = self.known.pages();
        if page.0 >= pages {
            return Err(PushError::Page { page, pages });
        }
        if self.sent.len() >= MAX_BATCH_PAGES {
            return Err(PushError::Full);
        }
        Ok(())
    }

    /// The content of a page that the destination has, or will have when it reads this batch.
    fn before(&self, page: PageId) -> Option<PageHash> {
        self.known.get(page).map(|entry| entry.hash).filter(|hash| *hash != PageHash::ABSENT)
    }

    /// Sends a page with the help of what the destination has.
    fn push_related(
        &mut self,
        page: PageId,
        before: Option<PageHash>,
        hash: PageHash,
        content: &Page,
        heat: Heat,
    ) -> Pushed {
        if let Some(from) = self.elsewhere(page, hash) {
            self.add(page, hash, Kind::Ref { hash, from }, 0);
            self.remember(page, hash, content, heat);
            return Pushed::Ref;
        }
        let change = Change { page, before, after: hash, heat };
        let delta = self.bases.exchange(change, content, self.assembly.body());
        if let (Some(base), Some((coding, length_bytes))) = (before, delta) {
            let section = Section::Plain;
            let kind = Kind::Delta { hash, base, coding, length_bytes, section };
            self.add(page, hash, kind, length_bytes);
            return Pushed::Delta;
        }
        self.push_literal(page, hash, content)
    }

    /// Sends a page without the help of anything.
    fn push_alone(&mut self, page: PageId, hash: PageHash, content: &Page) -> Pushed {
        self.remember(page, hash, content, Heat::Cold);
        self.push_literal(page, hash, content)
    }

    fn push_literal(&mut self, page: PageId, hash: PageHash, content: &Page) -> Pushed {
        let section = Section::Plain;
        let body = self.assembly.body();
        if let Some(length_bytes) = encode_xor(&ZERO_PAGE, content, SPARSE_LIMIT_BYTES, body) {
            self.counts.compressed += 1;
            self.add(page, hash, Kind::Sparse { hash, length_bytes, section }, length_bytes);
        } else {
            body.extend_from_slice(content);
            self.counts.raw += 1;
            self.add(page, hash, Kind::Literal { hash, section }, PAGE_BYTES);
        }
        Pushed::Literal
    }

    /// Remembers a content that was not sent as a delta.
    fn remember(&mut self, page: PageId, after: PageHash, content: &Page, heat: Heat) {
        // Without an old content to build on there is no delta, so nothing is appended.
        self.bases.exchange(
            Change { page, before: None, after, heat },
            content,
            self.assembly.body(),
        );
    }

    fn add(&mut self, page: PageId, hash: PageHash, kind: Kind, length_bytes: usize) {
        let version = self.known.record_sent(page, hash);
        self.sent.push(Sent { page, version });
        self.assembly.add(Record { page, version, kind }, length_bytes);
        self.recent[recent_place(hash)] = (hash, page);
    }

    /// Adds one page of a run; `kind` counts one.
    fn add_to_run(&mut self, page: PageId, hash: PageHash, kind: Kind) {
        let version = self.known.record_sent(page, hash);
        self.sent.push(Sent { page, version });
        self.assembly.add_to_run(Record { page, version, kind });
    }

    /// Another page with this content that the destination has, or will have before it reads this batch's record.
    fn elsewhere(&self, page: PageId, hash: PageHash) -> Option<PageId> {
        let (recent, from) = self.recent[recent_place(hash)];
        let still = |from| self.known.get(from).is_some_and(|entry| entry.hash == hash);
        if recent == hash && from != page && still(from) {
            return Some(from);
        }
        self.known.find(hash, page)
    }
}

fn recent_place(hash: PageHash) -> usize {
    usize::from(hash.0[15]) % RECENT
}
