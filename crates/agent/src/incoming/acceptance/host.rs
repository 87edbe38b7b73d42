//! What this host has for a guest: memory within its limits, and a way to let it run before all its memory is there.

use std::path::Path;

use sterna_host::userfault;
use sterna_model::{ByteCount, Refusal};
use sterna_qemu_args::{Description, Rebuilt};
use sterna_wire::evidence::PostCopy;

use crate::config::Limits;

/// Memory that has to stay free beside a guest that arrives.
const SPARE_MEMORY: ByteCount = ByteCount(64 << 20);
/// Control groups inside each other, at most.
const MAX_GROUPS: usize = 64;

/// All memory of the guest: the main block, and what NUMA nodes and DIMMs have beside it.
pub(super) fn memory_of(description: &Description, rebuilt: Option<&Rebuilt>) -> ByteCount {
    let shared = rebuilt.into_iter().flat_map(|rebuilt| &rebuilt.shared_blocks);
    let shared = shared.map(|block| block.bytes.0);
    ByteCount(shared.fold(0, u64::saturating_add).max(description.ram_bytes.0))
}

/// Why a guest of this size is not taken.
pub(super) fn too_large(limits: &Limits, memory: ByteCount) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let largest = limits.largest_vm;
    if memory > largest {
        let reason = format!("expected a VM of at most {largest} of memory, found {memory}");
        let remedy = "raise limits.largest_vm at the destination";
        refusals.push(Refusal::new("vm-too-large", reason, remedy));
    }
    let free = [
        ("free memory", free_in_host()),
        ("memory in the agent's control group", free_in_groups()),
    ];
    let least = free.into_iter().filter_map(|(what, free)| Some((free?, what))).min();
    refusals.extend(least.and_then(|(free, what)| short(memory, what, free)));
    refusals
}

fn short(memory: ByteCount, what: &str, free: ByteCount) -> Option<Refusal> {
    if free.0 >= memory.0.saturating_add(SPARE_MEMORY.0) {
        return None;
    }
    let reason = format!("expected {memory} of {what} and {SPARE_MEMORY} to spare, found {free}");
    Some(Refusal::new("memory-short", reason, "free memory at the destination, or allow it more"))
}

/// Why the guest cannot run here before all its memory is there, where that is planned.
pub(super) fn cannot_wait_for_pages(post_copy: PostCopy) -> Option<Refusal> {
    match post_copy {
        PostCopy::Never => None,
        PostCopy::Planned => userfault::check().err().map(|error| {
            let remedy = "set vm.unprivileged_userfaultfd=1 at the destination, give the agent's user /dev/userfaultfd, or use --strategy precopy";
            Refusal::new("no-userfaultfd", error.to_string(), remedy)
        }),
    }
}

/// What the kernel says could be used without swapping.
fn free_in_host() -> Option<ByteCount> {
    number_after(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
        .map(|kib| ByteCount(kib << 10))
}

/// What the agent's control group, which its QEMUs are in too, and those around it can still use.
fn free_in_groups() -> Option<ByteCount> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    free_below(Path::new("/sys/fs/cgroup"), group)
}

/// The least that a group or one around it can still use; nothing where none has a limit.
fn free_below(root: &Path, group: &str) -> Option<ByteCount> {
    let folder = root.join(group.trim_start_matches('/'));
    let groups = folder.ancestors().take_while(|folder| folder.starts_with(root));
    groups.take(MAX_GROUPS).filter_map(free_in_group).min()
}

fn free_in_group(folder: &Path) -> Option<ByteCount> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let most: u64 = read("memory.max")?.trim().parse().ok()?;
    let used: u64 = read("memory.current")?.trim().parse().ok()?;
    // The page cache counts as used, and gives way.
    let cached = read("memory.stat").and_then(|stat| number_after(&stat, "inactive_file "));
    Some(ByteCount(most.saturating_sub(used.saturating_sub(cached.unwrap_or_default()))))
}

/// The number in the line that begins so.
fn number_after(text: &str, start: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(start))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_short_is_told_with_where() {
        assert!(short(ByteCount(1 << 30), "free memory", ByteCount(2 << 30)).is_none());
        let refusal = short(ByteCount(1 << 30), "free memory", ByteCount(1 << 30)).unwrap();
        assert_eq!(refusal.code, "memory-short");
        assert!(refusal.reason.contains("free memory"), "{refusal}");
        assert!(short(ByteCount(u64::MAX), "free memory", ByteCount(u64::MAX - 1)).is_some());
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = std::env::temp_dir().join(format!("sterna-groups-{}", std::process::id()));
        let inner = root.join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        let write = |folder: &Path, name: &str, text: &str| {
            std::fs::write(folder.join(name), text).unwrap();
        };
        assert_eq!(free_below(&root, "/a/b"), None, "no limits");
        write(&inner, "memory.max", "max\n");
        write(&inner, "memory.current", "1000\n");
        assert_eq!(free_below(&root, "/a/b"), None, "no limit");
        let outer = root.join("a");
        write(&outer, "memory.max", "5000\n");
        write(&outer, "memory.current", "4000\n");
        write(&outer, "memory.stat", "anon 1\ninactive_file 500\n");
        assert_eq!(free_below(&root, "/a/b"), Some(ByteCount(1500)));
        write(&inner, "memory.max", "1200\n");
        assert_eq!(free_below(&root, "/a/b"), Some(ByteCount(200)));
        assert_eq!(free_below(&root, "/../../.."), None, "not beyond the root's own");
        std::fs::remove_dir_all(root).unwrap();
    }
}
