//! The messages of a control connection: one JSON object a Control frame, told apart by its `type`.
//!
//! ```text
//!   source                                               destination
//!     Prepare            ------------------------------>   starts its QEMU
//!                        <------------------------------   Prepared | Refused
//!     (data connections, each with the token)
//!     StreamHead         ------------------------------>   knows blocks and pages from here on
//!     pages              ==============================>
//!                        <------------------------------   Applied ..., Missing ...
//!     Final, the tail    ------------------------------>   loads, compares the roots
//!                        <------------------------------   Loaded | Failed
//!     Commit             ------------------------------>   resumes
//!                        <------------------------------   Running
//!     Abort              ------------------------------>   kills its QEMU
//!                        <------------------------------   Discarded
//!     Inquire, Ping      <----------------------------->   Answer, Pong     (either side asks)
//! ```
//!
//! What follows where the guest runs at the destination before all its memory is there: [`post_copy`](crate::post_copy).
//!
//! A key that a message does not have is an error: what two releases may add is settled by the hello's capabilities.
//! Every list and text has a limit in [`limits`](crate::limits), held when sending as well as when receiving.

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Not;

use serde::{Deserialize, Serialize};
use sterna_model::{BlockName, Epoch, JobId, Layout, PageId, Refusal, Root, Uuid, VmName};

use crate::answer::{AnswerState, GuestState, Sender, Verify};
use crate::blob::{Blob, PageKey, Text, Token, is_clean, root};
use crate::error::within;
use crate::evidence::{EVIDENCE, Evidence};
use crate::frame::FrameKind;
use crate::hello::Capabilities;
use crate::json;
use crate::keep::{Hashes, KEEP};
use crate::limits::{
    MAX_COMMAND_BYTES, MAX_COMMANDS, MAX_CONFIGURATION_BYTES, MAX_CONNECTIONS,
    MAX_DESCRIPTION_BYTES, MAX_FRAME_COUNTS, MAX_KEEP_MS, MAX_LINK_TIMEOUT_MS, MAX_MISSING_PAGES,
    MAX_REFUSALS, MAX_VERSION_BYTES,
};
use crate::post_copy::{Complete, Lacking, POST_COPY, Rejoin, Rejoined, Vanished, Wanted};
use crate::refusals;

pub use crate::error::MessageError;

/// One message.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Message {
    /// Source: begin a job.
    Prepare(Prepare),
    /// Source: what QEMU's stream began with.
    StreamHead(StreamHead),
    /// Source: the guest is stopped, everything was sent.
    Final(Final),
    /// Source: the guest is yours.
    Commit(Commit),
    /// Source: give up, kill the QEMU.
    Abort(Abort),
    /// Source: go on with a job whose guest runs at the destination.
    Rejoin(Rejoin),
    /// Either: what became of a job?
    Inquire(Inquire),
    /// Either: are you there?
    Ping(Echo),
    /// Destination: its QEMU waits.
    Prepared(Prepared),
    /// Destination: it will not, and has changed nothing.
    Refused(Refused),
    /// Destination: so far has it come.
    Applied(Applied),
    /// Destination: these pages could not be decoded, send them raw.
    Missing(Missing),
    /// Destination: the state is loaded, this is its root.
    Loaded(Loaded),
    /// Destination: it cannot go on.
    Failed(Failed),
    /// Destination: the guest is resumed.
    Running(Running),
    /// Destination: the guest waits for these pages.
    Wanted(Wanted),
    /// Destination: every page is here.
    Complete(Complete),
    /// Destination: it goes on with the job.
    Rejoined(Rejoined),
    /// Destination: these pages are not here yet.
    Lacking(Lacking),
    /// Destination: its QEMU died while pages were lacking: the guest is lost.
    Vanished(Vanished),
    /// Destination: what it has of these pages from before the job.
    Hashes(Hashes),
    /// Destination: its QEMU is dead and reaped.
    Discarded(Discarded),
    /// Either: the answer to an Inquire.
    Answer(Answer),
    /// Either: the answer to a Ping.
    Pong(Echo),
}

