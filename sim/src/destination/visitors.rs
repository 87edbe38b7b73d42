//! Whoever asks about a job that has no loop any more: answered by what this life of the agent remembers, else by the
//! journal.

use sterna_migration::destination::End;
use sterna_migration::journal::DestinationRecord;

use super::Memory;
use crate::disk::Reached;
use crate::faults::Side;
use crate::hands::Hands;
use crate::message::{Message, State};
use crate::network::ConnectionId;
use crate::oracle::Ended;
use crate::plant::Plant;

/// See the module.
pub(super) async fn answer(hands: &Hands, memory: &Memory, link: ConnectionId) {
    let remembered = match &memory.ended {
        _ if hands.errs(Plant::FoundPreparedForEver) => None,
        _ if hands.errs(Plant::FoundEntitledStaysSilent) => None,
        Some(Ended::Destination(end)) => Some(match end {
            End::Running => State::Running,
            End::Discarded(_) => State::Discarded,
            End::Unknown(_) => State::Unknown,
            End::Lost(_) => State::Vanished,
        }),
        _ => None,
    };
    let state = remembered.unwrap_or_else(|| journaled(hands));
    match state {
        State::Discarded => hands.with(|world| world.discard_is_said()),
        State::Unknown => hands.with(|world| world.doubt_is_said()),
        State::Prepared | State::Entitled | State::Faulting | State::Running | State::Vanished => {}
    }
    hands.send(link, Message::Answer(state)).await;
}

fn journaled(hands: &Hands) -> State {
    let story = hands.with(|world| world.host(Side::Destination).disk.story());
    let Some(story) = story else { return State::Unknown };
    match story.side {
        // It came to an end that is no owner's.
        side if !side.is_final() && story.ended => State::Unknown,
        Reached::Destination(DestinationRecord::Prepared) => State::Prepared,
        Reached::Destination(DestinationRecord::Entitled) => State::Entitled,
        Reached::Destination(DestinationRecord::Running) => State::Running,
        Reached::Destination(DestinationRecord::Discarded) => State::Discarded,
        Reached::Destination(DestinationRecord::Faulting) => State::Faulting,
        Reached::Destination(DestinationRecord::Vanished) => State::Vanished,
        Reached::Source(_) => State::Unknown,
    }
}
