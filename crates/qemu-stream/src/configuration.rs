//! The configuration section: the machine's name, and what both ends must agree on.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use crate::cursor::{Cursor, Stop, ascii};
use crate::error::{Fault, StreamError, printable};
use crate::format::{MAX_MACHINE_NAME_BYTES, PAGE_BITS, section};

/// The configuration section of a stream, checked. It is written for the destination as it came.
#[derive(Clone, PartialEq, Eq)]
pub struct Configuration {
    machine: Box<str>,
    bytes: Box<[u8]>,
}

impl Configuration {
    /// The configuration that these bytes hold, from the type byte 0x07 to the end of the last subsection.
    ///
    /// # Errors
    /// When they are damaged, incomplete, too long, or name a page size or a capability that is not read. Offsets
    /// count from the first byte.
    pub fn parse(bytes: &[u8]) -> Result<Self, StreamError> {
        // What follows a configuration shows that it has no further subsection.
        let mut followed = Vec::with_capacity(bytes.len() + 1);
        followed.extend_from_slice(bytes);
        followed.push(section::START);
        let mut cursor = Cursor::new(&followed, 0);
        let parsed = match Self::take(&mut cursor) {
            Ok(parsed) => parsed,
            Err(Stop::Fault(error)) => return Err(error),
            Err(Stop::NeedMore) => return Err(truncated(bytes.len())),
        };
        match followed.get(cursor.position()) {
            Some(_) if cursor.position() == bytes.len() => Ok(parsed),
            Some(found) => {
                let fault = Fault::SectionType { expected: SUBSECTIONS, found: *found };
                Err(StreamError { offset: cursor.offset(), fault })
            }
            None => Err(truncated(bytes.len())),
        }
    }

    /// The machine type, as QEMU was asked for it or resolved it (`pc-i440fx-7.2`).
    #[must_use]
    pub fn machine(&self) -> &str {
        &self.machine
    }

    /// The section as it came, from its type byte to the end of its last subsection.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Reads the whole section; the byte after it must be there, because only it tells that the section ends.
    pub(crate) fn take(cursor: &mut Cursor<'_>) -> Result<Self, Stop> {
        let start = cursor.position();
        let found = cursor.u8()?;
        if found != section::CONFIGURATION {
            let expected = "the configuration (0x07)";
            return Err(cursor.fault(Fault::SectionType { expected, found }));
        }
        let length = cursor.u32()?;
        let wrong = Fault::MachineName { length };
        if !(1..=MAX_MACHINE_NAME_BYTES).contains(&length) {
            return Err(cursor.fault(wrong));
        }
        let name = cursor.take(length as usize)?;
        let machine = ascii(name).ok_or_else(|| cursor.fault(wrong))?.into();
        let mut seen = Seen::default();
        while cursor.peek()? == section::SUBSECTION {
            subsection(cursor, &mut seen)?;
        }
        Ok(Self { machine, bytes: cursor.since(start).into() })
    }
}

impl fmt::Debug for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Configuration({}, {} bytes)", self.machine, self.bytes.len())
    }
}

const SUBSECTIONS: &str = "a subsection of the configuration (0x05) or its end";

fn truncated(length: usize) -> StreamError {
    let fault = Fault::Truncated { expected: "a whole configuration section" };
    StreamError { offset: length as u64, fault }
}

/// Which subsections came: each comes once, so the section's length has a bound.
#[derive(Default)]
struct Seen {
    page_bits: bool,
    uuid: bool,
}

fn subsection(cursor: &mut Cursor<'_>, seen: &mut Seen) -> Result<(), Stop> {
    cursor.u8()?;
    let name = cursor.counted()?;
    let unknown = cursor.fault(Fault::Subsection { name: printable(name) });
    let version = cursor.u32()?;
    let first = |seen: &mut bool| version == 1 && !core::mem::replace(seen, true);
    match name {
        b"configuration/target-page-bits" if first(&mut seen.page_bits) => {
            let found = cursor.u32()?;
            if found == PAGE_BITS { Ok(()) } else { Err(cursor.fault(Fault::PageBits { found })) }
        }
        b"configuration/uuid" if first(&mut seen.uuid) => cursor.take(16).map(|_| ()),
        // QEMU writes only the capabilities here that change what a stream means.
        b"configuration/capabilities" if version == 1 => {
            cursor.u32()?;
            let name = printable(cursor.counted()?);
            Err(cursor.fault(Fault::Capability { name }))
        }
        _ => Err(unknown),
    }
}
