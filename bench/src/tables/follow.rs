//! The cells of following: guests of three sizes under the loads of the paper, one that does nothing, one that computes.

use sterna_e2e::Application;

use super::cell::{Aim, Cell, Metric, Version};
use super::contenders::{
    Contender, FOLLOW, FOLLOW_ALL_DIRTY, FOLLOW_AT_ONCE, FOLLOW_UNCHECKED, FOLLOW_UNPREDICTED,
    PRECOPY,
};
use super::links::GIGABIT;
use super::loads::{Client, Load, Program};

const RUNS: u32 = 2;

/// What following is compared with: a move that begins when it is asked for, and sending all that is dirty.
static CONTENDERS: [&Contender; 3] = [&FOLLOW, &FOLLOW_ALL_DIRTY, &PRECOPY];
/// The same, each part of following left out in turn.
static ABLATIONS: [&Contender; 6] =
    [&FOLLOW, &FOLLOW_ALL_DIRTY, &FOLLOW_UNPREDICTED, &FOLLOW_AT_ONCE, &FOLLOW_UNCHECKED, &PRECOPY];

/// The guest is little slower while it is followed.
const HARM: Aim = Aim::AtMost(Metric::SlowdownPercent, 2.0);

/// The hand-over's time; what is sent in the background, by what sending every dirty page each second takes, in a run of
/// its own and by the pages that the same run saw dirtied.
const fn aims(switch_ms: f64, share: f64) -> [Aim; 5] {
    [
        Aim::Completes,
        Aim::AtMost(Metric::SwitchMs, switch_ms),
        Aim::AtMostTimes(Metric::BackgroundRate, share, &FOLLOW_ALL_DIRTY),
        Aim::AtMost(Metric::BackgroundPercent, 100.0 * share),
        HARM,
    ]
}

const EDIT_SHARE: f64 = 0.3;
const MEDIA_SHARE: f64 = 0.2;
static SMALL_EDIT: [Aim; 5] = aims(250.0, EDIT_SHARE);
static SMALL_MEDIA: [Aim; 5] = aims(250.0, MEDIA_SHARE);
static LARGE_EDIT: [Aim; 5] = aims(1000.0, EDIT_SHARE);
static LARGE_MEDIA: [Aim; 5] = aims(1000.0, MEDIA_SHARE);

/// An application in a guest of some memory, much of which other programs hold.
macro_rules! application {
    ($memory:literal, $kib:literal, $ballast:literal, $which:ident, $name:literal, $title:literal) => {
        Load {
            name: concat!($memory, "-", $name),
            title: concat!($memory, " guest, ", $title, ", ", $ballast, " held by others"),
            program: Program::ApplicationWith(Application::$which, concat!("ballast=", $ballast)),
            client: Client::Nobody,
            memory_kib: $kib,
        }
    };
}

/// Text editing, sound and video in guests of one size.
macro_rules! applications {
    ($memory:literal, $kib:literal, $ballast:literal) => {
        [
            application!($memory, $kib, $ballast, Edit, "edit", "text editing (vim)"),
            application!($memory, $kib, $ballast, Audio, "audio", "mp3 decoded (mpg123)"),
            application!($memory, $kib, $ballast, Video, "video", "VP8 decoded (vpxdec)"),
        ]
    };
}

// No guest's memory is a multiple of 256 KiB: see `sterna_e2e::Guest`.
static SMALL: [Load; 3] = applications!("256m", 262_136, "64M");
static MEDIUM: [Load; 3] = applications!("1g", 1_048_568, "512M");
static LARGE: [Load; 3] = applications!("4g", 4_194_296, "2G");

static IDLE: Load = Load {
    name: "256m-idle",
    title: "256m guest that does nothing, 64M of random data",
    program: Program::Pages("idle size=64M sweep=1"),
    client: Client::Nobody,
    memory_kib: 262_136,
};
static COMPUTING: Load = Load {
    name: "256m-computing",
    title: "256m guest that computes as fast as it can in 1M of memory",
    program: Program::Pages("rewrite size=1M rate=max sweep=1"),
    client: Client::Nobody,
    memory_kib: 262_136,
};

/// What is stale of it is not worth sending: whoever sends it takes the guest's time, and gains nothing.
static STORM: Load = Load {
    name: "256m-storm",
    title: "256m guest that rewrites 64M of random data as fast as it can",
    program: Program::Pages("rewrite size=64M rate=max sweep=1"),
    client: Client::Nobody,
    memory_kib: 262_136,
};

const fn cell(load: &'static Load, aims: &'static [Aim]) -> Cell {
    Cell {
        load,
        link: &GIGABIT,
        qemu: Version::Installed,
        runs: RUNS,
        contenders: &CONTENDERS,
        subject: &FOLLOW,
        aims,
        quick: &[],
    }
}

const fn ablated(load: &'static Load, aims: &'static [Aim]) -> Cell {
    Cell { contenders: &ABLATIONS, ..cell(load, aims) }
}

pub(super) static CELLS: &[Cell] = &[
    Cell { quick: &CONTENDERS, ..ablated(&SMALL[0], &SMALL_EDIT) },
    ablated(&SMALL[1], &SMALL_MEDIA),
    ablated(&SMALL[2], &SMALL_MEDIA),
    Cell {
        contenders: &[&FOLLOW],
        ..cell(&IDLE, &[Aim::Completes, Aim::AtMost(Metric::HoldCpuPercent, 2.0)])
    },
    Cell { contenders: &[&FOLLOW, &FOLLOW_ALL_DIRTY], ..cell(&COMPUTING, &[Aim::Completes, HARM]) },
    Cell {
        contenders: &[&FOLLOW, &FOLLOW_UNPREDICTED, &FOLLOW_ALL_DIRTY],
        ..cell(&STORM, &[Aim::Completes, HARM])
    },
    cell(&LARGE[0], &LARGE_EDIT),
    cell(&LARGE[1], &LARGE_MEDIA),
    cell(&LARGE[2], &LARGE_MEDIA),
    cell(&MEDIUM[0], &LARGE_EDIT),
    cell(&MEDIUM[1], &LARGE_MEDIA),
    cell(&MEDIUM[2], &LARGE_MEDIA),
];
