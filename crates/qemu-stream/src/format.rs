//! The numbers of the stream's format, and the limits on what is accepted.

use sterna_model::PAGE_BYTES;

/// What every stream starts with.
pub(crate) const MAGIC: [u8; 4] = *b"QEVM";
/// The only version of the stream that QEMU has sent since 2007.
pub(crate) const VERSION: u32 = 3;
/// The version of the `ram` section.
pub const RAM_VERSION: u32 = 4;
/// The version of the `dirty-bitmap` section.
pub(crate) const BITMAP_VERSION: u32 = 1;
/// The page size that the configuration may name, as a power of two.
pub(crate) const PAGE_BITS: u32 = PAGE_BYTES.trailing_zeros();

/// What a section starts with.
pub(crate) mod section {
    pub(crate) const END_OF_FILE: u8 = 0x00;
    pub(crate) const START: u8 = 0x01;
    pub(crate) const PART: u8 = 0x02;
    pub(crate) const END: u8 = 0x03;
    pub(crate) const FULL: u8 = 0x04;
    pub(crate) const SUBSECTION: u8 = 0x05;
    pub(crate) const DESCRIPTION: u8 = 0x06;
    pub(crate) const CONFIGURATION: u8 = 0x07;
    pub(crate) const COMMAND: u8 = 0x08;
    pub(crate) const FOOTER: u8 = 0x7e;
}

/// The numbers of the commands that are read or written.
pub(crate) mod command {
    pub(crate) const OPEN_RETURN_PATH: u16 = 1;
    pub(crate) const PING: u16 = 2;
    pub(crate) const POSTCOPY_ADVISE: u16 = 3;
    pub(crate) const POSTCOPY_LISTEN: u16 = 4;
    pub(crate) const POSTCOPY_RUN: u16 = 5;
    pub(crate) const POSTCOPY_RAM_DISCARD: u16 = 6;
    pub(crate) const PACKAGED: u16 = 7;
    pub(crate) const ENABLE_COLO: u16 = 8;
    pub(crate) const POSTCOPY_RESUME: u16 = 9;
    pub(crate) const RECV_BITMAP: u16 = 10;
    pub(crate) const SWITCHOVER_START: u16 = 11;
}

/// The low 12 bits of a RAM record's first word.
pub(crate) mod flag {
    pub(crate) const MASK: u64 = 0xfff;
    pub(crate) const ZERO: u64 = 0x02;
    pub(crate) const MEM_SIZE: u64 = 0x04;
    pub(crate) const PAGE: u64 = 0x08;
    pub(crate) const END_OF_SECTION: u64 = 0x10;
    pub(crate) const CONTINUE: u64 = 0x20;

    /// The capability or transport that these flags, which Sterna does not read, belong to.
    pub(crate) const fn foreign(flags: u64) -> &'static str {
        match flags {
            0x01 => "FULL, gone since 2009",
            0x40 | 0x60 => "XBZRLE: switch the capability xbzrle off",
            0x80 => "HOOK: RDMA is not read",
            0x100 | 0x120 => "COMPRESSED: switch the capability compress off",
            0x200 => "MULTIFD_FLUSH: switch the capability multifd off",
            _ => "unknown",
        }
    }
}

/// The flags of a chunk in the `dirty-bitmap` section.
pub(crate) mod bitmap {
    pub(crate) const END_OF_SECTION: u8 = 0x01;
    pub(crate) const ZEROES: u8 = 0x02;
    pub(crate) const BITMAP_NAME: u8 = 0x04;
    pub(crate) const DEVICE_NAME: u8 = 0x08;
    pub(crate) const START: u8 = 0x10;
    pub(crate) const COMPLETE: u8 = 0x20;
    pub(crate) const BITS: u8 = 0x40;
    /// Bytes of bits in one chunk, at most; QEMU sends 1 KiB and accepts ten.
    pub(crate) const MAX_CHUNK_BYTES: u64 = 10 << 10;
}

/// Commands before the end of guest memory, at most; three are usual.
pub(crate) const MAX_COMMANDS: u32 = 64;
/// Bytes in a machine's name, at most.
pub(crate) const MAX_MACHINE_NAME_BYTES: u32 = 255;
/// Bytes of guest memory, at most: what a `PageId` can number.
pub(crate) const MAX_MEMORY_BYTES: u64 = 1 << 44;
/// Bytes of the JSON at the stream's end, at most; about 50 KiB is usual.
pub(crate) const MAX_DESCRIPTION_BYTES: u32 = 16 << 20;
/// Bytes after the last RAM section, at most; 100 KiB to some MiB are usual.
pub const MAX_TAIL_BYTES: u64 = 256 << 20;
/// Bytes of a package that QEMU loads, at most (its `MAX_VM_CMD_PACKAGED_SIZE`).
pub const MAX_PACKAGE_BYTES: u64 = 1 << 24;
/// Bytes of device state, at least: one section with an empty name and no content (type, id, name length, instance,
/// version, footer).
pub(crate) const MIN_STATE_BYTES: u64 = 1 + 4 + 1 + 4 + 4 + 5;
/// Bytes of a package of device state, at least: two commands around it.
pub(crate) const MIN_PACKAGE_BYTES: u64 = 5 + MIN_STATE_BYTES + 5;
/// Bytes that a read buffer must be able to hold: more than the longest thing that the parser takes in one piece
/// (a page with a new block name). A parser that takes nothing from a buffer of this size does not exist.
pub const MIN_BUFFER_BYTES: usize = 2 * PAGE_BYTES;
