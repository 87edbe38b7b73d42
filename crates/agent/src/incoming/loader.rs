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

use super::memory::DestinationMemory;

/// Bytes that are put together before they are written.
const FLUSH_BYTES: usize = 256 << 10;

/// What the loader is told.
#[derive(Debug)]
pub(super) enum Order {
    /// Feed what has come of the blocks that are not shared.
    Feed,
    /// Feed the rest, these commands, the end and this tail.
    Finish(Vec<Command>, Vec<u8>),
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
        let writer = Writer::begin(&mut out, &self.configuration, &[], self.ram, layout);
        let fed = self.memory.staged_pages().map(|page| (page, 0)).collect();
        let mut feed = Feed { writer, fed, out, stream: self.stream, memory: self.memory };
        feed.flush()?;
        while let Ok(order) = self.orders.recv() {
            match order {
                Order::Feed => feed.pages()?,
                Order::Finish(commands, tail) => return feed.finish(&commands, &tail),
            }
        }
        Ok(())
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
        let failed =
            |error: std::io::Error| format!("QEMU does not take its device state: {error}");
        self.stream.write_all(&self.out).map_err(failed)?;
        self.stream.shutdown(Shutdown::Write).map_err(failed)
    }

    fn flush(&mut self) -> Result<(), String> {
        let written = self.stream.write_all(&self.out);
        self.out.clear();
        written.map_err(|error| format!("QEMU does not take its stream: {error}"))
    }
}
