//! The destination's end: batches in, pages out.
//!
//! The decoder believes nothing. Every content is hashed after it was decoded and compared with the hash in its record.
//! A literal that differs is the peer's fault and an error. A delta, a ref or a confirmation that differs only shows
//! that source and destination disagree about what is here (connections reorder, a digest collided): the page is
//! reported as missing, and the source sends it as a literal.

use alloc::boxed::Box;
use alloc::vec::Vec;

use sterna_model::{PAGE_BYTES, Page, PageHash, PageId, ZERO_PAGE};

use crate::bytes::Bytes;
use crate::format::{Kind, MAX_BODY_BYTES, Record, Section, Sections, no_rest};
use crate::lanes::LANES;
use crate::pack::Unpacker;
use crate::runs::{Coding, apply, check};
use crate::{FormatError, NoMemory, PageKey, page_hash, page_hashes};

/// What the store has of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stored {
    /// The version that it came as; 0: it is from before the move.
    pub version: u32,
    /// What its content hashes to; [`PageHash::ABSENT`]: the content will follow in post-copy.
    pub hash: PageHash,
}

/// Where decoded pages go. The decoder names only pages of the guest.
///
/// Between [`entry`](Self::entry) and a write, another connection's decoder may write the same page if the source
/// moved it to that connection after a loss. A store that several decoders share has to refuse the older version in
/// its writes, under a lock of its own.
pub trait PageStore {
    /// Why the store cannot read or write.
    type Error: core::error::Error + 'static;

    /// What it has of a page; `None` if nothing was written.
    fn entry(&mut self, page: PageId) -> Option<Stored>;

    /// Reads the content of a page.
    ///
    /// # Errors
    /// The store's own.
    fn read(&mut self, page: PageId, into: &mut Page) -> Result<(), Self::Error>;

    /// Writes the consecutive pages from `first` on, one for each of `entries`; `contents` is as many pages long.
    ///
    /// # Errors
    /// The store's own.
    fn write_run(
        &mut self,
        first: PageId,
        entries: &[Stored],
        contents: &[u8],
    ) -> Result<(), Self::Error>;

    /// Makes the `count` pages from `first` on zero, all as this version.
    ///
    /// # Errors
    /// The store's own.
    fn write_zeros(&mut self, first: PageId, count: u32, version: u32) -> Result<(), Self::Error>;

    /// Notes that the content of the `count` pages from `first` on, in this version, will follow in post-copy: their
    /// entries are to have the hash [`PageHash::ABSENT`] from now on. What is in their place is not read before they are
    /// written.
    ///
    /// # Errors
    /// The store's own.
    fn write_absent(&mut self, first: PageId, count: u32, version: u32) -> Result<(), Self::Error>;

    /// Notes a newer version of a page whose content is here already.
    ///
    /// # Errors
    /// The store's own.
    fn confirm(&mut self, page: PageId, entry: Stored) -> Result<(), Self::Error>;

    /// Takes note that this version of a page is to be asked for again. The page keeps what it has.
    ///
    /// # Errors
    /// The store's own.
    fn missing(&mut self, page: PageId, version: u32, why: Missing) -> Result<(), Self::Error>;
}

/// Why a page could not be made from what is here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Missing {
    /// The page has not the content that the delta builds on.
    #[error("the content that its delta builds on is not here")]
    Base,
    /// The delta leads to another content than it should.
    #[error("its delta leads to another content")]
    Delta,
    /// The page referred to has another content.
    #[error("the page that it refers to has another content")]
    Ref,
    /// The page itself has another content.
    #[error("it has another content here")]
    Same,
}

/// What became of the pages of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BatchOutcome {
    /// Written with a content.
    pub written: u32,
    /// Made zero.
    pub zeroed: u32,
    /// Were here already.
    pub confirmed: u32,
    /// Older than what is here: ignored.
    pub outdated: u32,
    /// Have to be asked for again.
    pub missing: u32,
    /// Noted as absent: their content follows in post-copy.
    pub absent: u32,
}

/// Why a batch was not decoded to its end. Pages before the culprit are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError<E: core::error::Error + 'static> {
    /// The peer sent something that is no batch.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The peer sent a content that is not what it says.
    #[error("expected page {page:?} to hash to {expected:?}, found {found:?}")]
    Corrupt {
        /// The page.
        page: PageId,
        /// The hash in its record.
        expected: PageHash,
        /// The hash of its content.
        found: PageHash,
    },
    /// The guest's memory here could not be read or written.
    #[error("page {page:?} could not be read or written")]
    Store {
        /// The page, or the first of a run.
        page: PageId,
        /// Why.
        source: E,
    },
}

/// Turns batches into pages. One for each connection.
pub struct Decoder {
    key: PageKey,
    pages: u32,
    unpacker: Unpacker,
    page: Box<Page>,
    entries: Vec<Stored>,
}

