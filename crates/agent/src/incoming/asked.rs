//! What the guest waits for, kept where a next agent finds it: QEMU asks once for a page, and an agent that is killed takes
//! with it what it was asked. Without this the guest would wait for such a page until the push comes to it.
//!
//! A file of page numbers, in the VM's folder of sockets: it need not outlive the machine, which QEMU does not either. What
//! has come meanwhile is in it too; whoever reads it looks at what is lacking.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sterna_model::PageId;

const NUMBER_BYTES: usize = size_of::<u32>();

/// See the module.
#[derive(Debug)]
pub(super) struct AskedPages {
    path: PathBuf,
    file: File,
}

impl AskedPages {
    /// Begins a new file, in place of an earlier job's.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn begin(path: &Path) -> io::Result<Self> {
        let file = File::options().write(true).create(true).truncate(true).open(path)?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Goes on with what an earlier agent has left; gives what that was asked for, of a guest of so many pages.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn go_on(path: &Path, pages: u32) -> io::Result<(Self, Vec<PageId>)> {
        let file = File::options().read(true).append(true).open(path)?;
        // Each page is asked for once, and once more of each later agent: more is not looked at.
        let most = 2 * u64::from(pages) * NUMBER_BYTES as u64;
        let mut bytes = Vec::new();
        (&file).take(most).read_to_end(&mut bytes)?;
        let numbers = bytes.as_chunks::<NUMBER_BYTES>().0.iter().copied().map(u32::from_le_bytes);
        let asked = numbers.filter(|number| *number < pages).map(PageId).collect();
        Ok((Self { path: path.to_path_buf(), file }, asked))
    }

    /// The guest waits for these.
    pub(super) fn note(&self, pages: &[PageId]) {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.0.to_le_bytes()).collect();
        // Without it a next agent lets the guest wait longer, and nothing else.
        if let Err(error) = (&self.file).write_all(&bytes) {
            tracing::debug!(%error, "what the guest waits for is not kept");
        }
    }
}

impl Drop for AskedPages {
    /// An agent that is killed does not get here.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_next_agent_finds_what_was_asked_for() {
        let path = std::env::temp_dir().join(format!("sterna-asked-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        assert!(AskedPages::go_on(&path, 10).is_err(), "nothing was asked for");
        let killed = std::mem::ManuallyDrop::new(AskedPages::begin(&path).unwrap());
        killed.note(&[PageId(7), PageId(3)]);
        killed.note(&[PageId(9), PageId(10)]);
        let (next, asked) = AskedPages::go_on(&path, 10).unwrap();
        assert_eq!(asked, [PageId(7), PageId(3), PageId(9)], "and no page that there is not");
        let next = std::mem::ManuallyDrop::new(next);
        next.note(&[PageId(1)]);
        let (last, asked) = AskedPages::go_on(&path, 100).unwrap();
        assert_eq!(asked.last(), Some(&PageId(1)));
        drop(last);
        assert!(!path.exists(), "a job that is over leaves nothing");
        // What is there of another job is not this one's; half a number is none.
        fs::write(&path, [1, 0, 0, 0, 2]).unwrap();
        assert_eq!(AskedPages::go_on(&path, 10).unwrap().1, [PageId(1)]);
        fs::write(&path, [1, 0, 0, 0, 2]).unwrap();
        let new = std::mem::ManuallyDrop::new(AskedPages::begin(&path).unwrap());
        new.note(&[PageId(5)]);
        assert_eq!(AskedPages::go_on(&path, 10).unwrap().1, [PageId(5)]);
        assert!(!path.exists());
    }
}
