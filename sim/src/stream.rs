//! The source's QEMU at its stream, and the reader that drains it: pages become marks in the real tracker.
//!
//! The reader is a thread of the source's agent: it stands still with it, and so does QEMU then, before a full socket.

use std::time::Duration;

use crate::faults::Side;
use crate::plant::Plant;
use crate::qemu::{Piece, RunState, Status};
use crate::world::{Event, Inbound, StreamEvent, World};

impl World {
    /// The source's QEMU goes on with its stream, now.
    pub(crate) fn stream_goes_on(&mut self, after: Duration) {
        self.stream_turn += 1;
        self.clock.after(after, Event::Stream(self.stream_turn));
    }

    /// A piece of the source's stream.
    pub(crate) fn stream(&mut self, turn: u64) {
        let (now, stalled) = (self.now(), self.host(Side::Source).stalled_until);
        if turn != self.stream_turn {
            return;
        }
        // The reader stands still, and QEMU before a full socket.
        if stalled > now {
            return self.clock.at(stalled, Event::Stream(turn));
        }
        let worked = self.source_qemu(|qemu| {
            let active = qemu.alive && qemu.status == Status::Active;
            active.then(|| (qemu.work(now), qemu.stream, qemu.slow, qemu.run == RunState::Running))
        });
        let Some(Some((piece, stream, slow, runs))) = worked else { return };
        let first = !piece.pages.is_empty() && self.tracker.is_some();
        if first {
            self.tell_head(stream);
        }
        let over = piece.completed.is_some();
        let passing = !piece.first_pass_over
            && self.tracker.as_ref().is_some_and(|tracker| !tracker.first_pass_over());
        self.read(stream, &piece);
        if !over {
            let next = match (passing, slow, runs) {
                (true, _, _) => Duration::from_micros(300),
                (_, true, true) => Duration::from_millis(40),
                (_, _, true) => Duration::from_millis(4),
                (..) => Duration::from_millis(1),
            };
            self.stream_goes_on(next);
        }
    }

    fn tell_head(&mut self, stream: u32) {
        if std::mem::replace(&mut self.head_told, stream) != stream {
            self.tell(Side::Source, Inbound::Stream(stream, StreamEvent::Head));
        }
    }

    fn read(&mut self, stream: u32, piece: &Piece) {
        let Some(tracker) = self.tracker.clone() else { return };
        for (page, zero) in &piece.pages {
            if self.errs(Plant::ReaderLosesPage) && self.random.chance(5) {
                self.note(|| format!("PLANT the reader loses page {}", page.0));
                continue;
            }
            tracker.report(*page, *zero);
        }
        if piece.first_pass_over {
            tracker.end_first_pass();
            self.tell(Side::Source, Inbound::Stream(stream, StreamEvent::FirstPassOver));
        }
        if let Some(device) = piece.completed {
            self.note(|| format!("the source's QEMU has completed stream {stream}"));
            let event = StreamEvent::Completed(device);
            self.tell(Side::Source, Inbound::Stream(stream, event));
        }
    }

    /// The stream breaks, and QEMU lives.
    pub(crate) fn stream_breaks(&mut self) {
        let stream = self.source_qemu(|qemu| {
            let active = qemu.alive && qemu.status == Status::Active;
            active.then(|| {
                qemu.status = Status::Ended;
                qemu.stream
            })
        });
        if let Some(Some(stream)) = stream {
            self.tell(Side::Source, Inbound::Stream(stream, StreamEvent::Broken));
        }
    }
}
