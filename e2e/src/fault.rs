//! Faults from outside: the moment of a move at which one strikes, and what it is.
//!
//! A moment is seen in the journals of the two agents: what a record announces is done only after the record is durable, so
//! a fault that strikes right behind one strikes before or in the step that it announces.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::command::{Running, is_alive, signal};
use crate::story::Pair;
use crate::vm::Vm;
use crate::world::Side;
use crate::{Error, Result};

/// Journals are small: looking that often costs nothing that a move would feel.
const LOOK_EVERY: Duration = Duration::from_micros(200);
/// Every moment of a move comes within this.
const MOMENT_LIMIT: Duration = Duration::from_secs(60);
/// Pages are under way when the first so many bytes are.
const UNDER_WAY_BYTES: u64 = 3_000_000;
/// What is left on a full disk.
const FILLER: &str = "filler";

/// A moment of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The source has begun the job's journal.
    Preparing,
    /// So has the destination; it starts its QEMU.
    Starting,
    /// Pages are copied while the guest runs.
    Copying,
    /// The source is about to stop the guest.
    Stopping,
    /// The source is about to send the commit.
    Offered,
    /// The destination is about to resume the guest.
    Entitled,
    /// The guest runs at the destination and is about to lack pages (post-copy only).
    Faulting,
    /// The source is about to send the pages that the guest lacks there (post-copy only).
    Serving,
    /// The guest runs at the destination.
    Running,
    /// The source is about to end its QEMU.
    Gone,
}

/// What strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Blow {
    /// `kill -9` of the source's agent, which is started again.
    SourceAgent,
    /// The same at the destination.
    DestinationAgent,
    /// `kill -9` of the source's QEMU.
    SourceQemu,
    /// The same at the destination.
    DestinationQemu,
    /// Nothing passes the link for 5 s.
    ShortCut,
    /// The same for 60 s.
    LongCut,
    /// The disk of the source's state directory, journals included, is full until the job is over.
    SourceDisk,
    /// The same at the destination.
    DestinationDisk,
    /// The source's QEMU, its monitor included, stands still for 5 s.
    SourceHangs,
    /// The same at the destination.
    DestinationHangs,
    /// `kill -9` of the source's agent and of its QEMU; the agent is started again: a host that failed, and is back.
    SourceHost,
}

impl Phase {
    /// Those that only a move by post-copy has.
    pub const OF_POST_COPY: [Self; 2] = [Self::Faulting, Self::Serving];

    /// All that a move by pre-copy has, in their order.
    pub const ALL: [Self; 8] = [
        Self::Preparing,
        Self::Starting,
        Self::Copying,
        Self::Stopping,
        Self::Offered,
        Self::Entitled,
        Self::Running,
        Self::Gone,
    ];

    /// Waits for it; `before` are the journals that there were before the move. Tells whether it came: a move that ended
    /// without it, by a fault of its own, has none.
    ///
    /// # Errors
    /// Neither it nor the end came in time.
    pub fn wait(
        self,
        pair: &Pair,
        from: Side,
        before: &Journals,
        command: &mut Running,
    ) -> Result<bool> {
        if self == Self::Copying {
            let sent = pair.world().counters(from)?;
            return pair
                .world()
                .wait_for_sent(from, sent, UNDER_WAY_BYTES, MOMENT_LIMIT)
                .map(|()| true);
        }
        let (side, record) = match self {
            Self::Preparing => (from, "\"source-of\""),
            Self::Starting => (from.other(), "\"destination-of\""),
            Self::Copying | Self::Stopping => (from, "\"stopping\""),
            Self::Offered => (from, "\"offered\""),
            Self::Entitled => (from.other(), "\"entitled\""),
            Self::Faulting => (from.other(), "\"faulting\""),
            Self::Serving => (from, "\"serving\""),
            Self::Running => (from.other(), "\"running\""),
            Self::Gone => (from, "\"gone\""),
        };
        let begun = Instant::now();
        while begun.elapsed() < MOMENT_LIMIT {
            if before.new_one(pair, side).is_some_and(|text| text.contains(record)) {
                return Ok(true);
            }
            if command.has_ended()? {
                return Ok(false);
            }
            thread::sleep(LOOK_EVERY);
        }
        let what = format!("the journal's record {record} at {}", side.name());
        Err(Error::TimedOut { what, after: MOMENT_LIMIT, seen: "nothing of the kind".to_owned() })
    }
}

/// The journals that there are at a moment.
#[derive(Debug)]
pub struct Journals([BTreeSet<PathBuf>; 2]);

impl Journals {
    /// Those of both hosts now.
    #[must_use]
    pub fn of(pair: &Pair) -> Self {
        Self(Side::BOTH.map(|side| journals_at(pair, side).into_iter().collect()))
    }

