//! What a restarted destination does: brings its job to where the journal says it must go (law 1's table), as the agent's
//! `recovery`.

use sterna_migration::destination::{Destination, End, Fact};
use sterna_migration::journal::DestinationRecord;

use super::Memory;
use super::drive::Drive;
use crate::disk::{Owner, Reached, Record};
use crate::faults::Side;
use crate::hands::Hands;
use crate::oracle::Ended;
use crate::plant::Plant;

/// See the module. Gives a job that needs the source to come to its end.
pub(super) async fn recover(hands: &Hands, memory: &mut Memory) -> Option<Drive> {
    let side = Side::Destination;
    let Some(story) = hands.with(|world| world.host(side).disk.reopen()) else {
        let begun = hands.with(|world| world.oracles.progress.was_begun(side));
        if begun {
            hands.with(|world| world.job_ended(side, Ended::Forgotten));
        }
        return None;
    };
    memory.known = true;
    let record = hands.with(|world| world.host(side).disk.record);
    let alive = hands.with(|world| world.is_alive(side));
    hands.step(&format!("recovers {story:?}, {record:?}, QEMU alive: {alive}")).await;
    let Reached::Destination(reached) = story.side else { return None };
    let is_over = reached.is_final() || story.ended;
    if is_over {
        over(hands, memory, reached, record).await;
        return None;
    }
    let drive = match reached {
        DestinationRecord::Entitled if !must_discard(hands, record) => {
            entitled(hands, alive, story.guest_ran).await
        }
        DestinationRecord::Faulting if !hands.errs(Plant::FaultingDiscards) => {
            faulting(hands, alive, story.guest_ran).await
        }
        DestinationRecord::Prepared if alive && hands.errs(Plant::RestartedIsRejoined) => {
            Drive::as_though_nothing_had_been(hands)
        }
        _ => discard(hands, record, alive).await,
    };
    memory.ended = drive.how_ended().map(Ended::Destination);
    Some(drive).filter(|_| memory.ended.is_none())
}

/// A job whose journal says that nothing is left to do. The registry may have missed its last step.
async fn over(
    hands: &Hands,
    memory: &mut Memory,
    reached: DestinationRecord,
    record: Option<Record>,
) {
    let end = match reached {
        DestinationRecord::Running => End::Running,
        DestinationRecord::Discarded => End::Discarded("by its journal".into()),
        DestinationRecord::Vanished => End::Lost("by its journal".into()),
        _ => End::Unknown("by its journal".into()),
    };
    if record.is_some_and(|record| record.owner == Owner::Incoming) {
        let owner = if end == End::Running { Owner::Here } else { Owner::Unknown };
        let record = Some(Record { owner, process: true });
        let is_dead = matches!(end, End::Discarded(_) | End::Lost(_));
        hands.store(record.filter(|_| !is_dead)).await;
    }
    // What was over before was looked at then.
    hands.with(|world| world.oracles.progress.remembered_there(end.clone()));
    memory.ended = Some(Ended::Destination(end));
}

/// Two planted bugs: a guest that is ours is thrown away.
fn must_discard(hands: &Hands, record: Option<Record>) -> bool {
    hands.errs(Plant::EntitledDiscards)
        || (hands.errs(Plant::FoundEntitledWithoutVm) && record.is_none())
}

/// Nothing was committed: what is here is discarded. A QEMU that the registry does not know yet is found by the journal.
async fn discard(hands: &Hands, record: Option<Record>, alive: bool) -> Drive {
    let registered = record.is_some_and(|record| record.owner == Owner::Incoming);
    let forgets = [Plant::FoundOrphan, Plant::FoundEntitledWithoutVm];
    let known = registered || !forgets.iter().any(|plant| hands.errs(*plant));
    let mut effects = Vec::new();
    let machine = Destination::resume_prepared(&mut effects);
    let mut drive = Drive::again(hands.clone(), alive && known, true);
    drive.settle(machine, effects).await;
    drive
}

/// The guest is ours. If its QEMU is there, it runs or is resumed; if not, it may have run.
async fn entitled(hands: &Hands, alive: bool, guest_ran: bool) -> Drive {
    let mut effects = Vec::new();
    let machine = Destination::resume_entitled(&mut effects);
    let mut drive = Drive::again(hands.clone(), alive, guest_ran);
    drive.settle(machine, effects).await;
    drive
}

/// The guest is ours, ran, and lacked pages. If its QEMU is there, that says which; if not, it is lost.
async fn faulting(hands: &Hands, alive: bool, guest_ran: bool) -> Drive {
    let mut effects = Vec::new();
    let mut machine = Destination::resume_faulting(&mut effects);
    if !alive {
        effects.clear();
        let died = Fact::QemuDied("it was gone after the restart".into());
        machine = machine.handle(died, &mut effects);
    }
    let mut drive = Drive::again(hands.clone(), alive, guest_ran);
    drive.settle(machine, effects).await;
    drive
}
