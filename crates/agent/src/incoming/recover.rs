//! Taking QEMU's broken stream up again while the guest runs and lacks pages: after a restart of this agent, or when the
//! stream broke by itself. QEMU's own post-copy recovery, driven by us.
//!
//! What is lacking is known to nobody else any more: it is what QEMU has not placed and what is no data in the file behind
//! the memory. Pages that are known to be zero are holes as well, and are asked for like the others.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use sterna_host::qmp::Qmp;
use sterna_host::socket::unsent_bytes;
use sterna_model::{BlockName, PAGE_BYTES, PageId};
use sterna_qemu_stream::{PlacedPages, RamSection, ReturnMessage, ReturnPath, Writer};

use super::memory::DestinationMemory;

const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// What QEMU was given is placed when it has read it and its memory has not grown for so long.
const QUIET: Duration = Duration::from_millis(200);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// QEMU answers each question within this.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// A stream that was taken up again: QEMU waits for pages.
pub(super) struct Recovered {
    /// Our end.
    pub stream: UnixStream,
    /// What writes on.
    pub writer: Writer,
    /// What reads on: QEMU may have asked for pages already.
    pub messages: ReturnPath,
}

/// Connects to a QEMU whose stream broke. Its main loop may stand, waiting for a page itself, so it is asked out of band.
///
/// # Errors
/// When it does not listen, for one because it has not noticed yet.
pub(super) async fn connect(qmp: &Qmp, socket: &Path) -> Result<UnixStream, String> {
    let _ = std::fs::remove_file(socket);
    let uri = json!({"uri": format!("unix:{}", socket.display())});
    let recover = qmp.execute_out_of_band("migrate-recover", uri, COMMAND_TIMEOUT).await;
    recover.map_err(|error| error.to_string())?;
    let stream = UnixStream::connect(socket).map_err(|error| error.to_string());
    let _ = std::fs::remove_file(socket);
    stream
}

/// Learns what the guest lacks, and lets QEMU wait for it. Blocks.
///
/// # Errors
/// When QEMU does not answer as it should.
pub(super) fn recover(
    stream: UnixStream,
    memory: &DestinationMemory,
    blocks: &[BlockName],
    ram: RamSection,
) -> Result<Recovered, String> {
    let failed = |error: std::io::Error| format!("QEMU does not take its stream up: {error}");
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(failed)?;
    let writer = Writer::recover(ram, memory.layout().clone());
    let messages = ReturnPath::new(memory.layout().clone());
    let mut recovered = Recovered { stream, writer, messages };
    let mut lacking = Vec::new();
    for block in blocks {
        let placed = recovered.placed(block)?;
        let present = memory.present(block).map_err(|error| error.to_string())?;
        lacking.extend(present.absent().filter(|page| !placed.contains(*page)));
    }
    // Before QEMU goes on: it then asks again for what the guest waits for.
    memory.fault_again(lacking);
    let mut out = Vec::new();
    recovered.writer.resume(&mut out);
    recovered.stream.write_all(&out).map_err(failed)?;
    recovered.await_resumption()?;
    recovered.stream.set_read_timeout(None).map_err(failed)?;
    Ok(recovered)
}

/// Goes on with a stream that an earlier agent has left at the end of a piece: pieces are written whole or not at all
/// ([`Loader`](super::loader::Loader)). What was under way is waited for, since a page that is placed twice ends QEMU.
/// Blocks.
///
/// # Errors
/// When QEMU does not read on, or its memory cannot be looked into.
pub(super) fn go_on(
    stream: UnixStream,
    memory: &DestinationMemory,
    block: &BlockName,
    ram: RamSection,
) -> Result<Recovered, String> {
    let begun = Instant::now();
    let mut settled = Settled { unread: true, present: 0, since: begun };
    let present = loop {
        if begun.elapsed() > ANSWER_TIMEOUT {
            return Err("QEMU does not take what it was given".to_owned());
        }
        std::thread::sleep(LOOK_EVERY);
        let unread = unsent_bytes(&stream).map_err(|error| error.to_string())? > 0;
        let present = memory.present(block).map_err(|error| error.to_string())?;
        if settled.look(unread, present.count()) {
            break present;
        }
    };
    memory.fault_again(present.absent().collect());
    let at = memory.layout().blocks().iter().position(|known| known.name == *block);
    let messages = ReturnPath::going_on(memory.layout().clone(), at.unwrap_or_default());
    Ok(Recovered { stream, writer: Writer::recover(ram, memory.layout().clone()), messages })
}