/// Begins a job.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prepare {
    /// The job, in the source's words.
    pub job: JobId,
    /// The VM's name at the source.
    pub vm: VmName,
    /// What the VM is.
    pub uuid: Uuid,
    /// The epoch that the destination will own it in.
    pub epoch: Epoch,
    /// What the VM is made of: a JSON text that this crate does not look into, at most
    /// [`MAX_DESCRIPTION_BYTES`](crate::limits::MAX_DESCRIPTION_BYTES).
    pub description: String,
    /// The key of the page hashes.
    pub page_key: PageKey,
    /// Data connections that will follow: 1 to [`MAX_CONNECTIONS`](crate::limits::MAX_CONNECTIONS).
    pub connections: u16,
    /// How much is hashed before *loaded*.
    pub verify: Verify,
    /// Silence to ride out before the guest is stopped, in milliseconds, at most
    /// [`MAX_LINK_TIMEOUT_MS`](crate::limits::MAX_LINK_TIMEOUT_MS).
    pub link_timeout_ms: u64,
    /// What the destination can judge by. Only between agents that both have the capability
    /// [`EVIDENCE`](crate::evidence::EVIDENCE).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
    /// Whether the source may finish by post-copy: one more data connection follows, its number is `connections`, for
    /// urgent pages. Only between agents that both have the capability [`POST_COPY`].
    #[serde(default, skip_serializing_if = "Not::not")]
    pub post_copy: bool,
    /// For so long, in milliseconds, the destination is to keep what it has without any connection, as long as nothing was
    /// offered: 1 to [`MAX_KEEP_MS`]. It may give up sooner. Only between agents that both have the capability [`KEEP`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_ms: Option<u64>,
    /// Whether the destination is to begin with what it has of the VM from a job that came to nothing. Only between agents
    /// that both have the capability [`KEEP`].
    #[serde(default, skip_serializing_if = "Not::not")]
    pub reuse: bool,
}

/// What QEMU's stream began with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamHead {
    /// The configuration section's bytes.
    pub configuration: Blob<MAX_CONFIGURATION_BYTES>,
    /// The guest's RAM blocks.
    pub layout: Layout,
    /// The header of the section that carries RAM.
    pub ram_section: RamSection,
}

/// The numbers in the header of QEMU's RAM section.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RamSection {
    /// The section's number in the stream.
    pub section: u32,
    /// The device's instance.
    pub instance: u32,
}

/// A command of QEMU's stream that the destination's QEMU has to see.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamCommand {
    /// QEMU's number of it.
    pub command: u16,
    /// Its data.
    pub data: Blob<MAX_COMMAND_BYTES>,
}

/// The capability of agents that send device state packed.
pub const PACKED_STATE: &str = "packed-state";

/// Everything was sent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Final {
    /// The root of the memory, as the source read it.
    #[serde(with = "root")]
    pub root: Root,
    /// Frames sent on each data connection, its Hello not counted.
    pub frames_per_connection: Vec<u64>,
    /// Bytes over all Tail frames: the device state, or its packed form.
    pub tail_bytes: u64,
    /// Bytes of the device state if the tail is its packed form, one zstd frame; else 0. Only between agents that both have
    /// the capability [`PACKED_STATE`].
    #[serde(default, skip_serializing_if = "is_zero")]
    pub state_bytes: u64,
    /// Whether the guest ran before it was stopped for the move: it goes on as it was.
    pub guest: GuestState,
    /// Commands that QEMU's stream carried before the end of guest memory: the destination's QEMU has to see them there.
    pub commands: Vec<StreamCommand>,
}

/// The guest is the destination's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    /// The epoch that it owns the guest in; the one in Prepare.
    pub epoch: Epoch,
}

/// Give up.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Abort {
    /// Why, for the log.
    pub reason: Text,
    /// Whether the memory is worth keeping for a job to come. Only between agents that both have the capability [`KEEP`].
    #[serde(default, skip_serializing_if = "Not::not")]
    pub keep: bool,
}

/// What became of a job?
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inquire {
    /// The job.
    pub job: JobId,
    /// Its VM.
    pub uuid: Uuid,
    /// Its epoch.
    pub epoch: Epoch,
}

/// A Ping, and the Pong that repeats it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Echo {
    /// Tells pings apart.
    pub nonce: u64,
    /// When the Ping was sent, in nanoseconds on the clock of who sent it.
    pub sent_ns: u64,
}

