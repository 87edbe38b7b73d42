//! The source's QEMU: held in its iterations, paced, stopped when we say, and given back as it was.
//!
//! # How QEMU is held
//! From 8.1 on by the capability `switchover-ack`: while its guest runs, QEMU does not complete before the reader of its
//! stream agrees, which we never do; once the guest is stopped it completes by itself, and looks for dirty pages then.
//! Older ones by a null block node of 1 TiB with a dirty bitmap whose migration counts as pending bytes, so that QEMU never
//! finds that the rest fits its downtime limit. (Newer ones look for dirty pages only where it fits: held by that they
//! would not look at all.) That also serves where the guest is paused, which `switchover-ack` does not hold. Where a QEMU
//! has neither, pacing keeps spontaneous completions rare; they must be expected either way, and are never handed over.
//! So a completion is always ours: the guest is stopped first, and QEMU ends only after that is acknowledged.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sterna_host::qmp::{
    MigrationInfo, MigrationParameters, MigrationStatus, Qmp, QmpError, RunState, Schema,
};
use sterna_migration::source::MayReturn;
use tracing::{debug, warn};

const HOLD_NODE: &str = "sterna-hold";
const HOLD_BITMAP: &str = "sterna-hold";
const DESCRIPTOR: &str = "sterna-migration";
/// QEMU's own hold on the reading end of its stream.
const KEPT_DESCRIPTOR: &str = "sterna-migration-reader";
/// Room for what QEMU writes in its last pass, where the system allows it.
const STREAM_BUFFER_BYTES: usize = 8 << 20;
/// The hold's size and granularity: 2 MiB of bitmap, 1 TiB of pending bytes.
const HOLD_BYTES: u64 = 1 << 40;
const HOLD_GRANULARITY_BYTES: u64 = 1 << 16;
/// As fast as it goes.
const UNLIMITED: u64 = 1 << 40;
/// The least that QEMU accepts and that makes it sync before it completes (QEMU 7.2 skips the sync at 0).
const HELD_DOWNTIME_MS: u64 = 1;
/// The most that QEMU accepts.
const RELEASED_DOWNTIME_MS: u64 = 2_000_000;
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// With the guest stopped, QEMU looks for dirty pages some thousand times a second, or after a window of 100 ms.
const SYNC_DEADLINE: Duration = Duration::from_millis(500);
/// So many looks after the stop, and everything is known and told.
const SYNCS_WANTED: u64 = 3;
/// QEMU leaves its last pass within this.
const CONT_DEADLINE: Duration = Duration::from_secs(5);
/// A migration that was told to end does so within this.
const CANCEL_DEADLINE: Duration = Duration::from_secs(10);

/// A QEMU whose guest is being moved away.
#[derive(Debug)]
pub(super) struct SourceQemu {
    qmp: Qmp,
    hold: Hold,
    before: Before,
    /// The reading end of the stream, for QEMU to keep.
    reading_end: Option<UnixStream>,
}

/// What keeps QEMU in its iterations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// Nothing but its pace.
    Pace,
    /// Pending bytes that never go.
    Bitmap,
    /// That we do not agree, as long as the guest runs.
    Acknowledgement,
}

/// What a destination says when it needs nothing more; QEMU then listens no more, and still waits for what it has not heard.
const SHUT: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 0];
/// The capabilities by which a newer QEMU is held.
const ACKNOWLEDGED: [&str; 2] = ["return-path", "switchover-ack"];

/// QEMU's own post-copy, which streams of ours do without.
const POST_COPY: &str = "postcopy-ram";

/// What is put back when the guest stays.
#[derive(Debug)]
struct Before {
    run_state: RunStateBefore,
    /// The capability for post-copy was on.
    post_copy: bool,
    max_bandwidth: Option<u64>,
    downtime_limit: Option<u64>,
}

/// QEMU's own bookkeeping.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    /// Dirty syncs so far.
    pub(super) syncs: u64,
    /// Guest memory that is dirty and not written to the stream.
    pub(super) remaining_bytes: u64,
}

/// How the guest is found before our stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guest {
    /// It runs.
    Runs,
    /// Its user paused it.
    Paused,
    /// QEMU completes by itself.
    StoppedByQemu,
}