    /// What the journal says that a host has begun since.
    fn new_one(&self, pair: &Pair, side: Side) -> Option<String> {
        let known = &self.0[if side == Side::Alpha { 0 } else { 1 }];
        let new = journals_at(pair, side).into_iter().find(|path| !known.contains(path))?;
        Some(String::from_utf8_lossy(&fs::read(new).ok()?).into_owned())
    }
}

fn journals_at(pair: &Pair, side: Side) -> Vec<PathBuf> {
    let folder = pair.host(side).state_dir().join("jobs");
    fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default()
}

/// What is to be put right again after a blow.
#[derive(Debug)]
#[must_use]
pub struct Wound {
    blow: Blow,
    from: Side,
    since: Instant,
    frozen: Vec<u32>,
}

impl Blow {
    /// Those that strike everywhere in a soak.
    pub const ALL: [Self; 10] = [
        Self::SourceAgent,
        Self::DestinationAgent,
        Self::SourceQemu,
        Self::DestinationQemu,
        Self::ShortCut,
        Self::LongCut,
        Self::SourceDisk,
        Self::DestinationDisk,
        Self::SourceHangs,
        Self::DestinationHangs,
    ];

    /// Strikes in a move of `vm` away from `from`.
    ///
    /// # Errors
    /// The machine does not let it.
    pub fn strike(self, pair: &mut Pair, vm: &Vm) -> Result<Wound> {
        let from = vm.at();
        let mut wound = Wound { blow: self, from, since: Instant::now(), frozen: Vec::new() };
        let theirs = |pair: &Pair| pair.world().qemus(from.other());
        match self {
            Self::SourceAgent => pair.host_mut(from).kill9(),
            Self::DestinationAgent => pair.host_mut(from.other()).kill9(),
            Self::SourceQemu => send(&[vm.pid()], "KILL"),
            Self::SourceHost => {
                pair.host_mut(from).kill9();
                send(&[vm.pid()], "KILL");
            }
            Self::DestinationQemu => send(&theirs(pair)?, "KILL"),
            Self::ShortCut | Self::LongCut => pair.world().cut()?,
            Self::SourceDisk => fill(pair, from)?,
            Self::DestinationDisk => fill(pair, from.other())?,
            Self::SourceHangs => wound.frozen = vec![vm.pid()],
            Self::DestinationHangs => wound.frozen = theirs(pair)?,
        }
        send(&wound.frozen, "STOP");
        Ok(wound)
    }

    const fn lasts(self) -> Duration {
        match self {
            Self::ShortCut | Self::SourceHangs | Self::DestinationHangs => Duration::from_secs(5),
            Self::LongCut => Duration::from_secs(60),
            // Somebody has noticed.
            Self::SourceAgent | Self::DestinationAgent | Self::SourceHost => {
                Duration::from_millis(300)
            }
            _ => Duration::ZERO,
        }
    }
}

impl Wound {
    /// Puts it right when its time is over: a cut link passes again, an agent is started again. A full disk stays full.
    ///
    /// # Errors
    /// The machine does not let it, or the agent does not start.
    pub fn mend(&self, pair: &mut Pair) -> Result<()> {
        thread::sleep(self.blow.lasts().saturating_sub(self.since.elapsed()));
        match self.blow {
            Blow::SourceAgent | Blow::SourceHost => pair.host_mut(self.from).restart()?,
            Blow::DestinationAgent => pair.host_mut(self.from.other()).restart()?,
            Blow::ShortCut | Blow::LongCut => pair.world().unshape()?,
            _ => send(&self.frozen, "CONT"),
        }
        Ok(())
    }

    /// Puts right what stays wrong until the job is over.
    pub fn clean_up(&self, pair: &Pair) {
        let side = if self.blow == Blow::SourceDisk { self.from } else { self.from.other() };
        // There is none after most blows.
        let _ = fs::remove_file(pair.host(side).state_dir().join(FILLER));
    }
}

/// One that has ended in the meantime is as good.
fn send(pids: &[u32], name: &str) {
    for pid in pids.iter().filter(|pid| is_alive(**pid)) {
        let _ = signal(*pid, name);
    }
}

/// Fills the small disk of a host's state directory to its last byte.
fn fill(pair: &Pair, side: Side) -> Result<()> {
    use std::io::Write;
    let path = pair.host(side).state_dir().join(FILLER);
    let mut file = fs::File::create(path).map_err(Error::io("filling a disk"))?;
    // In the end byte by byte: the rest of a page is room as well.
    for piece in [vec![0; 4096], vec![0; 1]] {
        while file.write_all(&piece).is_ok() {}
    }
    Ok(())
}
