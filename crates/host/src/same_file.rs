//! Whether two hosts see one file: shared storage, told from a copy.
//!
//! The source locks one byte of the image, chosen at random far beyond its end; the destination asks the kernel whether
//! that byte is locked. File systems that hosts share pass locks on (NFS, CephFS, GFS2, OCFS2), a copy on another host does
//! not have it, and nobody can arrange it by chance. Nothing is written, and QEMU, whose own locks are on the bytes 100 to 299,
//! does not notice. The locks are of the open file, not of the process, and go with the descriptor.
//!
//! Where a mount keeps locks to itself (`nolock`), what identifies a file on a network file system is compared: its number and
//! length. A block device has its name all over the world, if it has any.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::fstatfs;

/// Locked bytes lie from here up to the highest that 64 bits with a sign can name.
const FIRST_LOCK_BYTE: u64 = 1 << 40;
const LOCK_BYTES_BITS: u32 = 62;

/// File systems that several hosts can have mounted, by the numbers that `statfs` gives. FUSE is none of them: it can be
/// local; GlusterFS, which uses it, passes locks on.
const NETWORK_FILE_SYSTEMS: [u64; 8] = [
    0x6969,      // NFS
    0x00c3_6400, // CephFS
    0x0116_1970, // GFS2
    0x7461_636f, // OCFS2
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB2
    0x0bd0_0bd0, // Lustre
    0x4750_4653, // GPFS
];

/// What two hosts can compare of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its length.
    pub length_bytes: u64,
    /// Its number in its file system.
    pub inode: u64,
    /// What a block device calls itself all over the world.
    pub world_wide_id: Option<String>,
    /// That its file system is one that several hosts can have mounted.
    pub is_on_network: bool,
}

/// A byte of a file that is locked for as long as this lives.
#[derive(Debug)]
pub struct ByteLock {
    _file: File,
    /// Which.
    pub byte: u64,
}

impl ByteLock {
    /// Locks a byte of the file, chosen by `random`.
    ///
    /// # Errors
    /// When the file cannot be read, or its file system has no locks.
    pub fn take(path: &Path, random: u64) -> io::Result<Self> {
        let file = open(path)?;
        let byte = FIRST_LOCK_BYTE | random >> (u64::BITS - LOCK_BYTES_BITS);
        let lock = span(libc::F_RDLCK, byte)?;
        fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&lock)).map_err(io_error)?;
        Ok(Self { _file: file, byte })
    }
}

/// Whether somebody else has this byte of the file locked.
///
/// # Errors
/// When the file cannot be read, the byte is none of those that are locked, or the file system has no locks.
pub fn is_locked(path: &Path, byte: u64) -> io::Result<bool> {
    let file = open(path)?;
    if !(FIRST_LOCK_BYTE..1 << LOCK_BYTES_BITS).contains(&byte) {
        return Err(io::Error::other("this byte is never locked"));
    }
    let mut lock = span(libc::F_WRLCK, byte)?;
    fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut lock)).map_err(io_error)?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// What identifies the file behind a path.
///
/// # Errors
/// When it cannot be looked at.
pub fn identity(path: &Path) -> io::Result<Identity> {
    let file = open(path)?;
    let metadata = file.metadata()?;
    let is_device = metadata.file_type().is_block_device();
    let device = metadata.rdev();
    let length_bytes = if is_device {
        use std::io::{Seek, SeekFrom};
        (&file).seek(SeekFrom::End(0))?
    } else {
        metadata.len()
    };
    let kind = u64::try_from(fstatfs(&file)?.f_type).unwrap_or_default() & 0xffff_ffff;
    Ok(Identity {
        length_bytes,
        inode: metadata.ino(),
        world_wide_id: is_device.then(|| world_wide_id(device)).flatten(),
        is_on_network: NETWORK_FILE_SYSTEMS.contains(&kind),
    })
}

/// What the kernel knows a block device by that is the same on every host: SCSI's and NVMe's identifiers, and those of
/// device mapper, which carry a volume group's or a multipath's own.
fn world_wide_id(device: u64) -> Option<String> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    ["device/wwid", "wwid", "dm/uuid"].iter().find_map(|name| {
        let path = format!("/sys/dev/block/{major}:{minor}/{name}");
        let id = std::fs::read_to_string(path).ok()?;
        let id: String = id.trim().chars().filter(char::is_ascii_graphic).take(128).collect();
        (!id.is_empty()).then_some(id)
    })
}

/// To read; neither waiting for a pipe's other end nor taking a terminal, should the path be one.
fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

fn span(kind: i32, byte: u64) -> io::Result<libc::flock> {
    Ok(libc::flock {
        l_type: i16::try_from(kind).map_err(io::Error::other)?,
        l_whence: i16::try_from(libc::SEEK_SET).map_err(io::Error::other)?,
        l_start: i64::try_from(byte).map_err(io::Error::other)?,
        l_len: 1,
        l_pid: 0,
    })
}

fn io_error(errno: Errno) -> io::Error {
    io::Error::from(errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_seen_through_any_name_and_not_on_a_copy() {
        let folder = std::env::temp_dir().join(format!("sterna-same-file-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (image, name, copy) = (folder.join("a"), folder.join("b"), folder.join("c"));
        std::fs::write(&image, [1; 4096]).unwrap();
        std::fs::hard_link(&image, &name).unwrap();
        std::fs::copy(&image, &copy).unwrap();
        let lock = ByteLock::take(&image, u64::MAX).unwrap();
        assert!(is_locked(&name, lock.byte).unwrap());
        assert!(!is_locked(&copy, lock.byte).unwrap());
        assert!(!is_locked(&name, lock.byte - 1).unwrap(), "another challenge");
        // A second job's challenge does not disturb the first one's.
        let other = ByteLock::take(&image, 0).unwrap();
        assert_eq!(other.byte, FIRST_LOCK_BYTE);
        assert!(is_locked(&name, other.byte).unwrap());
        let byte = lock.byte;
        drop(lock);
        assert!(!is_locked(&name, byte).unwrap());
        let (one, two) = (identity(&image).unwrap(), identity(&copy).unwrap());
        assert_eq!(one.length_bytes, two.length_bytes);
        assert_ne!(one.inode, two.inode);
        assert_eq!(one, identity(&name).unwrap());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn bytes_that_qemu_locks_are_no_challenge() {
        assert!(is_locked(Path::new("/proc/self/exe"), 100).is_err());
        assert!(is_locked(Path::new("/proc/self/exe"), u64::MAX).is_err());
    }
}
