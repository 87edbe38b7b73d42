//! Where the memory of a QEMU is: in its address space, or in a file that it shares.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sterna_model::BlockName;

use super::maps::{FileId, Mapping, Maps};
use super::monitor::{parse_gpa2hva, parse_ramblock};
use super::{BlockMemory, MemoryError};
use crate::process::Process;
use crate::qmp::Qmp;

/// Descriptors of a process that are looked at, at most.
const MAX_DESCRIPTORS: usize = 65_536;

/// A file in memory that a process has open.
#[derive(Debug)]
pub struct SharedFile {
    /// Its number in that process.
    pub number: i32,
    /// Its name: `memory-backend-memfd` for the memory of `-object memory-backend-memfd`.
    pub label: String,
    /// Its length in bytes.
    pub length_bytes: u64,
    /// The same file, opened here for reading and writing.
    pub file: OwnedFd,
}

/// A block of a QEMU's memory, for reading: from the file that QEMU shares, where it does, else through `/proc/PID/mem`. A file
/// is read twice as fast (10 GB/s against 5), and looking into its holes does not fill them.
///
/// Where this QEMU tells the addresses of its blocks (8.0 and later), any block is found. An older one is asked where the guest's physical
/// address 0 is: that is the start of its main memory, which is one range in QEMU even where the guest sees it in two
/// parts (below and above 4 GiB). Either way the range has to be mapped, readable, and of this block.
///
/// # Errors
/// [`MemoryError::NotPermitted`] without ptrace rights, [`MemoryError::NotFound`] when the range is not what it should be.
pub async fn ram_of(
    process: &Process,
    qmp: &Qmp,
    block: &BlockName,
    length_bytes: u64,
) -> Result<BlockMemory, MemoryError> {
    let base = address_of(process, qmp, block).await?;
    let maps = maps_of(process)?;
    let memory = match in_file(process, &maps, block, base, length_bytes)? {
        Some(memory) => memory,
        None => in_process(process, &maps, block, base, length_bytes)?,
    };
    alive(process, block)?;
    Ok(memory)
}

/// The block in the file that is mapped there, if it is shared and holds all of it.
fn in_file(
    process: &Process,
    maps: &Maps,
    block: &BlockName,
    base: u64,
    length_bytes: u64,
) -> Result<Option<BlockMemory>, MemoryError> {
    let whole = |mapping: &&Mapping| mapping.shared && mapping.end - base >= length_bytes;
    let Some(mapping) = maps.at(base).filter(whole) else { return Ok(None) };
    let Some(file) = descriptor_of(process, mapping.file)? else { return Ok(None) };
    let start = mapping.file_offset + (base - mapping.start);
    // A device has no length, and is not read either.
    let there = file.metadata().map_or(0, |about| about.len());
    let holds = start.checked_add(length_bytes).is_some_and(|end| end <= there);
    let block = block.clone();
    Ok(holds.then(|| BlockMemory::File { block, length_bytes, file: file.into(), start }))
}

/// The block inside the process.
fn in_process(
    process: &Process,
    maps: &Maps,
    block: &BlockName,
    base: u64,
    length_bytes: u64,
) -> Result<BlockMemory, MemoryError> {
    let read = OpenOptions::new().read(true).clone();
    let memory = open_of(process, "read the memory", "mem", &read)?;
    let mapped = maps.readable_bytes(base, length_bytes);
    if mapped < length_bytes {
        return Err(MemoryError::NotFound {
            block: block.clone(),
            pid: process.pid(),
            expected: format!("{length_bytes:#x} readable bytes at {base:#x}"),
            found: format!("{mapped:#x}"),
        });
    }
    // What is not there of a private file's mapping is in the file.
    let page_map = match maps.is_anonymous(base, length_bytes) {
        true => open_of(process, "look for the pages", "pagemap", &read).ok().map(Into::into),
        false => None,
    };
    let block = block.clone();
    Ok(BlockMemory::Process { block, length_bytes, memory: memory.into(), base, page_map })
}

