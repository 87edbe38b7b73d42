//! The bulk side of a move that arrives: data connections, the memory they write, the loader, and when all is here.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver as Channel, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use sterna_host::memory::BlockMemory;
use sterna_host::tls::{DataHandle, DataStream};
use sterna_model::{ByteCount, Root};
use sterna_page_codec::PageKey;
use sterna_qemu_stream::{Command, Configuration, RamSection};
use sterna_wire::message::{self as wire, Prepare};
use sterna_wire::{FrameReader, Message, Verify};
use tokio::sync::Notify;

use super::loader::{Loader, Order};
use super::memory::DestinationMemory;
use super::receiver::{Applied, Receiver};

/// Bytes of device state that are accepted, at most.
const MAX_TAIL_BYTES: usize = 64 << 20;
/// Acknowledgements are sent at most so often: they only make references possible.
const ACKNOWLEDGE_EVERY: Duration = Duration::from_millis(5);
/// Pages in one message that asks for them.
const ASKED_AT_ONCE: usize = 4096;

/// A data connection that belongs to a job.
pub(crate) struct DataConnection {
    /// Its number.
    pub number: u16,
    /// The bytes.
    pub link: DataStream,
    /// Where its frames start.
    pub frames: FrameReader,
}

/// What the drive loop hears.
#[derive(Debug)]
pub(super) enum StreamEvent {
    /// A connection, a page or the loader failed.
    Failed(String),
    /// All memory was read again and is as it should be.
    Verified,
}

type Report = Arc<dyn Fn(StreamEvent) + Send + Sync>;

/// See the module.
pub(super) struct Streams {
    key: PageKey,
    verify: Verify,
    report: Report,
    receivers: Vec<Option<Connected>>,
    progress: Arc<Notify>,
    memory: Option<Arc<DestinationMemory>>,
    loader: Option<Sender<Order>>,
    tail: Vec<u8>,
    last: Option<wire::Final>,
    acknowledged_at: Option<Instant>,
}

struct Connected {
    applied: Arc<Applied>,
    memory: Sender<Arc<DestinationMemory>>,
    handle: DataHandle,
}

impl Streams {
    /// Nothing has arrived yet.
    pub(super) fn new(
        prepare: &Prepare,
        report: impl Fn(StreamEvent) + Send + Sync + 'static,
    ) -> Self {
        Self {
            key: PageKey(prepare.page_key.0),
            verify: prepare.verify,
            report: Arc::new(report),
            receivers: (0..prepare.connections).map(|_| None).collect(),
            progress: Arc::new(Notify::new()),
            memory: None,
            loader: None,
            tail: Vec::new(),
            last: None,
            acknowledged_at: None,
        }
    }

    /// Woken when frames were applied.
    pub(super) fn progress(&self) -> Arc<Notify> {
        Arc::clone(&self.progress)
    }

    /// Takes a data connection; its pages wait until the memory is open.
    ///
    /// # Errors
    /// When its number is not one that was agreed on, or taken.
    pub(super) fn connect(&mut self, connection: DataConnection) -> Result<(), String> {
        let count = self.receivers.len();
        let slot =
            self.receivers.get_mut(usize::from(connection.number)).filter(|slot| slot.is_none());
        let slot = slot.ok_or_else(|| {
            format!(
                "expected a data connection of 0 to {}, each once, found {}",
                count.saturating_sub(1),
                connection.number
            )
        })?;
        let (sender, memory): (_, Channel<_>) = channel();
        let applied = Arc::new(Applied::default());
        let handle = connection.link.handle().map_err(|error| error.to_string())?;
        let receiver = Receiver {
            link: connection.link,
            frames: connection.frames,
            key: self.key.clone(),
            memory,
            applied: Arc::clone(&applied),
            progress: Arc::clone(&self.progress),
        };
        if let Some(memory) = &self.memory {
            let _ = sender.send(Arc::clone(memory));
        }
        let report = Arc::clone(&self.report);
        spawn("sterna-receiver", move || {
            if let Err(why) = receiver.run() {
                report(StreamEvent::Failed(why));
            }
        })?;
        *slot = Some(Connected { applied, memory: sender, handle });
        Ok(())
    }

    /// Opens the memory of a guest whose layout is now known.
    ///
    /// # Errors
    /// When it was open already, or cannot be opened.
    pub(super) fn open(
        &mut self,
        head: &wire::StreamHead,
        shared: Vec<BlockMemory>,
        budget: ByteCount,
    ) -> Result<(), String> {
        if self.memory.is_some() {
            return Err("the source sent its stream's head twice".into());
        }
        let memory = DestinationMemory::open(head.layout.clone(), shared, budget);
        let memory = Arc::new(memory.map_err(|error| error.to_string())?);
        for connected in self.receivers.iter().flatten() {
            let _ = connected.memory.send(Arc::clone(&memory));
        }
        self.memory = Some(memory);
        Ok(())
    }

