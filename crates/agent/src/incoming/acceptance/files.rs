//! The files that a VM opens: that they are here, and that its disks are the source's own, not copies of them.
//!
//! A disk that is written must be one file at both ends, or what the guest wrote would stay behind. A disk that is only
//! read may be a copy: of another length it certainly is none.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use sterna_host::image;
use sterna_host::paths::{self, PathError, open_below};
use sterna_host::same_file::{self, Identity, is_locked};
use sterna_model::Refusal;
use sterna_qemu_args::{Access, FileKind, FileNeed};
use sterna_wire::{DiskEvidence, Evidence};

/// What is against the VM's files. `shared`: folders that the configuration vouches for.
pub(super) fn refusals(
    inputs: &[FileNeed],
    roots: &[PathBuf],
    shared: &[PathBuf],
    evidence: Option<&Evidence>,
) -> Vec<Refusal> {
    let check = |need: &FileNeed| match missing(need, roots) {
        Some(refusal) => Some(refusal),
        None if need.kind == FileKind::Disk => {
            let path = Path::new(&need.path);
            let is_vouched = shared.iter().any(|folder| path.starts_with(folder));
            // A source that tells nothing is of a release before this question.
            let evidence = evidence.filter(|_| !is_vouched)?;
            let told = evidence.disks.iter().find(|disk| disk.path == need.source_path);
            not_the_same(need, told)
        }
        None => None,
    };
    inputs.iter().filter_map(check).collect()
}

/// What is against the images behind the VM's disks: each names its backing file itself, and QEMU would open it.
pub(super) fn images_refused(inputs: &[FileNeed], roots: &[PathBuf]) -> Vec<Refusal> {
    let disks = inputs.iter().filter(|need| need.kind == FileKind::Disk);
    let check = |need: &FileNeed| {
        let path = Path::new(&need.path);
        let file = open(need, roots).ok()?;
        let error = image::check_chain(roots, path, &file, need.format.as_deref()).err()?;
        let remedy = "let all images of the chain lie below accept.roots, each naming its backing file's format";
        Some(Refusal::new("image-not-allowed", error.to_string(), remedy))
    };
    disks.filter_map(check).collect()
}

fn open(need: &FileNeed, roots: &[PathBuf]) -> Result<OwnedFd, PathError> {
    let access = match need.access {
        Access::Read => paths::Access::Read,
        Access::ReadWrite => paths::Access::ReadWrite,
    };
    open_below(roots, Path::new(&need.path), access)
}

fn missing(need: &FileNeed, roots: &[PathBuf]) -> Option<Refusal> {
    let error = open(need, roots).err()?;
    let reason = format!("{error} (at the source: {})", need.source_path);
    let remedy = "put the file there, map its path in [paths], or add its folder to accept.roots";
    Some(Refusal::new("file-missing", reason, remedy))
}

fn not_the_same(need: &FileNeed, told: Option<&DiskEvidence>) -> Option<Refusal> {
    let path = Path::new(&need.path);
    let found = same_file::identity(path).map(|here| match told {
        Some(told) => compare(told, &here, |byte| is_locked(path, byte)),
        None => Sameness::Untold,
    });
    let why = match (found, need.access) {
        (Ok(Sameness::Same), _) | (Ok(Sameness::MayBeCopy(_)), Access::Read) => return None,
        (Ok(Sameness::OtherLength { here, there }), Access::Read) => {
            let reason = format!(
                "{} is not what the guest reads at the source: expected {there} bytes, found {here}",
                need.path
            );
            let remedy = "put the same image there, or map its path to where it is in [paths]";
            return Some(Refusal::new("disk-differs", reason, remedy));
        }
        (Ok(Sameness::MayBeCopy(why)), Access::ReadWrite) => why,
        (Ok(Sameness::OtherLength { here, there }), Access::ReadWrite) => {
            format!("it has {there} bytes at the source and {here} here")
        }
        (Ok(Sameness::Untold), _) => "the source's agent cannot open it".to_owned(),
        (Err(error), _) => format!("it cannot be looked at: {error}"),
    };
    let reason = format!("{} is not the source's {}: {why}", need.path, need.source_path);
    let remedy = "put the disk on storage that both hosts share; if it is, and this cannot be seen, list its folder in accept.shared at the destination";
    Some(Refusal::new("disk-not-shared", reason, remedy))
}

/// What a file here is to one at the source.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Sameness {
    /// The same.
    Same,
    /// As long, and not known to be the same; why not.
    MayBeCopy(String),
    /// Another one.
    OtherLength { here: u64, there: u64 },
    /// The source says nothing of it.
    Untold,
}

