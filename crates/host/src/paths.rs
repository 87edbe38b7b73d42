//! Files that a peer's description names: may this host give them to a VM that arrives?
//!
//! The peer is not root here. A path must be absolute and plain, lie below one of the roots that the configuration allows, and no
//! component below the root may be a symbolic link: the kernel resolves it (`openat2`), so nothing can be exchanged
//! between the check of one component and the next. The root itself is the administrator's, and may be reached through links.
//!
//! What is opened is only a handle on the file (`O_PATH`): nothing is read or written, no device notices. It proves what the path
//! means now. Whoever opens the path again later relies on the folders below the root being writable only by those who
//! may choose for the VM; who cannot rely on that opens `/proc/self/fd/N` of the handle.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;

/// Bytes in a path, at most: the kernel's own limit.
const MAX_PATH_BYTES: usize = 4095;

/// What a VM wants to do with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read what is there.
    Read,
    /// Read and write what is there.
    ReadWrite,
    /// Make a file where none is.
    Create,
}

/// Why a path is refused.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// Not a path that we look at: relative, with `.` or `..`, a NUL, or too long.
    #[error("path {path} is refused: {why}", path = shown(path))]
    NotPlain {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Not below a root.
    #[error("path {path} is refused: it is below none of the roots that are allowed ({roots})", path = shown(path))]
    NotBelow {
        /// The path.
        path: PathBuf,
        /// The roots.
        roots: String,
    },
    /// A component could not be followed.
    #[error("path {path} is refused at {component}: {why}", path = shown(path), component = shown(component))]
    Component {
        /// The path.
        path: PathBuf,
        /// As much of it as the failure is at.
        component: PathBuf,
        /// What failed.
        why: String,
    },
    /// Neither a file nor a block device, or something where nothing should be.
    #[error("path {path} is refused: expected {expected}, found {found}", path = shown(path))]
    Kind {
        /// The path.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// This process may not use it so.
    #[error("path {path} is refused: no permission to {what} ({error})", path = shown(path))]
    Denied {
        /// The path.
        path: PathBuf,
        /// What it may not.
        what: &'static str,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
}

/// Checks that `path` lies below one of `roots`, reached without a symbolic link, and is a regular file or a block device that
/// this process can use as `access` says. Gives a handle on it: on the file, or, for [`Access::Create`], on the folder that it
/// is to be made in.
///
/// # Errors
/// [`PathError`], which says what failed where.
pub fn open_below(roots: &[PathBuf], path: &Path, access: Access) -> Result<OwnedFd, PathError> {
    check_plain(path)?;
    let below = |root: &&PathBuf| path.strip_prefix(root).is_ok_and(|rest| rest != Path::new(""));
    // The innermost root decides: it is the one that the administrator meant for this path.
    let root = roots.iter().filter(below).max_by_key(|root| root.components().count());
    let Some((root, rest)) = root.and_then(|root| Some((root, path.strip_prefix(root).ok()?)))
    else {
        let roots: Vec<_> = roots.iter().map(|root| shown(root)).collect();
        return Err(PathError::NotBelow { path: path.into(), roots: roots.join(", ") });
    };
    let top = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| component_error(path, root, errno))?;
    let place = Place { path, root, top, rest };
    match access {
        Access::Read | Access::ReadWrite => place.existing(access),
        Access::Create => place.free(),
    }
}

/// A path that is below a root.
struct Place<'a> {
    path: &'a Path,
    root: &'a Path,
    top: OwnedFd,
    rest: &'a Path,
}

