//! `sterna-load`: the program of the test guest.
//!
//! `sterna-load LOAD [key=value…]` fills a working set of pages whose content is a function of
//! (seed, page index, sequence number), writes to it as the named load says, and keeps sweeping it:
//! a page that a migration lost, left stale or corrupted is printed as `SWEEP BAD`. See [`options`]
//! for the loads and keys, [`page`] for the format of a page, [`run`] for the lines it prints.

mod disk;
mod options;
mod pace;
mod page;
mod run;
mod service;
mod sweep;
mod text;
mod working_set;
mod writer;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match options::Options::parse(&arguments) {
        Ok(options) => run::run(&options),
        Err(error) => {
            println!("LOAD REFUSED {error}");
            ExitCode::from(2)
        }
    }
}
