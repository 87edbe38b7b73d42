//! A receiver: one thread, one decoder, one connection. Frames in, pages into the guest's memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver as Channel;

use sterna_host::tls::{DataStream, FrameStreamError};
use sterna_page_codec::{Decoder, PageKey};
use sterna_wire::{FrameKind, FrameReader};
use tokio::sync::Notify;

use super::faulting::Lane;
use super::memory::{DestinationMemory, Store};

/// What a connection has done so far.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// Frames whose pages are written.
    pub frames: AtomicU64,
}

/// One receiver.
pub(super) struct Receiver {
    /// Its connection, after the hello.
    pub link: DataStream,
    /// Where its frames start: after the hello.
    pub frames: FrameReader,
    /// What it carries.
    pub lane: Lane,
    /// The job's key.
    pub key: PageKey,
    /// The guest's memory, once it is known.
    pub memory: Channel<Arc<DestinationMemory>>,
    /// What it has done.
    pub applied: Arc<Applied>,
    /// Woken after each frame.
    pub progress: Arc<Notify>,
}

/// Why a receiver ends before the source has finished; in words.
#[derive(Debug)]
pub(super) enum Broken {
    /// The connection is gone.
    Link(String),
    /// What comes cannot be used.
    Pages(String),
}

impl From<String> for Broken {
    fn from(why: String) -> Self {
        Self::Pages(why)
    }
}

impl Receiver {
    /// Receives until the source has finished.
    ///
    /// # Errors
    /// When the connection fails or what comes cannot be used.
    pub(super) fn run(mut self) -> Result<(), Broken> {
        // The source names the blocks on the control connection; until then its pages wait in the socket.
        let Ok(memory) = self.memory.recv() else { return Ok(()) };
        let decoder = Decoder::new(self.key.clone(), memory.layout().pages());
        let mut decoder = decoder.map_err(|error| error.to_string())?;
        let mut store = Store(&memory, self.lane);
        while self.link.read_frame(&mut self.frames).map_err(broken)? {
            let Some(frame) = self.frames.frame() else { continue };
            if frame.kind != FrameKind::Pages {
                let kind = frame.kind;
                let why =
                    format!("expected a frame of pages from the source, found one of kind {kind}");
                return Err(why.into());
            }
            decoder.decode(frame.payload, &mut store).map_err(|error| describe(&error))?;
            self.applied.frames.fetch_add(1, Ordering::Release);
            self.progress.notify_one();
        }
        Ok(())
    }
}

fn broken(error: FrameStreamError) -> Broken {
    match error {
        FrameStreamError::Connection(error) => Broken::Link(error.to_string()),
        FrameStreamError::Frame(error) => Broken::Pages(error.to_string()),
    }
}

/// An error with what caused it.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