/// The destination's QEMU waits.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prepared {
    /// What the data connections show.
    pub token: Token,
    /// Blocks whose memory the destination writes itself; the others go through QEMU's stream.
    pub shared_blocks: Vec<BlockName>,
    /// The version of its QEMU, for people.
    pub qemu_version: String,
    /// How long it took to start, in milliseconds.
    pub start_ms: u64,
    /// Whether its QEMU can finish by post-copy. Only said to a source that may.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub post_copy: bool,
    /// Whether the destination has the VM's memory of before, and tells its hashes after StreamHead. Only said to a source
    /// that asked.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub kept: bool,
}

/// The destination will not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    /// All the reasons, at most [`MAX_REFUSALS`].
    pub refusals: Vec<Refusal>,
}

impl Refused {
    /// For these reasons; cut to the limits, and saying so.
    #[must_use]
    pub fn new(refusals: &[Refusal]) -> Self {
        Self { refusals: refusals::bounded(refusals) }
    }
}

/// How far the destination has come.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Applied {
    /// Frames of each data connection that are in guest memory, its Hello not counted.
    pub frames_per_connection: Vec<u64>,
}

/// Pages that could not be decoded because their base is not there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Missing {
    /// The page and the version of it that arrived; at most [`MAX_MISSING_PAGES`].
    pub pages: Vec<(PageId, u32)>,
}

/// The state is loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Loaded {
    /// The root of the memory, as the destination has it.
    #[serde(with = "root")]
    pub root: Root,
    /// Pages that it hashed for that.
    pub pages_hashed: u64,
    /// How long QEMU took to load the device state, in milliseconds.
    pub load_ms: u64,
}

/// The destination cannot go on; the source may roll back after *discarded*, or at once when nothing is offered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failed {
    /// Why.
    pub error: Text,
}

/// The guest is resumed at the destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Running {
    /// From the commit's arrival to QEMU's RESUME, in nanoseconds on the destination's clock.
    pub commit_to_resume_ns: u64,
    /// The most anonymous memory that the destination's agent had.
    pub peak_anonymous_bytes: u64,
    /// Pages that are not there yet: not 0 in post-copy only.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lacks_pages: u64,
}

/// The destination's QEMU is dead and reaped, and a late commit will be refused.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Discarded {
    /// The job.
    pub job: JobId,
    /// The epoch that was not begun.
    pub epoch: Epoch,
}

/// The answer to an Inquire.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The job.
    pub job: JobId,
    /// What the journal says.
    pub state: AnswerState,
}

