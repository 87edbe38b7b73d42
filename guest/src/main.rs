//! `sterna-load`: the program of the test guest.
//!
//! `sterna-load LOAD [key=value…]` fills a working set of pages whose content is a function of
//! (seed, page index, sequence number), writes to it as the named load says, and keeps sweeping it:
//! a page that a migration lost, left stale or corrupted is printed as `SWEEP BAD`. See [`options`]
//! for the loads and keys, [`page`] for the format of a page, [`run`] for the lines it prints.
//!
//! A load may be an application instead, which says of itself in the same lines how it is: see
//! [`application`]. `sterna-load material …` makes what the applications work on: see [`material`].

mod application;
mod disk;
mod material;
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
    if let Some(asked) = material::asked(&arguments) {
        return asked;
    }
    let ended = match application::options::ApplicationOptions::parse(&arguments) {
        Some(parsed) => parsed.map(|options| application::run(&options)),
        None => options::Options::parse(&arguments).map(|options| run::run(&options)),
    };
    ended.unwrap_or_else(|error| {
        println!("LOAD REFUSED {error}");
        ExitCode::from(2)
    })
}
