//! The loader: feeds the destination's QEMU a stream without guest RAM: the head, the pages of blocks that are not shared,
//! then the source's device state unchanged.
//!
//! Runs on a thread of its own, since QEMU reads when it likes. What it has fed is remembered by version, so that pages
//! can go ahead while the guest still runs at the source and only what changed goes in the downtime.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use sterna_model::{PageHash, PageId, ZERO_PAGE};
use sterna_qemu_stream::{Command, Configuration, RamSection, Writer};

use super::faulting::{Faulting, Next};
use super::memory::DestinationMemory;
use super::return_path;

/// What a stream begins with after which the guest may run before all its memory is there. QEMU answers the last one when
/// it has discarded all memory, and what is written before would be lost.
const OPENING: [Command; 3] =
    [Command::OpenReturnPath, Command::PostcopyAdvise, Command::Ping(return_path::READY)];
/// Pages of post-copy that are written at a time: few, so that one that the guest waits for is soon next.
const PAGES_AT_ONCE: usize = 8;
/// Bytes that are put together before they are written.
const FLUSH_BYTES: usize = 256 << 10;

/// What the loader is told.
#[derive(Debug)]
pub(super) enum Order {
    /// Feed what has come of the blocks that are not shared.
    Feed,
    /// Feed the rest, these commands, the end and this tail.
    Finish(Vec<Command>, Vec<u8>),
    /// Feed the rest, these commands, and this tail so that the guest can run without these pages; then the pages.
    FinishFaulting(Vec<Command>, Vec<u8>, Arc<Faulting>),
}

/// One stream into QEMU.
pub(super) struct Loader {
    /// QEMU's end reads here.
    pub stream: UnixStream,
    /// The memory to feed from.
    pub memory: Arc<DestinationMemory>,
    /// The source's configuration.
    pub configuration: Configuration,
    /// The RAM section's numbers.
    pub ram: RamSection,
    /// Whether the guest may run before all its memory is there.
    pub post_copy: bool,
    /// Where orders come from.
    pub orders: Receiver<Order>,
}

impl Loader {
    /// Feeds QEMU until the stream is finished, or the orders end.
    ///
    /// # Errors
    /// In words, when QEMU does not read on.
    pub(super) fn run(self) -> Result<(), String> {
        let mut out = Vec::new();
        let layout = self.memory.layout().clone();
        let opening: &[Command] = if self.post_copy { &OPENING } else { &[] };
        let writer = Writer::begin(&mut out, &self.configuration, opening, self.ram, layout);
        let fed = self.memory.staged_pages().map(|page| (page, 0)).collect();
        let mut feed = Feed { writer, fed, out, stream: self.stream, memory: self.memory };
        feed.flush()?;
        while let Ok(order) = self.orders.recv() {
            match order {
                Order::Feed => feed.pages()?,
                Order::Finish(commands, tail) => return feed.finish(&commands, &tail),
                Order::FinishFaulting(commands, tail, faulting) => {
                    return feed.finish_faulting(&commands, &tail, &faulting);
                }
            }
        }
        Ok(())
    }
}

impl Loader {
    /// Gives QEMU the pages that the guest lacks, on a stream that was taken up again.
    ///
    /// # Errors
    /// In words, when QEMU does not read on.
    pub(super) fn go_on(
        stream: UnixStream,
        memory: Arc<DestinationMemory>,
        writer: Writer,
    ) -> Result<(), String> {
        let Some(faulting) = memory.faulting().map(Arc::clone) else { return Ok(()) };
        let feed = Feed { writer, fed: Vec::new(), out: Vec::new(), stream, memory };
        feed.place(&faulting)
    }
}

struct Feed {
    writer: Writer,
    /// Pages to feed, with the version that QEMU has.
    fed: Vec<(PageId, u32)>,
    out: Vec<u8>,
    stream: UnixStream,
    memory: Arc<DestinationMemory>,
}

impl Feed {
    fn pages(&mut self) -> Result<(), String> {
        let mut at = 0;
        while at < self.fed.len() {
            let mut part = self.writer.part(&mut self.out);
            while at < self.fed.len() && part.buffered_bytes() < FLUSH_BYTES {
                let (page, fed) = &mut self.fed[at];
                at += 1;
                let Some(stored) = self.memory.stored(*page).filter(|stored| stored.version > *fed)
                else {
                    continue;
                };
                let fed_now = if stored.hash == PageHash::ZERO {
                    part.zero_page(*page)
                } else {
                    let mut content = ZERO_PAGE;
                    self.memory
                        .read_page(*page, &mut content)
                        .map_err(|error| error.to_string())?;
                    part.page(*page, &content)
                };
                fed_now.map_err(|error| error.to_string())?;
                *fed = stored.version;
            }
            part.close();
            self.flush()?;
        }
        Ok(())
    }

    fn finish(mut self, commands: &[Command], tail: &[u8]) -> Result<(), String> {
        self.pages()?;
        for command in commands {
            self.writer.command(&mut self.out, *command);
        }
        self.writer.end(&mut self.out);
        self.out.extend_from_slice(tail);
        close(self.stream, &self.out, "its device state")
    }

    fn finish_faulting(
        mut self,
        commands: &[Command],
        tail: &[u8],
        faulting: &Faulting,
    ) -> Result<(), String> {
        self.pages()?;
        for command in commands {
            self.writer.command(&mut self.out, *command);
        }
        // The pages are holes already (`Store::write_absent`); QEMU wants to hear of one at least.
        let discarded = self.writer.discard(&mut self.out, faulting.runs().into_iter().take(1));
        discarded.map_err(|error| error.to_string())?;
        let packed = self.writer.package(&mut self.out, tail, return_path::LOADED);
        packed.map_err(|error| error.to_string())?;
        self.flush()?;
        self.place(faulting)
    }

    /// Gives QEMU the pages that the guest lacks, as they come.
    fn place(mut self, faulting: &Faulting) -> Result<(), String> {
        let stream = faulting.stream();
        loop {
            let pages = match faulting.next(stream, PAGES_AT_ONCE) {
                Next::Pages(pages) => pages,
                Next::Complete => break,
                Next::Closed => return Ok(()),
            };
            let mut part = self.writer.part(&mut self.out);
            for placed in &pages {
                let fed = match &placed.content {
                    Some(content) => part.page(placed.page, content),
                    None => part.zero_page(placed.page),
                };
                fed.map_err(|error| error.to_string())?;
            }
            part.close();
            self.flush()?;
            faulting.given(&pages);
        }
        self.writer.end_of_postcopy(&mut self.out);
        close(self.stream, &self.out, "the end of its stream")
    }

    fn flush(&mut self) -> Result<(), String> {
        let written = self.stream.write_all(&self.out);
        self.out.clear();
        written.map_err(|error| format!("QEMU does not take its stream: {error}"))
    }
}

/// Writes what is left, and says that nothing more comes.
fn close(mut stream: UnixStream, rest: &[u8], what: &str) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("QEMU does not take {what}: {error}");
    stream.write_all(rest).map_err(failed)?;
    stream.shutdown(Shutdown::Write).map_err(failed)
}
