//! Guest RAM on shared backends, with the block names that the source's stream carries.
//!
//! | source | destination |
//! |---|---|
//! | plain `-m` | a memfd backend named as the main block, bound by `-machine memory-backend=` |
//! | `memory-backend-ram`, `-memfd`, `-file`, `-shm` | `memory-backend-memfd` with the same id and size, `share=on` |
//!
//! Host-bound settings are left out with a note: NUMA binding (`host-nodes`, `policy`), `prealloc` (post-copy needs the
//! pages absent), huge pages (a hugetlb file cannot be written with `pwrite`, and their size is this host's matter).
//! Persistent or read-only backends are refused: their content is not memory.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use sterna_model::ByteCount;

use super::check::is_on;
use super::{Access, Builder, SharedBlock};
use crate::argv::shown;
use crate::description::Description;
use crate::params::{Params, Switch};
use crate::size::parse_size;
use crate::table::{Kind, Rule, Special};

const MIB: u64 = 1 << 20;
/// QEMU rounds the size of main memory up to this.
const RAM_ALIGN_BYTES: u64 = 8192;
/// Keeps the block's name the plain id on machine types of 3.1 and older.
const PLAIN_NAME: &str = "x-use-canonical-path-for-ramblock-id";

const HOST: Kind = Kind::LeftOut("it binds memory to the source's host");
const HUGE: Kind = Kind::LeftOut("memory is in ordinary pages at the destination");
const FILE: Kind = Kind::LeftOut("memory is in an anonymous shared file here");
const NOT_RAM: Kind = Kind::Only(&["off", "false", "no", "n"]);

#[rustfmt::skip]
const BACKEND_RULES: &[Rule] = &[
    ("qom-type", Kind::Word), ("id", Kind::Word), ("size", Kind::Word), ("share", Kind::Word), ("dump", Kind::Word),
    ("merge", Kind::Word), ("reserve", Kind::Word), ("seal", Kind::Word), (PLAIN_NAME, Kind::Word),
    ("host-nodes*", HOST), ("policy", HOST), ("prealloc*", HOST),
    ("hugetlb", HUGE), ("hugetlbsize", HUGE), ("align", HUGE),
    ("mem-path", FILE), ("discard-data", FILE), ("offset", FILE),
    ("pmem", NOT_RAM), ("readonly", NOT_RAM), ("rom", NOT_RAM),
];

const SIZE_RULES: &[Rule] = &[("size", Kind::Word), ("slots", Kind::Word), ("maxmem", Kind::Word)];

/// Which backends hold the guest's RAM, known before anything is built.
pub(super) struct MemoryPlan {
    /// The id of `-machine memory-backend=`.
    pub(super) main: Option<String>,
    /// Ids that NUMA nodes and DIMMs use.
    used: Vec<String>,
    /// Whether NUMA nodes bring all memory.
    by_nodes: bool,
    /// Ids of all memory backends.
    defined: Vec<String>,
    /// Whether `-m` is given.
    sized: bool,
}

impl MemoryPlan {
    pub(super) fn of(description: &Description) -> Self {
        let mut plan = Self {
            main: None,
            used: Vec::new(),
            by_nodes: false,
            defined: Vec::new(),
            sized: false,
        };
        for option in &description.options {
            let value = option.value.as_deref().unwrap_or_default();
            let pick = |implied: &'static str, key: &str| {
                let params = Params::any(value, Some(implied)).ok()?;
                params.get(key).map(|value| value.to_string())
            };
            match option.name.as_str() {
                "machine" | "M" => {
                    let main =
                        pick("type", "memory-backend").or_else(|| pick("type", "memory_backend"));
                    plan.main = main.or(plan.main);
                }
                "m" => plan.sized = true,
                "numa" => {
                    let node = pick("type", "memdev");
                    plan.by_nodes |= node.is_some();
                    plan.used.extend(node);
                }
                "device" => plan.used.extend(pick("driver", "memdev")),
                "object" if pick("qom-type", "qom-type").is_some_and(|name| is_backend(&name)) => {
                    plan.defined.extend(pick("qom-type", "id"));
                }
                _ => {}
            }
        }
        plan.used.extend(plan.main.clone());
        plan
    }
}

/// Whether this object type holds guest memory that can move.
pub(super) fn is_backend(qom_type: &str) -> bool {
    matches!(
        qom_type,
        "memory-backend-ram"
            | "memory-backend-memfd"
            | "memory-backend-file"
            | "memory-backend-shm"
    )
}

