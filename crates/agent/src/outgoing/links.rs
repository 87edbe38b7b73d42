//! The threads of a move that leaves: one for each data connection, and one for what a guest waits for at the destination.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::thread::{self, JoinHandle};

use sterna_host::tls::{DataHandle, DataStream};
use sterna_model::{PageId, Rate};
use sterna_page_codec::{Effort, Encoder, EncoderConfig, Governor, PageKey};
use sterna_wire::FrameWriter;

use super::shared::{InFlight, Shared};
use super::urgent::Urgent;
use super::worker::{Mode, Order, Report, Worker};

/// Memory for old contents and for digests of old contents, over all workers of a job.
const CONTENT_CACHE_BYTES: usize = 8 << 20;
const DIGEST_BYTES: usize = 20 << 20;
/// Messages that ask for pages and wait to be answered, at most: a guest has few processors to wait with.
const MAX_REQUESTS: usize = 1024;

/// What the drive loop hears from workers.
pub(super) type Reports = Arc<dyn Fn(usize, Report) + Send + Sync>;

/// How a job's pages are sent.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Key of the page hashes.
    pub key: [u8; 32],
    /// A fixed effort, or what link and gain say.
    pub effort: Option<Effort>,
    /// At most this rate.
    pub rate: Option<Rate>,
    /// Pages that may follow in post-copy.
    pub deferrable: Vec<Range<u32>>,
    /// With the guest stopped, all memory is read again.
    pub verify_full: bool,
}

/// The connections of a job.
#[derive(Default)]
pub(super) struct Links {
    /// For a worker each.
    pub data: Vec<(DataStream, FrameWriter)>,
    /// For what the guest waits for at the destination; none where post-copy is not possible.
    pub urgent: Option<(DataStream, FrameWriter)>,
}

/// What sends to a guest that waits at the destination.
pub(super) struct UrgentLink {
    pub(super) requests: SyncSender<Vec<PageId>>,
    pub(super) handle: DataHandle,
    pub(super) thread: JoinHandle<()>,
}

/// A worker, as the drive loop has it.
pub(super) struct Connected {
    pub(super) orders: Sender<Order>,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) handle: DataHandle,
    pub(super) thread: JoinHandle<()>,
}

/// Starts a worker.
///
/// # Errors
/// In words, when it cannot be made.
pub(super) fn start_worker(
    number: usize,
    count: usize,
    link: DataStream,
    frames: FrameWriter,
    shared: &Arc<Shared>,
    settings: &Settings,
    reports: &Reports,
) -> Result<Connected, String> {
    let config = EncoderConfig {
        key: PageKey(settings.key),
        known: Arc::clone(&shared.known),
        content_cache_bytes: CONTENT_CACHE_BYTES / count,
        digest_bytes: DIGEST_BYTES / count,
    };
    let (orders, inbox) = channel();
    let in_flight = Arc::new(InFlight::default());
    let handle = link.handle().map_err(|error| error.to_string())?;
    let reports = Arc::clone(reports);
    let worker = Worker {
        number,
        shared: Arc::clone(shared),
        link,
        frames,
        encoder: Encoder::new(config).map_err(|error| error.to_string())?,
        governor: settings.effort.map_or_else(Governor::automatic, Governor::fixed),
        in_flight: Arc::clone(&in_flight),
        orders: inbox,
        reports: Box::new(move |report| reports(number, report)),
        mode: Mode::default(),
        looks: None,
    };
    let spawned =
        thread::Builder::new().name(format!("sterna-send-{number}")).spawn(move || worker.run());
    let thread = spawned.map_err(|error| format!("cannot start a thread: {error}"))?;
    Ok(Connected { orders, in_flight, handle, thread })
}

/// Starts what sends to a guest that waits at the destination.
///
/// # Errors
/// In words, when it cannot be made.
pub(super) fn start_urgent(
    number: usize,
    link: DataStream,
    frames: FrameWriter,
    shared: &Arc<Shared>,
    settings: &Settings,
    reports: &Reports,
) -> Result<UrgentLink, String> {
    let config = EncoderConfig {
        key: PageKey(settings.key),
        known: Arc::clone(&shared.known),
        content_cache_bytes: 0,
        digest_bytes: 0,
    };
    let (requests, inbox) = sync_channel(MAX_REQUESTS);
    let handle = link.handle().map_err(|error| error.to_string())?;
    let urgent = Urgent {
        shared: Arc::clone(shared),
        link,
        frames,
        encoder: Encoder::new(config).map_err(|error| error.to_string())?,
        effort: settings.effort.unwrap_or(Urgent::EFFORT),
        requests: inbox,
    };
    let reports = Arc::clone(reports);
    let spawned = thread::Builder::new().name("sterna-urgent".into()).spawn(move || {
        if let Err(error) = urgent.run() {
            reports(number, Report::Failed(error.to_string()));
        }
    });
    let thread = spawned.map_err(|error| format!("cannot start a thread: {error}"))?;
    Ok(UrgentLink { requests, handle, thread })
}
