//! QEMU's migration stream by its grammar: plain and held sources, device state as a tail and in a package.

use arbitrary::{Arbitrary, Unstructured};

use crate::Made;

/// Pages with content in one stream, at most: bytes of pages mean nothing to a parser.
const MAX_CONTENTS: usize = 3;

const RAM_ID: u8 = 2;
const BITMAP_ID: u8 = 7;
const BLOCKS: [&str; 5] =
    ["pc.ram", "pc.bios", "/rom@etc/acpi/tables", "0000:00:02.0/vga.vram", "r"];

#[derive(Arbitrary, Debug)]
struct Stream {
    machine: Machine,
    has_page_bits: bool,
    has_uuid: bool,
    early: Vec<Command>,
    hold: Hold,
    blocks: Vec<u8>,
    parts: Vec<Part>,
    tail: Tail,
}

#[derive(Arbitrary, Debug)]
enum Machine {
    I440fx,
    Q35,
    Other(u8),
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Command {
    OpenReturnPath,
    Ping(u32),
    SwitchoverStart,
    Advise,
}

#[derive(Arbitrary, Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    None,
    BeforeRam,
    AfterRam,
}

#[derive(Arbitrary, Debug)]
struct Part {
    records: Vec<Record>,
    bitmap: Option<Vec<Chunk>>,
    command: Option<Command>,
}

#[derive(Arbitrary, Debug)]
struct Record {
    block: u8,
    page: u8,
    content: Content,
    names_block: bool,
}

#[derive(Arbitrary, Debug)]
enum Content {
    Zero,
    Fill(u8),
    Bytes(u8),
}

#[derive(Arbitrary, Debug)]
enum Chunk {
    Zeroes(u64, u32),
    Bits(u64, Vec<u8>),
    Complete,
    Nothing,
}

#[derive(Arbitrary, Debug)]
struct Tail {
    form: Form,
    sections: Vec<Device>,
    commands: Vec<Command>,
}

#[derive(Arbitrary, Debug)]
enum Form {
    Plain,
    /// With so many pings.
    Packaged(u8),
}

#[derive(Arbitrary, Debug)]
struct Device {
    id: u32,
    name: u8,
    state: Vec<u8>,
}

/// A stream that has to be read to its end.
pub(super) fn make(noise: &mut Unstructured<'_>) -> arbitrary::Result<Made> {
    Ok(Made::valid(Stream::arbitrary(noise)?.bytes()))
}

impl Stream {
    fn bytes(&self) -> Vec<u8> {
        let mut out = b"QEVM\0\0\0\x03".to_vec();
        self.configuration(&mut out);
        self.early.iter().take(20).for_each(|command| command.put(&mut out));
        if self.hold == Hold::BeforeRam {
            bitmap_start(&mut out);
        }
        let pages: Vec<u8> =
            self.blocks.iter().take(BLOCKS.len()).map(|pages| pages % 40 + 1).collect();
        let pages = if pages.is_empty() { vec![3] } else { pages };
        ram_start(&mut out, &pages);
        if self.hold == Hold::AfterRam {
            bitmap_start(&mut out);
        }
        let mut contents = 0;
        let mut last = None;
        for part in self.parts.iter().take(12) {
            open(&mut out, 0x02, RAM_ID);
            for record in part.records.iter().take(30) {
                last = record.put(&mut out, &pages, last, &mut contents);
            }
            close_ram(&mut out);
            if let (Some(chunks), true) = (&part.bitmap, self.hold != Hold::None) {
                open(&mut out, 0x02, BITMAP_ID);
                bitmap_chunks(&mut out, chunks);
            }
            part.command.iter().for_each(|command| command.put(&mut out));
        }
        open(&mut out, 0x03, RAM_ID);
        close_ram(&mut out);
        self.tail(&mut out);
        out
    }

    fn configuration(&self, out: &mut Vec<u8>) {
        let machine = match self.machine {
            Machine::I440fx => "pc-i440fx-7.2".to_owned(),
            Machine::Q35 => "pc-q35-10.0".to_owned(),
            Machine::Other(length) => "m".repeat(usize::from(length.max(1))),
        };
        out.push(0x07);
        put_u32(out, machine.len());
        out.extend_from_slice(machine.as_bytes());
        if self.has_page_bits {
            subsection(out, "configuration/target-page-bits", &12_u32.to_be_bytes());
        }
        if self.has_uuid {
            subsection(out, "configuration/uuid", &[0x5a; 16]);
        }
    }

