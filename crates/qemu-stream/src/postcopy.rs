//! The post-copy half of the writer: what a destination's QEMU is fed when its guest shall run before all pages are there.
//!
//! ```text
//! begin, with OPEN_RETURN_PATH, POSTCOPY_ADVISE, PING; QEMU answers the ping when it has thrown its guest memory away
//! parts with pages of blocks that Sterna does not write itself
//! discard:          COMMAND 6   u8 0, u8 length, block name, u8 0, then 1 to 12 of (u64 start, u64 length), in bytes
//! package:          COMMAND 7   u32 length { COMMAND 4 LISTEN | device sections | COMMAND 2 PING u32 | COMMAND 5 RUN }
//! parts with the absent pages, each once
//! end_of_postcopy:  SECTION_END without records, 0x00 EOF
//!
//! after a break, on the connection of `migrate-recover`:
//! ask_received:     COMMAND 10  u8 length, block name      answered by the pages that QEMU has placed
//! resume:           COMMAND 9                              answered by RESUME_ACK; then parts go on
//! ```
//!
//! QEMU takes pages of a size other than 4096 bytes only with more words in the advice and in the block list: blocks on
//! huge pages are not for this, and QEMU refuses them when it reads the advice.

use alloc::vec::Vec;
use core::ops::Range;

use sterna_model::{Block, BlockName, Layout, PageId};

use crate::command::{self, Command};
use crate::format::command::{
    PACKAGED, POSTCOPY_LISTEN, POSTCOPY_RAM_DISCARD, POSTCOPY_RESUME, POSTCOPY_RUN, RECV_BITMAP,
};
use crate::format::{MAX_PACKAGE_BYTES, MIN_STATE_BYTES, flag, section};
use crate::parser::{RamSection, TailScan};
use crate::writer::{NoSuchPage, Writer, put_counted};

/// Runs of absent pages in one command: as many as QEMU itself sends.
const MAX_DISCARDS: u32 = 12;
/// The version of the discard's data.
const DISCARD_VERSION: u8 = 0;

/// A tail whose device state cannot be packaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TailError {
    /// It cannot be told where its device state ends.
    #[error(
        "expected device state that ends with a footer and the end of file, alone or with a description of the length \
         that it says, found {found}"
    )]
    End {
        /// What is at the end.
        found: &'static str,
    },
    /// More than QEMU loads in one package.
    #[error("expected at most {MAX_PACKAGE_BYTES} bytes of packaged device state, found {found}")]
    Length {
        /// The package's length.
        found: u64,
    },
}

impl Writer {
    /// Goes on with a stream that broke in its post-copy. Nothing is appended: QEMU knows head and block list, `ram` and
    /// `layout` have to be those of the broken stream.
    #[must_use]
    pub const fn recover(ram: RamSection, layout: Layout) -> Self {
        Self { layout, section_id: ram.section_id }
    }

    /// Appends which pages are absent: runs of guest page numbers, in any order; empty ones are left out. QEMU throws
    /// these pages away and will ask for them. To be called before [`Writer::package`], with one page at least: no QEMU
    /// from 7.2 to 10.0 loads a package that no discard came before ("CMD_POSTCOPY_RUN in wrong postcopy state"). Where
    /// nothing is absent, an advised stream ends as any other: [`Writer::end`] and the tail.
    ///
    /// # Errors
    /// When the layout has no such page; nothing is appended then.
    pub fn discard(
        &mut self,
        out: &mut Vec<u8>,
        runs: impl IntoIterator<Item = Range<u32>>,
    ) -> Result<(), NoSuchPage> {
        let before_bytes = out.len();
        let mut discards = Discards { block: None, data: Vec::new(), runs: 0, out };
        for run in runs {
            if let Err(error) = discards.run(&self.layout, run) {
                out.truncate(before_bytes);
                return Err(error);
            }
        }
        discards.flush();
        Ok(())
    }

