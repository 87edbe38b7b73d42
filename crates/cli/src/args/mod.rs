//! What a user types: the words and options, exactly as the command line has them. First of two steps; `task` turns
//! these into what the program needs.

mod destination;
mod follow;
mod help;
mod migrate;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use sterna_api::Decision;
use sterna_model::{HostName, JobId, VmName};

pub(crate) use destination::Destination;
pub(crate) use follow::Follow;
pub(crate) use migrate::{Migrate, Wanted};

/// Live migration of QEMU/KVM virtual machines between hosts.
#[derive(Debug, Parser)]
#[command(name = "sterna", version, after_help = help::AFTER)]
pub(crate) struct Cli {
    /// What is to be done.
    #[command(subcommand)]
    pub(crate) word: Word,
    /// Options that every word takes.
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Options that every word takes.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// How results are printed: for people, as one JSON document, as JSON lines
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", default_value = "text")]
    #[arg(help_heading = "Common options")]
    pub(crate) output: Format,
    /// The agent's control socket [default: /run/sterna/sterna.sock, or $XDG_RUNTIME_DIR/sterna/sterna.sock for a
    /// normal user]
    #[arg(long, global = true, value_name = "SOCKET", env = "STERNA_AGENT")]
    #[arg(help_heading = "Common options", hide_env_values = true)]
    pub(crate) agent: Option<PathBuf>,
}

/// How a result is printed: for people, as one JSON document, as one JSON value per line.
// The variants have no texts of their own: the help would spread over ten lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Text,
    Json,
    Jsonl,
}

