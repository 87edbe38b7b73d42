//! The bulk side of a move that arrives: data connections, the memory they write, the loader, and when all is here.

mod keeping;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver as Channel, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use sterna_host::memory::BlockMemory;
use sterna_host::tls::{DataHandle, DataStream};
use sterna_model::{BlockName, ByteCount, PageId, Root};
use sterna_page_codec::{PageKey, unpack_state};
use sterna_qemu_stream::{Command, Configuration, RamSection, ReturnPath};
use sterna_wire::message::{self as wire, Prepare};
use sterna_wire::{FrameReader, Message, Verify};
use tokio::sync::Notify;

use super::asked::AskedPages;
use super::faulting::{Faulting, Lane};
use super::loader::{Loader, Order};
use super::memory::DestinationMemory;
use super::receiver::{Applied, Broken, Receiver};
use super::recover::{self, Recovered};
use super::return_path::Listener;

/// Bytes of device state that are accepted, at most.
const MAX_TAIL_BYTES: usize = 64 << 20;
/// Acknowledgements are sent at most so often: they only make references possible.
const ACKNOWLEDGE_EVERY: Duration = Duration::from_millis(5);
/// Pages in one message that asks for them.
const ASKED_AT_ONCE: usize = 4096;
/// A QEMU that does not read on has ended, most likely. How it did is heard within this, and says more.
const DEATH_IS_SEEN: Duration = Duration::from_millis(300);

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
    /// A page or the loader failed.
    Failed(String),
    /// One of the connections that were made at this time broke.
    LinkLost(u32, String),
    /// All memory was read again and is as it should be.
    Verified,
    /// QEMU is ready for post-copy: pages may be written.
    Ready,
    /// What was kept from an earlier job is here, and hashed.
    Adopted,
    /// QEMU has loaded the devices of a guest that lacks pages.
    DevicesLoaded,
    /// QEMU has placed every page.
    Placed,
    /// The guest waits for these pages.
    Wanted(Vec<PageId>),
    /// QEMU's stream of this number broke.
    Broken(u32, String),
}

pub(super) type Report = Arc<dyn Fn(StreamEvent) + Send + Sync>;

/// See the module.
pub(super) struct Streams {
    key: PageKey,
    verify: Verify,
    report: Report,
    /// The guest may run before all its memory is there; the last connection is then for what it waits for.
    post_copy: bool,
    connections: u16,
    receivers: Vec<Option<Connected>>,
    /// Counts how often all connections were made.
    generation: u32,
    progress: Arc<Notify>,
    memory: Option<Arc<DestinationMemory>>,
    /// What is kept of the guest from an earlier job, until its memory is open.
    kept: Vec<BlockMemory>,
    /// Pages may be written.
    let_in: bool,
    /// Counts QEMU's streams.
    stream: u32,
    loader: Option<Sender<Order>>,
    asked: Option<Arc<AskedPages>>,
    tail: Vec<u8>,
    last: Option<wire::Final>,
    acknowledged_at: Option<Instant>,
}

