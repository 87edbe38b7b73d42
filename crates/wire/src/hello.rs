//! Hello and reply: who speaks what, before anything else is said.
//!
//! ```text
//!   client (connects)                    server (listens)
//!     Hello { offer, role }  ---------->  negotiate(own offer, the client's)
//!                            <----------  Reply: Welcome { protocol, software, capabilities } | Refused { refusal }
//! ```
//!
//! What is agreed on, and what a later release may change, is in [`versions`](crate::versions). These documents alone may
//! have keys that a reader does not know: a newer release must still be able to say hello to an older one.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};
use sterna_model::{JobId, Refusal};

use crate::blob::{Token, clean, is_clean};
use crate::frame::FrameKind;
use crate::json::{self, JsonError};
use crate::limits::{MAX_CAPABILITIES, MAX_CAPABILITY_BYTES, MAX_VERSION_BYTES};
use crate::refusals;
use crate::versions::{Agreed, PROTOCOL_NEWEST, PROTOCOL_OLDEST, negotiate};

/// A capability's name: 1 to 32 lower-case letters, digits and dashes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Capability(String);

impl Capability {
    /// The capability of this name.
    ///
    /// # Errors
    /// When it is empty, too long or has other characters.
    pub fn new(name: &str) -> Result<Self, HelloError> {
        let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !(1..=MAX_CAPABILITY_BYTES).contains(&name.len()) || !name.bytes().all(known) {
            return Err(HelloError::Capability { found: clean(name, 2 * MAX_CAPABILITY_BYTES) });
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Capability {
    type Error = HelloError;
    fn try_from(name: String) -> Result<Self, HelloError> {
        Self::new(&name)
    }
}

impl From<Capability> for String {
    fn from(capability: Capability) -> Self {
        capability.0
    }
}

/// A set of capabilities: ascending, each once, at most [`MAX_CAPABILITIES`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<Capability>", into = "Vec<Capability>")]
pub struct Capabilities(Vec<Capability>);

impl Capabilities {
    /// The set of these names, in any order.
    ///
    /// # Errors
    /// When one is no name, or they are too many.
    pub fn new(names: &[&str]) -> Result<Self, HelloError> {
        let mut set =
            names.iter().map(|name| Capability::new(name)).collect::<Result<Vec<_>, _>>()?;
        set.sort();
        set.dedup();
        Self::try_from(set)
    }

    /// Whether `name` is among them.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.0.binary_search_by(|capability| capability.as_str().cmp(name)).is_ok()
    }

    /// Those that both sets have.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        Self(self.0.iter().filter(|one| other.contains(one.as_str())).cloned().collect())
    }

    /// The names, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &Capability> {
        self.0.iter()
    }
}

impl TryFrom<Vec<Capability>> for Capabilities {
    type Error = HelloError;
    fn try_from(set: Vec<Capability>) -> Result<Self, HelloError> {
        if set.len() > MAX_CAPABILITIES {
            return Err(HelloError::CapabilityCount { found: set.len() });
        }
        if !set.is_sorted_by(|one, next| one < next) {
            return Err(HelloError::CapabilityOrder);
        }
        Ok(Self(set))
    }
}

impl From<Capabilities> for Vec<Capability> {
    fn from(set: Capabilities) -> Self {
        set.0
    }
}

/// What an agent speaks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Offer {
    /// The oldest protocol.
    pub protocol_min: u16,
    /// The newest protocol.
    pub protocol_max: u16,
    /// The software's version, for people: at most [`MAX_VERSION_BYTES`].
    pub software: String,
    /// What it can do beyond the protocol.
    pub capabilities: Capabilities,
}

impl Offer {
    /// What this build speaks, under the version `software`.
    #[must_use]
    pub fn of_this_build(software: &str, capabilities: Capabilities) -> Self {
        Self {
            protocol_min: PROTOCOL_OLDEST,
            protocol_max: PROTOCOL_NEWEST,
            software: clean(software, MAX_VERSION_BYTES),
            capabilities,
        }
    }

    fn check(&self) -> Result<(), HelloError> {
        let (min, max) = (self.protocol_min, self.protocol_max);
        if min == 0 || min > max {
            return Err(HelloError::ProtocolRange { min, max });
        }
        check_software(&self.software)
    }
}

/// What a connection is for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Role {
    /// The messages of one job, or of two agents that ask each other.
    Control,
    /// Pages of a job.
    Data {
        /// The job.
        job: JobId,
        /// What the destination gave out when it was prepared.
        token: Token,
        /// The connection's number within the job, from 0.
        connection: u16,
    },
    /// Only to find out whether we could talk, and how fast.
    Check,
}

/// The first frame of whoever connects.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// What it speaks.
    pub offer: Offer,
    /// What the connection is for.
    pub role: Role,
}

