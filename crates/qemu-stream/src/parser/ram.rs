//! The records of the RAM section: the block list, then pages. The hot path of the source side.

use alloc::vec::Vec;

use sterna_model::{BlockName, Layout, MAX_BLOCKS, PAGE_BYTES, Page, PageId};

use super::{Event, Memory, Parser, RamPartKind, State, footer};
use crate::cursor::{Cursor, Stop};
use crate::error::{Fault, printable};
use crate::format::{MAX_MEMORY_BYTES, flag};

/// Where the parser is inside a piece of the RAM section.
#[derive(Clone, Debug)]
pub(super) struct Ram {
    kind: RamPartKind,
    pages: u64,
    list: List,
}

/// How far the block list is.
#[derive(Clone, Debug)]
enum List {
    Expected,
    Open { left_bytes: u64, blocks: Vec<(BlockName, u64)> },
    Known,
}

impl Ram {
    /// At the records of the section's start: the block list comes first.
    pub(super) const fn start() -> Self {
        Self { kind: RamPartKind::Start, pages: 0, list: List::Expected }
    }

    /// At the records of a later piece.
    pub(super) const fn part(kind: RamPartKind) -> Self {
        Self { kind, pages: 0, list: List::Known }
    }
}

impl Parser {
    /// One element of the RAM section: a block of the list, or a record.
    #[inline]
    pub(super) fn ram(
        &mut self,
        cursor: &mut Cursor<'_>,
        sink: &mut impl FnMut(Event<'_>),
    ) -> Result<(), Stop> {
        let State::Ram(ram) = &mut self.state else { return Ok(()) };
        if let List::Open { .. } = ram.list {
            return self.listed_block(cursor, sink);
        }
        let word = cursor.u64()?;
        let (flags, offset_bytes) = (word & flag::MASK, word & !flag::MASK);
        match (flags & !flag::CONTINUE, &self.layout) {
            (flag::PAGE, Some(layout)) => {
                let (block, page) = locate(cursor, layout, self.block, flags, offset_bytes)?;
                let content = cursor.array::<PAGE_BYTES>()?;
                self.block = Some(block);
                ram.pages += 1;
                sink(Event::Page { page, content });
                Ok(())
            }
            (flag::ZERO, Some(layout)) => {
                let (block, page) = locate(cursor, layout, self.block, flags, offset_bytes)?;
                let fill = cursor.u8()?;
                self.block = Some(block);
                ram.pages += 1;
                filled_page(page, fill, sink);
                Ok(())
            }
            _ => self.other_record(cursor, flags, offset_bytes, sink),
        }
    }

    /// A record that is no page: the end of the section, the start of the block list, or one that is not read.
    fn other_record(
        &mut self,
        cursor: &mut Cursor<'_>,
        flags: u64,
        offset_bytes: u64,
        sink: &mut impl FnMut(Event<'_>),
    ) -> Result<(), Stop> {
        let State::Ram(ram) = &mut self.state else { return Ok(()) };
        match (flags, &ram.list) {
            (flag::END_OF_SECTION, List::Known) => self.end_of_section(cursor, sink),
            (flag::MEM_SIZE, List::Expected) => {
                if !(1..=MAX_MEMORY_BYTES).contains(&offset_bytes) {
                    return Err(cursor.fault(Fault::MemorySize { found: offset_bytes }));
                }
                ram.list = List::Open { left_bytes: offset_bytes, blocks: Vec::new() };
                Ok(())
            }
            (flag::MEM_SIZE, _) => {
                let expected = "one block list (0x4)";
                Err(cursor.fault(Fault::BlockList { expected, flags }))
            }
            (_, List::Expected) => {
                let expected = "the block list (0x4)";
                Err(cursor.fault(Fault::BlockList { expected, flags }))
            }
            _ => Err(cursor.fault(Fault::RamFlags { flags, name: flag::foreign(flags) })),
        }
    }

    fn end_of_section(
        &mut self,
        cursor: &mut Cursor<'_>,
        sink: &mut impl FnMut(Event<'_>),
    ) -> Result<(), Stop> {
        let (State::Ram(ram), Memory::Open(section)) = (&self.state, &self.memory) else {
            return Ok(());
        };
        footer(cursor, section.section_id)?;
        let (kind, pages) = (ram.kind, ram.pages);
        self.state = State::Between;
        sink(Event::RamPart { kind, pages });
        if kind == RamPartKind::End {
            self.memory = Memory::Complete(*section);
            sink(Event::RamComplete);
        }
        Ok(())
    }

    /// One block of the list; with the last, the layout is known.
    fn listed_block(
        &mut self,
        cursor: &mut Cursor<'_>,
        sink: &mut impl FnMut(Event<'_>),
    ) -> Result<(), Stop> {
        let (State::Ram(ram), Memory::Open(section)) = (&mut self.state, &self.memory) else {
            return Ok(());
        };
        let List::Open { left_bytes, blocks } = &mut ram.list else { return Ok(()) };
        if cursor.peek()? == 0 {
            return Err(cursor.fault(Fault::BlockListExtras));
        }
        let name = cursor.counted()?;
        let name = BlockName::new(name).map_err(|error| cursor.fault(error))?;
        let found = cursor.u64()?;
        let left = *left_bytes;
        let rest = left.checked_sub(found).filter(|_| found > 0);
        let rest = rest.ok_or_else(|| cursor.fault(Fault::BlockLength { left, found }))?;
        if blocks.len() == MAX_BLOCKS {
            return Err(cursor.fault(Fault::BlockCount));
        }
        blocks.push((name, found));
        *left_bytes = rest;
        if rest == 0 {
            let layout = Layout::new(blocks).map_err(|error| cursor.fault(error))?;
            ram.list = List::Known;
            sink(Event::Layout { ram: *section, layout: &layout });
            self.layout = Some(layout);
        }
        Ok(())
    }
}

/// The block, as an index into the layout, and the page that a record names.
#[inline]
fn locate(
    cursor: &mut Cursor<'_>,
    layout: &Layout,
    last: Option<usize>,
    flags: u64,
    offset_bytes: u64,
) -> Result<(usize, PageId), Stop> {
    let index = if flags & flag::CONTINUE != 0 {
        last.ok_or_else(|| cursor.fault(Fault::NoBlock))?
    } else {
        let name = cursor.counted()?;
        let is_named = |index: &usize| {
            layout.blocks().get(*index).is_some_and(|block| block.name.as_str().as_bytes() == name)
        };
        let found = last.filter(is_named).or_else(|| (0..layout.blocks().len()).find(is_named));
        found.ok_or_else(|| cursor.fault(Fault::UnknownBlock { name: printable(name) }))?
    };
    let block = layout.blocks().get(index).ok_or_else(|| cursor.fault(Fault::NoBlock))?;
    let page = block.page_at(offset_bytes).ok_or_else(|| {
        let block_name = block.name.as_str().into();
        cursor.fault(Fault::PageOutside { block: block_name, pages: block.pages, offset_bytes })
    })?;
    Ok((index, page))
}

/// A page whose bytes are all `fill`. QEMU sends only zero; other values are allowed by the format.
#[inline]
fn filled_page(page: PageId, fill: u8, sink: &mut impl FnMut(Event<'_>)) {
    if fill == 0 {
        sink(Event::ZeroPage { page });
    } else {
        let content: Page = [fill; PAGE_BYTES];
        sink(Event::Page { page, content: &content });
    }
}
