//! Device state in a package: how a source that was told to start post-copy sends it, although no memory is left.
//!
//! ```text
//! COMMAND PACKAGED u32 length { COMMAND LISTEN | device sections | COMMAND PING u32, not always | COMMAND RUN }
//! the rest of the dirty bitmap | a RAM SECTION_END without pages, the second one | END_OF_FILE
//! ```
//!
//! A source that is held by a bitmap ends its iterations at once when it is told so, without waiting for its 100 ms
//! window, and the package's length says where the device state ends. A destination that loads plain pre-copy gets the
//! same tail as otherwise: the device sections, then an end of file and an empty description, which a package has not.
//! The commands are not for it: they would start a post-copy there. QEMU puts pings before RUN when it has somebody to
//! answer them (the capability `return-path`, since 10.2; `postcopy-ram`); those of a source that is held have none.

use super::event::Event;
use super::{Memory, Parser, State, footer};
use crate::cursor::{Cursor, Stop};
use crate::error::{Fault, printable};
use crate::format::{MAX_TAIL_BYTES, MIN_PACKAGE_BYTES, flag, section};

/// The start of the command that carries the package: its type, its number, the bytes of its data.
const PACKAGED: [u8; 5] = [section::COMMAND, 0, 7, 0, 4];
/// The whole command that stands before the device sections.
const LISTEN: [u8; 5] = [section::COMMAND, 0, 4, 0, 0];
/// The start of the command that may stand behind them; its number follows.
const PING: [u8; 5] = [section::COMMAND, 0, 2, 0, 4];
/// Bytes of that command.
const PING_BYTES: usize = PING.len() + size_of::<u32>();
/// The whole command that ends the package.
const RUN: [u8; 5] = [section::COMMAND, 0, 5, 0, 0];
/// Pings before it, at most: one of `postcopy-ram`, one of `return-path`.
const MAX_PINGS: usize = 2;
/// Bytes of the footer that ends every section.
const FOOTER_BYTES: usize = 1 + size_of::<u32>();
/// Bytes that are looked at together where the package ends.
const MAX_CLOSING_BYTES: usize = FOOTER_BYTES + MAX_PINGS * PING_BYTES + RUN.len();
/// What ends the tail instead.
const TAIL_END: [u8; 8] = [section::END_OF_FILE, section::DESCRIPTION, 0, 0, 0, 2, b'{', b'}'];

impl Parser {
    /// Whether the command that comes next is the package. It can come only where guest memory is complete.
    pub(super) fn begins_package(&self, cursor: &Cursor<'_>) -> Result<bool, Stop> {
        Ok(matches!(self.memory, Memory::Complete(_)) && *cursor.ahead()? == PACKAGED)
    }

    /// The package's head and the command that opens it, up to the device sections.
    pub(super) fn package_start(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
        cursor.array::<{ PACKAGED.len() }>()?;
        let found = u64::from(cursor.u32()?);
        if !(MIN_PACKAGE_BYTES..=MAX_TAIL_BYTES).contains(&found) {
            return Err(cursor.fault(Fault::PackageLength { found }));
        }
        let listen = cursor.array()?;
        if *listen != LISTEN {
            return Err(cursor.fault(unexpected("the command POSTCOPY_LISTEN (4)", listen)));
        }
        let first = cursor.peek()?;
        if first != section::FULL {
            return Err(cursor.fault(unexpected("a device section (0x04)", &[first])));
        }
        self.state = State::Package { left_bytes: found - LISTEN.len() as u64 };
        Ok(())
    }

    /// The next device sections, or the end of the package.
    pub(super) fn package(
        &mut self,
        left_bytes: u64,
        cursor: &mut Cursor<'_>,
        sink: &mut impl FnMut(Event<'_>),
    ) -> Result<(), Stop> {
        match left_bytes.checked_sub(MAX_CLOSING_BYTES as u64) {
            Some(certain_bytes @ 1..) => {
                let bytes = cursor.some(certain_bytes)?;
                self.pass_on(cursor, bytes, sink)?;
                self.state = State::Package { left_bytes: left_bytes - bytes.len() as u64 };
                Ok(())
            }
            // At most `MAX_CLOSING_BYTES`, so the conversion does not fail.
            _ => self.package_end(usize::try_from(left_bytes).unwrap_or(0), cursor, sink),
        }
    }

    /// The last bytes of device state and the commands behind them, which have to be told apart from the end on: device
    /// sections have no length. A section's footer cannot be taken for a ping, nor a ping for it.
    fn package_end(
        &mut self,
        length: usize,
        cursor: &mut Cursor<'_>,
        sink: &mut impl FnMut(Event<'_>),
    ) -> Result<(), Stop> {
        let Memory::Complete(ram) = self.memory else { return Ok(()) };
        let closing = cursor.take(length)?;
        let Some(before_run) = closing.strip_suffix(&RUN) else {
            return Err(
                cursor.fault(unexpected("the command POSTCOPY_RUN (5) at the end", closing))
            );
        };
        let sections = (0..MAX_PINGS).fold(before_run, |bytes, _| without_ping(bytes));
        if !matches!(sections, [.., section::FOOTER, _, _, _, _]) {
            let expected = "a device section's footer (0x7e), then pings and POSTCOPY_RUN (5)";
            return Err(cursor.fault(unexpected(expected, closing)));
        }
        self.pass_on(cursor, sections, sink)?;
        self.pass_on(cursor, &TAIL_END, sink)?;
        self.memory = Memory::Packaged(ram);
        self.state = State::Between;
        sink(Event::TailComplete);
        Ok(())
    }

    /// The records and the footer of a RAM section behind the package: QEMU ends guest memory once more, as if
    /// post-copy had sent some.
    pub(super) fn empty_ram(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
        let Memory::Packaged(ram) = self.memory else { return Ok(()) };
        let start = cursor.offset();
        let flags = cursor.u64()?;
        if flags != flag::END_OF_SECTION {
            return Err(cursor.fault(Fault::LatePage { flags: flags & flag::MASK }));
        }
        footer(cursor, ram.section_id)?;
        self.dropped_bytes += cursor.offset() - start;
        self.state = State::Between;
        Ok(())
    }
}

/// The bytes before a ping, if they end with one.
fn without_ping(bytes: &[u8]) -> &[u8] {
    match bytes.split_last_chunk::<PING_BYTES>() {
        Some((before, ping)) if ping.starts_with(&PING) => before,
        _ => bytes,
    }
}

fn unexpected(expected: &'static str, found: &[u8]) -> Fault {
    Fault::Package { expected, found: printable(found) }
}
