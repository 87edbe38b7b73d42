//! What the source is told.

use std::time::Duration;

use sterna_migration::destination::Answer;
use sterna_wire::message as wire;
use sterna_wire::post_copy;
use sterna_wire::{AnswerState, Message, Text};

use super::Drive;

impl Drive {
    pub(super) async fn answer(&mut self, answer: Answer) {
        let message = match answer {
            Answer::Prepared => self.prepared(),
            Answer::Refused(refusals) => Message::Refused(wire::Refused::new(&refusals)),
            Answer::Loaded(root) => Message::Loaded(wire::Loaded {
                root,
                pages_hashed: self.streams.pages_hashed(),
                load_ms: u64::try_from(self.load_begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            }),
            Answer::Failed(why) => Message::Failed(wire::Failed { error: Text::new(&why) }),
            Answer::Running { .. } => {
                let since = self.commit_came.map_or(Duration::ZERO, |came| came.elapsed());
                Message::Running(wire::Running {
                    commit_to_resume_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
                    peak_anonymous_bytes: self.agent.anonymous.peak().0,
                    lacks_pages: self
                        .streams
                        .faulting()
                        .map_or(0, |faulting| faulting.left().max(1)),
                })
            }
            Answer::Complete => {
                let latency = self.streams.faulting().map(|faulting| faulting.latency());
                let latency = latency.unwrap_or_default();
                Message::Complete(post_copy::Complete {
                    requests: latency.requests,
                    fault_latency_p50_us: latency.percentile_us(50),
                    fault_latency_p99_us: latency.percentile_us(99),
                    fault_latency_max_us: latency.max_us(),
                    peak_anonymous_bytes: self.agent.anonymous.peak().0,
                })
            }
            Answer::Vanished(why) => {
                Message::Vanished(post_copy::Vanished { reason: Text::new(&why) })
            }
            Answer::Discarded => {
                let (job, epoch) = (self.prepare.job.clone(), self.prepare.epoch);
                Message::Discarded(wire::Discarded { job, epoch })
            }
            Answer::Unknown(_) => {
                let (job, state) = (self.prepare.job.clone(), AnswerState::Unknown);
                Message::Answer(wire::Answer { job, state })
            }
        };
        self.send(&message).await;
    }

    fn prepared(&self) -> Message {
        let waiting = self.waiting.as_ref();
        let shared = waiting
            .map(|waiting| waiting.shared.iter().map(|block| block.block().clone()).collect());
        let start_time = waiting.map_or(Duration::ZERO, |waiting| waiting.start_time);
        Message::Prepared(wire::Prepared {
            token: self.token,
            shared_blocks: shared.unwrap_or_default(),
            qemu_version: waiting.map(|waiting| waiting.version.clone()).unwrap_or_default(),
            start_ms: u64::try_from(start_time.as_millis()).unwrap_or(u64::MAX),
            post_copy: waiting.is_some_and(|waiting| waiting.post_copy),
            kept: self.streams.has_kept(),
        })
    }

    pub(super) async fn send(&mut self, message: &Message) {
        for link in &self.links {
            if let Err(error) = link.send(message).await {
                tracing::debug!(%error, "an answer could not be sent");
            }
        }
    }
}
