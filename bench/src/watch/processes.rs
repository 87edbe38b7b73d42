//! What agents and QEMUs use: time on a CPU and anonymous memory, by the kernel's books.
//!
//! A process may end before it can be asked a last time (the source's QEMU does), so all are asked
//! every few milliseconds and the last answer stands: at most one interval is missing.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sterna_e2e::{Error, Result, Side, World};

/// How often processes are asked.
const INTERVAL: Duration = Duration::from_millis(20);
/// The kernel counts time in hundredths of a second towards user space, on every architecture.
const TICKS_PER_SECOND: f64 = 100.0;

/// What the processes of a move have used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// Source, then destination.
    pub(crate) agents: [Used; 2],
    /// Source, then destination. Under TCG the guest's own work is in it.
    pub(crate) qemus: [Used; 2],
}

/// What one kind of process has used on one host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Used {
    /// User and system time, in seconds.
    pub(crate) cpu_s: f64,
    /// The peak of its anonymous memory. For a stock QEMU the guest's RAM is in it.
    pub(crate) peak_anonymous_bytes: u64,
}

/// What is watched in a thread of its own.
#[derive(Debug)]
pub(crate) struct Processes {
    stop: Arc<AtomicBool>,
    watcher: JoinHandle<BTreeMap<u32, Process>>,
}

#[derive(Clone, Copy, Debug)]
struct Process {
    side: Side,
    kind: Kind,
    first_ticks: u64,
    last_ticks: u64,
    peak_kib: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Agent,
    Qemu,
}

impl Processes {
    /// Begins: what runs now has used nothing yet.
    ///
    /// # Errors
    /// A namespace is gone.
    pub(crate) fn watch(world: &World) -> Result<Self> {
        let mut namespaces = Vec::new();
        for side in Side::BOTH {
            let path = format!("/run/netns/{}", world.namespace(side));
            let about = fs::metadata(&path).map_err(Error::io(format!("looking at {path}")))?;
            namespaces.push((about.ino(), side));
        }
        let mut known = BTreeMap::new();
        let mut foreign = Vec::new();
        look(&namespaces, &mut known, &mut foreign, Start::Before);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let watcher = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                thread::sleep(INTERVAL);
                look(&namespaces, &mut known, &mut foreign, Start::Within);
            }
            known
        });
        Ok(Self { stop, watcher })
    }

    /// Ends, with what was used since the start.
    pub(crate) fn finish(self) -> Usage {
        self.stop.store(true, Ordering::Relaxed);
        let processes = self.watcher.join().unwrap_or_default();
        let mut usage = Usage::default();
        for process in processes.values() {
            let of_kind = match process.kind {
                Kind::Agent => &mut usage.agents,
                Kind::Qemu => &mut usage.qemus,
            };
            let used = &mut of_kind[usize::from(process.side == Side::Beta)];
            used.cpu_s += seconds(process.last_ticks - process.first_ticks);
            used.peak_anonymous_bytes = used.peak_anonymous_bytes.max(process.peak_kib << 10);
        }
        usage
    }
}

/// When a process that is new to us has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// Before the watch: what it has used so far is not ours.
    Before,
    /// Within it: all is.
    Within,
}

fn look(
    namespaces: &[(u64, Side)],
    known: &mut BTreeMap<u32, Process>,
    foreign: &mut Vec<u32>,
    start: Start,
) {
    let Ok(entries) = fs::read_dir("/proc") else { return };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for pid in pids {
        if foreign.contains(&pid) {
            continue;
        }
        let Some(ticks) = cpu_ticks(pid) else { continue };
        let process = match known.entry(pid) {
            Entry::Occupied(process) => process.into_mut(),
            Entry::Vacant(place) => {
                let Some((side, kind)) = identity(pid, namespaces) else {
                    // What becomes a QEMU later is a shell in its namespace until then: look again.
                    let here = namespace(pid);
                    if namespaces.iter().all(|(inode, _)| here != Some(*inode)) {
                        foreign.push(pid);
                    }
                    continue;
                };
                let first_ticks = if start == Start::Before { ticks } else { 0 };
                place.insert(Process { side, kind, first_ticks, last_ticks: ticks, peak_kib: 0 })
            }
        };
        process.last_ticks = ticks.max(process.last_ticks);
        process.peak_kib = process.peak_kib.max(anonymous_kib(pid));
    }
}

fn identity(pid: u32, namespaces: &[(u64, Side)]) -> Option<(Side, Kind)> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let kind = match name.trim_end() {
        "sterna" => Kind::Agent,
        name if name.starts_with("qemu-system") => Kind::Qemu,
        _ => return None,
    };
    let inode = namespace(pid)?;
    let (_, side) = namespaces.iter().find(|(of, _)| *of == inode)?;
    Some((*side, kind))
}

fn namespace(pid: u32) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/net")).ok().map(|about| about.ino())
}

/// User and system time of the whole process: fields 14 and 15 of its `stat`, counted after the name in
/// parentheses, which may hold anything.
fn cpu_ticks(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_ticks(&text)
}

fn parse_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn anonymous_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "a move uses far less than 2^52 ticks")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / TICKS_PER_SECOND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_blanks_and_parentheses() {
        let stat = "7 (a) (b c) S 1 7 7 0 -1 0 0 0 0 0 30 12 0 0 20 0 1 0 5 0 0";
        assert_eq!(parse_ticks(stat), Some(42));
        assert_eq!(parse_ticks("7 (a"), None);
    }
}
