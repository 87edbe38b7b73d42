//! While the guest runs here and lacks pages: connections are made anew, and QEMU's stream is taken up again when it broke.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sterna_host::qmp::{MigrationStatus, RunState};
use sterna_page_codec::PageKey;
use sterna_wire::limits::{MAX_LACKING_RUNS, MAX_WANTED_PAGES};
use sterna_wire::post_copy;
use sterna_wire::{GuestState, Message};
use tracing::Instrument as _;

use super::{Drive, Event};
use crate::incoming::recover;
use crate::link::Link;
use crate::vm::Vm;

/// QEMU leaves its load within this.
const CONT_DEADLINE: Duration = Duration::from_secs(5);
/// Between two attempts to take QEMU's stream up again.
const RECOVER_EVERY: Duration = Duration::from_millis(200);

impl Drive {
    /// The source makes its connections anew: it is told what is lacking, and what the guest waits for.
    pub(super) async fn rejoin(&mut self, rejoin: &post_copy::Rejoin, link: Link) {
        let of_this_job = (rejoin.uuid, rejoin.epoch) == (self.prepare.uuid, self.prepare.epoch);
        if of_this_job && self.may_be_rejoined(rejoin) {
            return self.rejoin_rounds(rejoin, link).await;
        }
        if !of_this_job || !self.runs_here() {
            return self.asked(link);
        }
        let Some(faulting) = self.streams.faulting().cloned() else { return self.asked(link) };
        tracing::info!("the source is back; it is told what the guest lacks here");
        self.abandoned = false;
        self.links = vec![link];
        self.streams.rejoin(PageKey(rejoin.page_key.0), rejoin.connections);
        self.send(&Message::Rejoined(post_copy::Rejoined { token: self.token })).await;
        let runs: Vec<_> = faulting
            .runs()
            .into_iter()
            .map(|run| (sterna_model::PageId(run.start), run.end - run.start))
            .collect();
        let mut pieces = runs.chunks(MAX_LACKING_RUNS).peekable();
        if pieces.peek().is_none() {
            let none = post_copy::Lacking { runs: Vec::new(), last: true };
            self.send(&Message::Lacking(none)).await;
        }
        while let Some(piece) = pieces.next() {
            let lacking =
                post_copy::Lacking { runs: piece.to_vec(), last: pieces.peek().is_none() };
            self.send(&Message::Lacking(lacking)).await;
        }
        for pages in faulting.awaited().chunks(MAX_WANTED_PAGES) {
            self.send(&Message::Wanted(post_copy::Wanted { pages: pages.to_vec() })).await;
        }
    }

    /// QEMU's stream broke, or was an earlier agent's. What the source has sent since is not known to have arrived, so its
    /// connections are closed: it makes them anew, and is told what is lacking.
    pub(super) async fn recover_stream(&mut self) {
        self.links.clear();
        self.streams.leave_connections();
        if let Err(why) = self.try_to_recover().await {
            tracing::warn!(%why, "QEMU's stream is not taken up again yet; it is tried again");
            let events = self.events.clone();
            let again = async move {
                tokio::time::sleep(RECOVER_EVERY).await;
                let _ = events.send(Event::RecoverAgain);
            };
            tokio::spawn(again.in_current_span());
        }
    }

    /// An agent that died between its right to resume the guest and doing so has left it paused: what follows from that
    /// is done when QEMU answers, which may take pages first.
    pub(super) fn resume_when_it_answers(&self) {
        let (Some(waiting), GuestState::Running) = (&self.waiting, self.guest) else { return };
        let (vm, events) = (Arc::clone(&waiting.vm), self.events.clone());
        let resume = async move {
            loop {
                if let Some(live) = vm.live()
                    && let Ok(status) = live.qmp.query_status().await
                    && status.status != RunState::InMigrate
                {
                    if status.status == RunState::Paused {
                        let resumed = live.qmp.cont_after_migration(CONT_DEADLINE).await;
                        tracing::info!(?resumed, "the guest was this host's, and paused");
                    }
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(RECOVER_EVERY) => {}
                    () = events.closed() => return,
                }
            }
        };
        tokio::spawn(resume.in_current_span());
    }

    async fn try_to_recover(&mut self) -> Result<(), String> {
        let (Some(waiting), Some(stored)) = (&self.waiting, self.stored.clone()) else {
            return Err("its QEMU or its memory is not known".to_owned());
        };
        if let Some(qmp) = waiting.qmp()
            && qmp.query_migrate().await.is_ok_and(|info| info.status == MigrationStatus::Completed)
        {
            self.placed();
            return Ok(());
        }
        let ram = stored.ram_section.ok_or("the journal does not tell the RAM section")?;
        let socket = waiting.vm.record().agent_qmp.with_file_name("recover.sock");
        if let Some(kept) = self.kept.take() {
            let block = stored.shared_blocks.first().ok_or("the journal tells no memory")?;
            let asked = asked_file(&waiting.vm);
            return tokio::task::block_in_place(|| self.streams.go_on(kept, block, ram, &asked));
        }
        let stream = recover::connect(&waiting.monitor()?, &socket).await?;
        tokio::task::block_in_place(|| self.streams.recover(stream, &stored.shared_blocks, ram))
    }
}

/// Where it is kept what a VM's guest waits for.
pub(super) fn asked_file(vm: &Vm) -> PathBuf {
    vm.record().agent_qmp.with_file_name("asked-pages")
}
