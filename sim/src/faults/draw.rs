//! What a seed stands for: the setting and the faults, drawn. Short times are as likely as long ones.

use std::time::Duration;

use sterna_model::Instant;

use super::{Cut, Fault, Moment, Setting, Side, Strategy, What};
use crate::disk::{Ailment, Crash};
use crate::random::Random;

/// A guest, a link and a command.
pub(super) fn setting(random: &mut Random) -> Setting {
    let (micros, millis) = (Duration::from_micros, Duration::from_millis);
    // A worker owns stripes of 512 pages: below that there is work for one only.
    let pages =
        if random.chance(700) { random.between(16, 512) } else { random.between(513, 1600) };
    let working_set = random.between(1, pages.min(200));
    let number = |from: u64| u32::try_from(from).unwrap_or(u32::MAX);
    Setting {
        pages: number(pages),
        zero_percent: random.below(80),
        write_every: random.time_of_any_scale(micros(50), millis(100)),
        working_set: number(working_set),
        paused: random.chance(60),
        held: random.chance(500),
        connections: random.index(4) + 1,
        one_way: random.time_of_any_scale(micros(20), millis(60)),
        jitter: random.time_of_any_scale(micros(1), millis(20)),
        page_time: random.time_of_any_scale(micros(2), millis(2)),
        link_timeout: millis(random.between(2_000, 90_000)),
        timeout: if random.chance(50) { millis(random.between(10, 3000)) } else { Duration::ZERO },
        sync_time: random.time_of_any_scale(micros(50), millis(20)),
        batch_pages: random.index(64) + 1,
        strategy: Strategy::Precopy,
        post_copy: false,
        max_downtime: millis(300),
    }
}

/// How the command was given. What is asked for by post-copy is often what pre-copy cannot do; and a share of its faults
/// strikes while the guest lacks pages.
pub(super) fn strategy(random: &mut Random, setting: &mut Setting, faults: &mut [Fault]) {
    setting.strategy = match random.below(10) {
        0..=4 => return,
        5..=8 => Strategy::ThreeStage,
        _ => Strategy::Auto,
    };
    setting.post_copy = random.chance(950);
    let (soon, late) = (Duration::from_micros(10), Duration::from_millis(300));
    setting.max_downtime = random.time_of_any_scale(soon, late);
    if !setting.post_copy {
        return;
    }
    for fault in faults {
        if random.chance(500) {
            *fault = Fault { at: stage_three(random), what: what_in_stage_three(random, setting) };
        }
    }
}

fn stage_three(random: &mut Random) -> Moment {
    let mut steps = |limit| u32::try_from(random.below(limit)).unwrap_or(0);
    let steps = [steps(12), steps(14), steps(8), steps(14), steps(8)];
    match random.below(12) {
        0 => Moment::Append(Side::Source, 3, steps[0]),
        1..=2 => Moment::Append(Side::Source, 4, steps[1]),
        3 => Moment::Append(Side::Source, 5, steps[2]),
        4 => Moment::Append(Side::Destination, 1, steps[3]),
        5..=6 => Moment::Append(Side::Destination, 2, steps[1]),
        7 => Moment::Append(Side::Destination, 3, steps[4]),
        _ => {
            let (soon, late) = (Duration::from_micros(10), Duration::from_secs(5));
            Moment::Lacking(random.time_of_any_scale(soon, late))
        }
    }
}

fn what_in_stage_three(random: &mut Random, setting: &Setting) -> What {
    let (millis, seconds) = (Duration::from_millis, Duration::from_secs);
    let long = random.time_of_any_scale(millis(1), seconds(40));
    let side = side(random);
    match random.below(100) {
        0..=24 => What::Crash(side, Crash::Process, long),
        25..=28 => What::Crash(side, Crash::Power, long),
        29..=31 => What::Disk(side, Ailment::Full, long),
        32..=34 => What::Disk(side, Ailment::SyncFails, long),
        35..=44 => What::Cut(Cut::Control),
        45..=52 => What::Cut(Cut::Data(random.index(setting.connections + 1))),
        53..=60 => What::Cut(Cut::All),
        61..=68 => What::Silence(random.time_of_any_scale(millis(1), seconds(100))),
        69..=76 => What::FeedBreaks,
        77..=82 => What::QemuDies(side),
        83..=84 => What::CommandRefused(side),
        85..=86 => What::CommandHangs(side),
        87 => What::DecodeFails,
        88..=90 => What::Cancel,
        91..=92 => What::UserPauses,
        93 => What::Shutdown,
        _ => What::Stalls(side, long.min(seconds(15))),
    }
}

/// A share of the runs has links that break in the rounds, and more that goes wrong then.
pub(super) fn rounds(random: &mut Random, setting: &Setting, faults: &mut Vec<Fault>) {
    if !random.chance(200) {
        return;
    }
    let (soon, late) = (Duration::from_micros(10), Duration::from_secs(2));
    // Often nothing else, so that the move has to be done.
    if random.chance(500) {
        faults.clear();
    }
    let at = Moment::Copying(random.time_of_any_scale(soon, late));
    faults.push(Fault { at, what: cut_in_rounds(random, setting) });
    let more = match random.below(10) {
        0..=4 => 0,
        5..=7 => 1,
        _ => random.between(2, 4),
    };
    for _ in 0..more {
        let at = if random.chance(600) {
            Moment::Away(random.time_of_any_scale(soon, Duration::from_secs(20)))
        } else {
            Moment::Copying(random.time_of_any_scale(soon, late))
        };
        faults.push(Fault { at, what: what_in_rounds(random, setting) });
    }
}