/// What QEMU does after our stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// It knows all that is dirty, and waits to be let go.
    Enough,
    /// It does not look; by its downtime limit it looks once more as it ends.
    TooFew,
    /// It has looked, and ends by itself: its user has let it go.
    Ends,
}

/// How our stop went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The guest stands by our stop; QEMU has not completed before.
    Ours {
        /// Dirty syncs that QEMU had counted when the guest stood.
        syncs: u64,
    },
    /// QEMU completed by itself before our stop took hold.
    TooLate,
}

impl SourceQemu {
    /// Makes a QEMU ready. Nothing that the guest notices happens.
    ///
    /// # Errors
    /// When QEMU refuses or does not answer.
    pub(super) async fn prepare(qmp: Qmp, schema: &Schema) -> Result<Self, QmpError> {
        let status = qmp.query_status().await?;
        let parameters =
            qmp.execute("query-migrate-parameters", Value::Null, COMMAND_TIMEOUT).await?;
        let number = |name: &str| parameters.get(name).and_then(Value::as_u64);
        // A guest that came here in post-copy, or whose user has set it: such a stream is another one.
        let enabled = qmp.query_migration_capabilities().await?;
        let post_copy = enabled.iter().any(|name| name == POST_COPY);
        if post_copy {
            qmp.set_migration_capabilities(&[(POST_COPY, false)]).await?;
        }
        let before = Before {
            post_copy,
            run_state: RunStateBefore { guest_ran: status.running, stop_sent: false },
            max_bandwidth: number("max-bandwidth"),
            downtime_limit: number("downtime-limit"),
        };
        let mut qemu = Self { qmp, hold: Hold::Pace, before, reading_end: None };
        let can_acknowledge = ACKNOWLEDGED.iter().all(|name| schema.has_migration_capability(name));
        if can_acknowledge && status.running {
            qemu.qmp.set_migration_capabilities(&ACKNOWLEDGED.map(|name| (name, true))).await?;
            qemu.hold = Hold::Acknowledgement;
            return Ok(qemu);
        }
        let can_hold = schema.has_migration_capability("dirty-bitmaps")
            && schema.has_blockdev_driver("null-co")
            && schema.has_command("block-dirty-bitmap-add");
        if can_hold {
            match qemu.add_hold().await {
                Ok(()) => qemu.hold = Hold::Bitmap,
                Err(error) => warn!(%error, "QEMU cannot be held by a bitmap; it is only paced"),
            }
        }
        Ok(qemu)
    }

    /// Whether the guest ran when the job began.
    #[must_use]
    pub(super) const fn guest_ran(&self) -> bool {
        self.before.run_state.guest_ran
    }

    /// Looks once more whether the guest runs, just before it is stopped: its user may have paused it meanwhile.
    ///
    /// # Errors
    /// When it neither runs nor is paused: such a guest cannot be handed over as it is.
    pub(super) async fn observe_guest(&mut self) -> Result<Guest, QmpError> {
        let status = self.qmp.query_status().await?;
        let guest = match status.status {
            _ if status.running => Guest::Runs,
            RunState::Paused | RunState::Prelaunch => Guest::Paused,
            RunState::FinishMigrate | RunState::PostMigrate => return Ok(Guest::StoppedByQemu),
            other => {
                let expected = "a guest that runs or is paused".to_owned();
                return Err(QmpError::Protocol { expected, found: format!("{other:?}") });
            }
        };
        self.before.run_state.guest_ran = status.running;
        Ok(guest)
    }

    async fn add_hold(&self) -> Result<(), QmpError> {
        // A job that was cut off may have left one.
        self.remove_hold().await;
        let node = json!({"driver": "null-co", "node-name": HOLD_NODE, "size": HOLD_BYTES});
        self.run("blockdev-add", node).await?;
        let bitmap =
            json!({"node": HOLD_NODE, "name": HOLD_BITMAP, "granularity": HOLD_GRANULARITY_BYTES});
        self.run("block-dirty-bitmap-add", bitmap).await?;
        let mapping = json!([{"node-name": HOLD_NODE, "alias": HOLD_NODE, "bitmaps": [{"name": HOLD_BITMAP, "alias": HOLD_BITMAP}]}]);
        let parameters =
            MigrationParameters { block_bitmap_mapping: Some(mapping), ..Default::default() };
        self.qmp.set_migration_parameters(&parameters).await?;
        self.qmp.set_migration_capabilities(&[("dirty-bitmaps", true)]).await
    }

