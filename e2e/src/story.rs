//! A story: two hosts, a guest, what is done to them, what must be so afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use crate::artifacts::check_machine;
use crate::command::tool;
use crate::configuration::{HostSetup, shared_folder};
use crate::emulated::Link;
use crate::host::Host;
use crate::residue::Turn;
use crate::world::{GuestNetwork, Side, World};
use crate::{Error, Result};

/// What a story begins with; plain: a wire without limits, both hosts accept each other, no network for
/// guests.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Whether guests have a network.
    pub guest_network: GuestNetwork,
    /// The wire between the hosts.
    pub link: Link,
    /// The host where guests are started.
    pub alpha: HostSetup,
    /// The host where they go.
    pub beta: HostSetup,
    /// When it may begin.
    pub turn: Turn,
}

/// Two hosts with agents in a world of their own.
#[derive(Debug)]
pub struct Pair {
    // In the order in which they are dropped: the world removes what the agents leave.
    alpha: Host,
    beta: Host,
    world: World,
}

impl Pair {
    /// Makes the world and starts both agents.
    ///
    /// # Errors
    /// Anything that is missing or fails.
    pub fn start(setup: &Setup) -> Result<Self> {
        let world = World::in_turn(setup.turn, setup.guest_network, setup.link)?;
        fs::create_dir_all(shared_folder(&world)).map_err(Error::io("making the shared folder"))?;
        let alpha = Host::start(&world, Side::Alpha, &setup.alpha)?;
        let beta = Host::start(&world, Side::Beta, &setup.beta)?;
        Ok(Self { alpha, beta, world })
    }

    /// A host.
    #[must_use]
    pub const fn host(&self, side: Side) -> &Host {
        match side {
            Side::Alpha => &self.alpha,
            Side::Beta => &self.beta,
        }
    }

    /// A host, to kill its agent.
    pub const fn host_mut(&mut self, side: Side) -> &mut Host {
        match side {
            Side::Alpha => &mut self.alpha,
            Side::Beta => &mut self.beta,
        }
    }

    /// The networks.
    #[must_use]
    pub const fn world(&self) -> &World {
        &self.world
    }

    /// The networks, to end an emulated wire.
    pub const fn world_mut(&mut self) -> &mut World {
        &mut self.world
    }

    /// A folder that both hosts see.
    #[must_use]
    pub fn shared_folder(&self) -> PathBuf {
        shared_folder(&self.world)
    }

    /// Copies all that both hosts have (logs, journals, records, what guests printed) to `folder`, to be looked at when the
    /// world is gone.
    ///
    /// # Errors
    /// No space.
    pub fn keep(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).map_err(Error::io(format!("making {}", folder.display())))?;
        for host in [&self.alpha, &self.beta] {
            tool("cp", [Path::new("-a"), host.folder(), folder])?;
        }
        Ok(())
    }

    fn print_logs(&self) {
        for host in [&self.alpha, &self.beta] {
            eprintln!("--- the agent of {} said at last:\n{}", host.side().name(), host.log_tail());
        }
    }
}

/// Tells a story. Where the machine cannot have it, says so and goes on; in CI that is a failure.
///
/// # Errors
/// What the story found; the ends of both agents' logs have been printed then.
pub fn story(setup: &Setup, tell: impl FnOnce(&mut Pair) -> Result<()>) -> Result<()> {
    if !can_run_here()? {
        return Ok(());
    }
    let mut pair = Pair::start(setup)?;
    let begun = Instant::now();
    let told = tell(&mut pair);
    // Seen with `--nocapture`; the test's thread has its name.
    let name = thread::current().name().unwrap_or("a story").to_owned();
    eprintln!("{name}: {:.1} s", begun.elapsed().as_secs_f64());
    if told.is_err() {
        pair.print_logs();
    }
    told
}

/// Whether this machine can have stories; prints why not.
///
/// # Errors
/// It cannot, and `CI` is set: there a skipped test would be a lie.
pub fn can_run_here() -> Result<bool> {
    match check_machine() {
        Ok(()) => Ok(true),
        Err(error) if std::env::var("CI").is_ok_and(|value| value == "true") => Err(error),
        Err(error) => {
            eprintln!("SKIPPED: {error}");
            Ok(false)
        }
    }
}

/// Makes a raw disk image of zeros.
///
/// # Errors
/// No space.
pub fn make_disk(path: &Path, size_bytes: u64) -> Result<()> {
    let file = fs::File::create(path).and_then(|file| file.set_len(size_bytes));
    file.map_err(Error::io(format!("making {}", path.display())))
}