impl Builder<'_> {
    /// The id for `-machine memory-backend=`: the source's, or the main block's name.
    pub(super) fn main_backend(&self) -> Option<String> {
        match &self.memory.main {
            Some(id) => Some(id.clone()),
            None if self.memory.by_nodes => None,
            None => Some(self.description.ram_block.as_str().to_string()),
        }
    }

    /// The shared backend of a source that had plain memory, and a size where the source relied on the default.
    pub(super) fn main_memory(&mut self) {
        let bytes = self.description.ram_bytes.0;
        let missing: Vec<String> = self
            .memory
            .used
            .iter()
            .filter(|id| !self.memory.defined.contains(id))
            .cloned()
            .collect();
        for id in missing {
            let reason = format!("memory backend {} is used and not defined", shown(&id));
            self.refuse("memory-not-shareable", reason, "define it with -object");
        }
        if self.memory.main.is_none() && !self.memory.by_nodes {
            let id = self.description.ram_block.as_str().to_string();
            if !is_object_id(&id) || self.memory.defined.contains(&id) || bytes == 0 {
                let reason =
                    format!("main memory is {} bytes in a block named {}", bytes, shown(&id));
                self.refuse(
                    "memory-not-shareable",
                    reason,
                    "use -object memory-backend-memfd and -machine memory-backend=",
                );
                return;
            }
            let object =
                format!("memory-backend-memfd,id={id},size={bytes},share=on,{PLAIN_NAME}=off");
            self.push("object", Some(object));
            self.share(id.clone(), id, bytes);
        }
        if !self.memory.sized {
            self.push("m", Some(format!("{bytes}B")));
        }
    }

    /// A machine or its memory: the head has it, so only what the head cannot know is left to do.
    pub(super) fn in_head(&mut self, special: Special, value: &str) {
        if special == Special::Memory {
            self.memory_size(value);
        }
    }

    fn memory_size(&mut self, value: &str) {
        let Some(params) = self.parse("m", value, Some("size")) else {
            return;
        };
        let Some(params) = self.ruled("m", params, SIZE_RULES, Access::Read) else {
            return;
        };
        let wrong = ["size", "maxmem"].into_iter().find(|key| {
            params.get(key).is_some_and(|size| {
                parse_size(&size, if *key == "size" { MIB } else { 1 }).is_none()
            })
        });
        if let Some(key) = wrong {
            let found = shown(&params.get(key).unwrap_or_default());
            return self
                .malformed("m", &format!("expected a size such as 512M, found {key}={found}"));
        }
        let size = params.get("size").and_then(|size| parse_size(&size, MIB));
        let told = self.description.ram_bytes.0;
        let same = size.is_none_or(|bytes| {
            bytes == 0 || bytes.checked_next_multiple_of(RAM_ALIGN_BYTES) == Some(told)
        });
        // With NUMA nodes or one backend of its own the block is a part, checked by QEMU against its object.
        if !same && self.memory.main.is_none() && !self.memory.by_nodes {
            let reason = format!(
                "-m {} is not the {told} bytes of {}",
                shown(value),
                self.description.ram_block
            );
            return self.refuse(
                "memory-not-shareable",
                reason,
                "let the source's agent describe the VM anew",
            );
        }
        self.push("m", Some(params.to_text()));
    }

    /// A backend of the source as a memfd of the same id and size.
    pub(super) fn memory_backend(&mut self, params: Params, qom_type: &str) {
        let canonical = params.get(PLAIN_NAME).map(|value| is_on(&value));
        let Some(mut ours) = self.ruled("object", params, BACKEND_RULES, Access::Read) else {
            return;
        };
        let id = ours.get("id").map(|id| id.to_string()).unwrap_or_default();
        let bytes = ours.get("size").and_then(|size| parse_size(&size, 1)).unwrap_or_default();
        if !is_object_id(&id) || bytes == 0 {
            let reason = format!("memory backend {} has no size that we understand", shown(&id));
            return self.refuse(
                "memory-not-shareable",
                reason,
                "give it an id and a size such as 512M",
            );
        }
        ours.set("qom-type", "memory-backend-memfd");
        ours.set_switch("share", Switch::On);
        // A plain RAM backend always has its id as the block's name; a memfd of an old machine type would not.
        let canonical = canonical.unwrap_or(
            qom_type != "memory-backend-ram" && is_before_4_0(&self.description.machine_type),
        );
        ours.set_switch(PLAIN_NAME, if canonical { Switch::On } else { Switch::Off });
        self.push("object", Some(ours.to_text()));
        if self.memory.used.contains(&id) {
            let name = if canonical { format!("/objects/{id}") } else { id.clone() };
            self.share(name, id, bytes);
        }
    }

    fn share(&mut self, name: String, backend_id: String, bytes: u64) {
        self.work.shared_blocks.push(SharedBlock { name, backend_id, bytes: ByteCount(bytes) });
    }
}

/// What QEMU takes as an id: a letter, then letters, digits, `-`, `.`, `_`.
pub(super) fn is_object_id(id: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    id.as_bytes().first().is_some_and(u8::is_ascii_alphabetic)
        && id.len() <= 128
        && id.bytes().all(known)
}

/// Whether a versioned machine type (`pc-i440fx-3.1`) is older than 4.0.
fn is_before_4_0(machine_type: &str) -> bool {
    let version = machine_type.rsplit('-').next().unwrap_or_default();
    let major = version.split('.').next().unwrap_or_default();
    version.contains('.') && major.parse::<u32>().is_ok_and(|major| major < 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_machine_types_name_blocks_by_path() {
        for (machine, old) in [
            ("pc-i440fx-3.1", true),
            ("pc-q35-2.12", true),
            ("pc-q35-4.0", false),
            ("pc-i440fx-10.0", false),
            ("microvm", false),
        ] {
            assert_eq!(is_before_4_0(machine), old, "{machine}");
        }
    }

    #[test]
    fn object_ids() {
        assert!(
            is_object_id("pc.ram") && is_object_id("ram-node0") && is_object_id("mach-virt.ram")
        );
        assert!(
            !is_object_id("")
                && !is_object_id("0a")
                && !is_object_id("a,b")
                && !is_object_id("/objects/a")
        );
    }
}