    async fn remove_hold(&self) {
        for (command, arguments) in [
            ("block-dirty-bitmap-remove", json!({"node": HOLD_NODE, "name": HOLD_BITMAP})),
            ("blockdev-del", json!({"node-name": HOLD_NODE})),
        ] {
            if let Err(error) = self.run(command, arguments).await {
                debug!(%error, command, "no hold to remove");
            }
        }
    }

    /// Begins a stream, as fast as QEMU can; gives our end of it.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub(super) async fn begin(&mut self) -> Result<UnixStream, QmpError> {
        let parameters = MigrationParameters {
            max_bandwidth: Some(UNLIMITED),
            downtime_limit: Some(match self.hold {
                // It looks for dirty pages only where what it knows of would fit.
                Hold::Acknowledgement => RELEASED_DOWNTIME_MS,
                Hold::Pace | Hold::Bitmap => HELD_DOWNTIME_MS,
            }),
            ..Default::default()
        };
        self.qmp.set_migration_parameters(&parameters).await?;
        let (mut ours, theirs) = UnixStream::pair().map_err(|error| local(&error))?;
        if self.hold == Hold::Acknowledgement {
            // At its end it would wait for that.
            ours.write_all(&SHUT).map_err(|error| local(&error))?;
        }
        // Without the right to a larger one the usual 200 KiB have to do.
        let _ =
            rustix::net::sockopt::set_socket_send_buffer_size_force(&theirs, STREAM_BUFFER_BYTES);
        self.reading_end = Some(ours.try_clone().map_err(|error| local(&error))?);
        let name = json!({"fdname": DESCRIPTOR});
        self.qmp.execute_with_fd("getfd", name, OwnedFd::from(theirs), COMMAND_TIMEOUT).await?;
        self.qmp.migrate(&format!("fd:{DESCRIPTOR}")).await?;
        Ok(ours)
    }

    /// Lets QEMU write about so many bytes per second; `None`: as fast as it can.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub(super) async fn pace(&self, bytes_per_second: Option<u64>) -> Result<(), QmpError> {
        let max_bandwidth = Some(bytes_per_second.unwrap_or(UNLIMITED));
        self.qmp
            .set_migration_parameters(&MigrationParameters { max_bandwidth, ..Default::default() })
            .await
    }

    /// How far QEMU's own bookkeeping is.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub(super) async fn progress(&self) -> Result<Progress, QmpError> {
        let migration = self.qmp.query_migrate().await?;
        let remaining_bytes = migration.ram.as_ref().map_or(0, |ram| ram.remaining);
        Ok(Progress { syncs: syncs(&migration), remaining_bytes })
    }

    /// Stops the guest, and makes sure that it was we who did.
    ///
    /// # Errors
    /// When QEMU does not answer; the guest may then stand or run.
    pub(super) async fn stop(&mut self) -> Result<Stop, QmpError> {
        self.before.run_state.stop_sent = true;
        self.qmp.stop().await?;
        // Still active after the stop was acknowledged: it cannot have completed before.
        let migration = self.qmp.query_migrate().await?;
        if iterates(&migration) || self.ends_by_our_stop(&migration).await? {
            return Ok(Stop::Ours { syncs: syncs(&migration) });
        }
        Ok(Stop::TooLate)
    }

    /// Whether a QEMU that waits for an acknowledgement ends, which it does only with a guest that stands. It ran just
    /// before; and had somebody let it run since, it would stand by our stop alone, and not as one that was moved.
    async fn ends_by_our_stop(&self, migration: &MigrationInfo) -> Result<bool, QmpError> {
        if self.hold != Hold::Acknowledgement
            || !self.before.run_state.guest_ran
            || matches!(migration.status, MigrationStatus::Failed | MigrationStatus::Cancelled)
        {
            return Ok(false);
        }
        let stands = self.qmp.query_status().await?.status;
        Ok(matches!(stands, RunState::FinishMigrate | RunState::PostMigrate))
    }

    /// Lets QEMU end its stream, after [`SourceQemu::stop`].
    ///
    /// A held QEMU is told to start post-copy. With no capability for post-copy of memory, that means: send the rest of
    /// memory and the device state now, whatever is pending. It takes effect at once, where a raised downtime limit would
    /// wait for the end of QEMU's 100 ms window with the guest stopped. But QEMU, believing that memory follows by
    /// post-copy, does not look for dirty pages once more. So it must have looked after the stop: `syncs` is what it
    /// had counted by then, and the next but one has begun since. One more shows that the pages found are through.
    ///
    /// # Errors
    /// When QEMU does not answer, or ends its stream without having looked after the stop: others may let it go too.
    pub(super) async fn finish(&self, syncs: u64) -> Result<(), QmpError> {
        if self.hold == Hold::Acknowledgement {
            // It looks once more by itself, and ends.
            return Ok(());
        }
        if self.hold == Hold::Bitmap {
            match self.look_for_syncs(syncs).await? {
                Look::Enough => {
                    return self.run("migrate-start-postcopy", Value::Null).await.map(drop);
                }
                Look::Ends => return Ok(()),
                Look::TooFew => {}
            }
        }
        let parameters = MigrationParameters {
            max_bandwidth: Some(UNLIMITED),
            downtime_limit: Some(RELEASED_DOWNTIME_MS),
            ..Default::default()
        };
        self.qmp.set_migration_parameters(&parameters).await
    }

    /// Waits until QEMU has looked for dirty pages often enough; gives up where it does not.
    async fn look_for_syncs(&self, syncs_before: u64) -> Result<Look, QmpError> {
        let begun = Instant::now();
        loop {
            let migration = self.qmp.query_migrate().await?;
            let since = syncs(&migration).saturating_sub(syncs_before);
            let iterates = iterates(&migration);
            let late = begun.elapsed() >= SYNC_DEADLINE;
            match (iterates, since) {
                (true, SYNCS_WANTED..) => return Ok(Look::Enough),
                (false, 1..) => return Ok(Look::Ends),
                (true, _) if late => {
                    warn!(
                        "QEMU does not look for dirty pages with the guest stopped; it is let go by its downtime limit"
                    );
                    return Ok(Look::TooFew);
                }
                (false, 0) if late || migration.status.is_over() => {
                    let expected = "a look for dirty pages after the stop".to_owned();
                    let found = "the end of QEMU's stream, begun by somebody else".to_owned();
                    return Err(QmpError::Protocol { expected, found });
                }
                _ => {}
            }
        }
    }

    /// After a completion of QEMU's own: the guest goes on as before, and a new stream can begin.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub(super) async fn resume_after_completion(&self) -> Result<(), QmpError> {
        end_migration(&self.qmp).await?;
        resume(&self.qmp, self.before.run_state).await
    }

    /// Gives the guest back as it was before the job: migration ended, run state, parameters, announced.
    ///
    /// # Errors
    /// When it is not certain that the guest is as before.
    pub(super) async fn give_back(&self, may_return: &MayReturn) -> Result<(), QmpError> {
        give_back(&self.qmp, self.before.run_state, may_return).await?;
        self.release().await;
        Ok(())
    }

    /// Takes back what was set for the move: parameters, capability, hold. Only a QEMU that is not migrating lets go.
    pub(super) async fn release(&self) {
        let (max_bandwidth, downtime_limit) =
            (self.before.max_bandwidth, self.before.downtime_limit);
        let parameters =
            MigrationParameters { max_bandwidth, downtime_limit, ..Default::default() };
        if let Err(error) = self.qmp.set_migration_parameters(&parameters).await {
            warn!(%error, "QEMU's migration parameters could not be put back");
        }
        if self.before.post_copy
            && let Err(error) = self.qmp.set_migration_capabilities(&[(POST_COPY, true)]).await
        {
            warn!(%error, "the capability postcopy-ram could not be switched on again");
        }
        match self.hold {
            Hold::Pace => {}
            Hold::Bitmap => self.clear_hold().await,
            Hold::Acknowledgement => {
                let off = ACKNOWLEDGED.map(|name| (name, false));
                if let Err(error) = self.qmp.set_migration_capabilities(&off).await {
                    warn!(%error, "QEMU's migration capabilities could not be put back");
                }
            }
        }
    }

    async fn clear_hold(&self) {
        if let Err(error) = self.qmp.set_migration_capabilities(&[("dirty-bitmaps", false)]).await {
            warn!(%error, "the capability dirty-bitmaps could not be switched off again");
        }
        self.remove_hold().await;
    }

    /// Gives QEMU the reading end of its own stream. To be called before [`SourceQemu::stop`], while the guest runs.
    ///
    /// # Errors
    /// When QEMU does not take it.
    pub(super) async fn keep_reading_end(&mut self) -> Result<(), QmpError> {
        let Some(reading_end) = self.reading_end.take() else { return Ok(()) };
        let name = json!({"fdname": KEPT_DESCRIPTOR});
        self.qmp.execute_with_fd("getfd", name, reading_end.into(), COMMAND_TIMEOUT).await.map(drop)
    }

    async fn run(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.qmp.execute(command, arguments, COMMAND_TIMEOUT).await
    }
}

