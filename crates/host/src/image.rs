//! What a disk image says about other files: a qcow2 image names its backing file, and that one the next.
//!
//! QEMU opens what the image names, with QEMU's rights. Who can write an image that a VM of theirs uses, such as a peer on
//! storage that both hosts share, must not be able to have this host open another file. So each name in the chain is held
//! below the same roots as the image itself, its format has to be written beside it, and nothing but files is followed.
//!
//! ```text
//!   qcow2 header (big-endian)   0 "QFI\xfb"   4 version   8 backing name's offset   16 its length
//!   version 3                  72 incompatible features   100 header's length
//!   then extensions: type u32, length u32, data, padding to 8; 0xE2792ACA is the backing file's format
//! ```
//!
//! An image is looked at when a VM arrives, and opened by QEMU a moment later.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use crate::paths::{Access, PathError, open_below};

/// Images in a chain, at most.
const MAX_CHAIN: usize = 64;
/// As much of an image as is looked at for its header and extensions.
const MAX_HEADER_BYTES: usize = 64 << 10;
/// Bytes of a backing file's name, at most: the format's own limit.
const MAX_NAME_BYTES: u32 = 1023;

const MAGIC: &[u8] = b"QFI\xfb";
const VERSION_2_HEADER_BYTES: usize = 72;
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// The image's data are in another file.
const EXTERNAL_DATA: u64 = 1 << 2;

/// Why an image is not given to a VM that arrives.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It cannot be read.
    #[error("image {path} is refused: it cannot be read ({error})", path = path.display())]
    Read {
        /// The image.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// What it says about itself is not as the format has it, or not allowed.
    #[error("image {path} is refused: expected {expected}, found {found}", path = path.display())]
    Header {
        /// The image.
        path: PathBuf,
        /// What it should say.
        expected: &'static str,
        /// What it says, cut.
        found: String,
    },
    /// Its backing file is not to be used.
    #[error("image {path} is refused for its backing file: {error}", path = path.display())]
    Backing {
        /// The image that names it.
        path: PathBuf,
        /// Why.
        error: PathError,
    },
    /// The chain has no end.
    #[error("image {path} is refused: expected at most {MAX_CHAIN} images in its chain, found more", path = path.display())]
    Chain {
        /// The first image.
        path: PathBuf,
    },
}

/// Checks that all that the image at `path` refers to lies below `roots`. `image` is what [`open_below`] gave for it. What
/// is opened as `raw` refers to nothing; in any other format, and in none that is known, the header counts.
///
/// # Errors
/// [`ImageError`], which names the image of the chain that is to blame.
pub fn check_chain(
    roots: &[PathBuf],
    path: &Path,
    image: &OwnedFd,
    format: Option<&str>,
) -> Result<(), ImageError> {
    if format == Some("raw") {
        return Ok(());
    }
    let mut next = backing_of(path, image)?;
    for _ in 1..MAX_CHAIN {
        let Some((named_by, backing)) = next else { return Ok(()) };
        let refused = |error| ImageError::Backing { path: named_by, error };
        let opened = open_below(roots, &backing.path, Access::Read).map_err(refused)?;
        next = match backing.format {
            BackingFormat::Raw => None,
            BackingFormat::Qcow2 => backing_of(&backing.path, &opened)?,
        };
    }
    match next {
        Some(_) => Err(ImageError::Chain { path: path.to_owned() }),
        None => Ok(()),
    }
}

struct Backing {
    path: PathBuf,
    format: BackingFormat,
}

#[derive(Clone, Copy)]
enum BackingFormat {
    Raw,
    Qcow2,
}

