//! Two hosts' networks on one machine: two namespaces joined by a wire, and for guests with a
//! network card a third one with the clients.
//!
//! ```text
//!   namespace alpha                    namespace beta
//!     wire 10.77.0.1 ------ veth ------ wire 10.77.0.2      shaped at both ends, counted;
//!                                                           or TUNs and an emulated link
//!     lan (bridge) + guest0 (tap)       lan (bridge) + guest0 (tap)
//!        |                                 |
//!        +--- veth ---- lan (bridge) ------+
//!                       10.78.0.1          namespace clients
//! ```
//!
//! Names and addresses inside are the same in every world, since no world sees another. The client
//! reaches the guest wherever it runs; which way is what the bridge learns when the guest is announced.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use sterna_model::Rate;

use crate::command::{tool, tool_line, wait_for};
use crate::emulated::{Emulator, Link};
use crate::residue::{Residue, Turn, processes_in};
use crate::{Error, Result};

/// The tap that a guest's network card is connected to, on either host.
pub const TAP: &str = "guest0";
/// The guest's address and its prefix.
pub const GUEST_ADDRESS: &str = "10.78.0.2";
/// The clients' address.
pub const CLIENT_ADDRESS: &str = "10.78.0.1";
/// Bytes that may pass at once through a shaped wire: two milliseconds' worth, but a big packet.
const BURST_MIN_BYTES: u64 = 1 << 16;

/// One of the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Where guests are started.
    Alpha,
    /// Where they go.
    Beta,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Alpha, Self::Beta];

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Alpha => Self::Beta,
            Self::Beta => Self::Alpha,
        }
    }

    /// The host's name, as in its certificate.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Alpha => "alpha",
            Self::Beta => "beta",
        }
    }

    /// The host's address on the wire.
    #[must_use]
    pub const fn address(self) -> &'static str {
        match self {
            Self::Alpha => "10.77.0.1",
            Self::Beta => "10.77.0.2",
        }
    }
}

/// What has passed one end of the wire, by the interface's own counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes sent, headers included.
    pub sent_bytes: u64,
    /// Bytes received, headers included.
    pub received_bytes: u64,
}

/// Whether guests have a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GuestNetwork {
    /// No taps, no clients.
    #[default]
    Absent,
    /// A tap on each host, bridged to the clients.
    Bridged,
}

/// The networks, a folder for files, and a turn on this machine; gone when dropped, with all that
/// runs in them.
#[derive(Debug)]
pub struct World {
    // Dropped before the namespaces that it is in.
    emulator: Option<Emulator>,
    link: Link,
    residue: Residue,
}

impl World {
    /// Waits for its turn and makes the networks. Needs root.
    ///
    /// # Errors
    /// A tool fails.
    pub fn new(guest_network: GuestNetwork) -> Result<Self> {
        Self::with_link(guest_network, Link::Plain)
    }

    /// The same with a wire of this kind.
    ///
    /// # Errors
    /// A tool fails, or there can be no such link.
    pub fn with_link(guest_network: GuestNetwork, link: Link) -> Result<Self> {
        Self::in_turn(Turn::Awaited, guest_network, link)
    }

    /// The same, waiting for its turn or not.
    ///
    /// # Errors
    /// As for [`Self::with_link`].
    pub fn in_turn(turn: Turn, guest_network: GuestNetwork, link: Link) -> Result<Self> {
        let mut world = Self { emulator: None, link, residue: Residue::claim(turn)? };
        for side in Side::BOTH {
            make_namespace(&world.namespace(side))?;
        }
        world.lay_wire()?;
        if guest_network == GuestNetwork::Bridged {
            world.lay_guest_network()?;
        }
        Ok(world)
    }

