//! What the tests share: the captured streams with what an independent reader found in them, and a reader that keeps
//! everything.
#![allow(dead_code, reason = "each test file uses its part")]

mod package;

use std::collections::BTreeMap;
use std::path::PathBuf;

use sterna_model::{BlockName, Layout, Page, PageId, ZERO_PAGE};
use sterna_qemu_stream::{
    Command, Configuration, Event, Parser, RamPartKind, RamSection, StreamEnd, StreamError, Writer,
};

#[allow(unused_imports, reason = "each test file uses its part")]
pub(crate) use package::{SMALL_BITMAP_END, SMALL_RAM_END, SMALL_SECTIONS, SmallPackage};

/// A stream that a stock QEMU sent, and what is in it.
pub(crate) struct Golden {
    pub(crate) file: &'static str,
    pub(crate) machine: &'static str,
    pub(crate) commands: &'static [Command],
    pub(crate) blocks: &'static [(&'static str, u64)],
    pub(crate) ram_parts: usize,
    pub(crate) pages: u64,
    pub(crate) zero_pages: u64,
    /// Over the last content of each page: CRC-32 of the content times (2 * page number + 1), modulo 2^64.
    pub(crate) memory_sum: u64,
    pub(crate) dropped_bytes: u64,
    pub(crate) tail_bytes: u64,
    /// CRC-32 of the tail; of a package, as a tail.
    pub(crate) tail_crc: u32,
    /// Whether the device state comes in a package.
    pub(crate) packaged: bool,
}

const ACPI_TABLES: (&str, u64) = ("/rom@etc/acpi/tables", 131072);
const RAM: (&str, u64) = ("pc.ram", 2088960);
const ROM: (&str, u64) = ("pc.rom", 131072);
const BIOS: (&str, u64) = ("pc.bios", 65536);
const LOADER: (&str, u64) = ("/rom@etc/table-loader", 4096);
const RSDP: (&str, u64) = ("/rom@etc/acpi/rsdp", 4096);
const PLAIN: &[(&str, u64)] = &[ACPI_TABLES, RAM, ROM, BIOS, LOADER, RSDP];

/// Captured from QEMU 7.2.22 and 10.0.2: 2040 KiB of memory, firmware that writes to three pages for ever.
pub(crate) const GOLDEN: &[Golden] = &[
    Golden {
        file: "i440fx-7.2.stream",
        machine: "pc-i440fx-7.2",
        commands: &[],
        blocks: PLAIN,
        ram_parts: 3,
        pages: 11,
        zero_pages: 584,
        memory_sum: 0x422e8846e0e2f,
        dropped_bytes: 0,
        tail_bytes: 111512,
        tail_crc: 0x4958_ceb8,
        packaged: false,
    },
    Golden {
        file: "q35-7.2-vga.stream",
        machine: "pc-q35-7.2",
        commands: &[],
        blocks: &[ACPI_TABLES, RAM, ("0000:00:01.0/vga.vram", 1048576), ROM, BIOS, LOADER, RSDP],
        ram_parts: 3,
        pages: 13,
        zero_pages: 838,
        memory_sum: 0x883d2089e3ab0,
        dropped_bytes: 0,
        tail_bytes: 79331,
        tail_crc: 0x73dc_bdf7,
        packaged: false,
    },
    Golden {
        file: "i440fx-10.0.stream",
        machine: "pc-i440fx-10.0",
        commands: &[Command::SwitchoverStart],
        blocks: PLAIN,
        ram_parts: 3,
        pages: 12,
        zero_pages: 583,
        memory_sum: 0x426aef5e34bee,
        dropped_bytes: 0,
        tail_bytes: 111781,
        tail_crc: 0xc101_e02d,
        packaged: false,
    },
    Golden {
        file: "q35-10.0.stream",
        machine: "pc-q35-10.0",
        commands: &[Command::SwitchoverStart],
        blocks: PLAIN,
        ram_parts: 3,
        pages: 13,
        zero_pages: 582,
        memory_sum: 0x423a1c1a0f5d8,
        dropped_bytes: 0,
        tail_bytes: 76338,
        tail_crc: 0x5cc8_2b34,
        packaged: false,
    },
    // Held for four seconds by a bitmap on a null block node, then stopped.
    Golden {
        file: "i440fx-7.2-hold.stream",
        machine: "pc-i440fx-7.2",
        commands: &[],
        blocks: PLAIN,
        ram_parts: 43,
        pages: 41,
        zero_pages: 584,
        memory_sum: 0x4231ed97ba0d6,
        dropped_bytes: 26697,
        tail_bytes: 111512,
        tail_crc: 0x8dd3_0159,
        packaged: false,
    },
    // Held alike, then stopped and told to start post-copy. QEMU 10 iterates every millisecond.
    Golden {
        file: "i440fx-7.2-packaged.stream",
        machine: "pc-i440fx-7.2",
        commands: &[],
        blocks: PLAIN,
        ram_parts: 45,
        pages: 41,
        zero_pages: 584,
        memory_sum: 0x420131ca3812e,
        dropped_bytes: 26715,
        tail_bytes: 12865,
        tail_crc: 0x5b99_e3d5,
        packaged: true,
    },
    Golden {
        file: "q35-10.0-packaged.stream",
        machine: "pc-q35-10.0",
        commands: &[Command::SwitchoverStart],
        blocks: PLAIN,
        ram_parts: 4371,
        pages: 13,
        zero_pages: 582,
        memory_sum: 0x420a17a14dd69,
        dropped_bytes: 26715,
        tail_bytes: 32488,
        tail_crc: 0x0850_eb6f,
        packaged: true,
    },
];