    /// Begins to feed QEMU.
    ///
    /// # Errors
    /// When the configuration section is damaged.
    pub(super) fn load(
        &mut self,
        head: &wire::StreamHead,
        stream: UnixStream,
    ) -> Result<(), String> {
        let Some(memory) = self.memory.clone() else { return Err("the memory is not open".into()) };
        let configuration = Configuration::parse(head.configuration.as_bytes());
        let configuration = configuration.map_err(|error| error.to_string())?;
        let wire::RamSection { section, instance } = head.ram_section;
        let ram = RamSection { section_id: section, instance_id: instance };
        let (sender, orders) = channel();
        let loader = Loader { stream, memory, configuration, ram, orders };
        let report = Arc::clone(&self.report);
        spawn("sterna-loader", move || {
            if let Err(why) = loader.run() {
                report(StreamEvent::Failed(why));
            }
        })?;
        self.loader = Some(sender);
        Ok(())
    }

    /// Feeds QEMU what has come of the blocks that it does not share.
    pub(super) fn feed(&self) {
        if let (Some(loader), None) = (&self.loader, &self.last) {
            let _ = loader.send(Order::Feed);
        }
    }

    /// Takes a piece of the device state.
    ///
    /// # Errors
    /// When it is more than any QEMU sends.
    pub(super) fn tail(&mut self, bytes: &[u8]) -> Result<(), String> {
        if self.tail.len() + bytes.len() > MAX_TAIL_BYTES {
            return Err(format!(
                "expected at most {MAX_TAIL_BYTES} bytes of device state, found more"
            ));
        }
        self.tail.extend_from_slice(bytes);
        Ok(())
    }

    /// The source has sent everything, as far as it knows; a later one replaces this.
    pub(super) fn last(&mut self, last: wire::Final) {
        self.last = Some(last);
    }

    /// What the source is to be told: frames applied, pages missing.
    pub(super) fn answers(&mut self) -> Vec<Message> {
        let mut answers = Vec::new();
        let asked = self.memory.as_ref().map(|memory| memory.take_asked()).unwrap_or_default();
        for pages in asked.chunks(ASKED_AT_ONCE) {
            answers.push(Message::Missing(wire::Missing { pages: pages.to_vec() }));
        }
        let due = self.acknowledged_at.is_none_or(|at| at.elapsed() >= ACKNOWLEDGE_EVERY);
        if due && self.last.is_none() {
            self.acknowledged_at = Some(Instant::now());
            let frames_per_connection = self.frames_applied();
            answers.push(Message::Applied(wire::Applied { frames_per_connection }));
        }
        answers
    }

    fn frames_applied(&self) -> Vec<u64> {
        let frames = |slot: &Option<Connected>| {
            slot.as_ref().map_or(0, |connected| connected.applied.frames.load(Ordering::Acquire))
        };
        self.receivers.iter().map(frames).collect()
    }

    /// The source's root, once, when everything that it sent is applied and nothing is missing.
    pub(super) fn take_complete(&mut self) -> Option<Root> {
        let last = self.last.as_ref().filter(|last| last.tail_bytes == self.tail.len() as u64)?;
        let lacking = self.memory.as_ref().is_none_or(|memory| memory.lacks_pages());
        // More frames than were announced are of a retry: its own announcement is still to come.
        let complete = self.frames_applied() == last.frames_per_connection && !lacking;
        complete.then_some(last.root).filter(|_| self.loader.is_some())
    }

    /// Lets QEMU load the device state.
    pub(super) fn finish(&mut self) {
        let commands =
            self.last.as_ref().map(|last| last.commands.iter().filter_map(command).collect());
        if let Some(loader) = self.loader.take() {
            let tail = std::mem::take(&mut self.tail);
            let _ = loader.send(Order::Finish(commands.unwrap_or_default(), tail));
        }
    }

    /// Whether all memory is to be read again.
    pub(super) fn verify_full(&self) -> bool {
        self.verify == Verify::Full
    }

    /// Reads all memory again, on a thread of its own.
    pub(super) fn sweep(&self) {
        let (memory, key, report) =
            (self.memory.clone(), self.key.clone(), Arc::clone(&self.report));
        let swept = spawn("sterna-sweep", move || {
            let swept = memory.map_or(Ok(()), |memory| memory.sweep(&key));
            report(swept.map_or_else(StreamEvent::Failed, |()| StreamEvent::Verified));
        });
        if let Err(why) = swept {
            (self.report)(StreamEvent::Failed(why));
        }
    }

    /// The root of what is here.
    pub(super) fn root(&self) -> Option<Root> {
        self.memory.as_ref().map(|memory| memory.root())
    }

    /// Pages whose content was hashed.
    pub(super) fn pages_hashed(&self) -> u64 {
        self.memory.as_ref().map_or(0, |memory| memory.pages_hashed())
    }

    /// Ends all threads.
    pub(super) fn close(&mut self) {
        for connected in self.receivers.drain(..).flatten() {
            connected.handle.close();
        }
        self.loader = None;
        // The job may be asked what became of it for long; it does not need the guest's memory for that.
        self.tail = Vec::new();
    }
}

fn command(command: &wire::StreamCommand) -> Option<Command> {
    Command::from_parts(command.command, command.data.as_bytes())
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let spawned = thread::Builder::new().name(name.into()).spawn(body);
    spawned.map(drop).map_err(|error| format!("cannot start a thread: {error}"))
}
