//! The batch under construction: records, bodies, and which of the bodies are worth compressing.
//!
//! Bodies are appended to the output behind a gap that is as large as header and records can become, and the head is
//! put in front of them at the end. A batch that is not compressed is therefore never copied.

use alloc::vec::Vec;

use sterna_model::PAGE_BYTES;

use crate::format::{Kind, Lengths, MAX_BATCH_BYTES, MAX_HEAD_BYTES, Record, Section, write_head};
use crate::pack::{Effort, Level, Packer};
use crate::probe::is_uneven;

/// Bodies shorter than this are left alone, and so is a batch whose others are shorter than [`MIN_PACKED_BYTES`]
/// together: zstd's frame costs 10 to 20 bytes, and calling it more than that is worth.
const MIN_BODY_BYTES: usize = 48;
const MIN_PACKED_BYTES: usize = 256;
/// Batches with evenly distributed bodies from one trial of them to the next, and bodies in a trial.
const TRIAL_BATCHES: u32 = 16;
const TRIAL_BODIES: usize = 8;

/// A record, and where its body is in the output.
struct Pending {
    record: Record,
    at: usize,
    length_bytes: usize,
}

/// A batch under construction, reused for the next.
pub(crate) struct Assembly {
    pending: Vec<Pending>,
    /// A gap of [`MAX_HEAD_BYTES`], then the bodies.
    out: Vec<u8>,
    body_bytes: usize,
    head: Vec<u8>,
    records: Vec<u8>,
    gathered: Vec<u8>,
    packer: Packer,
    trial_in: u32,
    /// In the last trial, zstd could shrink bodies whose bytes are evenly distributed.
    even_shrinks: bool,
}

impl Assembly {
    /// `None` when there is no memory for it.
    pub(crate) fn new() -> Option<Self> {
        let mut out = Vec::with_capacity(MAX_BATCH_BYTES);
        out.resize(MAX_HEAD_BYTES, 0);
        Some(Self {
            pending: Vec::new(),
            out,
            body_bytes: 0,
            head: Vec::new(),
            records: Vec::new(),
            gathered: Vec::new(),
            packer: Packer::new()?,
            trial_in: 0,
            even_shrinks: false,
        })
    }

    /// Starts the next batch.
    pub(crate) fn clear(&mut self) {
        self.pending.clear();
        self.out.truncate(MAX_HEAD_BYTES);
        self.body_bytes = 0;
    }

    /// Where a body is appended before its record is [added](Self::add).
    pub(crate) fn body(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Adds a record; its body is the last `length_bytes` bytes of [`Self::body`].
    pub(crate) fn add(&mut self, record: Record, length_bytes: usize) {
        self.body_bytes += length_bytes;
        self.pending.push(Pending { record, at: self.out.len() - length_bytes, length_bytes });
    }

    /// Adds the record of one zero or absent page: to the last record, if that is a run of its kind that ends before it.
    pub(crate) fn add_to_run(&mut self, next: Record) {
        if !self.extend_run(next) {
            self.add(next, 0);
        }
    }

    fn extend_run(&mut self, next: Record) -> bool {
        let Some(Pending { record: last, .. }) = self.pending.last_mut() else { return false };
        let count = match (&mut last.kind, next.kind) {
            (Kind::Zero { count }, Kind::Zero { .. })
            | (Kind::Absent { count }, Kind::Absent { .. }) => count,
            _ => return false,
        };
        let end = last.page.0.checked_add(*count);
        let follows = last.version == next.version && end == Some(next.page.0);
        *count += u32::from(follows);
        follows
    }

    /// Bytes of all bodies, before compression.
    pub(crate) const fn body_bytes(&self) -> usize {
        self.body_bytes
    }

    /// The batch, and how many of its literals are compressed. Without records it is empty.
    pub(crate) fn finish(&mut self, effort: Effort) -> (&[u8], u32) {
        if self.pending.is_empty() {
            return (&[], 0);
        }
        let mut lengths = Lengths { plain_bytes: self.body_bytes, packed_bytes: 0, frame_bytes: 0 };
        if let Effort::Zstd(level) = effort {
            self.choose(level);
            lengths = self.pack(level).unwrap_or(lengths);
        }
        let records = self.pending.iter().map(|pending| pending.record);
        write_head(&mut self.head, &mut self.records, records, lengths);
        let start = MAX_HEAD_BYTES - self.head.len();
        self.out[start..MAX_HEAD_BYTES].copy_from_slice(&self.head);
        (&self.out[start..], packed_literals(&self.pending))
    }

    /// Moves the bodies that compression may shrink to the packed section.
    fn choose(&mut self, level: Level) {
        let mut even = Vec::new();
        for (number, pending) in self.pending.iter_mut().enumerate() {
            if pending.length_bytes < MIN_BODY_BYTES {
                continue;
            }
            if is_uneven(&self.out[pending.at..pending.at + pending.length_bytes]) {
                pending.record.kind.move_to(Section::Packed);
            } else if pending.length_bytes == PAGE_BYTES {
                even.push(number);
            }
        }
        if even.is_empty() {
            return;
        }
        self.try_even(&even, level);
        if self.even_shrinks {
            for number in even {
                self.pending[number].record.kind.move_to(Section::Packed);
            }
        }
    }

    /// Compresses a few of the bodies that look as if that were in vain, now and then.
    fn try_even(&mut self, even: &[usize], level: Level) {
        if self.trial_in > 0 {
            self.trial_in -= 1;
            return;
        }
        self.trial_in = TRIAL_BATCHES;
        self.gathered.clear();
        for number in even.iter().take(TRIAL_BODIES) {
            let at = self.pending[*number].at;
            self.gathered.extend_from_slice(&self.out[at..at + PAGE_BYTES]);
        }
        self.even_shrinks = self.packer.pack(&self.gathered, level).is_some();
    }

    /// Compresses the bodies of the packed section and closes the gaps that they leave. Where that does not pay, all
    /// are in the plain section again, and the lengths `None`.
    fn pack(&mut self, level: Level) -> Option<Lengths> {
        self.gathered.clear();
        for pending in &self.pending {
            if pending.record.kind.section() == Some(Section::Packed) {
                let end = pending.at + pending.length_bytes;
                self.gathered.extend_from_slice(&self.out[pending.at..end]);
            }
        }
        let worthwhile = self.gathered.len() >= MIN_PACKED_BYTES;
        let frame = worthwhile.then(|| self.packer.pack(&self.gathered, level)).flatten();
        let Some(frame) = frame else {
            self.even_shrinks = false;
            self.pending.iter_mut().for_each(|pending| pending.record.kind.move_to(Section::Plain));
            return None;
        };
        let mut end = MAX_HEAD_BYTES;
        for pending in &self.pending {
            if pending.record.kind.section() == Some(Section::Plain) {
                self.out.copy_within(pending.at..pending.at + pending.length_bytes, end);
                end += pending.length_bytes;
            }
        }
        self.out.truncate(end);
        self.out.extend_from_slice(frame);
        Some(Lengths {
            plain_bytes: end - MAX_HEAD_BYTES,
            packed_bytes: self.gathered.len(),
            frame_bytes: frame.len(),
        })
    }
}

fn packed_literals(pending: &[Pending]) -> u32 {
    let packed = |pending: &&Pending| {
        matches!(pending.record.kind, Kind::Literal { section: Section::Packed, .. })
    };
    u32::try_from(pending.iter().filter(packed).count()).unwrap_or(u32::MAX)
}