struct Connected {
    applied: Arc<Applied>,
    memory: Sender<Arc<DestinationMemory>>,
    handle: DataHandle,
    /// Hears nothing but the end of its thread.
    ended: Channel<()>,
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
            post_copy: false,
            connections: prepare.connections,
            receivers: (0..prepare.connections).map(|_| None).collect(),
            generation: 0,
            progress: Arc::new(Notify::new()),
            memory: None,
            kept: Vec::new(),
            let_in: false,
            stream: 0,
            loader: None,
            asked: None,
            tail: Vec::new(),
            last: None,
            acknowledged_at: None,
        }
    }

    /// QEMU can run the guest before all its memory is there.
    pub(super) fn allow_post_copy(&mut self) {
        self.post_copy = true;
        self.receivers.push(None);
    }

    /// What the guest lacks, once it runs without all its pages.
    pub(super) fn faulting(&self) -> Option<&Arc<Faulting>> {
        self.memory.as_ref()?.faulting()
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
        let lane = if connection.number == self.connections { Lane::Urgent } else { Lane::Bulk };
        let receiver = Receiver {
            lane,
            link: connection.link,
            frames: connection.frames,
            key: self.key.clone(),
            memory,
            applied: Arc::clone(&applied),
            progress: Arc::clone(&self.progress),
        };
        if let Some(memory) = self.memory.as_ref().filter(|_| self.let_in) {
            let _ = sender.send(Arc::clone(memory));
        }
        let (report, generation) = (Arc::clone(&self.report), self.generation);
        let (ends, ended) = channel();
        spawn("sterna-receiver", move || {
            match receiver.run() {
                Ok(()) => {}
                Err(Broken::Link(why)) => report(StreamEvent::LinkLost(generation, why)),
                Err(Broken::Pages(why)) => report(StreamEvent::Failed(why)),
            }
            drop::<Sender<()>>(ends);
        })?;
        *slot = Some(Connected { applied, memory: sender, handle, ended });
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
        self.memory = Some(memory);
        if !self.post_copy {
            self.let_in();
        }
        Ok(())
    }

    /// Lets pages be written; until then they wait in their connections.
    pub(super) fn let_in(&mut self) {
        let Some(memory) = self.memory.clone() else { return };
        if self.has_kept() {
            return self.take_over(&memory);
        }
        self.let_in = true;
        for connected in self.receivers.iter().flatten() {
            let _ = connected.memory.send(Arc::clone(&memory));
        }
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
        let (report, number) = (Arc::clone(&self.report), self.stream);
        if self.post_copy {
            let back = stream.try_clone().map_err(|error| error.to_string())?;
            self.listen(back, ReturnPath::new(memory.layout().clone()), &memory)?;
        }
        let post_copy = self.post_copy;
        let loader = Loader { stream, memory, configuration, ram, post_copy, orders };
        spawn("sterna-loader", move || {
            if let Err(why) = loader.run() {
                std::thread::sleep(DEATH_IS_SEEN);
                report(StreamEvent::Broken(number, why));
            }
        })?;
        self.loader = Some(sender);
        Ok(())
    }

    /// What the guest waits for is kept there from here on.
    ///
    /// # Errors
    /// When there can be no file.
    pub(super) fn keep_asked(&mut self, path: &Path) -> Result<(), String> {
        let kept = AskedPages::begin(path);
        let failed = |error| format!("cannot make {}: {error}", path.display());
        self.asked = Some(Arc::new(kept.map_err(failed)?));
        Ok(())
    }

    /// Takes up what an earlier agent was asked for; QEMU does not ask again.
    fn ask_again(&mut self, path: &Path, memory: &DestinationMemory) {
        match AskedPages::go_on(path, memory.layout().pages()) {
            Ok((kept, pages)) => {
                self.asked = Some(Arc::new(kept));
                if let Some(faulting) = memory.faulting() {
                    faulting.asked_before(&pages);
                }
            }
            // It comes by the push.
            Err(error) => tracing::warn!(%error, "what the guest waits for is not known any more"),
        }
    }

    /// The memory of a guest that runs here and lacks pages, as a restarted agent finds it.
    pub(super) fn adopt(&mut self, memory: DestinationMemory) {
        self.memory = Some(Arc::new(memory));
        self.post_copy = true;
        self.let_in = true;
    }

    /// Goes on with QEMU's stream, which an earlier agent has left whole; what the guest lacks is found out anew. Blocks
    /// until QEMU has placed what it was given.
    ///
    /// # Errors
    /// When QEMU does not take what it was given, or its memory cannot be looked into.
    pub(super) fn go_on(
        &mut self,
        stream: UnixStream,
        block: &BlockName,
        ram: wire::RamSection,
        asked: &Path,
    ) -> Result<(), String> {
        let Some(memory) = self.memory.clone() else { return Err("the memory is not open".into()) };
        let ram = RamSection { section_id: ram.section, instance_id: ram.instance };
        let recovered = recover::go_on(stream, &memory, block, ram)?;
        self.ask_again(asked, &memory);
        self.feed_on(recovered, memory)
    }

    /// Takes QEMU's broken stream up again; what the guest lacks is found out anew. Blocks until QEMU waits for pages.
    ///
    /// # Errors
    /// When QEMU does not answer as it should.
    pub(super) fn recover(
        &mut self,
        stream: UnixStream,
        blocks: &[BlockName],
        ram: wire::RamSection,
    ) -> Result<(), String> {
        let Some(memory) = self.memory.clone() else { return Err("the memory is not open".into()) };
        let ram = RamSection { section_id: ram.section, instance_id: ram.instance };
        let recovered = recover::recover(stream, &memory, blocks, ram)?;
        self.feed_on(recovered, memory)
    }

    fn feed_on(
        &mut self,
        recovered: Recovered,
        memory: Arc<DestinationMemory>,
    ) -> Result<(), String> {
        let Recovered { stream, writer, messages } = recovered;
        let back = stream.try_clone().map_err(|error| error.to_string())?;
        self.stream += 1;
        self.listen(back, messages, &memory)?;
        let (report, number) = (Arc::clone(&self.report), self.stream);
        spawn("sterna-loader", move || {
            if let Err(why) = Loader::go_on(stream, memory, writer) {
                report(StreamEvent::Broken(number, why));
            }
        })
    }

    fn listen(
        &self,
        stream: UnixStream,
        messages: ReturnPath,
        memory: &Arc<DestinationMemory>,
    ) -> Result<(), String> {
        let (memory, report) = (Arc::clone(memory), Arc::clone(&self.report));
        let asked = self.asked.clone();
        let listener = Listener { stream, number: self.stream, messages, memory, asked, report };
        spawn("sterna-return", move || listener.run())
    }

    /// Whether this is QEMU's present stream: what an earlier one still says is nothing about it.
    pub(super) fn is_current(&self, number: u32) -> bool {
        self.stream == number
    }

    /// Whether these are the present connections.
    pub(super) fn are_current(&self, generation: u32) -> bool {
        self.generation == generation
    }

    /// Forgets all data connections: the source makes new ones.
    pub(super) fn leave_connections(&mut self) {
        self.generation += 1;
        for connected in self.receivers.iter_mut().filter_map(Option::take) {
            connected.handle.close();
        }
    }

    /// The source of a guest that runs here makes its connections anew, so many and one for what the guest waits for.
    pub(super) fn rejoin(&mut self, key: PageKey, connections: u16) {
        self.leave_connections();
        self.key = key;
        self.connections = connections;
        self.receivers = (0..=connections).map(|_| None).collect();
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
            return Err(too_much_state());
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
            answers.push(missing_message(pages));
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
        // What the guest waits for is on a connection that is not counted.
        self.receivers.iter().take(usize::from(self.connections)).map(frames).collect()
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
    ///
    /// # Errors
    /// When the tail is not what the source said.
    pub(super) fn finish(&mut self) -> Result<(), String> {
        let commands =
            self.last.as_ref().map(|last| last.commands.iter().filter_map(command).collect());
        let tail = self.device_state()?;
        if let Some(loader) = self.loader.take() {
            let faulting = self.memory.as_ref().and_then(|memory| memory.begin_faulting());
            let commands = commands.unwrap_or_default();
            let _ = loader.send(match faulting {
                Some(faulting) => Order::FinishFaulting(commands, tail, faulting),
                None => Order::Finish(commands, tail),
            });
        }
        Ok(())
    }

    /// What the tail is, or is the packed form of.
    fn device_state(&mut self) -> Result<Vec<u8>, String> {
        let tail = std::mem::take(&mut self.tail);
        match self.last.as_ref().map_or(0, |last| last.state_bytes) {
            0 => Ok(tail),
            bytes => match usize::try_from(bytes).ok().filter(|bytes| *bytes <= MAX_TAIL_BYTES) {
                Some(bytes) => unpack_state(&tail, bytes).map_err(|error| error.to_string()),
                None => Err(too_much_state()),
            },
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
        if let Some(faulting) = self.faulting() {
            faulting.close();
        }
        self.loader = None;
        self.asked = None;
        // The job may be asked what became of it for long; it does not need the guest's memory for that.
        self.tail = Vec::new();
    }
}

fn too_much_state() -> String {
    format!("expected at most {MAX_TAIL_BYTES} bytes of device state, found more")
}

fn missing_message(pages: &[(PageId, u32)]) -> Message {
    Message::Missing(wire::Missing { pages: pages.to_vec() })
}

fn command(command: &wire::StreamCommand) -> Option<Command> {
    Command::from_parts(command.command, command.data.as_bytes())
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let spawned = thread::Builder::new().name(name.into()).spawn(body);
    spawned.map(drop).map_err(|error| format!("cannot start a thread: {error}"))
}