impl core::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Decoder").field("pages", &self.pages).finish_non_exhaustive()
    }
}

impl Decoder {
    /// A decoder for a guest of `pages` pages.
    ///
    /// # Errors
    /// When there is no memory for zstd.
    pub fn new(key: PageKey, pages: u32) -> Result<Self, NoMemory> {
        let unpacker = Unpacker::new(MAX_BODY_BYTES).ok_or(NoMemory)?;
        Ok(Self { key, pages, unpacker, page: Box::new(ZERO_PAGE), entries: Vec::new() })
    }

    /// Writes the pages of a batch to `store`.
    ///
    /// # Errors
    /// When the bytes are no batch, a literal is not what it says, or the store fails.
    pub fn decode<S: PageStore>(
        &mut self,
        batch: &[u8],
        store: &mut S,
    ) -> Result<BatchOutcome, DecodeError<S::Error>> {
        let mut sections = Sections::parse(batch)?;
        let packed = Bytes::new(self.unpacker.unpack(sections.frame, sections.packed_bytes)?);
        self.entries.clear();
        let mut decoding = Decoding {
            key: &self.key,
            page: &mut self.page,
            store,
            plain: sections.plain,
            packed,
            run: Run { first: PageId(0), section: Section::Plain, contents: &[] },
            entries: &mut self.entries,
            outcome: BatchOutcome::default(),
        };
        while let Some(record) = sections.records.next(self.pages)? {
            decoding.record(record)?;
        }
        decoding.flush()?;
        no_rest("plain section", decoding.plain)?;
        no_rest("packed section", decoding.packed)?;
        Ok(decoding.outcome)
    }
}

/// Literals of consecutive pages that wait to be written together.
struct Run<'a> {
    first: PageId,
    section: Section,
    /// Their section from the first one on.
    contents: &'a [u8],
}

/// A batch that is being decoded.
struct Decoding<'a, S> {
    key: &'a PageKey,
    page: &'a mut Page,
    store: &'a mut S,
    plain: Bytes<'a>,
    packed: Bytes<'a>,
    run: Run<'a>,
    /// One for each page of the run.
    entries: &'a mut Vec<Stored>,
    outcome: BatchOutcome,
}

type Decoded<S> = Result<(), DecodeError<<S as PageStore>::Error>>;

impl<'a, S: PageStore> Decoding<'a, S> {
    fn record(&mut self, record: Record) -> Decoded<S> {
        let Record { page, version, kind } = record;
        if let Kind::Literal { hash, section } = kind {
            return self.literal(page, Stored { version, hash }, section);
        }
        // What follows may read the pages of the run.
        self.flush()?;
        if let Kind::Zero { count } | Kind::Absent { count } = kind {
            return self.run(page, count, version, kind);
        }
        let body = match kind {
            Kind::Sparse { length_bytes, section, .. }
            | Kind::Delta { length_bytes, section, .. } => {
                self.section(section).take(length_bytes, "body")?
            }
            _ => &[],
        };
        if !self.is_newer(page, version) {
            // A batch is good or bad by itself, whatever is here.
            check(body)?;
            self.outcome.outdated += 1;
            return Ok(());
        }
        match kind {
            Kind::Same { hash } => self.same(page, Stored { version, hash }),
            Kind::Ref { hash, from } => self.reference(page, Stored { version, hash }, from),
            Kind::Sparse { hash, .. } => self.sparse(page, Stored { version, hash }, body),
            Kind::Delta { hash, base, coding, .. } => {
                self.delta(page, Stored { version, hash }, base, coding, body)
            }
            Kind::Zero { .. } | Kind::Literal { .. } | Kind::Absent { .. } => Ok(()),
        }
    }

