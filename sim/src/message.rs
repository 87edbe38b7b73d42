//! What the two agents say to each other: the wire's messages, cut down to what the machines need.

use sterna_model::{PageId, Root};

/// A message, on whichever connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// Get ready.
    Prepare,
    /// A QEMU waits for the guest.
    Prepared,
    /// The guest is not taken.
    Refused,
    /// The stream has begun.
    StreamHead,
    /// A frame of pages, on a data connection.
    Pages(Vec<Sent>),
    /// The devices' state.
    Tail(u64),
    /// Everything was sent.
    Final(Final),
    /// Everything is loaded.
    Loaded(Root),
    /// Take over.
    Commit,
    /// Drop what you have.
    Abort(String),
    /// It failed here.
    Failed(String),
    /// The guest runs here.
    Running {
        /// Pages that it lacks are still there.
        lacks_pages: bool,
    },
    /// It lacks nothing any more.
    Complete,
    /// It died here while it lacked pages.
    Vanished(String),
    /// The guest waits for these.
    Wanted(Vec<PageId>),
    /// Connections are made anew: what is lacking, if the guest runs there?
    Rejoin,
    /// So be it; these are lacking, if it does.
    Rejoined(Vec<PageId>),
    /// Our QEMU is dead.
    Discarded,
    /// Who owns the guest?
    Inquire,
    /// What a question is answered where neither of the two above fits.
    Answer(State),
    /// These are missing.
    Missing(Vec<(PageId, u32)>),
    /// So many frames of each connection are applied.
    Applied(Vec<u64>),
    /// Are you there?
    Ping,
    /// Yes.
    Pong,
}

/// A page as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    /// The page.
    pub page: PageId,
    /// How often it was sent, with this time.
    pub version: u32,
    /// Its content; of an absent page none.
    pub content: u64,
    /// Only that it is absent is told.
    pub absent: bool,
    /// It was asked for: it travels whole, and nothing can be missing for it.
    pub whole: bool,
}

/// The source's last word before the commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Final {
    /// The root of what was sent.
    pub root: Root,
    /// Frames of each connection.
    pub frames: Vec<u64>,
    /// The guest ran when it was stopped.
    pub guest_ran: bool,
}

/// What a journal answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It may be discarded still.
    Prepared,
    /// It is ours.
    Entitled,
    /// It runs here and lacks pages.
    Faulting,
    /// It runs here.
    Running,
    /// It is gone.
    Discarded,
    /// It ran here, lacked pages, and is dead.
    Vanished,
    /// Nobody knows.
    Unknown,
}

/// How many of these travel with a content.
pub(crate) fn contents(pages: &[Sent]) -> usize {
    pages.iter().filter(|sent| !sent.absent).count()
}

impl Message {
    /// Its name, for the trace.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Prepared => "prepared",
            Self::Refused => "refused",
            Self::StreamHead => "stream-head",
            Self::Pages(_) => "pages",
            Self::Tail(_) => "tail",
            Self::Final(_) => "final",
            Self::Loaded(_) => "loaded",
            Self::Commit => "commit",
            Self::Abort(_) => "abort",
            Self::Failed(_) => "failed",
            Self::Running { .. } => "running",
            Self::Complete => "complete",
            Self::Vanished(_) => "vanished",
            Self::Wanted(_) => "wanted",
            Self::Rejoin => "rejoin",
            Self::Rejoined(_) => "rejoined",
            Self::Discarded => "discarded",
            Self::Inquire => "inquire",
            Self::Answer(_) => "answer",
            Self::Missing(_) => "missing",
            Self::Applied(_) => "applied",
            Self::Ping => "ping",
            Self::Pong => "pong",
        }
    }
}
