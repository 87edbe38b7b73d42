//! Guest memory, read and written from outside of a real QEMU.

use std::io::Read;
use std::path::Path;

use serde_json::json;
use sterna_host::memory::{BlockMemory, MemoryError, ram_of, shared_blocks_of};
use sterna_host::qmp::Qmp;
use sterna_model::BlockName;

use crate::support::{SOON, Vm, qemu};

fn pc_ram() -> BlockName {
    BlockName::new(b"pc.ram").unwrap()
}

fn all_of(memory: &BlockMemory) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(memory.length_bytes()).unwrap()];
    memory.read_at(0, &mut bytes).unwrap();
    bytes
}

/// What QEMU itself says the guest's memory holds. The guest is stopped.
async fn saved_by_qemu(qmp: &Qmp, address: u64, length_bytes: u64, path: &Path) -> Vec<u8> {
    let arguments = json!({ "val": address, "size": length_bytes, "filename": path.to_str() });
    qmp.execute("pmemsave", arguments, SOON).await.unwrap();
    let mut bytes = Vec::new();
    std::fs::File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// Where something may be: starts and lengths in bytes.
fn present_in(memory: &BlockMemory) -> Vec<(usize, usize)> {
    let mut present = Vec::new();
    let number = |bytes: u64| usize::try_from(bytes).unwrap();
    memory
        .each_present(|range| {
            present.push((number(range.start), number(range.end - range.start)));
        })
        .unwrap();
    present
}

/// Whether this kernel has `PAGEMAP_SCAN`.
fn tells_pages_of_zeros() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut parts = release.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next(), parts.next()) >= (Some(6), Some(7))
}

/// Where the machine has something other than RAM between 640 KiB and 1 MiB, QEMU's view of physical memory differs from the block.
fn differing_pages(block: &[u8], saved: &[u8]) -> Vec<usize> {
    assert_eq!(block.len(), saved.len());
    let pages = block.chunks(4096).zip(saved.chunks(4096)).enumerate();
    let differ = pages.filter(|(_, (ours, theirs))| ours != theirs).map(|(page, _)| page);
    differ.filter(|page| !(0xa0..0x100).contains(page)).collect()
}

#[tokio::test]
async fn private_memory_reads_as_qemu_says() {
    let Some(qemu) = qemu() else { return };
    let vm = Vm::start(&qemu, &["-m", "65528k"]).await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    vm.qmp.stop().await.unwrap();
    let length = 65528 << 10;
    let memory = ram_of(&vm.process, &vm.qmp, &pc_ram(), length).await.unwrap();
    let present = present_in(&memory);
    let bytes = all_of(&memory);
    // From now on the kernel has a page of zeros wherever there was none.
    if tells_pages_of_zeros() {
        assert_eq!(present_in(&memory), present, "what was only read is not there");
    }
    let saved = saved_by_qemu(&vm.qmp, 0, length, &vm.folder.file("saved")).await;
    assert_eq!(differing_pages(&bytes, &saved), [0_usize; 0]);
    assert!(bytes.iter().any(|byte| *byte != 0), "the firmware has written something");

    let wrong = BlockName::new(b"other.ram").unwrap();
    let there: usize = present.iter().map(|(_, length)| length).sum();
    assert!((1 << 20..32 << 20).contains(&there), "{there} bytes: most of it was never written");
    let mut empty = bytes;
    present.iter().for_each(|(start, length)| empty[*start..start + length].fill(0));
    assert!(empty.iter().all(|byte| *byte == 0), "what is not there is zero");

    let refused = ram_of(&vm.process, &vm.qmp, &wrong, length).await.unwrap_err();
    assert!(matches!(refused, MemoryError::NotFound { .. }), "{refused}");
    let refused = ram_of(&vm.process, &vm.qmp, &pc_ram(), 1 << 46).await.unwrap_err();
    assert!(matches!(refused, MemoryError::NotFound { .. }), "{refused}");
    assert!(shared_blocks_of(&vm.process).unwrap().is_empty());

    vm.process.kill_and_reap(SOON).await.unwrap();
    let gone = memory.read_at(4096, &mut [0; 4096]).unwrap_err();
    assert!(matches!(gone, MemoryError::Gone { offset: 4096, .. }), "{gone}");
}

#[tokio::test]
async fn memory_above_four_gib_follows_in_the_block() {
    let Some(qemu) = qemu() else { return };
    let vm = Vm::start(&qemu, &["-m", "4100M", "-S"]).await;
    let length = 4100 << 20;
    let memory = ram_of(&vm.process, &vm.qmp, &pc_ram(), length).await.unwrap();
    // A pc has the first 3 GiB below the hole, the rest from 4 GiB on.
    vm.qmp.execute("qom-get", json!({"path": "/machine", "property": "type"}), SOON).await.unwrap();
    let text = vm.qmp.hmp("gpa2hva 0x100000000").await.unwrap();
    let above = sterna_host::memory::parse_gpa2hva(&text).unwrap().1;
    let BlockMemory::Process { base, .. } = &memory else { panic!("not in a process") };
    assert_eq!(above - base, 3 << 30);
    memory.read_at(length - 4096, &mut [0; 4096]).unwrap();
}

#[tokio::test]
async fn shared_memory_is_read_and_written_through_its_file() {
    let Some(qemu) = qemu() else { return };
    // A second, larger backend comes first: it must not be taken for the main memory.
    let other = "memory-backend-memfd,id=other,size=128M,share=on";
    let backend = "memory-backend-memfd,id=pc.ram,size=65528k,share=on";
    let machine = "pc,memory-backend=pc.ram";
    let arguments =
        ["-object", other, "-object", backend, "-machine", machine, "-m", "65528k", "-S"];
    let vm = Vm::start(&qemu, &arguments).await;
    let length = 65528 << 10;
    let memory = ram_of(&vm.process, &vm.qmp, &pc_ram(), length).await.unwrap();
    assert!(matches!(memory, BlockMemory::File { .. }), "{memory:?}");
    let seen = memory.read_at(0x123_4000, &mut [0; 4096]);
    assert!(seen.is_ok() && present_in(&memory).is_empty(), "looking into a hole does not fill it");
    memory.write_at(0x123_4000, &[1; 4096]).expect_err("it is opened for reading");

    let files = shared_blocks_of(&vm.process).unwrap();
    let found: Vec<_> = files.iter().map(|file| (&*file.label, file.length_bytes)).collect();
    assert_eq!(found, [("memory-backend-memfd", 128 << 20), ("memory-backend-memfd", length)]);
    let file = files.into_iter().nth(1).unwrap().file;
    let shared = BlockMemory::File { block: pc_ram(), length_bytes: length, file, start: 0 };
    let page: Vec<u8> = (0..4096_u32).map(|at| (at % 251) as u8).collect();
    shared.write_at(0x123_4000, &page).unwrap();
    assert_eq!(present_in(&memory), [(0x123_4000, 4096)]);
    let saved = saved_by_qemu(&vm.qmp, 0x123_4000, 4096, &vm.folder.file("saved")).await;
    assert_eq!(saved, page);
    shared.punch(0x123_4000, 4096).unwrap();
    let saved = saved_by_qemu(&vm.qmp, 0x123_4000, 4096, &vm.folder.file("saved")).await;
    assert_eq!(saved, [0; 4096]);

    // The file lives as long as we hold it, also without QEMU.
    shared.write_at(0, &page).unwrap();
    vm.process.kill_and_reap(SOON).await.unwrap();
    let mut read = [0; 4096];
    memory.read_at(0, &mut read).unwrap();
    assert_eq!(read[..], page);
}
