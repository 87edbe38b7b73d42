//! What a restarted source does: brings its job to where the journal says it must go (law 1's table), as the agent's
//! `recovery`.

use sterna_migration::journal::SourceRecord;
use sterna_migration::outcome::OutcomeName;
use sterna_migration::source::{Limits, Source};

use super::{Drive, ending};
use crate::disk::{Entry, Owner, Reached, Record, Story};
use crate::faults::Side;
use crate::hands::Hands;
use crate::oracle::Ended;
use crate::plant::Plant;
use crate::world::Inbound;

/// See the module.
pub(super) async fn recover(hands: &Hands) {
    hands.with(|world| world.host(Side::Source).listening = true);
    let alive = hands.with(|world| world.is_alive(Side::Source));
    let Some(story) = hands.with(|world| world.host(Side::Source).disk.reopen()) else {
        return hands.with(|world| world.job_ended(Side::Source, Ended::Forgotten));
    };
    let record = hands.with(|world| world.host(Side::Source).disk.record);
    let mut drive = Drive::new(hands.clone());
    drive.journal_is_open = true;
    drive.guest_ran = story.guest_ran;
    drive.resumed = true;
    drive.record = Record { process: alive, ..record.unwrap_or(drive.record) };
    hands.step(&format!("recovers {story:?}, QEMU alive: {alive}")).await;
    let Reached::Source(reached) = story.side else { return };
    match (reached, story.report) {
        (SourceRecord::Gone | SourceRecord::Vanished, None) if !story.ended => {
            finish_leaving(&mut drive, reached, alive).await;
        }
        (record, report) if record.is_final() => remembered(hands, record, report),
        // It was brought to an end that is no owner's.
        (_, Some(report)) => {
            hands.with(|world| world.oracles.progress.remembered(Side::Source, report));
        }
        _ if story.ended => {
            hands.with(|world| {
                world.oracles.progress.remembered(Side::Source, OutcomeName::Unknown);
            });
        }
        (SourceRecord::Offered, _) if !hands.errs(Plant::ReturnWithoutAsking) => {
            offered(drive, alive).await;
        }
        (SourceRecord::Serving, _) => serving(drive, alive).await,
        _ => unoffered(drive, &story).await,
    }
}

fn remembered(hands: &Hands, record: SourceRecord, report: Option<OutcomeName>) {
    let name = report.unwrap_or_else(|| by_record(record));
    hands.with(|world| world.oracles.progress.remembered(Side::Source, name));
}

const fn by_record(record: SourceRecord) -> OutcomeName {
    match record {
        SourceRecord::Gone => OutcomeName::Done,
        SourceRecord::Vanished => OutcomeName::Lost,
        _ => OutcomeName::Failed,
    }
}

/// The guest is the other host's, or nobody's. An agent that died before it had ended its own QEMU does so now.
async fn finish_leaving(drive: &mut Drive, record: SourceRecord, alive: bool) {
    let is_lost = record == SourceRecord::Vanished;
    drive.record.owner = if is_lost { Owner::Lost } else { Owner::MovedTo };
    drive.hands.store(Some(drive.record)).await;
    if alive {
        ending::quit(&drive.hands).await;
    }
    drive.record.process = false;
    drive.hands.store(Some(drive.record)).await;
    let _ = drive.hands.append(Entry::Ended).await;
    let name = by_record(record);
    drive.hands.with(|world| world.job_ended(Side::Source, Ended::Source(name)));
}

/// The guest is the other host's, and its pages are here, or were: the destination is rejoined in either case.
async fn serving(mut drive: Drive, alive: bool) {
    if !alive {
        let died = Inbound::QemuDied("it was gone after the restart".into());
        drive.hands.with(|world| world.tell(Side::Source, died));
    }
    drive.stop_sent = true;
    let mut effects = Vec::new();
    drive.machine = Some(Source::resume_serving(Limits::default(), &mut effects));
    drive.effects.extend(effects);
    drive.run().await;
}

/// The commit may have been sent: only the destination knows. It is asked, also when our QEMU is gone: then it is either
/// the destination's or lost.
async fn offered(mut drive: Drive, alive: bool) {
    if !alive {
        drive.record.owner = Owner::Unknown;
        drive.hands.store(Some(drive.record)).await;
        if drive.hands.errs(Plant::FoundOfferedDoesNotAsk) {
            let name = OutcomeName::Unknown;
            return drive.hands.with(|world| world.job_ended(Side::Source, Ended::Source(name)));
        }
        let died = Inbound::QemuDied("it was gone after the restart".into());
        drive.hands.with(|world| world.tell(Side::Source, died));
    }
    drive.stop_sent = true;
    let mut effects = Vec::new();
    drive.machine = Some(Source::resume_offered(Limits::default(), &mut effects));
    drive.effects.extend(effects);
    drive.run().await;
}

/// Nothing was offered: the guest is ours, and runs on.
async fn unoffered(mut drive: Drive, story: &Story) {
    drive.stop_sent = story.side != Reached::Source(SourceRecord::Copying);
    drive.unoffered = true;
    let mut effects = Vec::new();
    drive.machine = Some(Source::resume_unoffered(&mut effects));
    drive.effects.extend(effects);
    drive.run().await;
}
