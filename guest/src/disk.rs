//! `disk=check`: numbered blocks on the first disk, written and read back past the page cache.
//!
//! Block b holds a page in the format of [`crate::page`] with its own sequence; what each block
//! should hold is remembered in memory. Prints `DISK OK n=<blocks written>` now and then, and
//! `DISK BAD …` for a block that is stale, lost, corrupt or unreadable.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread;
use std::time::{Duration, Instant};

use crate::options::Shares;
use crate::page::{PAGE_BYTES, Page, PageFormat, Touch, next_random};

const DEVICE: &str = "/dev/vda";
/// Linux, x86: writes and reads bypass the guest's page cache.
const O_DIRECT: i32 = 0x4000;
const MAX_BLOCKS: u64 = 4096;
const PAUSE: Duration = Duration::from_millis(20);
const REPORT: Duration = Duration::from_secs(5);

/// Starts the check in a thread of its own.
pub(crate) fn start(seed: u64) {
    thread::spawn(move || match open() {
        Ok((disk, blocks)) => check_for_ever(&disk, blocks, seed),
        Err(error) => println!("DISK BAD {DEVICE} {error}"),
    });
}

fn open() -> io::Result<(File, usize)> {
    let sectors = std::fs::read_to_string("/sys/class/block/vda/size")?;
    let sectors: u64 = sectors.trim().parse().map_err(io::Error::other)?;
    let blocks = (sectors / 8).min(MAX_BLOCKS);
    if blocks == 0 {
        return Err(io::Error::other("smaller than one block"));
    }
    let disk = OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(DEVICE)?;
    Ok((disk, usize::try_from(blocks).unwrap_or(1)))
}

fn check_for_ever(disk: &File, blocks: usize, seed: u64) {
    let mut checked = CheckedBlocks::new(blocks, seed);
    let mut reported = Instant::now();
    let mut bad = 0_u64;
    for n in 1_u64.. {
        if let Err(error) = checked.write_and_check(disk) {
            bad += 1;
            println!("DISK BAD {error}");
        }
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            let verdict = if bad == 0 { "OK" } else { "BAD" };
            println!("DISK {verdict} n={n} bad={bad}");
        }
        thread::sleep(PAUSE);
    }
}

/// What each block should hold.
struct CheckedBlocks {
    format: PageFormat,
    sequences: Vec<u32>,
    next: usize,
    state: u64,
    buffer: Box<Page>,
    expected: Box<Page>,
}

impl CheckedBlocks {
    fn new(blocks: usize, seed: u64) -> Self {
        let shares = Shares { random: 100, text: 0, duplicate: 0 };
        Self {
            format: PageFormat::new(seed, shares, Touch::Whole),
            sequences: vec![0; blocks],
            next: 0,
            state: seed | 1,
            buffer: Box::new(Page::ZERO),
            expected: Box::new(Page::ZERO),
        }
    }

    /// Writes the next block in turn, then reads back one of those written, at random.
    fn write_and_check(&mut self, disk: &File) -> io::Result<()> {
        let block = self.next;
        self.next = (block + 1) % self.sequences.len();
        self.sequences[block] += 1;
        self.generate(block);
        disk.write_all_at(&self.expected.0, offset_bytes(block))?;
        self.state = next_random(self.state);
        let draw = usize::try_from(self.state >> 32).unwrap_or(0) % self.sequences.len();
        self.check(disk, if self.sequences[draw] == 0 { block } else { draw })
    }

    fn check(&mut self, disk: &File, block: usize) -> io::Result<()> {
        disk.read_exact_at(&mut self.buffer.0, offset_bytes(block))?;
        self.generate(block);
        if self.buffer == self.expected {
            return Ok(());
        }
        let index = u32::try_from(block).unwrap_or(u32::MAX);
        let found = self.format.identify(index, &self.buffer);
        let expected = self.sequences[block];
        Err(io::Error::other(format!("block={block} expected={expected} found={found:?}")))
    }

    fn generate(&mut self, block: usize) {
        let index = u32::try_from(block).unwrap_or(u32::MAX);
        self.format.generate(index, self.sequences[block], &mut self.expected);
    }
}

fn offset_bytes(block: usize) -> u64 {
    (block * PAGE_BYTES) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_write_shows() {
        let path = std::env::temp_dir().join(format!("sterna-guest-disk-{}", std::process::id()));
        let disk = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut checked = CheckedBlocks::new(8, 1);
        for _ in 0..20 {
            checked.write_and_check(&disk).unwrap();
        }
        let stale = {
            let mut page = Page::ZERO;
            checked.format.generate(2, checked.sequences[2] - 1, &mut page);
            page
        };
        disk.write_all_at(&stale.0, offset_bytes(2)).unwrap();
        let error = checked.check(&disk, 2).unwrap_err().to_string();
        assert_eq!(error, "block=2 expected=3 found=Sequence(2)");
        checked.check(&disk, 3).unwrap();
    }
}
