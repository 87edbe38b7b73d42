//! The options of `sterna follow`, as they are typed.

use clap::Args;
use sterna_api::{MigrateOptions, MigrateRequest};
use sterna_model::{Rate, VmName};

use super::Destination;

/// `sterna follow`.
#[derive(Debug, Args)]
pub(crate) struct Follow {
    /// The VM's name on this host
    name: VmName,
    /// A peer's name from the configuration, or name=host:port
    #[arg(value_name = "DEST")]
    destination: Destination,
    /// Follow the VM's disks too, for hosts without shared storage
    #[arg(long)]
    with_disks: bool,
    /// Until the hand-over, put at most this on the wire: bits per second (100M, 2.5G) or bytes (12.5MB); k, M and G
    /// are powers of 1000 [default: no limit]
    #[arg(long, value_name = "RATE")]
    bandwidth: Option<Rate>,
    /// The longest that the guest may stand in the hand-over, in milliseconds, as far as can be foreseen
    #[arg(long, value_name = "MS", default_value_t = 300)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    max_downtime: u64,
}

impl From<Follow> for MigrateRequest {
    fn from(typed: Follow) -> Self {
        let options = MigrateOptions {
            with_disks: typed.with_disks,
            bandwidth: typed.bandwidth,
            max_downtime_ms: typed.max_downtime,
            ..MigrateOptions::default()
        };
        Self { name: typed.name, destination: typed.destination.into(), options }
    }
}