impl Golden {
    /// The stream's bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(self.file);
        std::fs::read(path).unwrap()
    }
}

/// Everything that a stream said.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Reading {
    pub(crate) configuration: Option<Configuration>,
    pub(crate) commands: Vec<Command>,
    pub(crate) ram: Option<RamSection>,
    pub(crate) layout: Option<Layout>,
    pub(crate) parts: Vec<(RamPartKind, u64)>,
    pub(crate) complete: bool,
    pub(crate) pages: u64,
    pub(crate) zero_pages: u64,
    pub(crate) memory: BTreeMap<PageId, Option<Box<Page>>>,
    pub(crate) tail: Vec<u8>,
    /// Whether the tail was said to be complete before the stream's end.
    pub(crate) packaged: bool,
}

impl Reading {
    pub(crate) fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Configuration(configuration) => self.configuration = Some(configuration.clone()),
            Event::Command(command) => self.commands.push(command),
            Event::Layout { ram, layout } => {
                (self.ram, self.layout) = (Some(ram), Some(layout.clone()));
            }
            Event::Page { page, content } => {
                self.pages += 1;
                self.memory.insert(page, Some(Box::new(*content)));
            }
            Event::ZeroPage { page } => {
                self.zero_pages += 1;
                self.memory.insert(page, None);
            }
            Event::RamPart { kind, pages } => self.parts.push((kind, pages)),
            Event::RamComplete => self.complete = true,
            Event::Tail(bytes) => {
                assert!(!self.packaged, "the tail was said to be complete");
                self.tail.extend_from_slice(bytes);
            }
            Event::TailComplete => {
                assert!(self.complete && !self.packaged, "after memory, and once");
                self.packaged = true;
            }
        }
    }

    /// The sum that [`Golden::memory_sum`] is.
    pub(crate) fn memory_sum(&self) -> u64 {
        let weigh = |(page, content): (&PageId, &Option<Box<Page>>)| {
            let crc = u64::from(crc32(content.as_deref().unwrap_or(&ZERO_PAGE)));
            crc.wrapping_mul(2 * u64::from(page.0) + 1)
        };
        self.memory.iter().map(weigh).fold(0, u64::wrapping_add)
    }
}

/// Reads a whole stream whose bytes arrive in pieces of these lengths, the last length again and again.
pub(crate) fn read_in_pieces(
    bytes: &[u8],
    lengths: &[usize],
) -> Result<(Reading, StreamEnd), StreamError> {
    let mut parser = Parser::new();
    let mut reading = Reading::default();
    let mut buffer = Vec::new();
    let mut rest = bytes;
    let mut lengths = lengths.iter().copied();
    let mut length = lengths.next().unwrap_or(rest.len());
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(length.clamp(1, rest.len()));
        buffer.extend_from_slice(piece);
        let taken = parser.feed(&buffer, |event| reading.take(event))?;
        buffer.drain(..taken);
        rest = later;
        length = lengths.next().unwrap_or(length);
    }
    parser.finish().map(|end| (reading, end))
}

/// Reads a whole stream at once.
pub(crate) fn read(bytes: &[u8]) -> Result<(Reading, StreamEnd), StreamError> {
    read_in_pieces(bytes, &[bytes.len()])
}

/// What is wrong with a stream that must not be read.
pub(crate) fn error_of(bytes: &[u8]) -> StreamError {
    read(bytes).map(|(_, end)| end).expect_err("the stream is wrong")
}

/// CRC-32, as zlib has it.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// The section that small streams carry memory in.
pub(crate) const SMALL_RAM: RamSection = RamSection { section_id: 2, instance_id: 0 };

/// The layout of small streams: two blocks, of three pages and one.
pub(crate) fn small_layout() -> Layout {
    let name = |text: &str| BlockName::new(text.as_bytes()).unwrap();
    Layout::new(&[(name("pc.ram"), 3 * 4096), (name("pc.rom"), 4096)]).unwrap()
}

/// The configuration of small streams.
pub(crate) fn small_configuration() -> Configuration {
    Configuration::parse(b"\x07\0\0\0\x05tiny1").unwrap()
}

/// A tail that a stream can end with.
pub(crate) const SMALL_TAIL: &[u8] =
    b"\x04\0\0\0\x09\x03cpu\0\0\0\0\0\0\0\x01state\x7e\0\0\0\x09\0\x06\0\0\0\x2c{\"devices\":[{\"name\":\"cpu\",\"instance_id\":0}]}";

/// The head of a small stream: up to and with the block list.
pub(crate) fn small_head() -> Vec<u8> {
    let mut out = Vec::new();
    let _ = Writer::begin(&mut out, &small_configuration(), &[], SMALL_RAM, small_layout());
    out
}

/// A whole small stream with four pages, one of them twice.
pub(crate) fn small_stream() -> Vec<u8> {
    let mut out = Vec::new();
    let commands = [Command::OpenReturnPath, Command::Ping(7)];
    let (configuration, layout) = (small_configuration(), small_layout());
    let mut writer = Writer::begin(&mut out, &configuration, &commands, SMALL_RAM, layout);
    let mut part = writer.part(&mut out);
    part.page(PageId(1), &[1; 4096]).unwrap();
    part.page(PageId(2), &[2; 4096]).unwrap();
    part.zero_page(PageId(0)).unwrap();
    part.page(PageId(3), &[3; 4096]).unwrap();
    part.page(PageId(1), &[4; 4096]).unwrap();
    part.close();
    writer.command(&mut out, Command::SwitchoverStart);
    writer.end(&mut out);
    out.extend_from_slice(SMALL_TAIL);
    out
}