/// What an image names as its backing file, if it is a qcow2 image and names one; with the image's own path.
fn backing_of(path: &Path, image: &OwnedFd) -> Result<Option<(PathBuf, Backing)>, ImageError> {
    let failed = |error| ImageError::Read { path: path.to_owned(), error };
    // The very file that was looked at, not what the path may name by now.
    let file = File::open(format!("/proc/self/fd/{}", image.as_raw_fd())).map_err(failed)?;
    let start = read_start(&file).map_err(failed)?;
    if !start.starts_with(MAGIC) {
        return Ok(None);
    }
    let wrong = |expected, found: String| ImageError::Header {
        path: path.to_owned(),
        expected,
        found: found.chars().take(200).collect(),
    };
    let header = Header::read(&start).ok_or_else(|| {
        wrong("a whole qcow2 header of version 2 or 3", "a damaged one, or another version".into())
    })?;
    if header.incompatible & EXTERNAL_DATA != 0 {
        return Err(wrong("an image that has its data in itself", "an external data file".into()));
    }
    if header.backing_offset == 0 {
        return Ok(None);
    }
    if header.backing_bytes > MAX_NAME_BYTES {
        let found = format!("{} bytes", header.backing_bytes);
        return Err(wrong("a backing file's name of at most 1023 bytes", found));
    }
    let mut name = vec![0; header.backing_bytes as usize];
    file.read_exact_at(&mut name, header.backing_offset).map_err(failed)?;
    let name = String::from_utf8(name)
        .map_err(|error| wrong("a backing file's name in UTF-8", format!("{error}")))?;
    let format = match extension(&start, header.length, BACKING_FORMAT) {
        Some(b"raw") => BackingFormat::Raw,
        Some(b"qcow2") => BackingFormat::Qcow2,
        other => {
            let found = other.map_or("none".into(), |it| String::from_utf8_lossy(it).into_owned());
            let expected = "raw or qcow2 as its backing file's format (qemu-img rebase -u -F)";
            return Err(wrong(expected, found));
        }
    };
    let plain = backing_path(path, &name);
    let backing = plain.ok_or_else(|| wrong("a file as its backing file", name.clone()))?;
    Ok(Some((path.to_owned(), Backing { path: backing, format })))
}

/// Where QEMU looks for the backing file `name` of the image at `path`; none for what is no file.
fn backing_path(path: &Path, name: &str) -> Option<PathBuf> {
    let name = name.strip_prefix("file:").unwrap_or(name);
    let start = name.split('/').next().unwrap_or_default();
    if name.is_empty() || start.contains(':') {
        return None;
    }
    // There are no links below the roots, so `..` is what it looks like; `open_below` sees what comes of it.
    let mut whole = PathBuf::new();
    for component in path.parent()?.join(name).components() {
        match component {
            Component::ParentDir => drop(whole.pop()),
            Component::CurDir => {}
            other => whole.push(other),
        }
    }
    Some(whole)
}

struct Header {
    backing_offset: u64,
    backing_bytes: u32,
    incompatible: u64,
    length: usize,
}

impl Header {
    fn read(start: &[u8]) -> Option<Self> {
        let (incompatible, length) = match number_32(start, 4)? {
            2 => (0, VERSION_2_HEADER_BYTES),
            3 => (number_64(start, 72)?, usize::try_from(number_32(start, 100)?).ok()?),
            _ => return None,
        };
        let (backing_offset, backing_bytes) = (number_64(start, 8)?, number_32(start, 16)?);
        Some(Self { backing_offset, backing_bytes, incompatible, length })
    }
}

/// The data of the first extension of this type, within what was read.
fn extension(start: &[u8], header_bytes: usize, wanted: u32) -> Option<&[u8]> {
    let mut at = header_bytes;
    loop {
        let kind = number_32(start, at)?;
        let length = usize::try_from(number_32(start, at.checked_add(4)?)?).ok()?;
        let data = start.get(at.checked_add(8)?..)?.get(..length)?;
        match kind {
            0 => return None,
            kind if kind == wanted => return Some(data),
            _ => at = at.checked_add(8)?.checked_add(length.checked_next_multiple_of(8)?)?,
        }
    }
}

fn number_32(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_be_bytes(*field))
}

fn number_64(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..)?.first_chunk::<8>()?;
    Some(u64::from_be_bytes(*field))
}

