//! The options of `sterna migrate`, as they are typed.

use std::str::FromStr;

use clap::{Args, ValueEnum};
use sterna_api::{Compress, MigrateOptions, MigrateRequest, Strategy};
use sterna_model::{Rate, VmName};

use super::Destination;
use crate::task::{Drain, DrainRequest};

/// VMs that a drain moves at a time.
const DEFAULT_PARALLEL: u8 = 2;

/// `sterna migrate`.
#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// The VM's name on this host
    #[arg(required_unless_present = "all", requires = "destination")]
    name: Option<VmName>,
    /// A peer's name from the configuration, or name=host:port
    #[arg(value_name = "DEST")]
    destination: Option<Destination>,
    /// Move all VMs of this host that run or are paused, a few at a time
    #[arg(long, value_name = "DEST", conflicts_with_all = ["name", "detach", "dry_run"])]
    all: Option<Destination>,
    /// With --all: VMs that are moved at a time, 1 to 16; fewer where a host's limits.jobs says so [default: 2]
    #[arg(long, value_name = "N", requires = "all", conflicts_with = "name")]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=16))]
    parallel: Option<u8>,
    /// How memory is copied: `precopy` in rounds until the rest fits --max-downtime; `three-stage` copies once, hands the
    /// guest over, then sends what changed; `auto` in rounds, and as three-stage where they do not converge; `liveness`
    /// stops the rounds by the service's activity
    #[arg(long, value_enum, default_value = "auto")]
    strategy: StrategyWord,
    /// Move the VM's disks too, for hosts without shared storage
    #[arg(long)]
    with_disks: bool,
    /// The longest that the guest may stand, in milliseconds, as far as can be foreseen
    #[arg(long, value_name = "MS", default_value_t = 300)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    max_downtime: u64,
    /// End the rounds after so many seconds, by post-copy where that is prepared, else roll back; 0 is never
    #[arg(long, value_name = "S", default_value_t = 0)]
    timeout: u64,
    /// Put at most this on the wire: bits per second (100M, 2.5G) or bytes (12.5MB); k, M and G are powers of 1000
    /// [default: no limit]
    #[arg(long, value_name = "RATE")]
    bandwidth: Option<Rate>,
    /// Data connections: 1 to 64
    #[arg(long, value_name = "N", default_value_t = 4)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: u16,
    /// Compress pages: `auto` as link and gain say, `none` never, or at a zstd level from 1 to 19
    #[arg(long, value_name = "LEVEL", default_value = "auto")]
    compress: CompressWord,
    /// Besides the hash of every page, read the whole guest memory again at the destination before the guest resumes
    #[arg(long, value_enum, value_name = "HOW")]
    verify: Option<VerifyWord>,
    /// Print the job's id and return; the job goes on in the agent
    #[arg(long, conflicts_with = "dry_run")]
    detach: bool,
    /// Print the plan and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// `--strategy`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum StrategyWord {
    Auto,
    Precopy,
    Liveness,
    ThreeStage,
}

/// `--compress`.
#[derive(Clone, Copy, Debug)]
struct CompressWord(Compress);

/// `--verify`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum VerifyWord {
    Full,
}

/// Why a text is no way to compress.
#[derive(Debug, thiserror::Error)]
#[error("expected auto, none or a zstd level from 1 to 19, found {found:?}")]
struct CompressError {
    found: String,
}

impl FromStr for CompressWord {
    type Err = CompressError;

    fn from_str(text: &str) -> Result<Self, CompressError> {
        let compress = match text {
            "auto" => Some(Compress::Auto),
            "none" => Some(Compress::None),
            level => level
                .parse::<i32>()
                .ok()
                .filter(|level| (1..=19).contains(level))
                .map(Compress::Level),
        };
        compress.map(Self).ok_or_else(|| CompressError { found: text.chars().take(80).collect() })
    }
}

/// What is to be moved.
pub(crate) enum Wanted {
    /// One VM.
    One(MigrateRequest),
    /// All of them.
    All(Drain),
}

impl Migrate {
    /// What is to be moved, and how.
    #[must_use]
    pub(crate) fn wanted(self) -> Wanted {
        let options = self.options();
        let parallel = usize::from(self.parallel.unwrap_or(DEFAULT_PARALLEL));
        match (self.all, self.name, self.destination) {
            (None, Some(name), Some(destination)) => {
                Wanted::One(MigrateRequest { name, destination: destination.into(), options })
            }
            (all, _, other) => {
                // The words were read with one destination or the other.
                let destination = all.or(other).map(String::from).unwrap_or_default();
                Wanted::All(Drain { request: DrainRequest { destination, options }, parallel })
            }
        }
    }

    fn options(&self) -> MigrateOptions {
        MigrateOptions {
            strategy: match self.strategy {
                StrategyWord::Auto => Strategy::Auto,
                StrategyWord::Precopy => Strategy::Precopy,
                StrategyWord::Liveness => Strategy::Liveness,
                StrategyWord::ThreeStage => Strategy::ThreeStage,
            },
            with_disks: self.with_disks,
            max_downtime_ms: self.max_downtime,
            timeout_seconds: self.timeout,
            bandwidth: self.bandwidth,
            connections: self.connections,
            compress: self.compress.0,
            verify_full: self.verify.is_some(),
            detach: self.detach,
            dry_run: self.dry_run,
        }
    }
}