impl Place<'_> {
    fn existing(&self, access: Access) -> Result<OwnedFd, PathError> {
        let file = self.resolve(self.rest)?;
        let expected = "a regular file or a block device";
        match kind_of(&file) {
            Ok(FileType::RegularFile) => {}
            // A node elsewhere may be of anybody's making, on storage that others are root of, and be any disk.
            Ok(FileType::BlockDevice) if is_in_dev(&file) => {}
            Ok(FileType::BlockDevice) => {
                return Err(self.wrong_kind(expected, "a block device outside of /dev"));
            }
            Ok(other) => return Err(self.wrong_kind(expected, name_of(other))),
            Err(errno) => return Err(component_error(self.path, self.path, errno)),
        }
        self.permitted(&file, rustix::fs::Access::READ_OK, "read it")?;
        if access == Access::ReadWrite {
            self.permitted(&file, rustix::fs::Access::WRITE_OK, "write it")?;
        }
        Ok(file)
    }

    fn free(&self) -> Result<OwnedFd, PathError> {
        let expected = "nothing, or a folder to make it in";
        let Some(name) = self.rest.file_name() else {
            return Err(self.wrong_kind(expected, "no name"));
        };
        let parent = self.rest.parent().unwrap_or(Path::new(""));
        let parent = if parent == Path::new("") { Path::new(".") } else { parent };
        let folder = self.resolve(parent)?;
        match kind_of(&folder) {
            Ok(FileType::Directory) => {}
            Ok(other) => return Err(self.wrong_kind(expected, name_of(other))),
            Err(errno) => return Err(component_error(self.path, parent, errno)),
        }
        match rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(component_error(self.path, self.path, errno)),
            Ok(about) => {
                let found = name_of(FileType::from_raw_mode(about.st_mode));
                return Err(self.wrong_kind("nothing, since nothing is overwritten", found));
            }
        }
        let make = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
        self.permitted(&folder, make, "make a file there")?;
        Ok(folder)
    }

    /// Resolves what is below the root; where that fails, finds the component that it fails at.
    fn resolve(&self, below: &Path) -> Result<OwnedFd, PathError> {
        let failed = match resolve_plainly(&self.top, below) {
            Ok(handle) => return Ok(handle),
            Err(errno) => errno,
        };
        let mut reached = PathBuf::new();
        for component in below.components() {
            reached.push(component);
            if let Err(errno) = resolve_plainly(&self.top, &reached) {
                return Err(component_error(self.path, &self.root.join(reached), errno));
            }
        }
        Err(component_error(self.path, self.path, failed))
    }

    fn permitted(
        &self,
        handle: &OwnedFd,
        rights: rustix::fs::Access,
        what: &'static str,
    ) -> Result<(), PathError> {
        // By the handle, so that what was resolved is what is asked about.
        let own = format!("/proc/self/fd/{}", handle.as_raw_fd());
        rustix::fs::accessat(CWD, own, rights, AtFlags::EACCESS).map_err(|errno| {
            PathError::Denied { path: self.path.into(), what, error: errno.into() }
        })
    }

    fn wrong_kind(&self, expected: &'static str, found: &'static str) -> PathError {
        PathError::Kind { path: self.path.into(), expected, found }
    }
}

fn check_plain(path: &Path) -> Result<(), PathError> {
    let bytes = path.as_os_str().as_bytes();
    // `components` would pass over `.` and doubled slashes silently.
    let has = |name: &str| bytes.split(|byte| *byte == b'/').any(|part| part == name.as_bytes());
    let why = if bytes.len() > MAX_PATH_BYTES {
        "it is longer than 4095 bytes"
    } else if bytes.contains(&0) {
        "it has a NUL in it"
    } else if !path.is_absolute() {
        "it is not absolute"
    } else if has("..") || has(".") {
        "it has . or .. in it"
    } else if bytes.ends_with(b"/") {
        "it ends with a slash"
    } else {
        return Ok(());
    };
    Err(PathError::NotPlain { path: path.into(), why })
}

