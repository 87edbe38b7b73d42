//! While the guest runs at the source: connections that are made anew, and memory that is kept from one job to the next.

use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use sterna_host::memory::BlockMemory;
use sterna_wire::Message;

use super::{ASKED_AT_ONCE, Connected, StreamEvent, Streams, missing_message, spawn};
use crate::incoming::memory::DestinationMemory;

/// A thread whose connection is closed ends when it has written what it was at.
const WRITES_END: Duration = Duration::from_secs(10);
impl Streams {
    /// The job begins with what is kept of the guest.
    pub(in crate::incoming) fn begin_with(&mut self, kept: Vec<BlockMemory>) {
        self.kept = kept;
    }

    /// Whether it does, and that is still to come.
    pub(in crate::incoming) fn has_kept(&self) -> bool {
        !self.kept.is_empty()
    }

    /// What can be kept of the guest when the job comes to nothing. To be called when nobody writes any more.
    pub(in crate::incoming) fn keep(&mut self) -> Vec<BlockMemory> {
        let kept = std::mem::take(&mut self.kept);
        match &self.memory {
            _ if !kept.is_empty() => kept,
            Some(memory) => memory.shared_files(),
            None => Vec::new(),
        }
    }

    /// Moves what is kept to where QEMU has it, on a thread of its own.
    pub(in crate::incoming) fn take_over(&mut self, memory: &Arc<DestinationMemory>) {
        let (memory, key) = (Arc::clone(memory), self.key.clone());
        let (kept, report) = (std::mem::take(&mut self.kept), Arc::clone(&self.report));
        let adopted = spawn("sterna-adopt", move || {
            let begun = Instant::now();
            let adopted = memory.adopt(&kept, &key).map_err(|error| error.to_string());
            tracing::info!(ms = begun.elapsed().as_millis(), "what was kept is hashed");
            report(adopted.map_or_else(StreamEvent::Failed, |()| StreamEvent::Adopted));
        });
        if let Err(why) = adopted {
            (self.report)(StreamEvent::Failed(why));
        }
    }

    /// The memory, for who tells its hashes.
    pub(in crate::incoming) fn memory(&self) -> Option<Arc<DestinationMemory>> {
        self.memory.clone()
    }

    /// As [`Streams::leave_connections`], while the guest runs at the source. Waits until nobody writes any more.
    pub(in crate::incoming) fn leave_rounds(&mut self) {
        self.generation += 1;
        let left: Vec<_> = self.receivers.iter_mut().filter_map(Option::take).collect();
        left.iter().for_each(|connected| connected.handle.close());
        for Connected { memory, ended, .. } in left {
            drop(memory);
            if let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(WRITES_END) {
                tracing::warn!("a thread that writes guest memory does not end");
            }
        }
    }

    /// The source makes as many connections anew while the guest runs there. Gives what was asked for and has not come: it
    /// may not have been heard.
    pub(in crate::incoming) fn rejoin_rounds(&mut self, connections: u16) -> Vec<Message> {
        self.leave_rounds();
        self.connections = connections;
        let count = usize::from(connections) + usize::from(self.post_copy);
        self.receivers = (0..count).map(|_| None).collect();
        self.acknowledged_at = None;
        let missing = self.memory.as_ref().map(|memory| memory.missing()).unwrap_or_default();
        missing.chunks(ASKED_AT_ONCE).map(missing_message).collect()
    }

    /// Whether the source has said what its last frames are.
    pub(in crate::incoming) fn has_last(&self) -> bool {
        self.last.is_some()
    }

    /// Whether connections may be made anew with this key: that of the job.
    pub(in crate::incoming) fn has_key(&self, key: &[u8; 32]) -> bool {
        self.key.0 == *key
    }
}