    fn literal(&mut self, page: PageId, entry: Stored, section: Section) -> Decoded<S> {
        let follows = section == self.run.section
            && self.run.first.index() + self.entries.len() == page.index();
        if !follows {
            self.flush()?;
        }
        let rest = *self.section(section);
        self.section(section).take(PAGE_BYTES, "literal")?;
        if !self.is_newer(page, entry.version) {
            self.outcome.outdated += 1;
            return self.flush();
        }
        if self.entries.is_empty() {
            self.run = Run { first: page, section, contents: rest.all() };
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Writes the run of literals, if each is what its record says.
    fn flush(&mut self) -> Decoded<S> {
        if self.entries.is_empty() {
            return Ok(());
        }
        let first = self.run.first;
        let contents = &self.run.contents[..self.entries.len() * PAGE_BYTES];
        let some = self.entries.chunks(LANES).zip(contents.chunks(LANES * PAGE_BYTES));
        for (from, (entries, contents)) in (first.0..).step_by(LANES).zip(some) {
            let mut hashes = [PageHash::ZERO; LANES];
            page_hashes(self.key, contents.as_chunks().0, &mut hashes);
            for (page, (entry, found)) in (from..).map(PageId).zip(entries.iter().zip(hashes)) {
                expect_hash(page, entry.hash, found)?;
            }
        }
        let written = self.store.write_run(first, self.entries, contents);
        self.outcome.written += u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.entries.clear();
        written.map_err(|source| DecodeError::Store { page: first, source })
    }

    /// Makes pages zero or notes them as absent, but for those of which a newer version is here.
    fn run(&mut self, first: PageId, count: u32, version: u32, kind: Kind) -> Decoded<S> {
        let end = first.0 + count;
        let mut start = first.0;
        while start < end {
            let is_newer = self.is_newer(PageId(start), version);
            let mut stop = start + 1;
            while stop < end && self.is_newer(PageId(stop), version) == is_newer {
                stop += 1;
            }
            let (page, part) = (PageId(start), stop - start);
            let written = if !is_newer {
                self.outcome.outdated += part;
                Ok(())
            } else if let Kind::Absent { .. } = kind {
                self.outcome.absent += part;
                self.store.write_absent(page, part, version)
            } else {
                self.outcome.zeroed += part;
                self.store.write_zeros(page, part, version)
            };
            written.map_err(|source| DecodeError::Store { page, source })?;
            start = stop;
        }
        Ok(())
    }

    fn same(&mut self, page: PageId, entry: Stored) -> Decoded<S> {
        let claimed = self.store.entry(page).map(|stored| stored.hash);
        if self.is_absent(page) || claimed != Some(entry.hash) || !self.holds(page, entry.hash)? {
            return self.missing(page, entry.version, Missing::Same);
        }
        self.outcome.confirmed += 1;
        let confirmed = self.store.confirm(page, entry);
        confirmed.map_err(|source| DecodeError::Store { page, source })
    }

    fn reference(&mut self, page: PageId, entry: Stored, from: PageId) -> Decoded<S> {
        if self.is_absent(from) || !self.holds(from, entry.hash)? {
            return self.missing(page, entry.version, Missing::Ref);
        }
        self.write(page, entry)
    }

    fn sparse(&mut self, page: PageId, entry: Stored, body: &[u8]) -> Decoded<S> {
        *self.page = ZERO_PAGE;
        apply(body, Coding::Xor, self.page)?;
        expect_hash(page, entry.hash, page_hash(self.key, self.page))?;
        self.write(page, entry)
    }

    fn delta(
        &mut self,
        page: PageId,
        entry: Stored,
        base: PageHash,
        coding: Coding,
        body: &[u8],
    ) -> Decoded<S> {
        let found = self.store.entry(page).map(|stored| stored.hash);
        if self.is_absent(page) || found != Some(base) {
            check(body)?;
            return self.missing(page, entry.version, Missing::Base);
        }
        self.read(page)?;
        apply(body, coding, self.page)?;
        if page_hash(self.key, self.page) != entry.hash {
            return self.missing(page, entry.version, Missing::Delta);
        }
        self.write(page, entry)
    }

    /// Whether a page's content, which is left in `self.page`, has this hash.
    fn holds(&mut self, page: PageId, hash: PageHash) -> Result<bool, DecodeError<S::Error>> {
        self.read(page)?;
        Ok(page_hash(self.key, self.page) == hash)
    }

    fn read(&mut self, page: PageId) -> Decoded<S> {
        let read = self.store.read(page, self.page);
        read.map_err(|source| DecodeError::Store { page, source })
    }

    /// Writes the content in `self.page`.
    fn write(&mut self, page: PageId, entry: Stored) -> Decoded<S> {
        self.outcome.written += 1;
        let written = self.store.write_run(page, &[entry], self.page);
        written.map_err(|source| DecodeError::Store { page, source })
    }

    fn missing(&mut self, page: PageId, version: u32, why: Missing) -> Decoded<S> {
        self.outcome.missing += 1;
        let noted = self.store.missing(page, version, why);
        noted.map_err(|source| DecodeError::Store { page, source })
    }

    fn is_newer(&mut self, page: PageId, version: u32) -> bool {
        self.store.entry(page).is_none_or(|stored| stored.version < version)
    }

    /// Whether there is no content of a page to build on, whatever stands in its place.
    fn is_absent(&mut self, page: PageId) -> bool {
        self.store.entry(page).is_some_and(|stored| stored.hash == PageHash::ABSENT)
    }

    fn section(&mut self, section: Section) -> &mut Bytes<'a> {
        match section {
            Section::Plain => &mut self.plain,
            Section::Packed => &mut self.packed,
        }
    }
}

fn expect_hash<E: core::error::Error + 'static>(
    page: PageId,
    expected: PageHash,
    found: PageHash,
) -> Result<(), DecodeError<E>> {
    if found == expected { Ok(()) } else { Err(DecodeError::Corrupt { page, expected, found }) }
}
