//! The hidden words for packagers: manual pages and shell completions, from the same definition as the help.

use std::fs;
use std::path::Path;

use clap_complete::Shell;

use crate::args;
use crate::console::Console;
use crate::failure::Failure;

/// Writes one page per word: sterna.1, sterna-migrate.1, sterna-vm-start.1 and so on.
///
/// # Errors
/// The directory cannot be made or written to.
pub(crate) fn write_pages(directory: &Path) -> Result<(), Failure> {
    let failure = |error| Failure::File { path: directory.to_owned(), error };
    fs::create_dir_all(directory).map_err(failure)?;
    clap_mangen::generate_to(args::command(), directory).map_err(failure)
}

/// Prints a shell's completions.
pub(crate) fn print_completions(shell: Shell, console: &mut Console) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::command(), "sterna", &mut script);
    console.print(&String::from_utf8_lossy(&script));
}
