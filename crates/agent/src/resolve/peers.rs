//! What other hosts say of a job, asked now. A host that does not answer in a few seconds has not answered.

use std::sync::Arc;
use std::time::Duration;

use sterna_api::PeerAnswer;
use sterna_host::tls::{read_frame, write_frame};
use sterna_model::HostName;
use sterna_wire::message::Inquire;
use sterna_wire::{AnswerState, FrameKind, Message, Role as Wish, Sender};

use crate::agent::Agent;
use crate::link::Greeted;
use crate::peer::{self, Destination, PeerError};

/// One host has so long to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// Hosts that are asked, at most: all of a configuration when the journal does not say which.
const MAX_ASKED: usize = 16;

/// What a host said.
pub(super) struct Said {
    pub host: HostName,
    pub state: Option<AnswerState>,
    pub view: PeerAnswer,
}

/// Asks hosts about a job, all at once.
pub(super) async fn ask(
    agent: &Arc<Agent>,
    hosts: Vec<Destination>,
    inquire: &Inquire,
) -> Vec<Said> {
    let asked: Vec<_> = hosts
        .into_iter()
        .take(MAX_ASKED)
        .map(|to| {
            let (agent, inquire) = (Arc::clone(agent), inquire.clone());
            tokio::spawn(async move {
                let answer = ask_one(&agent, &to, inquire);
                let said = match tokio::time::timeout(ANSWER_DEADLINE, answer).await {
                    Ok(Ok(state)) => Ok(state),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err(format!("{} does not answer", to.name)),
                };
                said_by(to, said)
            })
        })
        .collect();
    let mut all = Vec::new();
    for one in asked {
        all.extend(one.await.ok());
    }
    all
}

fn said_by(to: Destination, said: Result<AnswerState, String>) -> Said {
    let (state, meaning) = match said {
        Ok(state) => (Some(state), meaning_of(state).to_owned()),
        Err(why) => (None, why),
    };
    let word = state.and_then(|state| serde_json::to_value(state).ok());
    let word = word.and_then(|word| word.as_str().map(str::to_owned));
    let peer = format!("{} at {}", to.name, to.address);
    Said { host: to.name, state, view: PeerAnswer { peer, state: word, meaning } }
}

async fn ask_one(
    agent: &Agent,
    to: &Destination,
    inquire: Inquire,
) -> Result<AnswerState, PeerError> {
    let closed = || PeerError::Closed { peer: to.name.clone() };
    let failed = |error| PeerError::Frame { peer: to.name.clone(), error };
    let (greeted, _) =
        peer::connect(&agent.identity, to, Wish::Control, agent.link_options()).await?;
    let Greeted { mut connection, mut reader, mut writer, .. } = greeted;
    let payload = Message::Inquire(inquire).encode().map_err(|_| closed())?;
    write_frame(connection.stream(), &mut writer, FrameKind::Control, &payload)
        .await
        .map_err(failed)?;
    while read_frame(connection.stream(), &mut reader).await.map_err(failed)? {
        let Some(frame) = reader.frame().filter(|frame| frame.kind == FrameKind::Control) else {
            continue;
        };
        // Without a journal it is not certain which side of the job we are, and so which one the other is.
        let said = Message::decode(frame.payload, Sender::Destination)
            .or_else(|_| Message::decode(frame.payload, Sender::Source));
        match said {
            Ok(said) => {
                if let Some(state) = stated(&said) {
                    return Ok(state);
                }
            }
            Err(_) => return Err(closed()),
        }
    }
    Err(closed())
}

/// What a message says of the guest, if it says that: a job that is alive answers as it tells its source.
const fn stated(said: &Message) -> Option<AnswerState> {
    match said {
        Message::Answer(answer) => Some(answer.state),
        // What it lacks is still here: that is not to be taken for a guest that has all.
        Message::Running(running) if running.lacks_pages > 0 => Some(AnswerState::Faulting),
        Message::Running(_) | Message::Complete(_) => Some(AnswerState::Running),
        Message::Vanished(_) => Some(AnswerState::Lost),
        Message::Discarded(_) => Some(AnswerState::Discarded),
        _ => None,
    }
}

const fn meaning_of(state: AnswerState) -> &'static str {
    match state {
        AnswerState::Copying => "the guest runs there; nothing was offered",
        AnswerState::Stopping => "the guest is there; nothing was offered",
        AnswerState::Offered => "the guest stands there, until it is told what became of it here",
        AnswerState::Serving => "the guest was given to this host, and gets pages from there",
        AnswerState::Gone => "the guest was given to this host, and is not there any more",
        AnswerState::Returned => "the guest went on there",
        AnswerState::Prepared => "it waits for the guest, and has no right to it",
        AnswerState::Entitled => "the guest is there, and may run",
        AnswerState::Faulting => "the guest runs there, and waits for pages",
        AnswerState::Running => "the guest runs there, or did: it has it",
        AnswerState::Discarded => "it has ended its copy; the guest is not there",
        AnswerState::Lost => "the guest was lost with pages lacking; it is not there",
        AnswerState::Unknown => "it does not know either",
    }
}

#[cfg(test)]
mod tests {
    use sterna_wire::message::Running;

    use super::*;

    #[test]
    fn a_guest_that_runs_and_lacks_pages_is_not_one_that_has_all() {
        let running = |lacks_pages| {
            stated(&Message::Running(Running {
                commit_to_resume_ns: 0,
                peak_anonymous_bytes: 0,
                lacks_pages,
            }))
        };
        assert_eq!(running(1), Some(AnswerState::Faulting));
        assert_eq!(running(0), Some(AnswerState::Running));
    }
}
