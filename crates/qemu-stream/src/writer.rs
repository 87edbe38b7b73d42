//! The writer: the stream that a destination's QEMU loads, when its guest memory is (partly) there already.
//!
//! Header, configuration, block list; pages of blocks that Sterna does not write itself, as they come; the end of
//! guest memory; then the caller appends the source's tail as it is. What a post-copy has instead of that end is in
//! `postcopy`. Everything is appended to a buffer of the caller.

use alloc::vec::Vec;

use sterna_model::{Block, Layout, Page, PageId};

use crate::command::Command;
use crate::configuration::Configuration;
use crate::format::{MAGIC, RAM_VERSION, VERSION, flag, section};
use crate::parser::RamSection;

/// Writes one stream. Order is kept by its types: begin, then parts and commands, then end.
#[derive(Debug)]
pub struct Writer {
    pub(crate) layout: Layout,
    pub(crate) section_id: u32,
}

impl Writer {
    /// Appends the header, the configuration, commands, and the RAM section's start with the block list.
    #[must_use]
    pub fn begin(
        out: &mut Vec<u8>,
        configuration: &Configuration,
        commands: &[Command],
        ram: RamSection,
        layout: Layout,
    ) -> Self {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_be_bytes());
        out.extend_from_slice(configuration.bytes());
        for command in commands {
            command.write(out);
        }
        out.push(section::START);
        out.extend_from_slice(&ram.section_id.to_be_bytes());
        put_counted(out, "ram");
        out.extend_from_slice(&ram.instance_id.to_be_bytes());
        out.extend_from_slice(&RAM_VERSION.to_be_bytes());
        put_block_list(out, &layout);
        let writer = Self { layout, section_id: ram.section_id };
        writer.close_section(out);
        writer
    }

    /// Appends a command between two sections.
    pub fn command(&mut self, out: &mut Vec<u8>, command: Command) {
        command.write(out);
    }

    /// Begins a piece of the RAM section; it takes pages until it is closed.
    pub fn part<'w>(&'w mut self, out: &'w mut Vec<u8>) -> RamPart<'w> {
        self.open_section(out, section::PART);
        RamPart { writer: self, out, last: None }
    }

    /// Appends the end of guest memory. The tail comes next, as it came from the source.
    pub fn end(self, out: &mut Vec<u8>) {
        self.open_section(out, section::END);
        self.close_section(out);
    }

    pub(crate) fn open_section(&self, out: &mut Vec<u8>, section_type: u8) {
        out.push(section_type);
        out.extend_from_slice(&self.section_id.to_be_bytes());
    }

    pub(crate) fn close_section(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&flag::END_OF_SECTION.to_be_bytes());
        out.push(section::FOOTER);
        out.extend_from_slice(&self.section_id.to_be_bytes());
    }
}

/// A page that the layout does not have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected one of {pages} pages of the guest, found page {page}", page = .found.0)]
pub struct NoSuchPage {
    /// Pages in the layout.
    pub pages: u32,
    /// The page.
    pub found: PageId,
}

/// An open piece of the RAM section: pages are appended to it, then it is closed.
#[derive(Debug)]
#[must_use = "a part that is not closed breaks the stream"]
pub struct RamPart<'w> {
    writer: &'w Writer,
    out: &'w mut Vec<u8>,
    /// The index of the last page's block: pages of the same block need not name it.
    last: Option<usize>,
}

impl RamPart<'_> {
    /// Appends a page with its content, at most 4360 bytes.
    ///
    /// # Errors
    /// When the layout has no such page; nothing is appended then.
    pub fn page(&mut self, page: PageId, content: &Page) -> Result<(), NoSuchPage> {
        self.record(page, flag::PAGE)?;
        self.out.extend_from_slice(content);
        Ok(())
    }

    /// Appends a page that is zero everywhere.
    ///
    /// # Errors
    /// When the layout has no such page; nothing is appended then.
    pub fn zero_page(&mut self, page: PageId) -> Result<(), NoSuchPage> {
        self.record(page, flag::ZERO)?;
        self.out.push(0);
        Ok(())
    }

    /// Bytes in the caller's buffer: a reason to close this piece, send it and begin another.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.out.len()
    }

    /// Appends the end of this piece.
    pub fn close(self) {
        self.writer.close_section(self.out);
    }

    fn record(&mut self, page: PageId, kind: u64) -> Result<(), NoSuchPage> {
        let layout = &self.writer.layout;
        let holds = |block: &Block| block.page_numbers().contains(&page.0);
        let is_holder = |index: &usize| layout.blocks().get(*index).is_some_and(holds);
        let index = self.last.filter(is_holder).or_else(|| layout.block_index_of(page));
        let found = index.and_then(|index| layout.blocks().get(index).map(|block| (index, block)));
        let (index, block) = found.ok_or(NoSuchPage { pages: layout.pages(), found: page })?;
        let offset_bytes = block.offset_bytes(page);
        if self.last == Some(index) {
            self.out.extend_from_slice(&(offset_bytes | kind | flag::CONTINUE).to_be_bytes());
        } else {
            self.out.extend_from_slice(&(offset_bytes | kind).to_be_bytes());
            put_counted(self.out, block.name.as_str());
        }
        self.last = Some(index);
        Ok(())
    }
}

fn put_block_list(out: &mut Vec<u8>, layout: &Layout) {
    let length_bytes = |block: &Block| u64::from(block.pages) << flag::MASK.count_ones();
    let total: u64 = layout.blocks().iter().map(length_bytes).sum();
    out.extend_from_slice(&(total | flag::MEM_SIZE).to_be_bytes());
    for block in layout.blocks() {
        put_counted(out, block.name.as_str());
        out.extend_from_slice(&length_bytes(block).to_be_bytes());
    }
}

/// A length byte and a text, which is never longer than one can count: section names are ours, block names checked.
pub(crate) fn put_counted(out: &mut Vec<u8>, text: &str) {
    let bytes = &text.as_bytes()[..text.len().min(usize::from(u8::MAX))];
    out.push(u8::try_from(bytes.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(bytes);
}
