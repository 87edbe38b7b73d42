//! The destination's agent: it takes connections, and runs the drive loop around the real machine, as the agent's
//! `incoming/drive` and `visitors` do.
//!
//! Left out: TLS and the hello, the checks of what a VM may use, QEMU's arguments, feeding blocks that are not shared.

mod drive;
mod faulting;
mod keeping;
mod messages;
mod qemu;
mod recovery;
mod visitors;

use crate::faults::Side;
use crate::hands::Hands;
use crate::message::Message;
use crate::oracle::Ended;
use crate::world::Inbound;
use drive::Drive;

/// What the agent knows of the one job that it was asked for, beside the journal.
#[derive(Clone, Debug, Default)]
struct Memory {
    /// How it ended, in this life of the agent.
    ended: Option<Ended>,
    /// It was begun, in this life or before.
    known: bool,
}

/// The agent, from its start to its end.
pub(crate) async fn agent(hands: Hands) {
    hands.step("the agent starts").await;
    let mut memory = Memory::default();
    let unsettled = recovery::recover(&hands, &mut memory).await;
    hands.with(|world| world.host(Side::Destination).listening = true);
    if let Some(drive) = unsettled {
        memory.ended = drive.go_on().await;
    }
    loop {
        let Some(inbound) = hands.hear(None).await else { continue };
        let Inbound::Message(link, message) = inbound else { continue };
        match message {
            Message::Prepare if memory.known => hands.send(link, Message::Refused).await,
            Message::Prepare => {
                memory.known = true;
                hands.with(|world| world.oracles.progress.begun(Side::Destination));
                memory.ended = Drive::new(hands.clone(), link).run().await;
            }
            Message::Inquire | Message::Rejoin => visitors::answer(&hands, &memory, link).await,
            Message::Ping => hands.send(link, Message::Pong).await,
            // A message that begins nothing.
            _ => {}
        }
    }
}