impl Hello {
    /// The payload of its frame.
    ///
    /// # Errors
    /// When something in it is above its limit.
    pub fn encode(&self) -> Result<Vec<u8>, HelloError> {
        self.offer.check()?;
        Ok(json::encode(self, limit())?)
    }

    /// The Hello in a payload.
    ///
    /// # Errors
    /// When it is none, or something in it is above its limit.
    pub fn decode(payload: &[u8]) -> Result<Self, HelloError> {
        let hello: Self = json::decode(payload, limit())?;
        hello.offer.check()?;
        Ok(hello)
    }
}

/// What a server agrees to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol that both speak from here on.
    pub protocol: u16,
    /// The server's version, for people.
    pub software: String,
    /// The capabilities that both have.
    pub capabilities: Capabilities,
}

/// The first frame of whoever listens.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Reply {
    /// Go on.
    Welcome(Welcome),
    /// The connection is closed after this.
    Refused {
        /// Why.
        refusal: Refusal,
    },
}

impl Reply {
    /// The answer to a client's offer, before its role is looked at: welcome, or refused.
    #[must_use]
    pub fn to_offer(ours: &Offer, theirs: &Offer) -> Self {
        match negotiate(ours, theirs) {
            Ok(Agreed { protocol, capabilities }) => {
                Self::Welcome(Welcome { protocol, software: ours.software.clone(), capabilities })
            }
            Err(refusal) => Self::refused(&refusal),
        }
    }

    /// A refusal, cut to what fits in a frame.
    #[must_use]
    pub fn refused(refusal: &Refusal) -> Self {
        Self::Refused { refusal: refusals::cut(refusal) }
    }

    /// The payload of its frame.
    ///
    /// # Errors
    /// When something in it is above its limit.
    pub fn encode(&self) -> Result<Vec<u8>, HelloError> {
        self.check()?;
        Ok(json::encode(self, limit())?)
    }

    /// The reply in a payload.
    ///
    /// # Errors
    /// When it is none, or something in it is above its limit.
    pub fn decode(payload: &[u8]) -> Result<Self, HelloError> {
        let reply: Self = json::decode(payload, limit())?;
        reply.check()?;
        Ok(reply)
    }

    fn check(&self) -> Result<(), HelloError> {
        match self {
            Self::Welcome(welcome) => check_software(&welcome.software),
            Self::Refused { refusal } if refusals::is_bounded(refusal) => Ok(()),
            Self::Refused { .. } => Err(HelloError::Refusal),
        }
    }
}

fn check_software(software: &str) -> Result<(), HelloError> {
    if software.len() > MAX_VERSION_BYTES || !software.chars().all(is_clean) {
        return Err(HelloError::Software { found_bytes: software.len() });
    }
    Ok(())
}

const fn limit() -> usize {
    FrameKind::Hello.limit_bytes() as usize
}

/// Why a payload is no hello, or no answer to ours. The peer misbehaves, or is no Sterna agent.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HelloError {
    /// Not the JSON that was expected.
    #[error("in the peer's hello: {0}")]
    Json(#[from] JsonError),
    /// No version range.
    #[error("expected a range of protocols from 1 up, found {min} to {max}")]
    ProtocolRange {
        /// The oldest.
        min: u16,
        /// The newest.
        max: u16,
    },
    /// A version text that is too long, or has control characters.
    #[error(
        "expected a printable version of at most {MAX_VERSION_BYTES} bytes, found {found_bytes} bytes"
    )]
    Software {
        /// Its length.
        found_bytes: usize,
    },
    /// No name of a capability.
    #[error(
        "expected a capability (1 to {MAX_CAPABILITY_BYTES} of a-z, 0-9 and '-'), found {found:?}"
    )]
    Capability {
        /// The name, cut.
        found: String,
    },
    /// Too many.
    #[error("expected at most {MAX_CAPABILITIES} capabilities, found {found}")]
    CapabilityCount {
        /// How many.
        found: usize,
    },
    /// Not sorted, or one twice.
    #[error("expected capabilities in ascending order, each once")]
    CapabilityOrder,
    /// A refusal whose texts are too long or not printable.
    #[error(
        "expected a refusal within the limits for its texts, found a longer or unprintable one"
    )]
    Refusal,
    /// The server chose a protocol that we did not offer.
    #[error("expected the peer to choose a protocol of {min} to {max}, found {found}")]
    NotOffered {
        /// Our oldest.
        min: u16,
        /// Our newest.
        max: u16,
        /// What it chose.
        found: u16,
    },
    /// The server chose a capability that we did not offer.
    #[error("expected only capabilities that were offered, found {found}")]
    CapabilityNotOffered {
        /// The capability.
        found: String,
    },
}
