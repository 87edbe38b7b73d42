//! The inspector: what is in a captured stream, as a value to print. It reads a damaged stream up to the damage.

mod devices;
mod summary;

use alloc::string::ToString;
use alloc::vec::Vec;

use sterna_model::{Layout, PageId};

use crate::error::StreamError;
use crate::format::MIN_BUFFER_BYTES;
use crate::parser::{Event, Parser, TailScan};

use devices::DeviceNames;
pub use summary::{BlockSummary, End, Summary};

/// Reads a stream that is pushed in pieces, and keeps only counts and names of it.
#[derive(Default, Debug)]
pub struct Inspector {
    parser: Parser,
    /// What the parser left: less than one element, between two pushes.
    rest: Vec<u8>,
    tally: Tally,
    damage: Option<StreamError>,
}

impl Inspector {
    /// An inspector at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the next bytes of the stream. After the first damage, further bytes are only ignored.
    pub fn push(&mut self, bytes: &[u8]) {
        // A piece at a time: what is kept stays below two elements, however much is pushed.
        for piece in bytes.chunks(MIN_BUFFER_BYTES) {
            if self.damage.is_some() {
                return;
            }
            self.rest.extend_from_slice(piece);
            let tally = &mut self.tally;
            match self.parser.feed(&self.rest, |event| tally.count(event)) {
                Ok(taken) => drop(self.rest.drain(..taken)),
                Err(error) => self.damage = Some(error),
            }
        }
    }

    /// Ends the stream, and tells what was in it.
    #[must_use]
    pub fn finish(self) -> Summary {
        let dropped_bytes = self.parser.dropped_bytes();
        let bytes = self.parser.offset();
        let end = match self.damage.map_or_else(|| self.parser.finish(), Err) {
            Ok(_) => End::Complete,
            Err(error) => End::Damaged(error),
        };
        let mut summary = self.tally.summary;
        summary.devices = self.tally.devices.into_names();
        summary.dirty_bitmap_bytes = dropped_bytes;
        summary.bytes = bytes;
        summary.end = end;
        summary
    }
}

/// The counts while they grow.
#[derive(Debug)]
struct Tally {
    summary: Summary,
    layout: Option<Layout>,
    tail: TailScan,
    devices: DeviceNames,
}

impl Default for Tally {
    fn default() -> Self {
        let devices = DeviceNames::default();
        Self { summary: Summary::empty(), layout: None, tail: TailScan::new(), devices }
    }
}

impl Tally {
    fn count(&mut self, event: Event<'_>) {
        match event {
            Event::Configuration(configuration) => {
                self.summary.machine = Some(configuration.machine().to_string());
            }
            // The parser accepts a bounded number of them.
            Event::Command(command) => self.summary.commands.push(command),
            Event::Layout { layout, .. } => {
                self.summary.blocks = layout.blocks().iter().map(BlockSummary::new).collect();
                self.layout = Some(layout.clone());
            }
            Event::Page { page, .. } => self.count_page(page, |block| &mut block.pages),
            Event::ZeroPage { page } => self.count_page(page, |block| &mut block.zero_pages),
            Event::RamPart { .. } => self.summary.ram_parts += 1,
            Event::RamComplete => self.summary.ram_complete = true,
            Event::TailComplete => self.summary.packaged = true,
            Event::Tail(bytes) => {
                self.summary.tail_bytes += bytes.len() as u64;
                for byte in bytes {
                    self.devices.push(*byte, self.tail.push_byte(*byte));
                }
            }
        }
    }

    fn count_page(&mut self, page: PageId, counter: fn(&mut BlockSummary) -> &mut u64) {
        let index = self.layout.as_ref().and_then(|layout| layout.block_index_of(page));
        if let Some(block) = index.and_then(|index| self.summary.blocks.get_mut(index)) {
            *counter(block) += 1;
        }
    }
}