/// The files in memory (memfds) that a process has open, in the order of its descriptors, so in that of the objects on QEMU's
/// command line. A file that is open twice is there once.
///
/// # Errors
/// [`MemoryError::NotPermitted`] or [`MemoryError::Proc`].
pub fn shared_blocks_of(process: &Process) -> Result<Vec<SharedFile>, MemoryError> {
    let mut files: Vec<SharedFile> = Vec::new();
    let mut seen = Vec::new();
    for number in descriptors_of(process)? {
        let link = format!("fd/{number}");
        let Ok(target) = std::fs::read_link(format!("/proc/{}/{link}", process.pid())) else {
            continue;
        };
        let target = target.to_string_lossy();
        let Some(label) = target.strip_prefix("/memfd:") else { continue };
        let label = label.strip_suffix(" (deleted)").unwrap_or(label).to_owned();
        let how = OpenOptions::new().read(true).write(true).clone();
        let file = open_of(process, "open the shared memory", &link, &how)?;
        let path = || format!("/proc/{}/{link}", process.pid());
        let about = file.metadata().map_err(|error| MemoryError::Proc { path: path(), error })?;
        if !seen.contains(&(about.dev(), about.ino())) {
            seen.push((about.dev(), about.ino()));
            files.push(SharedFile { number, label, length_bytes: about.len(), file: file.into() });
        }
    }
    Ok(files)
}

/// A block's memory in a file with a path (`memory-backend-file,share=on`).
///
/// # Errors
/// [`MemoryError::Proc`] when it cannot be opened, [`MemoryError::Gone`] when it is too short.
pub fn open_shared(
    path: &Path,
    block: &BlockName,
    length_bytes: u64,
) -> Result<BlockMemory, MemoryError> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    let file = opened
        .and_then(|file| file.metadata().map(|about| (file, about.len())))
        .map_err(|error| MemoryError::Proc { path: path.display().to_string(), error });
    let (file, there) = file?;
    if there < length_bytes {
        return Err(MemoryError::Gone {
            act: super::Act::Read,
            block: block.clone(),
            offset: there,
        });
    }
    Ok(BlockMemory::File { block: block.clone(), length_bytes, file: file.into(), start: 0 })
}

async fn address_of(process: &Process, qmp: &Qmp, block: &BlockName) -> Result<u64, MemoryError> {
    let table = qmp.hmp("info ramblock").await?;
    let blocks = parse_ramblock(&table).unwrap_or_default();
    let listed = blocks.iter().find(|listed| listed.name == *block);
    if let Some(address) = listed.and_then(|listed| listed.host_address) {
        return Ok(address);
    }
    let reply = qmp.hmp("gpa2hva 0x0").await?;
    match parse_gpa2hva(&reply) {
        Some((name, address)) if name == *block => Ok(address),
        _ => Err(MemoryError::NotFound {
            block: block.clone(),
            pid: process.pid(),
            expected: "it at the guest's physical address 0".into(),
            found: reply.trim().chars().take(200).collect(),
        }),
    }
}

/// The process's descriptor of a file, opened again for reading.
fn descriptor_of(process: &Process, wanted: FileId) -> Result<Option<File>, MemoryError> {
    for number in descriptors_of(process)? {
        let link = format!("fd/{number}");
        let path = format!("/proc/{}/{link}", process.pid());
        let Ok(about) = std::fs::metadata(path) else { continue };
        let device = (rustix::fs::major(about.dev()), rustix::fs::minor(about.dev()));
        if about.ino() == wanted.inode && device == (wanted.major, wanted.minor) {
            let how = OpenOptions::new().read(true).clone();
            return open_of(process, "open the shared memory", &link, &how).map(Some);
        }
    }
    Ok(None)
}

/// The numbers of a process's descriptors, in order.
fn descriptors_of(process: &Process) -> Result<Vec<i32>, MemoryError> {
    let path = format!("/proc/{}/fd", process.pid());
    let entries = std::fs::read_dir(&path).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            let what = "list the descriptors";
            MemoryError::NotPermitted { what, pid: process.pid(), error }
        }
        _ => MemoryError::Proc { path, error },
    })?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut numbers: Vec<i32> = names.take(MAX_DESCRIPTORS).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

fn maps_of(process: &Process) -> Result<Maps, MemoryError> {
    Maps::of(process.pid()).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            MemoryError::NotPermitted { what: "list the mappings", pid: process.pid(), error }
        }
        _ => MemoryError::Proc { path: format!("/proc/{}/maps", process.pid()), error },
    })
}

fn open_of(
    process: &Process,
    what: &'static str,
    name: &str,
    how: &OpenOptions,
) -> Result<File, MemoryError> {
    let pid = process.pid();
    let path = format!("/proc/{pid}/{name}");
    how.open(&path).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => MemoryError::NotPermitted { what, pid, error },
        _ => MemoryError::Proc { path, error },
    })
}

/// Everything above went by the process's number. If it is alive now, the number was its own all the time.
fn alive(process: &Process, block: &BlockName) -> Result<(), MemoryError> {
    if !process.has_exited()? {
        return Ok(());
    }
    Err(MemoryError::Gone { act: super::Act::Read, block: block.clone(), offset: 0 })
}
