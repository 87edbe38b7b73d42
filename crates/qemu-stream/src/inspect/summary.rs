//! What was in a stream: a value, and how it prints.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::Serialize;
use sterna_model::{Block, ByteCount, PAGE_BYTES};

use crate::command::Command;
use crate::error::StreamError;

/// What is in a captured stream, up to its end or to its first damage.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Summary {
    /// The machine type, if the configuration came.
    pub machine: Option<String>,
    /// The guest's memory blocks, in the stream's order.
    pub blocks: Vec<BlockSummary>,
    /// Pieces of the RAM section: its start, parts and end.
    pub ram_parts: u64,
    /// Whether the last RAM section came.
    pub ram_complete: bool,
    /// Commands before the last RAM section.
    pub commands: Vec<Command>,
    /// Bytes that belong to a bitmap which held the source.
    pub dirty_bitmap_bytes: u64,
    /// Bytes of device state, end and description.
    pub tail_bytes: u64,
    /// Whether the device state came in a package.
    pub packaged: bool,
    /// The sections of device state, as the description at the stream's end names them. A package has none.
    pub devices: Vec<String>,
    /// Bytes that were read: to the end, or up to the element that is damaged.
    pub bytes: u64,
    /// How it ends.
    pub end: End,
}

/// One block of guest memory in a stream.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct BlockSummary {
    /// QEMU's name of it.
    pub name: String,
    /// Its length.
    pub length_bytes: u64,
    /// Pages that came with content; a page that came twice counts twice.
    pub pages: u64,
    /// Zero pages that came.
    pub zero_pages: u64,
}

/// How a stream ends.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// Whole: memory, device state and its description.
    Complete,
    /// Damaged, cut off, or not of the kind that is read.
    Damaged(StreamError),
}

impl Summary {
    pub(super) const fn empty() -> Self {
        Self {
            machine: None,
            blocks: Vec::new(),
            ram_parts: 0,
            ram_complete: false,
            commands: Vec::new(),
            dirty_bitmap_bytes: 0,
            tail_bytes: 0,
            packaged: false,
            devices: Vec::new(),
            bytes: 0,
            end: End::Complete,
        }
    }
}

impl BlockSummary {
    pub(super) fn new(block: &Block) -> Self {
        let length_bytes = u64::from(block.pages) * PAGE_BYTES as u64;
        Self { name: block.name.to_string(), length_bytes, pages: 0, zero_pages: 0 }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "machine          {}", self.machine.as_deref().unwrap_or("(not reached)"))?;
        self.fmt_blocks(f)?;
        let complete = if self.ram_complete { "complete" } else { "not complete" };
        writeln!(f, "memory           {complete}, in {} sections", self.ram_parts)?;
        write!(f, "commands         {}", self.commands.len())?;
        for command in &self.commands {
            write!(f, ", {command}")?;
        }
        writeln!(f)?;
        if self.dirty_bitmap_bytes > 0 {
            writeln!(f, "dirty bitmap     {} bytes, dropped", self.dirty_bitmap_bytes)?;
        }
        writeln!(f, "tail             {} bytes", self.tail_bytes)?;
        if self.packaged {
            writeln!(f, "device sections  packaged, without a description")?;
        } else {
            writeln!(f, "device sections  {}", self.devices.len())?;
        }
        for device in &self.devices {
            writeln!(f, "  {device}")?;
        }
        writeln!(f, "bytes read       {}", self.bytes)?;
        match &self.end {
            End::Complete => write!(f, "end              complete"),
            End::Damaged(error) => {
                write!(f, "end              damaged at byte {}: {}", error.offset, error.fault)
            }
        }
    }
}

impl Summary {
    fn fmt_blocks(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lengths = self.blocks.iter().map(|block| block.name.len());
        let width = lengths.max().unwrap_or(0).max("memory block".len());
        if !self.blocks.is_empty() {
            writeln!(
                f,
                "{:width$}  {:>10}  {:>10}  zero pages",
                "memory block", "length", "pages"
            )?;
        }
        for block in &self.blocks {
            let length = ByteCount(block.length_bytes).to_string();
            let BlockSummary { name, pages, zero_pages, .. } = block;
            writeln!(f, "{name:width$}  {length:>10}  {pages:>10}  {zero_pages:>10}")?;
        }
        Ok(())
    }
}
