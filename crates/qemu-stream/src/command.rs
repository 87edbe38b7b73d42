//! Commands of the stream: the few that a plain pre-copy has.

use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::cursor::{Cursor, Stop};
use crate::error::Fault;
use crate::format::section;

const OPEN_RETURN_PATH: u16 = 1;
const PING: u16 = 2;
const POSTCOPY_ADVISE: u16 = 3;
const SWITCHOVER_START: u16 = 11;

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

    /// The command of this number with this data, if it is one of these.
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
        }
    }

    /// Appends the command as the stream has it.
    pub fn write(self, out: &mut Vec<u8>) {
        let (number, data) = self.parts();
        out.push(section::COMMAND);
        out.extend_from_slice(&number.to_be_bytes());
        // At most four bytes.
        out.extend_from_slice(&[0, data.len().to_le_bytes()[0]]);
        out.extend_from_slice(&data);
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OpenReturnPath => f.write_str("open-return-path"),
            Self::Ping(value) => write!(f, "ping {value:#x}"),
            Self::SwitchoverStart => f.write_str("switchover-start"),
        }
    }
}

/// QEMU's name of a command, for messages.
const fn name(number: u16) -> &'static str {
    match number {
        OPEN_RETURN_PATH => "OPEN_RETURN_PATH",
        PING => "PING",
        POSTCOPY_ADVISE => "POSTCOPY_ADVISE: switch the capability postcopy-ram off at the source",
        4 => "POSTCOPY_LISTEN",
        5 => "POSTCOPY_RUN",
        6 => "POSTCOPY_RAM_DISCARD",
        7 => "PACKAGED",
        8 => "ENABLE_COLO",
        9 => "POSTCOPY_RESUME",
        10 => "RECV_BITMAP",
        SWITCHOVER_START => "SWITCHOVER_START",
        _ => "unknown",
    }
}
