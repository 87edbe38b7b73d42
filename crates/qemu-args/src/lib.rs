//! QEMU argument vectors: what a running VM was started with, told to a destination that does not trust the teller.
//!
//! ```text
//! source                                        destination
//! argv + RunningFacts --> Description  ==wire==>  Description + Policy + Place --> Rebuilt (argv, files, RAM blocks)
//!                         (from_argv)                                        \--> all Refusals together
//! ```
//!
//! The peer is not root at the destination, so nothing of its command line is taken over as text: each option is looked
//! up in `table`, its value taken apart (`params`), every key checked against an allow-list, every path mapped and
//! held below the configured roots (`path`), and the value written anew. What is on no list is refused by name.
//!
//! Pure and lexical: whether a file exists, is a link, or has a backing file elsewhere is the agent's to check, with the
//! list in [`Rebuilt::inputs`].
#![no_std]

extern crate alloc;

mod argv;
mod declared;
mod description;
mod params;
mod path;
mod policy;
mod rebuild;
mod size;
mod table;

pub use argv::serial_path;
pub use declared::{Declared, DeclaredDrive, is_same_path};
pub use description::{
    Description, MAX_OPTIONS, MAX_TOTAL_BYTES, MAX_VALUE_BYTES, RunningFacts, SourceOption,
};
pub use policy::{Place, Policy, PolicyError};
pub use rebuild::{
    Access, FileKind, FileNeed, Rebuilt, Relocated, SharedBlock, inputs_here, inputs_of,
    program_of, rebuild,
};
pub use size::parse_size;