/// Whether QEMU has placed all that it was given: it has read everything, and nothing was added since for a while.
#[derive(Debug)]
struct Settled {
    unread: bool,
    present: usize,
    since: Instant,
}

impl Settled {
    fn look(&mut self, unread: bool, present: usize) -> bool {
        if unread || self.unread || present != self.present {
            *self = Self { unread, present, since: Instant::now() };
            return false;
        }
        self.since.elapsed() >= QUIET
    }
}

impl Recovered {
    fn placed(&mut self, block: &BlockName) -> Result<PlacedPages, String> {
        let mut out = Vec::new();
        self.writer.ask_received(&mut out, block);
        self.stream.write_all(&out).map_err(|error| error.to_string())?;
        loop {
            match self.next()? {
                ReturnMessage::Received { pages, .. } => return Ok(pages),
                // It will be asked for again.
                ReturnMessage::Wanted { .. } => {}
                other => return Err(format!("expected the pages that QEMU has, found {other:?}")),
            }
        }
    }

    fn await_resumption(&mut self) -> Result<(), String> {
        loop {
            match self.next()? {
                ReturnMessage::ResumeAck(1) => return Ok(()),
                ReturnMessage::Wanted { .. } => {}
                other => return Err(format!("expected QEMU to resume, found {other:?}")),
            }
        }
    }

    fn next(&mut self) -> Result<ReturnMessage, String> {
        let mut bytes = [0; 4096];
        loop {
            let message = self.messages.next_message().map_err(|error| error.to_string())?;
            if let Some(message) = message {
                return Ok(message);
            }
            let count = self.stream.read(&mut bytes).map_err(|error| error.to_string())?;
            if count == 0 {
                return Err("QEMU has closed the stream that it was to take up".to_owned());
            }
            self.messages.feed(&bytes[..count]);
        }
    }
}

/// Which pages of a block are data in the file behind it.
#[derive(Debug)]
pub(super) struct Present {
    pages: std::ops::Range<u32>,
    /// In bytes from the block's start; ascending.
    data: Vec<std::ops::Range<u64>>,
}

impl Present {
    pub(super) fn new(pages: std::ops::Range<u32>, data: Vec<std::ops::Range<u64>>) -> Self {
        Self { pages, data }
    }

    /// How many pages are data.
    fn count(&self) -> usize {
        self.pages.len() - self.absent().count()
    }

    /// The pages that are holes.
    fn absent(&self) -> impl Iterator<Item = PageId> + '_ {
        let first = self.pages.start;
        let mut data = self.data.iter().peekable();
        self.pages.clone().map(PageId).filter(move |page| {
            let offset = u64::from(page.0 - first) * PAGE_BYTES as u64;
            while data.peek().is_some_and(|run| run.end <= offset) {
                data.next();
            }
            data.peek().is_none_or(|run| run.start > offset)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_what_is_no_data() {
        let page = PAGE_BYTES as u64;
        let absent = |data: Vec<std::ops::Range<u64>>| -> Vec<u32> {
            Present::new(10..16, data).absent().map(|page| page.0).collect()
        };
        assert_eq!(absent(vec![]), [10, 11, 12, 13, 14, 15]);
        assert_eq!(absent(vec![0..page, 3 * page..5 * page]), [11, 12, 15]);
        assert_eq!(absent(std::iter::once(0..6 * page).collect()), [0; 0]);
    }
}