    /// Appends the device state of `tail` (a source's, from the first section to the stream's end, as the parser hands
    /// it on), and the commands around it: QEMU listens for pages, loads it, answers `ping`, and starts the guest, unless
    /// it was told to leave it paused (`-S`). What comes next are the absent pages.
    ///
    /// A tail without description (`suppress-vmdesc=on`) has nothing that shows whether it is whole: the caller must know.
    ///
    /// # Errors
    /// When it cannot be told where the device state ends, or when it is longer than QEMU takes; nothing is appended
    /// then.
    pub fn package(&mut self, out: &mut Vec<u8>, tail: &[u8], ping: u32) -> Result<(), TailError> {
        let state = device_state(tail)?;
        let (mut before, mut behind) = (Vec::new(), Vec::new());
        command::put(&mut before, POSTCOPY_LISTEN, &[]);
        Command::Ping(ping).write(&mut behind);
        command::put(&mut behind, POSTCOPY_RUN, &[]);
        let found = [&before, state, &behind].iter().map(|bytes| bytes.len() as u64).sum();
        let length = u32::try_from(found).ok().filter(|_| found <= MAX_PACKAGE_BYTES);
        let length = length.ok_or(TailError::Length { found })?;
        command::put(out, PACKAGED, &length.to_be_bytes());
        out.extend_from_slice(&before);
        out.extend_from_slice(state);
        out.extend_from_slice(&behind);
        Ok(())
    }

    /// Appends the end of guest memory and of the stream. All pages must have come by then: QEMU asks for no more, and
    /// what is absent stays so.
    pub fn end_of_postcopy(self, out: &mut Vec<u8>) {
        self.end(out);
        out.push(section::END_OF_FILE);
    }

    /// Appends the question which pages of a block QEMU has placed. To be asked of a stream that was recovered, for each
    /// block, before it is resumed.
    pub fn ask_received(&mut self, out: &mut Vec<u8>, block: &BlockName) {
        let mut data = Vec::new();
        put_counted(&mut data, block.as_str());
        command::put(out, RECV_BITMAP, &data);
    }

    /// Appends that pages go on: QEMU answers, and asks again for everything that its guest waits for.
    pub fn resume(&mut self, out: &mut Vec<u8>) {
        command::put(out, POSTCOPY_RESUME, &[]);
    }
}

/// Runs of absent pages, as they become commands.
struct Discards<'a> {
    /// The block of the runs at hand.
    block: Option<&'a Block>,
    /// Their starts and lengths.
    data: Vec<u8>,
    /// How many they are.
    runs: u32,
    out: &'a mut Vec<u8>,
}

impl<'a> Discards<'a> {
    /// Takes a run, in as many pieces as it touches blocks.
    fn run(&mut self, layout: &'a Layout, run: Range<u32>) -> Result<(), NoSuchPage> {
        let mut rest = run;
        while !rest.is_empty() {
            let found = PageId(rest.start);
            let index = layout.block_index_of(found);
            let block = index.and_then(|index| layout.blocks().get(index));
            let block = block.ok_or(NoSuchPage { pages: layout.pages(), found })?;
            let end = rest.end.min(block.page_numbers().end);
            self.piece(block, rest.start..end);
            rest.start = end;
        }
        Ok(())
    }

    /// Takes pages of one block.
    fn piece(&mut self, block: &'a Block, pages: Range<u32>) {
        if self.runs == MAX_DISCARDS || self.block.is_some_and(|last| last.name != block.name) {
            self.flush();
        }
        self.block = Some(block);
        let start_bytes = block.offset_bytes(PageId(pages.start));
        let length_bytes = (pages.len() as u64) << flag::MASK.count_ones();
        self.data.extend_from_slice(&start_bytes.to_be_bytes());
        self.data.extend_from_slice(&length_bytes.to_be_bytes());
        self.runs += 1;
    }

    /// Appends the command of the runs at hand, if there are any.
    fn flush(&mut self) {
        let Some(block) = self.block.take() else { return };
        let mut data = Vec::new();
        data.push(DISCARD_VERSION);
        put_counted(&mut data, block.name.as_str());
        data.push(0);
        data.append(&mut self.data);
        command::put(self.out, POSTCOPY_RAM_DISCARD, &data);
        self.runs = 0;
    }
}

/// The device sections of a tail: what comes before its end of file.
fn device_state(tail: &[u8]) -> Result<&[u8], TailError> {
    let state = match tail {
        // A description ends with `}`, so a tail that ends with the end of file has none.
        [state @ .., section::END_OF_FILE]
            if matches!(state, [.., section::FOOTER, _, _, _, _]) =>
        {
            state
        }
        _ => {
            let mut scan = TailScan::new();
            scan.push(tail);
            let state_bytes = scan.end().map_err(|found| TailError::End { found })?;
            // Part of the tail, so its length is one.
            tail.get(..usize::try_from(state_bytes).unwrap_or(0)).unwrap_or_default()
        }
    };
    if (state.len() as u64) < MIN_STATE_BYTES {
        return Err(TailError::End { found: "no whole section before the end" });
    }
    Ok(state)
}
