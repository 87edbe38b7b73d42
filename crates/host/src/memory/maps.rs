//! A process's mappings, from /proc/PID/maps.

use std::fs::File;
use std::io::{self, Read};

/// Bytes of /proc/PID/maps, at most: 65,530 mappings (the kernel's default limit) of a line each.
const MAX_MAPS_BYTES: u64 = 64 << 20;

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Where it starts.
    pub start: u64,
    /// The first address after it.
    pub end: u64,
    /// That the process can read it.
    pub readable: bool,
    /// That what is written reaches the file.
    pub shared: bool,
    /// Where in the file it starts, in bytes.
    pub file_offset: u64,
    /// The file's device (major, minor) and inode; inode 0 for anonymous memory.
    pub file: FileId,
}

/// Which file a mapping is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    /// The device's major number.
    pub major: u32,
    /// The device's minor number.
    pub minor: u32,
    /// The inode.
    pub inode: u64,
}

/// All mappings of a process, by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maps {
    mappings: Vec<Mapping>,
}

impl Maps {
    /// The mappings of a process, now.
    ///
    /// # Errors
    /// When they cannot be read, or are not what we know.
    pub fn of(pid: i32) -> io::Result<Self> {
        let mut text = String::new();
        let file = File::open(format!("/proc/{pid}/maps"))?;
        file.take(MAX_MAPS_BYTES).read_to_string(&mut text)?;
        Self::parse(&text).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "expected a list of mappings, found others")
        })
    }

    fn parse(text: &str) -> Option<Self> {
        text.lines().map(parse_mapping).collect::<Option<_>>().map(|mappings| Self { mappings })
    }

    /// The mapping that holds an address.
    #[must_use]
    pub fn at(&self, address: u64) -> Option<&Mapping> {
        let after = self.mappings.partition_point(|mapping| mapping.end <= address);
        self.mappings.get(after).filter(|mapping| mapping.start <= address)
    }

    /// Whether all of a range is private memory without a file behind it.
    #[must_use]
    pub fn is_anonymous(&self, base: u64, length_bytes: u64) -> bool {
        let end = base.saturating_add(length_bytes);
        let mut reached = base;
        while reached < end {
            match self.at(reached) {
                Some(mapping) if !mapping.shared && mapping.file.inode == 0 => {
                    reached = mapping.end
                }
                _ => return false,
            }
        }
        true
    }

    /// How many bytes from `base` on can be read without a gap, over any number of mappings, counted up to `length_bytes`.
    #[must_use]
    pub fn readable_bytes(&self, base: u64, length_bytes: u64) -> u64 {
        let mut reached = base;
        let end = base.saturating_add(length_bytes);
        while let Some(mapping) = self.at(reached).filter(|mapping| mapping.readable) {
            reached = mapping.end;
            if reached >= end {
                return length_bytes;
            }
        }
        reached - base
    }
}

/// `7f815bfff000-7f816bfff000 rw-s 00000000 00:01 36      /memfd:memory-backend-memfd (deleted)`
fn parse_mapping(line: &str) -> Option<Mapping> {
    let mut fields = line.split_ascii_whitespace();
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = fields.next()?.split_once('-')?;
    let rights = fields.next()?.as_bytes();
    let file_offset = hex(fields.next()?)?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let device = |text: &str| u32::from_str_radix(text, 16).ok();
    let (major, minor) = (device(major)?, device(minor)?);
    let inode = fields.next()?.parse().ok()?;
    let file = FileId { major, minor, inode };
    let (start, end) = (hex(start)?, hex(end)?);
    (start < end).then_some(Mapping {
        start,
        end,
        readable: *rights.first()? == b'r',
        shared: *rights.get(3)? == b's',
        file_offset,
        file,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
7f0000000000-7f0000010000 rw-p 00000000 00:00 0
7f0000010000-7f0000020000 rw-s 00001000 00:01 36                         /memfd:a b (deleted)
7f0000030000-7f0000040000 ---p 00000000 00:00 0
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn finds_mappings_and_gaps() {
        let maps = Maps::parse(TEXT).unwrap();
        let shared = maps.at(0x7f00_0001_ffff).unwrap();
        assert!(shared.shared && shared.file_offset == 0x1000 && shared.file.inode == 36);
        assert_eq!(maps.at(0x7f00_0002_0000), None);
        assert_eq!(maps.readable_bytes(0x7f00_0000_0000, 0x2_0000), 0x2_0000);
        assert_eq!(maps.readable_bytes(0x7f00_0000_1000, 0x2_0000), 0x1_f000);
        assert_eq!(maps.readable_bytes(0x7f00_0003_0000, 1), 0);
        assert_eq!(maps.readable_bytes(u64::MAX, u64::MAX), 0);
        assert_eq!(Maps::parse("not a mapping"), None);
    }

    #[test]
    fn finds_our_own() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let content = vec![0_u8; 1 << 16];
        let maps = Maps::of(pid).unwrap();
        assert_eq!(maps.readable_bytes(content.as_ptr() as u64, 1 << 16), 1 << 16);
    }
}
