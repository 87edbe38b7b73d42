//! What can be wrong with a stream. Each error tells where, what was expected and what was found.

use alloc::string::{String, ToString};

use serde::ser::{Serialize, SerializeStruct, Serializer};
use sterna_model::{LayoutError, MAX_BLOCKS};

use crate::format::{
    MAX_COMMANDS, MAX_DESCRIPTION_BYTES, MAX_MACHINE_NAME_BYTES, MAX_MEMORY_BYTES, MAX_TAIL_BYTES,
    MIN_PACKAGE_BYTES, PAGE_BITS, VERSION,
};

/// A stream that is damaged, incomplete, or of a kind that Sterna does not move. The guest was not touched by it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("QEMU's stream at byte {offset}: {fault}")]
pub struct StreamError {
    /// Where the field begins that is wrong, in bytes from the stream's start.
    pub offset: u64,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong at one place of a stream.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// It is no migration stream.
    #[error("expected \"QEVM\", found {found:?}")]
    Magic {
        /// The first four bytes, escaped.
        found: String,
    },
    /// A version that QEMU has not sent for long, or does not send yet.
    #[error("expected stream version {VERSION}, found {found}")]
    Version {
        /// The version.
        found: u32,
    },
    /// No machine name.
    #[error(
        "expected a machine name of 1 to {MAX_MACHINE_NAME_BYTES} printable bytes, found {length} bytes"
    )]
    MachineName {
        /// Its length.
        length: u32,
    },
    /// The configuration says more than is known.
    #[error("expected subsections of the configuration that are known, found {name:?}")]
    Subsection {
        /// The subsection, or its version, or one that came twice.
        name: String,
    },
    /// A capability that changes the layout of the stream.
    #[error("expected a stream without special capabilities, found {name:?}: switch it off")]
    Capability {
        /// The capability, as QMP names it.
        name: String,
    },
    /// Another page size.
    #[error("expected pages of 2^{PAGE_BITS} bytes, found 2^{found}")]
    PageBits {
        /// The power of two.
        found: u32,
    },
    /// Something else than what can come here.
    #[error("expected {expected}, found byte {found:#04x}")]
    SectionType {
        /// What can come here.
        expected: &'static str,
        /// The type byte.
        found: u8,
    },
    /// A part or an end of a section that is not open.
    #[error("expected a part of an open section ({open}), found one of section {found}")]
    SectionId {
        /// The sections that are open.
        open: String,
        /// The section's id.
        found: u32,
    },
    /// An iterative section of a device that cannot be moved.
    #[error(
        "expected the iterative sections \"ram\" and \"dirty-bitmap\" only, found {name:?}: this device cannot be moved"
    )]
    UnknownSection {
        /// The section.
        name: String,
    },
    /// A section begun twice.
    #[error("expected section {name:?} to be begun once, found its start a second time")]
    RepeatedSection {
        /// The section.
        name: &'static str,
    },
    /// A section of another version.
    #[error("expected section {name:?} in version {expected}, found {found}")]
    SectionVersion {
        /// The section.
        name: &'static str,
        /// The version that is read.
        expected: u32,
        /// The version that came.
        found: u32,
    },
    /// Device state before the end of guest memory, as virtio-mem sends it.
    #[error(
        "expected device state after the last RAM section, found {name:?} before it: this device cannot be moved"
    )]
    EarlyDeviceState {
        /// The device's section.
        name: String,
    },
    /// Device state while the bitmap that holds the source is still open.
    #[error("expected the end of section \"dirty-bitmap\" before device state, found {name:?}")]
    BitmapOpen {
        /// The device's section.
        name: String,
    },
    /// Packaged device state that is empty or without end.
    #[error(
        "expected {MIN_PACKAGE_BYTES} to {MAX_TAIL_BYTES} bytes of packaged device state, found {found}"
    )]
    PackageLength {
        /// The package's length.
        found: u64,
    },
    /// Packaged device state that is not as a held source sends it, or whose length is wrong.
    #[error("expected {expected} in the packaged device state, found \"{found}\"")]
    Package {
        /// What had to come.
        expected: &'static str,
        /// The bytes in its place, escaped.
        found: String,
    },
    /// Guest memory behind the device state.
    #[error(
        "expected no guest memory behind the packaged device state, found RAM flags {flags:#x}"
    )]
    LatePage {
        /// The record's flags.
        flags: u64,
    },
    /// A command that a plain pre-copy stream has not.
    #[error("expected commands of a pre-copy only, found {number} ({name}) with {length} bytes")]
    Command {
        /// The command's number.
        number: u16,
        /// QEMU's name of it.
        name: &'static str,
        /// Bytes of its data.
        length: u16,
    },
    /// Commands without end.
    #[error("expected at most {MAX_COMMANDS} commands before the end of guest memory, found more")]
    CommandCount,
    /// A RAM record of another kind.
    #[error("expected a RAM record ZERO, PAGE or EOS, found flags {flags:#x} ({name})")]
    RamFlags {
        /// The flags.
        flags: u64,
        /// What they belong to.
        name: &'static str,
    },
    /// Pages before the block list, a second block list, or none.
    #[error("expected {expected}, found RAM flags {flags:#x}")]
    BlockList {
        /// What had to come.
        expected: &'static str,
        /// The record's flags.
        flags: u64,
    },
    /// More guest memory than can be moved, or none.
    #[error("expected at most {MAX_MEMORY_BYTES} bytes of guest memory, found {found}")]
    MemorySize {
        /// The total.
        found: u64,
    },
    /// The list goes on without a name: it has fields that only some capabilities make.
    #[error(
        "expected a RAM block's name, found an empty one: x-ignore-shared, mapped-ram, or huge pages with postcopy-ram?"
    )]
    BlockListExtras,
    /// Too many blocks.
    #[error("expected at most {MAX_BLOCKS} RAM blocks, found more")]
    BlockCount,
    /// The blocks are longer than all memory.
    #[error("expected RAM blocks of {left} more bytes, found one of {found}")]
    BlockLength {
        /// Bytes that the list may still have.
        left: u64,
        /// The block's length.
        found: u64,
    },
    /// The blocks make no layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A record that goes on with a block, though there was none.
    #[error("expected a RAM block's name, found a record that goes on with the block before it")]
    NoBlock,
    /// A block that is not in the list.
    #[error("expected a RAM block of the list, found {name:?}")]
    UnknownBlock {
        /// The block's name.
        name: String,
    },
    /// A page that the block does not have.
    #[error(
        "expected a page of RAM block {block:?}, which has {pages} pages, found offset {offset_bytes:#x}"
    )]
    PageOutside {
        /// The block's name.
        block: String,
        /// Its length in pages.
        pages: u32,
        /// The offset.
        offset_bytes: u64,
    },
    /// A section that does not end with its footer.
    #[error("expected the footer of section {expected} (0x7e), found byte {mark:#04x} and {found}")]
    Footer {
        /// The section's id.
        expected: u32,
        /// What stands in the place of 0x7e.
        mark: u8,
        /// What stands in the place of the id.
        found: u32,
    },
    /// A chunk of the dirty bitmap that QEMU would not send.
    #[error("expected a chunk of a dirty bitmap, found flags {flags:#04x}")]
    BitmapFlags {
        /// The flags.
        flags: u8,
    },
    /// A chunk of the dirty bitmap that is too long.
    #[error("expected a dirty bitmap's chunk of at most 10240 bytes, found {found}")]
    BitmapChunk {
        /// Its length.
        found: u64,
    },
    /// Device state without end.
    #[error("expected at most {MAX_TAIL_BYTES} bytes of device state, found more")]
    TailTooLong,
    /// The stream ends where it must not.
    #[error("expected {expected}, found the end of the stream")]
    Truncated {
        /// What had to come.
        expected: &'static str,
    },
    /// The end of the stream cannot be verified.
    #[error(
        "expected device state that ends with its description of at most {MAX_DESCRIPTION_BYTES} bytes, \
         found {found}: a broken stream, or a machine with suppress-vmdesc=on"
    )]
    Description {
        /// What is at the end.
        found: &'static str,
    },
}

/// For programs that read summaries: where, and the reason as a person reads it.
impl Serialize for StreamError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("StreamError", 2)?;
        fields.serialize_field("offset", &self.offset)?;
        fields.serialize_field("reason", &self.fault.to_string())?;
        fields.end()
    }
}

/// Text for a message from bytes that may be anything: printable, bounded by what a length byte can count.
pub(crate) fn printable(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