/// The words of the command line.
#[derive(Debug, Subcommand)]
pub(crate) enum Word {
    /// Run the agent: the daemon, one per host
    #[command(after_help = help::AGENT)]
    Agent {
        /// The configuration [default: /etc/sterna/sterna.toml, or $XDG_CONFIG_HOME/sterna/sterna.toml for a normal
        /// user]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Make the certificates that hosts trust each other by
    #[command(subcommand, after_help = help::PKI)]
    Pki(Pki),
    /// Tell whether a peer can be reached, trusts us and would take a VM; the link's rate and round trip
    #[command(after_help = help::CHECK)]
    Check {
        /// A peer's name from the configuration, or name=host:port
        peer: Destination,
    },
    /// Start, adopt, list, show and stop virtual machines
    #[command(subcommand)]
    Vm(Vm),
    /// Predict a move: time, downtime and bytes of each strategy, or why it would be refused; change nothing
    #[command(after_help = help::PLAN)]
    Plan {
        /// The VM's name on this host
        name: VmName,
        /// A peer's name from the configuration, or name=host:port
        #[arg(value_name = "DEST")]
        destination: Destination,
        /// Plan for the VM's disks too
        #[arg(long)]
        with_disks: bool,
    },
    /// Move a running VM to another host; or all of them, with --all
    #[command(after_help = help::MIGRATE)]
    Migrate(Box<Migrate>),
    /// Keep a copy of a running VM nearly current at another host; goes on without the command
    #[command(after_help = help::FOLLOW)]
    Follow(Follow),
    /// Tell how current the copy of a followed VM is
    #[command(after_help = help::STATUS)]
    Status {
        /// The VM's name on this host
        name: VmName,
    },
    /// Hand a followed VM over to the host that has its copy
    #[command(after_help = help::SWITCH)]
    Switch {
        /// The VM's name on this host
        name: VmName,
        /// Where to; refused if it is followed to another host
        #[arg(value_name = "DEST")]
        destination: Option<Destination>,
    },
    /// Follow a VM no more: its copy is given up, the guest runs on here
    Unfollow {
        /// The VM's name on this host
        name: VmName,
        /// The destination keeps its copy for a while: following it again sends what differs only
        #[arg(long)]
        keep: bool,
    },
    /// List the jobs that this host's agent remembers, oldest first
    Jobs,
    /// Follow a job until it ends; exits as the command that started it would have
    #[command(after_help = help::WATCH)]
    Watch {
        /// A job's id, as `sterna jobs` lists it
        job: JobId,
    },
    /// End a job and roll it back; refused once the VM has been handed over
    Cancel {
        /// A job's id, as `sterna jobs` lists it
        job: JobId,
    },
    /// Print the report of a job that has ended
    Report {
        /// A job's id, as `sterna jobs` lists it
        job: JobId,
    },
    /// Tell all that is known of a VM whose owner is not; settle it with --guest-is
    #[command(after_help = help::RESOLVE)]
    Resolve {
        /// A job's id, or the name of a VM that is unknown
        job: JobId,
        /// Where the guest is, as you have found out: at the job's `source`, at its `destination`, or `lost`
        #[arg(long, value_enum, value_name = "WHERE")]
        guest_is: Option<GuestIs>,
    },
    /// Look into captured QEMU migration streams
    #[command(subcommand)]
    Stream(Stream),
    /// Write the manual pages, one per word
    #[command(hide = true)]
    Man {
        /// Where to; made if it is missing
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Print completions for a shell
    #[command(hide = true)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// `--guest-is`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GuestIs {
    Source,
    Destination,
    Lost,
}

impl From<GuestIs> for Decision {
    fn from(typed: GuestIs) -> Self {
        match typed {
            GuestIs::Source => Self::Source,
            GuestIs::Destination => Self::Destination,
            GuestIs::Lost => Self::Lost,
        }
    }
}

/// `sterna pki`.
#[derive(Debug, Subcommand)]
pub(crate) enum Pki {
    /// Make a certificate authority: DIR/ca-cert.pem and DIR/ca-key.pem
    Init {
        /// Its directory; made if it is missing
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Issue a host's certificates and keys to DIR/HOST/
    Issue {
        /// The directory that `sterna pki init` made
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// The host's name, as `[host] name` in its configuration
        host: HostName,
    },
    /// Revoke the certificates in DIR/HOST/: adds them to DIR/ca-crl.pem, which goes to every host
    Revoke {
        /// The directory that `sterna pki init` made
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// The host's name; without one the list is only renewed
        host: Option<HostName>,
    },
}

/// `sterna vm`.
#[derive(Debug, Subcommand)]
pub(crate) enum Vm {
    /// Start QEMU under the agent; the argument vector is the VM's definition
    #[command(after_help = help::VM_START)]
    Start {
        /// The VM's name on this host: up to 64 letters, digits, `.`, `_` and `-`
        name: VmName,
        /// QEMU's program and its arguments; relative paths are taken from the working directory
        #[arg(last = true, required = true, value_name = "QEMU-PROGRAM ARGUMENTS")]
        argv: Vec<String>,
    },
    /// Take a QEMU that runs already
    Adopt {
        /// The VM's name on this host: up to 64 letters, digits, `.`, `_` and `-`
        name: VmName,
        /// Its QMP socket
        #[arg(long, value_name = "SOCKET")]
        qmp: PathBuf,
        /// Its process id [default: found through the socket]
        #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
        pid: Option<u32>,
    },
    /// List this host's VMs
    List,
    /// Describe a VM
    Show {
        /// The VM's name on this host
        name: VmName,
    },
    /// Power a VM down, then quit its QEMU
    Stop {
        /// The VM's name on this host
        name: VmName,
        /// Seconds for the guest to power down by itself; 0 quits QEMU at once
        #[arg(long, value_name = "SECONDS", default_value_t = 10)]
        grace: u64,
    },
}

/// `sterna stream`.
#[derive(Debug, Subcommand)]
pub(crate) enum Stream {
    /// Tell what is in a captured QEMU migration stream, up to its first damage
    #[command(after_help = help::STREAM_INSPECT)]
    Inspect {
        /// The file; `-` reads standard input
        file: PathBuf,
    },
}

/// The command line's definition, with the words grouped in its help.
#[must_use]
pub(crate) fn command() -> clap::Command {
    help::group_words(Cli::command())
}

impl Cli {
    /// Reads the words that the program was called with.
    ///
    /// # Errors
    /// What clap has to say to the user, `--help` and `--version` included; it knows its exit code.
    pub(crate) fn read(
        words: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Self, clap::Error> {
        let mut command = command();
        let matches = command.try_get_matches_from_mut(words)?;
        Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
    }
}
