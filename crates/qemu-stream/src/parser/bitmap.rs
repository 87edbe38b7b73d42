//! The `dirty-bitmap` section, read to be dropped: the bitmap on a null block node that holds QEMU in its iterations.
//!
//! ```text
//! chunk = u8 flags, [u8 length, node: DEVICE_NAME], [u8 length, bitmap: BITMAP_NAME], then by kind
//!   START     u32 granularity, u8 flags
//!   BITS      u64 start, u32 sectors, unless ZEROES: u64 length, bits
//!   COMPLETE  nothing
//! a chunk with the flag END_OF_SECTION is the last; it may be of no kind
//! ```

use super::{Bitmap, Parser, State, footer};
use crate::cursor::{Cursor, Stop};
use crate::error::Fault;
use crate::format::{bitmap as flags, section};

/// Where the parser is inside a piece of the section.
#[derive(Clone, Debug)]
pub(super) struct BitmapState {
    section_type: u8,
    /// Bytes of bits that are still to be dropped.
    bits_left_bytes: u64,
    /// Whether the chunk with the end's flag came.
    ending: Ending,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    MoreChunks,
    Footer,
}

impl BitmapState {
    /// At the first chunk of a piece that is a `SECTION_START`, `_PART` or `_END`.
    pub(super) const fn new(section_type: u8) -> Self {
        Self { section_type, bits_left_bytes: 0, ending: Ending::MoreChunks }
    }
}

impl Parser {
    /// Drops one element of the section: a chunk without its bits, some of its bits, or the footer.
    pub(super) fn bitmap(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
        let (State::Bitmap(state), Bitmap::Open(id)) = (&mut self.state, self.bitmap) else {
            return Ok(());
        };
        let start = cursor.offset();
        if state.bits_left_bytes > 0 {
            state.bits_left_bytes -= cursor.some(state.bits_left_bytes)?.len() as u64;
        } else if state.ending == Ending::MoreChunks {
            (state.bits_left_bytes, state.ending) = chunk(cursor)?;
        } else {
            footer(cursor, id)?;
            if state.section_type == section::END {
                self.bitmap = Bitmap::Ended;
            }
            self.state = State::Between;
        }
        self.dropped_bytes += cursor.offset() - start;
        Ok(())
    }
}

/// Reads a chunk up to its bits; tells how many bytes of bits follow and whether it is the last chunk.
fn chunk(cursor: &mut Cursor<'_>) -> Result<(u64, Ending), Stop> {
    let found = cursor.u8()?;
    let wrong = cursor.fault(Fault::BitmapFlags { flags: found });
    if found & flags::DEVICE_NAME != 0 {
        cursor.counted()?;
    }
    if found & flags::BITMAP_NAME != 0 {
        cursor.counted()?;
    }
    let is_last = found & flags::END_OF_SECTION != 0;
    let ending = if is_last { Ending::Footer } else { Ending::MoreChunks };
    let kind = found & !(flags::DEVICE_NAME | flags::BITMAP_NAME | flags::END_OF_SECTION);
    const ZERO_BITS: u8 = flags::BITS | flags::ZEROES;
    let bits_bytes = match kind {
        flags::START => cursor.take(5).map(|_| 0),
        ZERO_BITS => cursor.take(12).map(|_| 0),
        flags::BITS => cursor.take(12).and_then(|_| bits_length(cursor)),
        flags::COMPLETE => Ok(0),
        0 if is_last => Ok(0),
        _ => Err(wrong),
    };
    Ok((bits_bytes?, ending))
}

fn bits_length(cursor: &mut Cursor<'_>) -> Result<u64, Stop> {
    let found = cursor.u64()?;
    if found <= flags::MAX_CHUNK_BYTES {
        return Ok(found);
    }
    Err(cursor.fault(Fault::BitmapChunk { found }))
}
