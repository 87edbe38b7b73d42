//! Nouns of Sterna: the words that every other crate speaks.
//!
//! A guest's memory is a [`Layout`] of named blocks, cut in pages of [`PAGE_BYTES`]; a page is named by its [`PageId`]
//! (its number over all blocks, in the layout's order), its content by its [`PageHash`], all contents together by a
//! [`Root`]. Quantities have a type each: [`ByteCount`], [`Rate`], [`Instant`]. Names of people's things (hosts, VMs,
//! jobs) are checked when they are made, so that a path or a log line can be built from them without a second thought.
//!
//! Pure: no clock, no I/O, no allocation beyond what the nouns own.
#![no_std]

extern crate alloc;

mod layout;
mod memory;
mod name;
mod page_set;
mod quantity;
mod refusal;

pub use layout::{Block, BlockName, Layout, LayoutError, MAX_BLOCKS, PageId};
pub use memory::{PAGE_BYTES, Page, PageHash, Root, ZERO_PAGE};
pub use name::{Epoch, HostName, JobId, NameError, Uuid, VmName};
pub use page_set::PageSet;
pub use quantity::{ByteCount, Instant, ParseRateError, Rate};
pub use refusal::Refusal;
