//! The program: a link between the TUN devices of two network namespaces, until it is told to end.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use sterna_emulator::{Ending, Link, Loss, Wires, run};
use sterna_model::{ByteCount, Rate};

/// A link with rate, delay and loss between two network namespaces.
///
/// Both namespaces have a TUN device of the same name (`ip tuntap add dev wire mode tun`) with an address. The link stands
/// as soon as the devices have a carrier, and ends on SIGINT or SIGTERM, when standard input is closed, or when a
/// device has gone; then it prints what it has counted as one line of JSON.
#[derive(Parser)]
#[command(name = "link-emulator")]
struct Options {
    /// The first namespace's file, as /run/netns/NAME
    first: PathBuf,
    /// The second namespace's file; the program stays in that one
    second: PathBuf,
    /// The devices' name
    #[arg(long, default_value = "wire")]
    device: String,
    /// Bits per second of IP packets in each direction (20M), or bytes (2.5MB)
    #[arg(long)]
    rate: Rate,
    /// The round trip of a small packet on an idle link, in microseconds
    #[arg(long, default_value_t = 0)]
    round_trip_us: u64,
    /// Packets lost in a million, each for itself, in each direction
    #[arg(long, default_value_t = 0)]
    loss_per_million: u32,
    /// Decides which packets are lost
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Bytes that may wait in each direction [default: what the link carries in a round trip, at least 65536]
    #[arg(long)]
    queue_bytes: Option<u64>,
}

fn main() -> ExitCode {
    match emulate(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("link-emulator: {error}");
            ExitCode::FAILURE
        }
    }
}

fn emulate(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let link = link(options)?;
    let wires = Wires::open([&options.first, &options.second], &options.device)?;
    let (ending, report) = run(&link, &wires)?;
    if ending == Ending::DeviceGone {
        eprintln!("link-emulator: a device has gone");
    }
    let line = serde_json::to_string(&report)?;
    // Whoever has closed the input may not want the counters either.
    let _ = writeln!(std::io::stdout(), "{line}");
    Ok(())
}

fn link(options: &Options) -> Result<Link, Box<dyn std::error::Error>> {
    let loss = Loss::per_million(options.loss_per_million)?;
    let round_trip = Duration::from_micros(options.round_trip_us);
    let link = Link::new(options.rate, round_trip, loss, options.seed)?;
    Ok(match options.queue_bytes {
        Some(bytes) => link.with_queue(ByteCount(bytes))?,
        None => link,
    })
}