    fn tail(&self, out: &mut Vec<u8>) {
        let is_held = self.hold != Hold::None;
        let ends_bitmap = |out: &mut Vec<u8>| {
            open(out, 0x03, BITMAP_ID);
            bitmap_chunks(out, &[Chunk::Complete]);
        };
        self.tail.commands.iter().take(4).for_each(|command| command.put(out));
        match self.tail.form {
            Form::Plain => {
                if is_held {
                    ends_bitmap(out);
                }
                out.extend(self.devices());
                let names = self
                    .tail
                    .sections
                    .iter()
                    .take(6)
                    .map(|one| format!(r#"{{"name":"d{}","instance_id":0}}"#, one.name));
                let description = format!(
                    r#"{{"page_size":4096,"devices":[{}]}}"#,
                    names.collect::<Vec<_>>().join(",")
                );
                out.extend_from_slice(&[0x00, 0x06]);
                put_u32(out, description.len());
                out.extend_from_slice(description.as_bytes());
            }
            Form::Packaged(pings) => {
                let mut package = vec![0x08, 0, 4, 0, 0];
                package.extend(self.devices());
                for number in 0..pings % 3 {
                    Command::Ping(number.into()).put(&mut package);
                }
                package.extend_from_slice(&[0x08, 0, 5, 0, 0]);
                out.extend_from_slice(&[0x08, 0, 7, 0, 4]);
                put_u32(out, package.len());
                out.extend(package);
                if is_held {
                    ends_bitmap(out);
                }
                open(out, 0x03, RAM_ID);
                close_ram(out);
                out.push(0x00);
            }
        }
    }

    /// Sections of device state, at least one.
    fn devices(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let none = Device { id: 9, name: 0, state: Vec::new() };
        let sections = self.tail.sections.iter().take(6);
        for device in sections.chain(self.tail.sections.is_empty().then_some(&none)) {
            out.push(0x04);
            out.extend_from_slice(&device.id.to_be_bytes());
            counted(&mut out, &format!("d{}", device.name));
            out.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 1]);
            out.extend(device.state.iter().take(200));
            out.push(0x7e);
            out.extend_from_slice(&device.id.to_be_bytes());
        }
        out
    }
}

impl Command {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::OpenReturnPath => out.extend_from_slice(&[8, 0, 1, 0, 0]),
            Self::Ping(value) => {
                out.extend_from_slice(&[8, 0, 2, 0, 4]);
                out.extend_from_slice(&value.to_be_bytes());
            }
            Self::SwitchoverStart => out.extend_from_slice(&[8, 0, 11, 0, 0]),
            Self::Advise => out.extend_from_slice(&[8, 0, 3, 0, 0]),
        }
    }
}

impl Record {
    /// Puts the record; gives the block that the next one may go on with.
    fn put(
        &self,
        out: &mut Vec<u8>,
        pages: &[u8],
        last: Option<usize>,
        contents: &mut usize,
    ) -> Option<usize> {
        let block = usize::from(self.block) % pages.len();
        let offset = u64::from(self.page % pages[block]) << 12;
        let goes_on = last == Some(block) && !self.names_block;
        let is_whole = matches!(self.content, Content::Bytes(_)) && *contents < MAX_CONTENTS;
        let kind = if is_whole { 0x08 } else { 0x02 };
        let flags = if goes_on { kind | 0x20 } else { kind };
        out.extend_from_slice(&(offset | flags).to_be_bytes());
        if !goes_on {
            counted(out, BLOCKS[block]);
        }
        match self.content {
            Content::Bytes(byte) if is_whole => {
                *contents += 1;
                out.extend((0..4096_u32).map(|at| byte.wrapping_add(at.to_le_bytes()[1])));
            }
            Content::Fill(byte) => out.push(byte),
            Content::Zero | Content::Bytes(_) => out.push(0),
        }
        Some(block)
    }
}

fn ram_start(out: &mut Vec<u8>, pages: &[u8]) {
    open(out, 0x01, RAM_ID);
    counted(out, "ram");
    out.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 4]);
    let length = |pages: u8| u64::from(pages) << 12;
    let total: u64 = pages.iter().map(|pages| length(*pages)).sum();
    out.extend_from_slice(&(total | 0x04).to_be_bytes());
    for (name, pages) in BLOCKS.iter().zip(pages) {
        counted(out, name);
        out.extend_from_slice(&length(*pages).to_be_bytes());
    }
    close_ram(out);
}

fn close_ram(out: &mut Vec<u8>) {
    out.extend_from_slice(&0x10_u64.to_be_bytes());
    footer(out, RAM_ID);
}

fn bitmap_start(out: &mut Vec<u8>) {
    open(out, 0x01, BITMAP_ID);
    counted(out, "dirty-bitmap");
    out.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 1]);
    out.push(0x10 | 0x08 | 0x04);
    counted(out, "hold");
    counted(out, "bitmap0");
    out.extend_from_slice(&[0, 1, 0, 0, 0]);
    bitmap_chunks(out, &[]);
}

fn bitmap_chunks(out: &mut Vec<u8>, chunks: &[Chunk]) {
    for chunk in chunks.iter().take(5) {
        match chunk {
            Chunk::Zeroes(start, sectors) => {
                out.push(0x42);
                out.extend_from_slice(&start.to_be_bytes());
                out.extend_from_slice(&sectors.to_be_bytes());
            }
            Chunk::Bits(start, bits) => {
                let bits = &bits[..bits.len().min(100)];
                out.push(0x40);
                out.extend_from_slice(&start.to_be_bytes());
                out.extend_from_slice(&[0, 0, 0, 9]);
                out.extend_from_slice(&(bits.len() as u64).to_be_bytes());
                out.extend_from_slice(bits);
            }
            Chunk::Complete => out.push(0x20),
            Chunk::Nothing => {}
        }
    }
    out.push(0x01);
    footer(out, BITMAP_ID);
}

fn open(out: &mut Vec<u8>, section: u8, id: u8) {
    out.extend_from_slice(&[section, 0, 0, 0, id]);
}

fn footer(out: &mut Vec<u8>, id: u8) {
    out.extend_from_slice(&[0x7e, 0, 0, 0, id]);
}

fn subsection(out: &mut Vec<u8>, name: &str, content: &[u8]) {
    out.push(0x05);
    counted(out, name);
    out.extend_from_slice(&1_u32.to_be_bytes());
    out.extend_from_slice(content);
}

fn counted(out: &mut Vec<u8>, text: &str) {
    out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(text.as_bytes());
}

fn put_u32(out: &mut Vec<u8>, number: usize) {
    out.extend_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes());
}
