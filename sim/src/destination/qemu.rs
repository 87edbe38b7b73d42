//! The destination's QEMU: its start, its load, its resume, its end.

use std::time::Duration;

use sterna_migration::destination::{Answer, Entitlement, Fact};

use super::drive::Drive;
use crate::disk::{Owner, Record};
use crate::faults::Side;
use crate::guest::Guest;
use crate::hands::Hands;
use crate::plant::Plant;
use crate::qemu::{Command, Qemu, RunState};
use crate::receiver::Receiver;
use crate::world::Event;

/// QEMU's start takes up to this.
const STARTING_TAKES: Duration = Duration::from_millis(300);
/// Loading the devices takes up to this.
const LOADING_TAKES: Duration = Duration::from_millis(40);
/// A QEMU that is killed is reaped within this.
const KILLING_TAKES: Duration = Duration::from_millis(20);

impl Drive {
    pub(super) async fn start_qemu(&mut self) {
        self.hands.step("checks what was asked for").await;
        if self.hands.with(|world| world.refuses) {
            return self.fact(Fact::StartRefused(Vec::new()));
        }
        self.hands.step("starts QEMU").await;
        let (pages, connections, takes) = self.hands.with(|world| {
            let pages = world.setting.pages;
            let connections = world.setting.connections + usize::from(world.setting.post_copy);
            let qemu = Qemu::new(Guest::empty(pages), RunState::InMigrate);
            world.host(Side::Destination).qemu = Some(qemu);
            let takes = world.random.time(Duration::from_millis(5), STARTING_TAKES);
            (pages, connections, takes)
        });
        self.hands.sleep(takes).await;
        self.hands.step("QEMU waits").await;
        if let Err(error) = self.hands.qemu(Command::Query).await {
            let why = format!("QEMU cannot be prepared: {error:?}");
            kill(&self.hands).await;
            self.hands.with(|world| world.note(|| why));
            return self.fact(Fact::StartRefused(Vec::new()));
        }
        let record = Record { owner: Owner::Incoming, process: true };
        self.hands.store(Some(record)).await;
        self.waiting = true;
        self.hands.with(|world| world.receiver = Some(Receiver::new(pages, connections)));
        self.fact(Fact::QemuStarted);
    }

    /// The source's stream has begun: the memory is opened, and QEMU begins to load.
    pub(super) async fn open(&mut self) -> Result<(), String> {
        // Whether it had arrived is not known to a source whose connections broke.
        let repeats = std::mem::take(&mut self.head_may_repeat);
        let may_repeat = repeats && !self.hands.errs(Plant::HeadTwiceFails);
        if may_repeat && self.hands.with(|world| world.is_memory_open()) {
            return Ok(());
        }
        self.hands.with(|world| world.open_memory())?;
        let begun = self.hands.qemu(Command::Incoming).await;
        begun.map_err(|error| format!("migrate-incoming: {error:?}"))?;
        self.hands.with(|world| {
            if let Some(receiver) = world.receiver.as_mut() {
                receiver.loading = true;
            }
        });
        Ok(())
    }

    /// Lets QEMU load the device state.
    pub(super) fn load(&self) {
        self.hands.with(|world| {
            let takes = world.random.time(Duration::from_millis(1), LOADING_TAKES);
            world.clock.after(takes, Event::Loaded);
        });
    }

    /// Resumes the guest. Only whoever holds the entitlement may.
    pub(super) async fn resume(&mut self, _entitlement: Entitlement) {
        if !self.waiting {
            return self.fact(Fact::ResumeFailed("its QEMU is gone; it may have run".into()));
        }
        let runs = self.guest_ran || self.hands.errs(Plant::PausedGuestRuns);
        let runs_already = match self.recovered {
            true => self.hands.qemu(Command::Query).await.map(|now| !waits(now.run)),
            false => Ok(false),
        };
        let runs_already = match runs_already {
            Ok(runs_already) => runs_already,
            Err(error) => return self.fact(Fact::ResumeFailed(format!("{error:?}"))),
        };
        if runs
            && !runs_already
            && let Err(error) = self.hands.qemu(Command::Cont).await
        {
            return self.fact(Fact::ResumeFailed(format!("{error:?}")));
        }
        let lacks_pages = self.hands.with(|world| {
            world.guest_is_taken();
            if let Some(receiver) = world.receiver.as_mut() {
                receiver.begin_feeding();
            }
            world.is_lacking()
        });
        self.fact(Fact::Resumed { lacks_pages });
    }

    /// The planted bug: nothing is durable yet.
    pub(super) async fn resume_early(&self) {
        let _ = self.hands.qemu(Command::Cont).await;
    }

    pub(super) async fn kill(&mut self) {
        self.hands.with(|world| world.receiver = None);
        if self.hands.errs(Plant::DiscardedBeforeDead) {
            self.answer(Answer::Discarded).await;
        }
        if std::mem::take(&mut self.waiting) {
            kill(&self.hands).await;
            self.hands.store(None).await;
        }
        self.fact(Fact::Killed);
    }
}

/// Whether a guest stands because nobody has resumed it yet.
const fn waits(run: RunState) -> bool {
    matches!(run, RunState::Paused | RunState::InMigrate | RunState::PostMigrate)
}

/// Kills the QEMU, and waits until it is reaped.
pub(super) async fn kill(hands: &Hands) {
    hands.step("kills QEMU").await;
    let takes = hands.with(|world| world.random.time(Duration::from_millis(1), KILLING_TAKES));
    hands.sleep(takes).await;
    hands.with(|world| {
        world.check_ending(Side::Destination);
        if let Some(qemu) = world.host(Side::Destination).qemu.as_mut() {
            qemu.alive = false;
        }
        world.saw_death(Side::Destination);
    });
    hands.step("QEMU is reaped").await;
}