impl Message {
    /// The payload of its Control frame.
    ///
    /// # Errors
    /// When something in it is above its limit.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        self.check_limits()?;
        Ok(json::encode(self, FrameKind::Control.limit_bytes() as usize)?)
    }

    /// The message in a payload that `sender` sent.
    ///
    /// # Errors
    /// When it is none, something in it is above its limit, or it is not that side's to send.
    pub fn decode(payload: &[u8], sender: Sender) -> Result<Self, MessageError> {
        let message: Self = json::decode(payload, FrameKind::Control.limit_bytes() as usize)?;
        if !message.may_be_sent_by(sender) {
            return Err(MessageError::Sender { name: message.name(), sender });
        }
        message.check_limits()?;
        Ok(message)
    }

    /// Whether this side of a job may send it.
    #[must_use]
    pub const fn may_be_sent_by(&self, sender: Sender) -> bool {
        match self {
            Self::Prepare(_) | Self::StreamHead(_) | Self::Final(_) => {
                matches!(sender, Sender::Source)
            }
            Self::Commit(_) | Self::Abort(_) | Self::Rejoin(_) => {
                matches!(sender, Sender::Source)
            }
            Self::Prepared(_) | Self::Refused(_) | Self::Applied(_) | Self::Missing(_) => {
                matches!(sender, Sender::Destination)
            }
            Self::Loaded(_) | Self::Failed(_) | Self::Running(_) | Self::Discarded(_) => {
                matches!(sender, Sender::Destination)
            }
            Self::Wanted(_) | Self::Complete(_) | Self::Vanished(_) => {
                matches!(sender, Sender::Destination)
            }
            Self::Rejoined(_) | Self::Lacking(_) | Self::Hashes(_) => {
                matches!(sender, Sender::Destination)
            }
            Self::Inquire(_) | Self::Ping(_) | Self::Pong(_) => true,
            Self::Answer(answer) => answer.state.may_be_of(sender),
        }
    }

    /// The message as a peer with these capabilities understands it.
    #[must_use]
    pub fn for_peer(mut self, common: &Capabilities) -> Self {
        match &mut self {
            Self::Prepare(prepare) => {
                prepare.evidence = prepare.evidence.take().filter(|_| common.contains(EVIDENCE));
                prepare.post_copy &= common.contains(POST_COPY);
                prepare.keep_ms = prepare.keep_ms.filter(|_| common.contains(KEEP));
                prepare.reuse &= common.contains(KEEP);
            }
            Self::Prepared(prepared) => {
                prepared.post_copy &= common.contains(POST_COPY);
                prepared.kept &= common.contains(KEEP);
            }
            Self::Abort(abort) => abort.keep &= common.contains(KEEP),
            _ => {}
        }
        self
    }

    /// Its `type`, as it stands in JSON.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Prepare(_) => "prepare",
            Self::StreamHead(_) => "stream-head",
            Self::Final(_) => "final",
            Self::Commit(_) => "commit",
            Self::Abort(_) => "abort",
            Self::Rejoin(_) => "rejoin",
            Self::Inquire(_) => "inquire",
            Self::Ping(_) => "ping",
            Self::Prepared(_) => "prepared",
            Self::Refused(_) => "refused",
            Self::Applied(_) => "applied",
            Self::Missing(_) => "missing",
            Self::Loaded(_) => "loaded",
            Self::Failed(_) => "failed",
            Self::Running(_) => "running",
            Self::Wanted(_) => "wanted",
            Self::Complete(_) => "complete",
            Self::Rejoined(_) => "rejoined",
            Self::Lacking(_) => "lacking",
            Self::Vanished(_) => "vanished",
            Self::Hashes(_) => "hashes",
            Self::Discarded(_) => "discarded",
            Self::Answer(_) => "answer",
            Self::Pong(_) => "pong",
        }
    }

    fn check_limits(&self) -> Result<(), MessageError> {
        let at_most = |what, most, found| within(what, (0, most), found);
        match self {
            Self::Prepare(prepare) => {
                let connections = usize::from(prepare.connections);
                within("connections", (1, MAX_CONNECTIONS as u64), connections as u64)?;
                within("link_timeout_ms", (1, MAX_LINK_TIMEOUT_MS), prepare.link_timeout_ms)?;
                within("keep_ms", (1, MAX_KEEP_MS), prepare.keep_ms.unwrap_or(1))?;
                let bytes = prepare.description.len();
                at_most("bytes of description", MAX_DESCRIPTION_BYTES as u64, bytes as u64)?;
                prepare.evidence.as_ref().map_or(Ok(()), Evidence::check_limits)
            }
            Self::Final(last) => {
                at_most("commands", MAX_COMMANDS as u64, last.commands.len() as u64)?;
                let frames = last.frames_per_connection.len() as u64;
                at_most("frames_per_connection", MAX_FRAME_COUNTS as u64, frames)
            }
            Self::Applied(Applied { frames_per_connection: frames }) => {
                at_most("frames_per_connection", MAX_FRAME_COUNTS as u64, frames.len() as u64)
            }
            Self::Prepared(prepared) => {
                let blocks = prepared.shared_blocks.len() as u64;
                at_most("shared_blocks", sterna_model::MAX_BLOCKS as u64, blocks)?;
                if !prepared.qemu_version.chars().all(is_clean) {
                    return Err(MessageError::Unprintable { what: "qemu_version" });
                }
                let bytes = prepared.qemu_version.len() as u64;
                at_most("bytes of qemu_version", MAX_VERSION_BYTES as u64, bytes)
            }
            Self::Refused(refused) => {
                at_most("refusals", MAX_REFUSALS as u64, refused.refusals.len() as u64)?;
                match refused.refusals.iter().all(refusals::is_bounded) {
                    true => Ok(()),
                    false => Err(MessageError::Unprintable { what: "refusals" }),
                }
            }
            Self::Missing(missing) => {
                at_most("pages", MAX_MISSING_PAGES as u64, missing.pages.len() as u64)
            }
            Self::Rejoin(rejoin) => rejoin.check_limits(),
            Self::Wanted(wanted) => wanted.check_limits(),
            Self::Lacking(lacking) => lacking.check_limits(),
            Self::Hashes(hashes) => hashes.check_limits(),
            _ => Ok(()),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
const fn is_zero(count: &u64) -> bool {
    *count == 0
}