    /// A folder for files, removed with the world.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.residue.folder()
    }

    /// The name of a host's namespace.
    #[must_use]
    pub fn namespace(&self, side: Side) -> String {
        self.residue.namespace(side.name())
    }

    /// A program to be run on a host.
    #[must_use]
    pub fn command_at(&self, side: Side, program: &Path) -> Command {
        command_in(&self.namespace(side), program)
    }

    /// A program to be run where the clients are.
    #[must_use]
    pub fn command_of_client(&self, program: &Path) -> Command {
        command_in(&self.clients(), program)
    }

    /// The kind of the wire.
    #[must_use]
    pub const fn link(&self) -> Link {
        self.link
    }

    /// Ends an emulated wire, which carries nothing from now on; gives what the emulator has counted
    /// (see its `--help`). A plain one has counted nothing.
    ///
    /// # Errors
    /// It is not an emulated one, was ended before, or the emulator has failed.
    pub fn end_link(&mut self) -> Result<Value> {
        let emulator = self.emulator.take();
        let missing =
            || Error::unexpected("ending the wire", "an emulated one", "none, or no more");
        emulator.ok_or_else(missing)?.finish()
    }

    /// Limits a plain wire to `rate` in each direction.
    ///
    /// # Errors
    /// `tc` fails, or the wire is emulated: two limits in a row are no link that anybody meant.
    pub fn shape(&self, rate: Rate) -> Result<()> {
        if self.link != Link::Plain {
            return Err(Error::unexpected("shaping the wire", "a plain one", "an emulated one"));
        }
        let bits = rate.bytes_per_second * 8;
        let burst = (rate.bytes_per_second / 500).max(BURST_MIN_BYTES);
        for side in Side::BOTH {
            let namespace = self.namespace(side);
            let limit = format!("rate {bits}bit burst {burst} latency 50ms");
            tool_line("tc", &format!("-n {namespace} qdisc replace dev wire root tbf {limit}"))?;
        }
        Ok(())
    }

    /// Takes the limit off again, or joins the wire that was cut. What an emulated link emulates stays.
    ///
    /// # Errors
    /// `tc` fails, or there was none.
    pub fn unshape(&self) -> Result<()> {
        for side in Side::BOTH {
            tool_line("tc", &format!("-n {} qdisc del dev wire root", self.namespace(side)))?;
        }
        Ok(())
    }

    /// Cuts the wire: packets are lost, no connection is told. On an emulated wire, those under way arrive.
    ///
    /// # Errors
    /// `tc` fails.
    pub fn cut(&self) -> Result<()> {
        for side in Side::BOTH {
            let namespace = self.namespace(side);
            tool_line("tc", &format!("-n {namespace} qdisc replace dev wire root blackhole"))?;
        }
        Ok(())
    }

    /// What has passed a host's end of the wire.
    ///
    /// # Errors
    /// `ip` fails or prints something else.
    pub fn counters(&self, side: Side) -> Result<Counters> {
        let text = tool_line("ip", &format!("-n {} -s -j link show wire", self.namespace(side)))?;
        let links: Value = serde_json::from_str(&text).unwrap_or_default();
        let bytes =
            |direction: &str| links.pointer(&format!("/0/stats64/{direction}/bytes"))?.as_u64();
        let counters = bytes("tx").zip(bytes("rx"));
        let (sent_bytes, received_bytes) = counters
            .ok_or_else(|| Error::unexpected("ip -s -j link", "counters of the wire", &text))?;
        Ok(Counters { sent_bytes, received_bytes })
    }

    /// Waits until a host has put so many bytes more on the wire than it had at `since`.
    ///
    /// # Errors
    /// It takes longer than `limit`.
    pub fn wait_for_sent(
        &self,
        side: Side,
        since: Counters,
        bytes: u64,
        limit: Duration,
    ) -> Result<()> {
        let what = format!("{bytes} bytes sent by {}", side.name());
        wait_for(&what, limit, || {
            let sent_bytes = self.counters(side)?.sent_bytes - since.sent_bytes;
            Ok((sent_bytes >= bytes).then_some(()))
        })
    }

    /// The QEMU processes on a host, whoever started them.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn qemus(&self, side: Side) -> Result<Vec<u32>> {
        let is_qemu = |pid: &u32| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.starts_with("qemu-system") && crate::command::is_alive(*pid)
        };
        Ok(processes_in(&self.namespace(side))?.into_iter().filter(is_qemu).collect())
    }

    fn clients(&self) -> String {
        self.residue.namespace("clients")
    }

    fn lay_wire(&mut self) -> Result<()> {
        let namespaces = Side::BOTH.map(|side| self.namespace(side));
        match &self.link {
            Link::Plain => lay_veth(&namespaces)?,
            Link::Emulated(link) => self.emulator = Some(Emulator::start(link, &namespaces)?),
        }
        for side in Side::BOTH {
            let namespace = self.namespace(side);
            tool_line("ip", &format!("-n {namespace} addr add {}/24 dev wire", side.address()))?;
        }
        Ok(())
    }

    fn lay_guest_network(&self) -> Result<()> {
        let clients = self.clients();
        make_namespace(&clients)?;
        make_bridge(&clients)?;
        for side in Side::BOTH {
            let (namespace, port) = (self.namespace(side), side.name());
            make_bridge(&namespace)?;
            tool_line(
                "ip",
                &format!("link add {port} netns {clients} type veth peer uplink netns {namespace}"),
            )?;
            tool_line("ip", &format!("-n {namespace} tuntap add dev {TAP} mode tap"))?;
            for (namespace, member) in [(&clients, port), (&namespace, "uplink"), (&namespace, TAP)]
            {
                tool_line("ip", &format!("-n {namespace} link set {member} master lan"))?;
                bring_up(namespace, member)?;
            }
        }
        tool_line("ip", &format!("-n {clients} addr add {CLIENT_ADDRESS}/24 dev lan"))?;
        // What a client has sent to a host that the guest has just left is lost; with the usual
        // minimum of 200 ms before it is sent again nobody could see a shorter gap.
        tool_line("ip", &format!("-n {clients} route replace 10.78.0.0/24 dev lan rto_min 5ms"))?;
        Ok(())
    }
}

fn command_in(namespace: &str, program: &Path) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program);
    command
}

fn make_namespace(name: &str) -> Result<()> {
    tool("ip", ["netns", "add", name])?;
    tool_line("ip", &format!("-n {name} link set lo up")).map(drop)
}

fn lay_veth(namespaces: &[String; 2]) -> Result<()> {
    let [alpha, beta] = namespaces;
    tool_line("ip", &format!("link add wire netns {alpha} type veth peer wire netns {beta}"))?;
    namespaces.iter().try_for_each(|namespace| bring_up(namespace, "wire"))
}

fn make_bridge(namespace: &str) -> Result<()> {
    tool_line(
        "ip",
        &format!("-n {namespace} link add lan type bridge stp_state 0 forward_delay 0"),
    )?;
    bring_up(namespace, "lan")
}

/// Without IPv6: its chatter would be counted.
fn bring_up(namespace: &str, link: &str) -> Result<()> {
    tool_line("ip", &format!("-n {namespace} link set {link} addrgenmode none"))?;
    tool_line("ip", &format!("-n {namespace} link set {link} up")).map(drop)
}
