//! Protocol versions and capabilities: what two agents of different releases speak with each other.
//!
//! An agent of protocol N also speaks N-1, so that a pair of hosts can be upgraded one after the other, in any order, with
//! VMs moving in both directions at any time. The newest protocol of both is taken. A capability is something that a
//! release does beyond its protocol's minimum: it is used where both have named it, and names that one of them does not
//! know are left out. So far there is one protocol, 1; N-1 begins to mean something with 2.
//!
//! # What is tolerated
//!
//! | from a peer | in a Hello or its Reply | later |
//! |---|---|---|
//! | an unknown key | ignored | error: the protocol says which keys there are |
//! | an unknown capability | ignored, not agreed on | |
//! | a capability or protocol that was not offered | error | |
//! | an unknown role, reply or message | error | error: who sends one has not looked at what was agreed on |
//! | an unknown frame kind or flag | error | error |
//! | ranges that do not meet | refused as `protocol-version`, with both ranges and whom to upgrade | |
//!
//! Nothing unknown is skipped after the hello. A message that one side sends and the other ignores is a guest that one of
//! them believes to be elsewhere.
//!
//! # What needs which
//!
//! A **capability** is for what a job can do without: a further compression, a strategy, a key in a message. Sender and
//! receiver ask `Agreed::capabilities` before they send or expect it; without it everything is as before. Its bytes get
//! golden lines of their own, and its name stays taken when it is gone.
//!
//! A **new protocol** is for what a job cannot do without, or what changes the meaning of what there is: who may send what
//! and when, the journals' order of steps, the codec's frames. It also takes the capabilities that have become a matter of
//! course, which an agent goes on naming until N-1 has them too.
//!
//! # Raising the protocol from N to N+1
//!
//! 1. Leave `tests/golden/protocol-N.txt` as it is, for good, and copy it to `protocol-(N+1).txt`. A test asks for a file
//!    for each protocol that is spoken, and reads all of them.
//! 2. Raise [`PROTOCOL_NEWEST`]. [`PROTOCOL_OLDEST`] follows and is then N: N-1 is spoken no more, and what only it needed
//!    can be removed, its golden file with it.
//! 3. Where N and N+1 differ, the code asks `Agreed::protocol`; it is agreed on for each connection and is the same on all
//!    connections of a job, since one pair of agents makes them. A restart in the middle of a job is an upgrade at the
//!    latest then: what is asked after it (Inquire, Answer, Discarded) must not differ between neighbours.
//! 4. What is new is a new message or a new variant; fields of old messages are neither removed nor reused. Write the
//!    golden lines of what is new, and tests in which one side is held to N.
//! 5. TLS carries the name `sterna/1` (ALPN) for all of this. It changes only with the frame's header or the hello itself,
//!    and then both names are offered for one release.
//! 6. Say in the changelog which releases meet.

use alloc::format;

use sterna_model::Refusal;

use crate::hello::{Capabilities, HelloError, Offer, Welcome};

/// The newest protocol that this build speaks.
pub const PROTOCOL_NEWEST: u16 = 1;

/// The oldest protocol that this build speaks.
pub const PROTOCOL_OLDEST: u16 = oldest_beside(PROTOCOL_NEWEST);

/// The oldest protocol that an agent of protocol `newest` speaks: the one before, if there is one.
#[must_use]
pub const fn oldest_beside(newest: u16) -> u16 {
    if newest <= 1 { 1 } else { newest - 1 }
}

/// What two agents speak with each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Agreed {
    /// The newest protocol of both.
    pub protocol: u16,
    /// The capabilities of both.
    pub capabilities: Capabilities,
}

impl Agreed {
    /// What a client may rely on, after the server's welcome.
    ///
    /// # Errors
    /// When the server chose what we did not offer.
    pub fn by_welcome(ours: &Offer, welcome: &Welcome) -> Result<Self, HelloError> {
        let (min, max) = (ours.protocol_min, ours.protocol_max);
        if !(min..=max).contains(&welcome.protocol) {
            return Err(HelloError::NotOffered { min, max, found: welcome.protocol });
        }
        let unasked =
            welcome.capabilities.iter().find(|one| !ours.capabilities.contains(one.as_str()));
        if let Some(capability) = unasked {
            return Err(HelloError::CapabilityNotOffered { found: capability.as_str().into() });
        }
        Ok(Self { protocol: welcome.protocol, capabilities: welcome.capabilities.clone() })
    }
}

/// The newest protocol and the capabilities that both offers have. The same whichever side works it out.
///
/// # Errors
/// When no protocol is common: the refusal says which side is to be upgraded, in words that are right for both readers.
pub fn negotiate(ours: &Offer, theirs: &Offer) -> Result<Agreed, Refusal> {
    let protocol = ours.protocol_max.min(theirs.protocol_max);
    if protocol < ours.protocol_min.max(theirs.protocol_min) {
        return Err(incompatible(ours, theirs));
    }
    Ok(Agreed { protocol, capabilities: ours.capabilities.common(&theirs.capabilities) })
}

fn incompatible(ours: &Offer, theirs: &Offer) -> Refusal {
    let (older, newer) =
        if ours.protocol_max < theirs.protocol_max { (ours, theirs) } else { (theirs, ours) };
    let range = |offer: &Offer| format!("{} to {}", offer.protocol_min, offer.protocol_max);
    let reason = format!(
        "expected a protocol of {} ({}), found {} ({})",
        range(ours),
        ours.software,
        range(theirs),
        theirs.software
    );
    let remedy = format!(
        "upgrade the host with {} to one that speaks protocol {} or newer",
        older.software, newer.protocol_min
    );
    Refusal::new("protocol-version", reason, remedy)
}
