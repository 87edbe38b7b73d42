//! Ctrl-C and termination: the networks and processes of the benchmark go away all the same.
//!
//! Destructors do not run when a signal ends a process. So the signal is caught, and this process
//! becomes another program: itself, with the one task to remove what a killed run has left. That drops
//! all its locks and threads at once, in whatever state they are.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;

use sterna_e2e::{Error, GuestNetwork, Result, World};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

/// The exit code of an interrupted program, as shells have it.
const INTERRUPTED: i32 = 130;

/// From now on an interrupt cleans up first.
///
/// # Errors
/// Signals cannot be caught here.
pub(crate) fn watch() -> Result<()> {
    let program = std::env::current_exe().map_err(Error::io("asking for this program's path"))?;
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Error::io("catching signals"))?;
    let streams = runtime.block_on(async {
        Ok((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))
    });
    let (mut interrupt, mut terminate) = streams.map_err(Error::io("catching signals"))?;
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        let error = Command::new(program).arg("--clean-up").exec();
        eprintln!("cannot clean up: {error}; the next benchmark or test does it");
        std::process::exit(INTERRUPTED);
    });
    Ok(())
}

/// Removes what interrupted runs have left, and ends the program.
///
/// # Errors
/// A tool fails.
pub(crate) fn clean_up() -> Result<()> {
    eprintln!("interrupted: removing namespaces and processes");
    // Every new world removes the leftovers of those whose process is gone, as ours now is.
    drop(World::new(GuestNetwork::Absent)?);
    std::process::exit(INTERRUPTED);
}
