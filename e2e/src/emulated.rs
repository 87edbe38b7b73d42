//! A wire with delay and loss: a process that carries packets between a TUN device on either host.
//!
//! The process lives in beta's namespace, so that it ends with the world's other processes, also after a
//! run that was killed; and before that when this one's end of its standard input closes.

use std::env;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use sterna_model::{ByteCount, Rate};

use crate::command::{tool_line, wait_for};
use crate::{Error, Result};

/// It opens two devices.
const START_LIMIT: Duration = Duration::from_secs(5);
/// It prints a line.
const END_LIMIT: Duration = Duration::from_secs(5);
/// Beside busy guests it should wake up in time: the link's delay is its only work.
const NICENESS: &str = "-15";
/// Packets that a device holds until the emulator has read them. It should never be full: what a
/// device drops is not in the emulator's counters.
const DEVICE_QUEUE_PACKETS: u32 = 10_000;

/// The wire between the hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// As fast as this machine, no delay, no loss; can be shaped.
    #[default]
    Plain,
    /// See [`EmulatedLink`].
    Emulated(EmulatedLink),
}

/// A link with rate, delay and loss, the same in both directions. No reordering, no jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmulatedLink {
    /// Bytes of IP packets per second in each direction.
    pub rate: Rate,
    /// The round trip of a small packet while the link is idle.
    pub round_trip: Duration,
    /// Packets lost in a million, each for itself.
    pub loss_per_million: u32,
    /// Decides which ones.
    pub seed: u64,
    /// Bytes that may wait in each direction; none: what the link carries in a round trip, 64 KiB at
    /// least.
    pub queue: Option<ByteCount>,
}

impl EmulatedLink {
    /// A link without loss.
    #[must_use]
    pub const fn new(rate: Rate, round_trip: Duration) -> Self {
        Self { rate, round_trip, loss_per_million: 0, seed: 0, queue: None }
    }

    /// The same, losing so many packets in a million; `seed` decides which ones.
    #[must_use]
    pub const fn losing(self, loss_per_million: u32, seed: u64) -> Self {
        Self { loss_per_million, seed, ..self }
    }

    fn words(&self) -> Vec<String> {
        let mut words = vec![
            format!("--rate={}B", self.rate.bytes_per_second),
            format!("--round-trip-us={}", self.round_trip.as_micros()),
            format!("--loss-per-million={}", self.loss_per_million),
            format!("--seed={}", self.seed),
        ];
        words.extend(self.queue.map(|queue| format!("--queue-bytes={}", queue.0)));
        words
    }
}

/// The process; killed when dropped.
#[derive(Debug)]
pub(crate) struct Emulator {
    child: Child,
}

impl Emulator {
    /// Makes the device `wire` in both namespaces, without addresses, and joins them.
    pub(crate) fn start(link: &EmulatedLink, namespaces: &[String; 2]) -> Result<Self> {
        for namespace in namespaces {
            tool_line("ip", &format!("-n {namespace} tuntap add dev wire mode tun"))?;
            let length = format!("txqueuelen {DEVICE_QUEUE_PACKETS}");
            tool_line("ip", &format!("-n {namespace} link set wire {length} addrgenmode none up"))?;
        }
        let mut command = Command::new("nice");
        command.args(["-n", NICENESS]).arg(program()?);
        command.args(namespaces.each_ref().map(|name| format!("/run/netns/{name}")));
        command.args(link.words());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(Error::io("starting link-emulator"))?;
        let mut emulator = Self { child };
        let joined = wait_for("a carrier on the emulated wire", START_LIMIT, || {
            if emulator.has_ended()? {
                return Ok(Some(false));
            }
            let texts = namespaces
                .each_ref()
                .map(|namespace| tool_line("ip", &format!("-n {namespace} -o link show wire")));
            let [alpha, beta] = texts;
            Ok((has_carrier(&alpha?) && has_carrier(&beta?)).then_some(true))
        })?;
        if joined { Ok(emulator) } else { Err(emulator.why_not()) }
    }

    /// Ends it; gives what it has counted.
    pub(crate) fn finish(mut self) -> Result<Value> {
        drop(self.child.stdin.take());
        wait_for("the end of link-emulator", END_LIMIT, || Ok(self.has_ended()?.then_some(())))?;
        let (stdout, stderr) = self.output();
        serde_json::from_str(&stdout).map_err(|error| {
            let found = format!("{error} in {stdout:?}; stderr: {stderr}");
            Error::unexpected("link-emulator", "one JSON document", found)
        })
    }

    fn why_not(&mut self) -> Error {
        let (stdout, stderr) = self.output();
        Error::unexpected("link-emulator", "that it runs", format!("{stdout}{stderr}"))
    }

    fn has_ended(&mut self) -> Result<bool> {
        let ended = self.child.try_wait().map_err(Error::io("waiting for link-emulator"));
        Ok(ended?.is_some())
    }

    /// All that it has printed: little, so that no pipe is ever full before its end.
    fn output(&mut self) -> (String, String) {
        let text = |pipe: Option<&mut dyn Read>| {
            let mut bytes = Vec::new();
            // What came before an error is kept.
            let _ = pipe.map(|pipe| pipe.read_to_end(&mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (stdout, stderr) = (self.child.stdout.as_mut(), self.child.stderr.as_mut());
        (text(stdout.map(|pipe| pipe as _)), text(stderr.map(|pipe| pipe as _)))
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn has_carrier(link: &str) -> bool {
    link.contains("LOWER_UP")
}

/// `STERNA_LINK_EMULATOR`, or the one that was built beside this program.
fn program() -> Result<PathBuf> {
    if let Some(path) = env::var_os("STERNA_LINK_EMULATOR") {
        return Ok(path.into());
    }
    let here = env::current_exe().map_err(Error::io("asking for this program's path"))?;
    let mut built = here.ancestors().map(|folder| folder.join("link-emulator"));
    built.find(|path| path.is_file()).ok_or_else(|| {
        let what = "no binary `link-emulator`: cargo build --release -p sterna-emulator";
        Error::Unavailable(what.to_owned())
    })
}