fn compare(
    told: &DiskEvidence,
    here: &Identity,
    is_locked: impl FnOnce(u64) -> io::Result<bool>,
) -> Sameness {
    let locked = told.locked_byte.map(is_locked);
    if matches!(locked, Some(Ok(true))) {
        return Sameness::Same;
    }
    if told.length_bytes != here.length_bytes {
        return Sameness::OtherLength { here: here.length_bytes, there: told.length_bytes };
    }
    if here.world_wide_id.is_some() && here.world_wide_id == told.world_wide_id {
        return Sameness::Same;
    }
    if here.is_on_network && here.inode == told.inode {
        return Sameness::Same;
    }
    Sameness::MayBeCopy(match locked {
        None => "the source's agent can lock no byte of it".to_owned(),
        Some(Ok(_)) => "the byte that the source's agent has locked is not locked here".to_owned(),
        Some(Err(error)) => format!("locks cannot be seen here: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> DiskEvidence {
        DiskEvidence {
            path: "/srv/a".into(),
            length_bytes: 4096,
            inode: 7,
            locked_byte: Some(1 << 41),
            world_wide_id: None,
        }
    }

    fn here() -> Identity {
        Identity { length_bytes: 4096, inode: 7, world_wide_id: None, is_on_network: false }
    }

    fn no(_: u64) -> io::Result<bool> {
        Ok(false)
    }

    #[test]
    fn a_lock_that_is_seen_is_proof() {
        let other = Identity { length_bytes: 1, inode: 8, ..here() };
        assert_eq!(compare(&told(), &other, |byte| Ok(byte == 1 << 41)), Sameness::Same);
    }

    #[test]
    fn an_equal_copy_on_a_local_disk_is_not_the_same() {
        assert!(matches!(compare(&told(), &here(), no), Sameness::MayBeCopy(_)));
        let unlocked = DiskEvidence { locked_byte: None, ..told() };
        assert!(matches!(compare(&unlocked, &here(), |_| Ok(true)), Sameness::MayBeCopy(_)));
        let longer = DiskEvidence { length_bytes: 8192, ..told() };
        let expected = Sameness::OtherLength { here: 4096, there: 8192 };
        assert_eq!(compare(&longer, &here(), no), expected);
    }

    #[test]
    fn a_network_mount_that_keeps_locks_to_itself_is_known_by_number_and_length() {
        let mount = Identity { is_on_network: true, ..here() };
        assert_eq!(compare(&told(), &mount, no), Sameness::Same);
        let other = Identity { inode: 8, ..mount };
        assert!(matches!(compare(&told(), &other, no), Sameness::MayBeCopy(_)));
    }

    #[test]
    fn a_block_device_is_known_by_its_name_all_over_the_world() {
        let id = |id: &str| Some(id.to_owned());
        let told = DiskEvidence { world_wide_id: id("naa.6"), ..told() };
        let failed = |_| Err(io::Error::other("no locks"));
        let same = Identity { world_wide_id: id("naa.6"), inode: 9, ..here() };
        assert_eq!(compare(&told, &same, failed), Sameness::Same);
        let other = Identity { world_wide_id: id("naa.7"), ..same };
        assert!(matches!(compare(&told, &other, failed), Sameness::MayBeCopy(_)));
        let nameless = DiskEvidence { world_wide_id: None, ..told };
        let device = Identity { world_wide_id: None, ..other };
        assert!(matches!(compare(&nameless, &device, failed), Sameness::MayBeCopy(_)));
    }

    #[test]
    fn a_disk_that_is_only_read_may_be_a_copy() {
        let folder = std::env::temp_dir().join(format!("sterna-files-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("disc.iso");
        std::fs::write(&path, [0; 4096]).unwrap();
        let need = |access| FileNeed {
            path: path.to_string_lossy().into_owned(),
            source_path: "/srv/a".into(),
            access,
            kind: FileKind::Disk,
            must_exist: false,
            format: Some("raw".into()),
        };
        let code = |access, told: Option<&DiskEvidence>| {
            not_the_same(&need(access), told).map(|refusal| refusal.code)
        };
        assert_eq!(code(Access::Read, Some(&told())), None);
        assert_eq!(code(Access::ReadWrite, Some(&told())).as_deref(), Some("disk-not-shared"));
        assert_eq!(code(Access::Read, None).as_deref(), Some("disk-not-shared"));
        let longer = DiskEvidence { length_bytes: 1, ..told() };
        assert_eq!(code(Access::Read, Some(&longer)).as_deref(), Some("disk-differs"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
