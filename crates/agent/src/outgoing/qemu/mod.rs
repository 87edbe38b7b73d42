//! The source's QEMU: held in its iterations (`holding`), paced, stopped when we say (`stopping`), and given back as it was
//! (`giving_back`). Its stream begins here.

mod giving_back;
mod holding;
mod stopping;

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};
use sterna_host::qmp::{MigrationInfo, MigrationParameters, Qmp, QmpError, Schema};

use giving_back::Before;
pub(crate) use giving_back::{RunStateBefore, give_back};
use holding::Hold;
pub(super) use stopping::{Guest, Stop};

const DESCRIPTOR: &str = "sterna-migration";
/// Room for what QEMU writes in its last pass, where the system allows it.
const STREAM_BUFFER_BYTES: usize = 8 << 20;
/// As fast as it goes.
const UNLIMITED: u64 = 1 << 40;
/// The least that QEMU accepts and that makes it sync before it completes (QEMU 7.2 skips the sync at 0).
const HELD_DOWNTIME_MS: u64 = 1;
/// The most that QEMU accepts.
const RELEASED_DOWNTIME_MS: u64 = 2_000_000;
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// QEMU's own post-copy, which streams of ours do without.
const POST_COPY: &str = "postcopy-ram";
/// What a destination says when it needs nothing more; QEMU then listens no more, and still waits for what it has not heard.
const SHUT: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 0];

/// A QEMU whose guest is being moved away.
#[derive(Debug)]
pub(super) struct SourceQemu {
    qmp: Qmp,
    hold: Hold,
    before: Before,
    /// The reading end of the stream, for QEMU to keep.
    reading_end: Option<UnixStream>,
}

/// QEMU's own bookkeeping.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    /// Dirty syncs so far.
    pub(super) syncs: u64,
    /// Guest memory that is dirty and not written to the stream.
    pub(super) remaining_bytes: u64,
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
        let hold = Hold::on(&qmp, schema, status.running).await?;
        Ok(Self { qmp, hold, before, reading_end: None })
    }

    /// Whether the guest ran when the job began.
    #[must_use]
    pub(super) const fn guest_ran(&self) -> bool {
        self.before.run_state.guest_ran
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
}

fn syncs(migration: &MigrationInfo) -> u64 {
    migration.ram.as_ref().map_or(0, |ram| ram.dirty_sync_count)
}

fn local(error: &std::io::Error) -> QmpError {
    QmpError::Protocol { expected: "a pair of sockets".into(), found: error.to_string() }
}
