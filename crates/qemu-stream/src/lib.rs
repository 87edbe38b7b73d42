//! QEMU's migration stream, version 3: read from a source, written for a destination.
//!
//! ```text
//! "QEVM" u32 version = 3                                              all numbers are big endian
//! 0x07 CONFIGURATION   u32 length, machine name; then subsections (0x05) of "configuration"
//! 0x08 COMMAND         u16 command, u16 length, data                  between sections, anywhere
//! 0x01 SECTION_START   u32 id, u8 length, "ram", u32 instance, u32 version = 4, records, footer
//! 0x02 SECTION_PART    u32 id, records, footer                        again and again
//! 0x03 SECTION_END     u32 id, records, footer                        guest memory is complete
//! 0x04 SECTION_FULL    device state, without a length: opaque         \
//! 0x00 EOF                                                             } the tail
//! 0x06 VMDESCRIPTION   u32 length, JSON                               /
//!
//! or, from a source that was held and then told to start post-copy, instead of the tail:
//! 0x08 COMMAND 7       u32 length, a package of commands and all 0x04 SECTION_FULL; read as a tail
//! 0x02, 0x03           the rest of the dirty bitmap, and once more the end of guest memory, without pages
//! 0x00 EOF             and no description
//!
//! footer = 0x7e u32 id
//! record = u64 (offset | flags):  0x02 ZERO u8 fill        0x04 MEM_SIZE (the block list)   0x08 PAGE 4096 bytes
//!                                 0x10 EOS (last record)   0x20 CONTINUE (the block of the record before,
//!                                                          else u8 length, block name follow)
//! ```
//!
//! A destination whose guest is to run before its last pages are there gets, instead of what follows the block list:
//!
//! ```text
//! 0x02 SECTION_PART    pages of blocks that Sterna does not write itself
//! 0x08 COMMAND 6       which pages are absent
//! 0x08 COMMAND 7       u32 length, a package: listen, all 0x04 SECTION_FULL, ping, run
//! 0x02 SECTION_PART    the absent pages, those first that it asks for on the way back
//! 0x03, 0x00           nothing is absent any more; the end of the file
//! ```
//!
//! [`Parser`] turns bytes into [`Event`]s on the source side, without copying a page. [`Writer`] builds the stream that
//! a destination's QEMU loads, by pre-copy or by post-copy; [`ReturnPath`] reads what that QEMU says on the way back.
//! [`Inspector`] tells what is in a captured stream, damaged ones included. A `dirty-bitmap` section is how the source is
//! held in its iterations: it is read and dropped, wherever it comes.
//!
//! Pure: bytes in, events out. Every byte may come from somebody hostile: lengths are checked before anything is
//! kept, what is unknown is an error with its offset, what was expected and what was found.
#![no_std]

extern crate alloc;

mod command;
mod configuration;
mod cursor;
mod error;
mod format;
mod inspect;
mod parser;
mod postcopy;
mod return_path;
mod writer;

pub use command::Command;
pub use configuration::Configuration;
pub use error::{Fault, StreamError};
pub use format::{MAX_PACKAGE_BYTES, MAX_TAIL_BYTES, MIN_BUFFER_BYTES, RAM_VERSION};
pub use inspect::{BlockSummary, End, Inspector, Summary};
pub use parser::{Event, Parser, RamPartKind, RamSection, StreamEnd};
pub use postcopy::TailError;
pub use return_path::{PlacedPages, ReturnFault, ReturnMessage, ReturnPath, ReturnPathError};
pub use writer::{NoSuchPage, RamPart, Writer};
