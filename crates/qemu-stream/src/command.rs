//! Commands of the stream: the few that a plain pre-copy has, and the advice of post-copy, which is only written. The
//! further commands of a post-copy are written with what they carry (`crate::postcopy`).

use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};
use sterna_model::PAGE_BYTES;

use crate::cursor::{Cursor, Stop};
use crate::error::Fault;
use crate::format::command::{
    ENABLE_COLO, OPEN_RETURN_PATH, PACKAGED, PING, POSTCOPY_ADVISE, POSTCOPY_LISTEN,
    POSTCOPY_RAM_DISCARD, POSTCOPY_RESUME, POSTCOPY_RUN, RECV_BITMAP, SWITCHOVER_START,
};
use crate::format::section;

/// A command that came before the end of guest memory, or is to be written there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// The other end is to open a way back. A source sends it if its capability `return-path` is on.
    OpenReturnPath,
    /// The other end is to answer this number on the way back.
    Ping(u32),
    /// The device state follows. Machine types since 10.0 send it before the last RAM section.
    SwitchoverStart,
    /// Post-copy may follow, between pages of 4096 bytes on both sides: QEMU throws all of its guest memory away when it
    /// reads this, and expects 4096-byte pages behind every block. Only written: a stream of a source that has it is a
    /// fault, and [`Command::from_parts`] does not give it.
    PostcopyAdvise,
}

impl Command {
    /// Reads a whole command, its type byte included. `None`: the empty advice of post-copy that a source sends with
    /// the capability `dirty-bitmaps`; it belongs to the bitmaps and goes the way they go.
    pub(crate) fn take(cursor: &mut Cursor<'_>) -> Result<Option<Self>, Stop> {
        cursor.u8()?;
        let number = cursor.u16()?;
        let length = cursor.u16()?;
        match (number, length) {
            (OPEN_RETURN_PATH, 0) => Ok(Some(Self::OpenReturnPath)),
            (PING, 4) => Ok(Some(Self::Ping(cursor.u32()?))),
            (SWITCHOVER_START, 0) => Ok(Some(Self::SwitchoverStart)),
            (POSTCOPY_ADVISE, 0) => Ok(None),
            _ => Err(cursor.fault(Fault::Command { number, name: name(number), length })),
        }
    }

    /// The command of this number with this data, if it is one that a source sends.
    #[must_use]
    pub fn from_parts(number: u16, data: &[u8]) -> Option<Self> {
        match (number, data) {
            (OPEN_RETURN_PATH, []) => Some(Self::OpenReturnPath),
            (PING, data) => Some(Self::Ping(u32::from_be_bytes(data.try_into().ok()?))),
            (SWITCHOVER_START, []) => Some(Self::SwitchoverStart),
            _ => None,
        }
    }

    /// The command's number and data.
    #[must_use]
    pub fn parts(self) -> (u16, Vec<u8>) {
        match self {
            Self::OpenReturnPath => (OPEN_RETURN_PATH, Vec::new()),
            Self::Ping(value) => (PING, value.to_be_bytes().to_vec()),
            Self::SwitchoverStart => (SWITCHOVER_START, Vec::new()),
            Self::PostcopyAdvise => {
                // The page sizes of all blocks together, each a bit, and the page size of the machine.
                let page_bytes = (PAGE_BYTES as u64).to_be_bytes();
                (POSTCOPY_ADVISE, [page_bytes, page_bytes].concat())
            }
        }
    }

    /// Appends the command as the stream has it.
    pub fn write(self, out: &mut Vec<u8>) {
        let (number, data) = self.parts();
        put(out, number, &data);
    }
}

/// Appends a command with its data. The longest has some hundred bytes; what a length cannot count is left out.
pub(crate) fn put(out: &mut Vec<u8>, number: u16, data: &[u8]) {
    let data = data.get(..usize::from(u16::MAX)).unwrap_or(data);
    out.push(section::COMMAND);
    out.extend_from_slice(&number.to_be_bytes());
    out.extend_from_slice(&u16::try_from(data.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(data);
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OpenReturnPath => f.write_str("open-return-path"),
            Self::Ping(value) => write!(f, "ping {value:#x}"),
            Self::SwitchoverStart => f.write_str("switchover-start"),
            Self::PostcopyAdvise => f.write_str("postcopy-advise"),
        }
    }
}

/// QEMU's name of a command, for messages.
const fn name(number: u16) -> &'static str {
    match number {
        OPEN_RETURN_PATH => "OPEN_RETURN_PATH",
        PING => "PING",
        POSTCOPY_ADVISE => "POSTCOPY_ADVISE: switch the capability postcopy-ram off at the source",
        POSTCOPY_LISTEN => "POSTCOPY_LISTEN",
        POSTCOPY_RUN => "POSTCOPY_RUN",
        POSTCOPY_RAM_DISCARD => "POSTCOPY_RAM_DISCARD",
        PACKAGED => "PACKAGED",
        ENABLE_COLO => "ENABLE_COLO",
        POSTCOPY_RESUME => "POSTCOPY_RESUME",
        RECV_BITMAP => "RECV_BITMAP",
        SWITCHOVER_START => "SWITCHOVER_START",
        _ => "unknown",
    }
}