fn read_start(file: &File) -> io::Result<Vec<u8>> {
    let mut start = vec![0; MAX_HEADER_BYTES];
    let mut filled = 0;
    while filled < start.len() {
        match file.read_at(&mut start[filled..], filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    start.truncate(filled);
    Ok(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::test_folder;

    /// A qcow2 header that names this backing file, in this format.
    fn header(version: u32, name: &str, format: Option<&str>, incompatible: u64) -> Vec<u8> {
        let length: usize = if version == 2 { 72 } else { 104 };
        let mut image = vec![0; 4096];
        image[..4].copy_from_slice(MAGIC);
        image[4..8].copy_from_slice(&version.to_be_bytes());
        if !name.is_empty() {
            image[8..16].copy_from_slice(&2048_u64.to_be_bytes());
            image[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
            image[2048..2048 + name.len()].copy_from_slice(name.as_bytes());
        }
        if version == 3 {
            image[72..80].copy_from_slice(&incompatible.to_be_bytes());
            image[100..104].copy_from_slice(&104_u32.to_be_bytes());
        }
        // Another extension comes first.
        image[length..length + 8].copy_from_slice(&[0x68, 0x03, 0xf8, 0x57, 0, 0, 0, 5]);
        if let Some(format) = format {
            let at = length + 16;
            image[at..at + 4].copy_from_slice(&BACKING_FORMAT.to_be_bytes());
            image[at + 4..at + 8]
                .copy_from_slice(&u32::try_from(format.len()).unwrap().to_be_bytes());
            image[at + 8..at + 8 + format.len()].copy_from_slice(format.as_bytes());
        }
        image
    }

    fn check(roots: &[PathBuf], path: &Path, format: Option<&str>) -> Result<(), String> {
        let image = open_below(roots, path, Access::Read).map_err(|error| error.to_string())?;
        check_chain(roots, path, &image, format).map_err(|error| error.to_string())
    }

    #[test]
    fn chains_below_the_roots_are_followed_to_their_end() {
        let folder = test_folder();
        let write =
            |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
        let roots = [folder.path().to_owned()];
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        write("base", b"raw bytes");
        write("alone", &header(3, "", None, 0));
        write("sub/middle", &header(2, "../base", Some("raw"), 0));
        let absolute = format!("file:{}", folder.path().join("sub/middle").display());
        write("top", &header(3, &absolute, Some("qcow2"), 0));
        for name in ["base", "alone", "sub/middle", "top"] {
            for format in [None, Some("qcow2")] {
                assert_eq!(check(&roots, &folder.path().join(name), format), Ok(()), "{name}");
            }
        }
        write("base", &header(3, "/etc/shadow", Some("raw"), 0));
        let top = folder.path().join("top");
        assert_eq!(check(&roots, &top, None), Ok(()), "the end of the chain is opened as raw");
        write("sub/middle", &header(2, "../base", Some("qcow2"), 0));
        let error = check(&roots, &top, None).unwrap_err();
        assert!(error.contains("/etc/shadow") && error.contains("/base "), "{error}");
    }

    #[test]
    fn what_leads_elsewhere_is_refused_by_name() {
        let folder = test_folder();
        let roots = [folder.path().to_owned()];
        let path = folder.path().join("image");
        std::os::unix::fs::symlink("/etc/shadow", folder.path().join("link")).unwrap();
        std::fs::write(folder.path().join("base"), b"").unwrap();
        let cases: &[(&str, Option<&str>, u64, &str)] = &[
            ("/etc/shadow", Some("raw"), 0, "below none of the roots"),
            ("../../../../../../etc/shadow", Some("raw"), 0, "below none of the roots"),
            ("link", Some("raw"), 0, "symbolic link"),
            ("/proc/self/fd/0", Some("raw"), 0, "below none of the roots"),
            ("json:{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}", Some("raw"), 0, "json:"),
            ("nbd://localhost/x", Some("raw"), 0, "nbd:"),
            ("file:nbd:localhost:1", Some("raw"), 0, "nbd:"),
            ("fat:/etc", Some("raw"), 0, "fat:"),
            ("base", Some("vmdk"), 0, "vmdk"),
            ("base", None, 0, "found none"),
            ("missing", Some("raw"), 0, "no such file"),
            ("", None, EXTERNAL_DATA, "external data file"),
            ("image", Some("qcow2"), 0, "found more"),
        ];
        for (name, format, incompatible, found) in cases {
            std::fs::write(&path, header(3, name, *format, *incompatible)).unwrap();
            for opened_as in [None, Some("qcow2")] {
                let error = check(&roots, &path, opened_as).unwrap_err();
                assert!(error.contains(found) && error.contains("/image"), "{name}: {error}");
            }
            assert_eq!(check(&roots, &path, Some("raw")), Ok(()), "raw bytes refer to nothing");
        }
    }

    #[test]
    fn damaged_headers_end_in_an_error_or_in_nothing() {
        let folder = test_folder();
        let roots = [folder.path().to_owned()];
        let path = folder.path().join("image");
        let whole = header(3, "/etc/shadow", Some("raw"), 0);
        for cut in (0..whole.len()).step_by(7).chain(0..120) {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(check(&roots, &path, None).is_ok(), cut < MAGIC.len(), "{cut}");
        }
        for at in 4..128 {
            for byte in [0, 1, 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = byte;
                std::fs::write(&path, &damaged).unwrap();
                // Whatever it says now: no panic, and never the file outside.
                let names_none = damaged[8..16] == [0; 8];
                assert_eq!(check(&roots, &path, None).is_ok(), names_none, "{at}: {byte}");
            }
        }
    }
}
