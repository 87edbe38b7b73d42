//! What the destination's QEMU says on the way back of its stream, in post-copy: that it is ready, that the devices are
//! loaded, and which pages the guest waits for.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use sterna_model::{PageHash, PageId};
use sterna_qemu_stream::{ReturnMessage, ReturnPath};

use super::asked::AskedPages;
use super::memory::DestinationMemory;
use super::streams::{Report, StreamEvent};

/// QEMU has discarded all guest memory: from now on pages may be written.
pub(super) const READY: u32 = 1;
/// QEMU has loaded the devices.
pub(super) const LOADED: u32 = 3;

const READ_BYTES: usize = 4096;

/// See the module. One thread.
pub(super) struct Listener {
    /// The way back.
    pub stream: UnixStream,
    /// Its number.
    pub number: u32,
    /// What was heard of it so far.
    pub messages: ReturnPath,
    /// The guest's memory.
    pub memory: Arc<DestinationMemory>,
    /// Where it is kept what the guest waits for.
    pub asked: Option<Arc<AskedPages>>,
    /// Where it reports.
    pub report: Report,
}

impl Listener {
    /// Listens until QEMU has nothing more to say.
    pub(super) fn run(mut self) {
        if let Err(why) = self.listen() {
            (self.report)(StreamEvent::Broken(self.number, why));
        }
    }

    fn listen(&mut self) -> Result<(), String> {
        let mut bytes = [0; READ_BYTES];
        loop {
            while let Some(message) =
                self.messages.next_message().map_err(|error| error.to_string())?
            {
                if self.heard(&message)? {
                    return Ok(());
                }
            }
            let count = self.stream.read(&mut bytes).map_err(|error| error.to_string())?;
            if count == 0 {
                // After a plain load this is its end; in post-copy QEMU says so before.
                return match self.memory.faulting() {
                    None => Ok(()),
                    Some(_) => Err("QEMU has closed its stream".to_owned()),
                };
            }
            self.messages.feed(&bytes[..count]);
        }
    }

    /// Whether it was the last word.
    fn heard(&self, message: &ReturnMessage) -> Result<bool, String> {
        match message {
            ReturnMessage::Pong(READY) => (self.report)(StreamEvent::Ready),
            ReturnMessage::Pong(LOADED) => (self.report)(StreamEvent::DevicesLoaded),
            ReturnMessage::Pong(_) | ReturnMessage::ResumeAck(_) => {}
            ReturnMessage::Wanted { first, count } => self.wanted(*first, *count),
            ReturnMessage::Received { .. } => {
                return Err("QEMU told what it has received without being asked".to_owned());
            }
            ReturnMessage::Shut(0) => {
                if self.memory.faulting().is_some() {
                    (self.report)(StreamEvent::Placed);
                }
                return Ok(true);
            }
            ReturnMessage::Shut(error) => return Err(format!("QEMU's load ended with {error}")),
        }
        Ok(false)
    }

    fn wanted(&self, first: PageId, count: u32) {
        let Some(faulting) = self.memory.faulting() else { return };
        let is_zero =
            |page| self.memory.stored(page).is_some_and(|stored| stored.hash == PageHash::ZERO);
        let pages = first.0..first.0.saturating_add(count);
        let from_source = faulting.asked(pages, is_zero);
        if !from_source.is_empty() {
            self.asked.iter().for_each(|asked| asked.note(&from_source));
            (self.report)(StreamEvent::Wanted(from_source));
        }
    }
}