/// Whether its stream is still to come to an end, or even to begin.
fn iterates(migration: &MigrationInfo) -> bool {
    matches!(migration.status, MigrationStatus::Setup | MigrationStatus::Active)
}

fn syncs(migration: &MigrationInfo) -> u64 {
    migration.ram.as_ref().map_or(0, |ram| ram.dirty_sync_count)
}

/// Ends any migration and restores the run state. Also what a restarted agent does.
///
/// # Errors
/// When it is not certain that the guest is as before.
pub(crate) async fn give_back(
    qmp: &Qmp,
    before: RunStateBefore,
    _may_return: &MayReturn,
) -> Result<(), QmpError> {
    end_migration(qmp).await?;
    if let Err(error) =
        qmp.execute("closefd", json!({"fdname": KEPT_DESCRIPTOR}), COMMAND_TIMEOUT).await
    {
        debug!(%error, "QEMU kept no reading end");
    }
    resume(qmp, before).await?;
    if let Err(error) = qmp.announce_self().await {
        warn!(%error, "the guest could not be announced on its network");
    }
    Ok(())
}

/// How a guest's run state came about, so that it can be restored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunStateBefore {
    /// It ran.
    pub(crate) guest_ran: bool,
    /// We may have stopped it since.
    pub(crate) stop_sent: bool,
}