fn resolve_plainly(top: &OwnedFd, below: &Path) -> Result<OwnedFd, Errno> {
    // Without NOFOLLOW, which would make a link at the path's end a file to look at instead of an error.
    let how = OFlags::PATH | OFlags::CLOEXEC;
    let limits = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        // EAGAIN: somebody renamed a folder on the way; EINTR: a signal.
        match openat2(top, below, how, Mode::empty(), limits) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

fn component_error(path: &Path, component: &Path, errno: Errno) -> PathError {
    let why = match errno {
        Errno::LOOP => "it is a symbolic link, and links are not followed below a root".into(),
        Errno::NOENT => "there is no such file".into(),
        Errno::XDEV => "it leads out of the root".into(),
        Errno::NOSYS => "this kernel has no openat2 (Linux 5.6)".into(),
        other => io::Error::from(other).to_string(),
    };
    PathError::Component { path: path.into(), component: component.into(), why }
}

/// Whether a handle is on something in the kernel's own folder of devices.
fn is_in_dev(handle: &OwnedFd) -> bool {
    let own = format!("/proc/self/fd/{}", handle.as_raw_fd());
    std::fs::read_link(own).is_ok_and(|path| path.starts_with("/dev"))
}

fn kind_of(handle: &OwnedFd) -> Result<FileType, Errno> {
    fstat(handle).map(|about| FileType::from_raw_mode(about.st_mode))
}

fn name_of(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a folder",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Unknown => "something unknown",
    }
}

