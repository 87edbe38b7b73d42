//! Bounds on what is inside a JSON payload. The frame's limit bounds its length; these bound what it becomes.
//!
//! They are chosen so that a message at every one of its limits still fits in a Control frame.

/// Nesting of objects and lists in one document.
pub const MAX_JSON_DEPTH: usize = 8;
/// Values, keys included, in one document: what its parsed form can hold. The largest message has about 49,000.
pub const MAX_JSON_VALUES: usize = 64 * 1024;

/// Bytes in a free text: a reason, an error.
pub const MAX_TEXT_BYTES: usize = 4096;
/// Bytes in a software version's text, or QEMU's.
pub const MAX_VERSION_BYTES: usize = 128;
/// Capabilities in a Hello.
pub const MAX_CAPABILITIES: usize = 64;
/// Characters in a capability's name.
pub const MAX_CAPABILITY_BYTES: usize = 32;

/// Data connections of one job; in post-copy one more, for urgent pages.
pub const MAX_CONNECTIONS: usize = 64;
/// Counts in a list of one for each data connection, that for urgent pages included.
pub const MAX_FRAME_COUNTS: usize = MAX_CONNECTIONS + 1;
/// Bytes in a VM's description. Escaped in JSON it can become six times as long.
pub const MAX_DESCRIPTION_BYTES: usize = 128 * 1024;
/// Bytes in QEMU's configuration section.
pub const MAX_CONFIGURATION_BYTES: usize = 16 * 1024;
/// Commands of the stream that are forwarded before the RAM.
pub const MAX_COMMANDS: usize = 64;
/// Data bytes in one such command.
pub const MAX_COMMAND_BYTES: usize = 1024;
/// Pages in one Missing.
pub const MAX_MISSING_PAGES: usize = 4096;
/// Pages in one Wanted.
pub const MAX_WANTED_PAGES: usize = 1024;
/// Runs of pages in one Lacking.
pub const MAX_LACKING_RUNS: usize = 16 * 1024;
/// Hashes of pages in one message.
pub const MAX_HASHES: usize = 16 * 1024;
/// Bytes of them.
pub const MAX_HASH_BYTES: usize = MAX_HASHES * crate::keep::HASH_BYTES;
/// The longest that a source may ask a destination to keep what it has: a week, in milliseconds.
pub const MAX_KEEP_MS: u64 = 7 * MAX_LINK_TIMEOUT_MS;
/// Refusals in one message.
pub const MAX_REFUSALS: usize = 32;
/// Bytes in a refusal's code.
pub const MAX_REFUSAL_CODE_BYTES: usize = 64;
/// Bytes in a refusal's reason, and in its remedy.
pub const MAX_REFUSAL_TEXT_BYTES: usize = 1024;
/// The longest silence that a source may ask a destination to ride out: a day, in milliseconds.
pub const MAX_LINK_TIMEOUT_MS: u64 = 24 * 60 * 60 * 1000;
/// CPU features in a list of evidence.
pub const MAX_CPU_FEATURES: usize = 512;
/// Bytes in a CPU feature's name, or in `vendor=...`.
pub const MAX_CPU_FEATURE_BYTES: usize = 64;
/// Disk images in evidence.
pub const MAX_EVIDENCE_DISKS: usize = 64;
/// Bytes in all their paths. Escaped in JSON they can become six times as long.
pub const MAX_EVIDENCE_PATH_BYTES: usize = 8 * 1024;