fn cut_in_rounds(random: &mut Random, setting: &Setting) -> What {
    match random.below(10) {
        0..=2 => What::Cut(Cut::All),
        3..=4 => What::Cut(Cut::Control),
        5..=7 => What::Cut(Cut::Data(random.index(setting.connections + 1))),
        _ => {
            What::Silence(random.time_of_any_scale(setting.link_timeout, setting.link_timeout * 3))
        }
    }
}

fn what_in_rounds(random: &mut Random, setting: &Setting) -> What {
    let (millis, seconds) = (Duration::from_millis, Duration::from_secs);
    let long = random.time_of_any_scale(millis(1), seconds(40));
    let side = side(random);
    match random.below(20) {
        0..=6 => cut_in_rounds(random, setting),
        7..=9 => What::Silence(random.time_of_any_scale(millis(1), seconds(100))),
        10..=12 => What::Crash(side, Crash::Process, long),
        13 => What::Crash(side, Crash::Power, long),
        14 => What::Cancel,
        15 => What::QemuDies(side),
        16 => What::Completes,
        17 => What::BaseMissing,
        18 => What::UserPauses,
        _ => What::Stalls(side, long.min(seconds(15))),
    }
}

/// What goes wrong: nothing in a tenth of the runs, much in another one.
pub(super) fn faults(random: &mut Random, setting: &Setting) -> Vec<Fault> {
    let count = match random.below(10) {
        0 => 0,
        1..=4 => 1,
        5..=7 => 2,
        8 => 3,
        _ => random.between(4, 8),
    };
    // Law 1 is decided in few steps: a share of the runs has its faults there.
    let place = if random.chance(300) { Place::Handover } else { Place::Anywhere };
    (0..count).map(|_| fault(random, place, setting)).collect()
}

/// Where a run's faults strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// At any time, at any step.
    Anywhere,
    /// From the destination's start to its first step as the owner, around the records that law 1 is about.
    Handover,
}

fn fault(random: &mut Random, place: Place, setting: &Setting) -> Fault {
    let at = match place {
        Place::Anywhere => moment(random),
        Place::Handover => handover(random),
    };
    Fault { at, what: what(random, setting) }
}

fn handover(random: &mut Random) -> Moment {
    let mut steps = |limit| u32::try_from(random.below(limit)).unwrap_or(0);
    let steps = [steps(8), steps(12), steps(8), steps(14), steps(8)];
    match random.below(10) {
        0 => Moment::Append(Side::Destination, 0, 4 + steps[0]),
        1..=3 => Moment::Append(Side::Source, 3, steps[1]),
        4 => Moment::Append(Side::Source, 4, steps[2]),
        5..=8 => Moment::Append(Side::Destination, 1, steps[3]),
        _ => Moment::Append(Side::Destination, 2, steps[4]),
    }
}

fn side(random: &mut Random) -> Side {
    if random.chance(500) { Side::Source } else { Side::Destination }
}

fn moment(random: &mut Random) -> Moment {
    let number = |from: u64| u32::try_from(from).unwrap_or(0);
    match random.below(10) {
        0..=2 => {
            let late = random.time_of_any_scale(Duration::from_millis(1), Duration::from_secs(8));
            Moment::Time(Instant::default().after(late))
        }
        3..=5 => Moment::Step(side(random), number(random.below(90))),
        _ => {
            let (append, steps) = (random.below(5), random.below(14));
            Moment::Append(side(random), number(append), number(steps))
        }
    }
}

fn what(random: &mut Random, setting: &Setting) -> What {
    let (millis, seconds) = (Duration::from_millis, Duration::from_secs);
    let long = random.time_of_any_scale(millis(1), seconds(40));
    let side = side(random);
    match random.below(100) {
        0..=19 => What::Crash(side, Crash::Process, long),
        20..=25 => What::Crash(side, Crash::Power, long),
        26..=30 => What::Disk(side, Ailment::Full, long),
        31..=34 => What::Disk(side, Ailment::SyncFails, long),
        35..=37 => What::SlowSync(side, long.min(seconds(20))),
        38..=42 => What::Cut(Cut::Control),
        43..=44 => What::Cut(Cut::Data(random.index(setting.connections))),
        45..=49 => What::Cut(Cut::All),
        50..=57 => What::Silence(random.time_of_any_scale(millis(1), seconds(100))),
        58..=61 => What::QemuDies(side),
        62..=66 => What::CommandRefused(side),
        67..=69 => What::CommandHangs(side),
        70..=71 => What::StreamBreaks,
        72..=77 => What::Completes,
        78 => What::LoadFails,
        79 => What::Refuses,
        80..=84 => What::BaseMissing,
        85 => What::DecodeFails,
        86..=90 => What::Cancel,
        91..=93 => What::UserPauses,
        94 => What::Shutdown,
        _ => What::Stalls(side, long.min(seconds(15))),
    }
}