/// A path for a message: without control characters, and not endless.
fn shown(path: &Path) -> String {
    const MAX_CHARS: usize = 300;
    let text = OsStr::to_string_lossy(path.as_os_str());
    let plain = |char: char| if char.is_control() { '\u{fffd}' } else { char };
    text.chars().take(MAX_CHARS).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A folder with the tricks in it, and the root that is allowed: `allowed` in it.
    fn lab(name: &str) -> (PathBuf, Vec<PathBuf>) {
        let lab = std::env::temp_dir().join(format!("sterna-paths-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&lab);
        let allowed = lab.join("allowed");
        fs::create_dir_all(allowed.join("vm")).unwrap();
        fs::create_dir_all(lab.join("allowed-not")).unwrap();
        for file in ["secret", "allowed-not/disk", "allowed/vm/disk"] {
            fs::write(lab.join(file), "content").unwrap();
        }
        (lab.clone(), vec![allowed])
    }

    fn refusal(roots: &[PathBuf], path: &Path, access: Access) -> String {
        open_below(roots, path, access).unwrap_err().to_string()
    }

    #[test]
    fn a_block_device_outside_of_dev_is_refused() {
        let (lab, roots) = lab("node");
        let path = lab.join("allowed/vm/node");
        let (mode, device) = (Mode::from_raw_mode(0o600), rustix::fs::makedev(7, 0));
        match rustix::fs::mknodat(CWD, &path, FileType::BlockDevice, mode, device) {
            Ok(()) => {
                let refused = refusal(&roots, &path, Access::Read);
                assert!(refused.contains("a block device outside of /dev"), "{refused}");
            }
            Err(Errno::PERM) => eprintln!("skipped: only root can make device nodes"),
            Err(errno) => panic!("{errno}"),
        }
        fs::remove_dir_all(lab).unwrap();
    }

    #[test]
    fn a_file_below_a_root_is_let_through() {
        let (lab, roots) = lab("good");
        let disk = lab.join("allowed/vm/disk");
        let handle = open_below(&roots, &disk, Access::ReadWrite).unwrap();
        let means = fs::read_link(format!("/proc/self/fd/{}", handle.as_raw_fd())).unwrap();
        assert_eq!(means, disk.canonicalize().unwrap());
        let new = lab.join("allowed/vm/new");
        open_below(&roots, &new, Access::Create).unwrap();
        open_below(&roots, &lab.join("allowed/new"), Access::Create).unwrap();
        assert!(!new.exists(), "a check makes nothing");
        // The root may be reached through a link.
        symlink(lab.join("allowed"), lab.join("link")).unwrap();
        open_below(&[lab.join("link")], &lab.join("link/vm/disk"), Access::Read).unwrap();
        fs::remove_dir_all(lab).unwrap();
    }

    #[test]
    fn links_are_not_followed_wherever_they_lead() {
        let (lab, roots) = lab("links");
        let allowed = lab.join("allowed");
        symlink("../../secret", allowed.join("vm/out")).unwrap();
        symlink("disk", allowed.join("vm/in")).unwrap();
        symlink(&lab, allowed.join("up")).unwrap();
        symlink("/proc/self/root", allowed.join("magic")).unwrap();
        symlink("absent", allowed.join("vm/dangling")).unwrap();
        for (path, at) in [
            ("vm/out", "vm/out"),
            ("vm/in", "vm/in"),
            ("up/secret", "up"),
            ("magic/etc/passwd", "magic"),
        ] {
            for access in [Access::Read, Access::ReadWrite] {
                let refused = refusal(&roots, &allowed.join(path), access);
                let at =
                    format!("refused at {}: it is a symbolic link", allowed.join(at).display());
                assert!(refused.contains(&at), "{refused}");
            }
        }
        let refused = refusal(&roots, &allowed.join("up/new"), Access::Create);
        assert!(refused.contains("symbolic link"), "{refused}");
        // A dangling link is something: creating through it would write where it points.
        let refused = refusal(&roots, &allowed.join("vm/dangling"), Access::Create);
        assert!(refused.contains("found a symbolic link"), "{refused}");
        fs::remove_dir_all(lab).unwrap();
    }

    #[test]
    fn what_is_not_below_a_root_is_refused_before_it_is_touched() {
        let (lab, roots) = lab("outside");
        for path in ["secret", "allowed-not/disk", "allowed"] {
            let refused = open_below(&roots, &lab.join(path), Access::Read);
            assert!(matches!(refused, Err(PathError::NotBelow { .. })), "{path}: {refused:?}");
        }
        for path in [
            format!("{}/allowed/../secret", lab.display()),
            format!("{}/allowed/./vm/disk", lab.display()),
            format!("{}/allowed/vm/disk/", lab.display()),
            "allowed/vm/disk".into(),
            String::new(),
            format!("{}/allowed/vm/disk\0x", lab.display()),
            format!("{}/allowed/{}", lab.display(), "x/".repeat(3000)),
        ] {
            let refused = open_below(&roots, Path::new(&path), Access::Read);
            assert!(matches!(refused, Err(PathError::NotPlain { .. })), "{path}: {refused:?}");
        }
        assert!(open_below(&[], &lab.join("secret"), Access::Read).is_err());
        fs::remove_dir_all(lab).unwrap();
    }

    #[test]
    fn says_what_is_in_the_way() {
        let (lab, roots) = lab("kinds");
        let vm = lab.join("allowed/vm");
        rustix::fs::mknodat(CWD, vm.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(vm.join("socket")).unwrap();
        for (name, found) in [("pipe", "a pipe"), ("socket", "a socket"), ("", "a folder")] {
            let path = if name.is_empty() { vm.clone() } else { vm.join(name) };
            let refused = refusal(&roots, &path, Access::Read);
            assert!(refused.ends_with(found), "{refused}");
        }
        let refused = refusal(&roots, &vm.join("absent/disk"), Access::Read);
        let expected = format!("at {}: there is no such file", vm.join("absent").display());
        assert!(refused.contains(&expected), "{refused}");
        let refused = refusal(&roots, &vm.join("disk/x"), Access::Read);
        assert!(refused.contains(&format!("at {}", vm.join("disk/x").display())), "{refused}");
        let refused = refusal(&roots, &vm.join("disk"), Access::Create);
        assert!(refused.ends_with("found a regular file"), "{refused}");
        let refused = refusal(&roots, &vm.join("disk/new"), Access::Create);
        assert!(refused.ends_with("found a regular file"), "{refused}");
        fs::remove_dir_all(lab).unwrap();
    }
}
