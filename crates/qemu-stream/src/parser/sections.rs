//! Between the sections: their headers, commands, the way into the tail, and the end behind a package.

use alloc::format;
use alloc::string::String;

use super::bitmap::BitmapState;
use super::event::{Event, RamPartKind, RamSection};
use super::ram::Ram;
use super::{Bitmap, Memory, Parser, State};
use crate::command::Command;
use crate::cursor::{Cursor, Stop};
use crate::error::{Fault, StreamError, printable};
use crate::format::{BITMAP_VERSION, MAX_COMMANDS, MAX_TAIL_BYTES, RAM_VERSION, section};

impl Parser {
    /// Between two sections: one section's header, or one command.
    pub(super) fn between(
        &mut self,
        cursor: &mut Cursor<'_>,
        sink: &mut impl FnMut(Event<'_>),
    ) -> Result<(), Stop> {
        match (cursor.peek()?, self.memory) {
            (section::START, _) => self.section_start(cursor),
            (section::PART | section::END, _) => self.section_part(cursor),
            (found, Memory::Packaged(_)) => self.end_of_file(found, cursor),
            (section::COMMAND, _) if self.begins_package(cursor)? => self.package_start(cursor),
            (section::COMMAND, _) => self.command(cursor, sink),
            (section::FULL, _) => self.device_state(cursor),
            (found, memory) => {
                let expected = match memory {
                    Memory::Complete(_) => "device state (0x04) or a command (0x08)",
                    _ => "a section of RAM (0x01, 0x02, 0x03) or a command (0x08)",
                };
                Err(cursor.fault(Fault::SectionType { expected, found }))
            }
        }
    }

    /// Behind a package, which is the only place where the end of the file is not in the tail.
    fn end_of_file(&mut self, found: u8, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
        let expected = match (found, self.bitmap) {
            (_, Bitmap::Open(_)) => "the rest of the dirty bitmap (0x02, 0x03)",
            (section::END_OF_FILE, _) => {
                cursor.u8()?;
                self.state = State::End;
                return Ok(());
            }
            _ => "the end of the file (0x00)",
        };
        Err(cursor.fault(Fault::SectionType { expected, found }))
    }

    fn section_start(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
        let start = cursor.offset();
        cursor.u8()?;
        let section_id = cursor.u32()?;
        let name = cursor.counted()?;
        let unknown = cursor.fault(Fault::UnknownSection { name: printable(name) });
        let repeated = |name| {
            Stop::Fault(StreamError { offset: start, fault: Fault::RepeatedSection { name } })
        };
        match name {
            b"ram" if !matches!(self.memory, Memory::Expected) => Err(repeated("ram")),
            b"ram" => {
                let instance_id = cursor.u32()?;
                version(cursor, "ram", RAM_VERSION)?;
                self.memory = Memory::Open(RamSection { section_id, instance_id });
                self.state = State::Ram(Ram::start());
                Ok(())
            }
            b"dirty-bitmap" if !matches!(self.bitmap, Bitmap::None) => {
                Err(repeated("dirty-bitmap"))
            }
            b"dirty-bitmap" => {
                cursor.u32()?;
                version(cursor, "dirty-bitmap", BITMAP_VERSION)?;
                self.bitmap = Bitmap::Open(section_id);
                self.state = State::Bitmap(BitmapState::new(section::START));
                self.dropped_bytes += cursor.offset() - start;
                Ok(())
            }
            _ => Err(unknown),
        }
    }

    fn section_part(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
        let start = cursor.offset();
        let kind = cursor.u8()?;
        let found = cursor.u32()?;
        match (&self.memory, self.bitmap) {
            (Memory::Open(ram), _) if ram.section_id == found => {
                let kind = match kind {
                    section::PART => RamPartKind::Part,
                    _ => RamPartKind::End,
                };
                self.state = State::Ram(Ram::part(kind));
                Ok(())
            }
            (Memory::Packaged(ram), _) if ram.section_id == found => {
                self.state = State::EmptyRam;
                self.dropped_bytes += cursor.offset() - start;
                Ok(())
            }
            (_, Bitmap::Open(id)) if id == found => {
                self.state = State::Bitmap(BitmapState::new(kind));
                self.dropped_bytes += cursor.offset() - start;
                Ok(())
            }
            _ => Err(cursor.fault(Fault::SectionId { open: self.open_sections(), found })),
        }
    }

    fn open_sections(&self) -> String {
        let ram = match &self.memory {
            Memory::Open(ram) | Memory::Packaged(ram) => format!("ram is {}", ram.section_id),
            _ => "no ram".into(),
        };
        match self.bitmap {
            Bitmap::Open(id) => format!("{ram}, dirty-bitmap is {id}"),
            _ => ram,
        }
    }

    fn command(
        &mut self,
        cursor: &mut Cursor<'_>,
        sink: &mut impl FnMut(Event<'_>),
    ) -> Result<(), Stop> {
        let start = cursor.position();
        let command = Command::take(cursor)?;
        let bytes = cursor.since(start);
        match (command, &self.memory) {
            (None, _) => self.dropped_bytes += bytes.len() as u64,
            (Some(_), Memory::Complete(_)) => self.pass_on(cursor, bytes, sink)?,
            (Some(_), _) if self.commands == MAX_COMMANDS => {
                return Err(cursor.fault(Fault::CommandCount));
            }
            (Some(command), _) => {
                self.commands += 1;
                sink(Event::Command(command));
            }
        }
        Ok(())
    }

    /// Device state begins: the tail, if guest memory is complete. The header is read for its name only, and stays.
    fn device_state(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
        if matches!(self.memory, Memory::Complete(_)) && !matches!(self.bitmap, Bitmap::Open(_)) {
            self.state = State::Tail;
            return Ok(());
        }
        cursor.take(5)?;
        let name = printable(cursor.counted()?);
        Err(cursor.fault(match self.memory {
            Memory::Complete(_) => Fault::BitmapOpen { name },
            _ => Fault::EarlyDeviceState { name },
        }))
    }

    pub(super) fn tail(
        &mut self,
        cursor: &mut Cursor<'_>,
        sink: &mut impl FnMut(Event<'_>),
    ) -> Result<(), Stop> {
        let bytes = cursor.some(u64::MAX)?;
        self.pass_on(cursor, bytes, sink)
    }

    /// Delivers bytes of the tail.
    pub(super) fn pass_on(
        &mut self,
        cursor: &Cursor<'_>,
        bytes: &[u8],
        sink: &mut impl FnMut(Event<'_>),
    ) -> Result<(), Stop> {
        if self.tail.bytes() + bytes.len() as u64 > MAX_TAIL_BYTES {
            return Err(cursor.fault(Fault::TailTooLong));
        }
        self.tail.push(bytes);
        sink(Event::Tail(bytes));
        Ok(())
    }
}

fn version(cursor: &mut Cursor<'_>, name: &'static str, expected: u32) -> Result<(), Stop> {
    let found = cursor.u32()?;
    if found == expected {
        return Ok(());
    }
    Err(cursor.fault(Fault::SectionVersion { name, expected, found }))
}

/// The footer that every section ends with.
pub(super) fn footer(cursor: &mut Cursor<'_>, expected: u32) -> Result<(), Stop> {
    let mark = cursor.peek()?;
    let bytes = cursor.array::<5>()?;
    let [_, id @ ..] = *bytes;
    let found = u32::from_be_bytes(id);
    if mark == section::FOOTER && found == expected {
        return Ok(());
    }
    Err(cursor.fault(Fault::Footer { expected, mark, found }))
}