/// Lets a guest run on that we, or QEMU's own completion, stopped. One that its user paused stays paused; one that shut
/// down, panicked or met an I/O error meanwhile stays as its QEMU left it.
async fn resume(qmp: &Qmp, before: RunStateBefore) -> Result<(), QmpError> {
    let ours = match qmp.query_status().await?.status {
        RunState::PostMigrate | RunState::FinishMigrate => before.guest_ran,
        RunState::Paused => before.guest_ran && before.stop_sent,
        _ => false,
    };
    if ours { qmp.cont_after_migration(CONT_DEADLINE).await } else { Ok(()) }
}

async fn end_migration(qmp: &Qmp) -> Result<(), QmpError> {
    let until = tokio::time::Instant::now() + CANCEL_DEADLINE;
    let mut cancelled = false;
    loop {
        let status = qmp.query_migrate().await?.status;
        if status.is_over() || matches!(status, MigrationStatus::None) {
            return Ok(());
        }
        if !cancelled {
            qmp.migrate_cancel().await?;
            cancelled = true;
        }
        if tokio::time::Instant::now() > until {
            return Err(QmpError::Timeout {
                command: "migrate_cancel".into(),
                waited: CANCEL_DEADLINE,
            });
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn local(error: &std::io::Error) -> QmpError {
    QmpError::Protocol { expected: "a pair of sockets".into(), found: error.to_string() }
}
