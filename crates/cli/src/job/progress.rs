//! A job's progress as it is shown: a bar on a terminal, lines elsewhere (both on standard error), or events as JSON
//! lines on standard output.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::time::{Duration, SystemTime};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use sterna_api::{Progress, Report};
use sterna_model::{JobId, VmName};

use crate::args::Format;
use crate::console::{self, Console};
use crate::render;

use super::end::NoReport;

/// The bar's parts.
const BAR_PARTS: u64 = 1000;
/// Time between two drawings of the bar.
const REDRAW_INTERVAL: Duration = Duration::from_millis(200);
/// Time between two lines of one phase.
const LINE_INTERVAL_MS: u64 = 1000;

/// What `-o jsonl` prints.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub(super) enum Event<'a> {
    Started {
        job: &'a JobId,
    },
    Progress(&'a Progress),
    Report(&'a Report),
    #[serde(rename = "report")]
    NoReport(&'a NoReport<'a>),
}

/// Shows progress.
pub(super) struct ProgressView {
    shape: Shape,
    /// What was shown last: a bar never goes back.
    percent: f64,
}

enum Shape {
    Bar(ProgressBar),
    Lines(LineFilter),
    Events,
}

impl ProgressView {
    pub(super) fn new(format: Format) -> Self {
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        let shape = match format {
            Format::Jsonl => Shape::Events,
            _ if io::stderr().is_terminal() && !is_dumb => Shape::Bar(bar()),
            _ => Shape::Lines(LineFilter::default()),
        };
        Self { shape, percent: 0.0 }
    }

    pub(super) fn show(&mut self, progress: &Progress, console: &mut Console) {
        self.percent = self.percent.max(progress.percent.min(100.0));
        match &mut self.shape {
            Shape::Events => self.event(&Event::Progress(progress), console),
            Shape::Bar(bar) => {
                let message = render::bar_message(progress, self.percent);
                bar.set_position(parts(self.percent));
                bar.set_message(console::visible(&message));
            }
            Shape::Lines(filter) => {
                if filter.admits(progress) {
                    let line = render::progress_line(progress, self.percent);
                    console.progress(&format!("{} {line}", render::timestamp(SystemTime::now())));
                }
            }
        }
    }

    /// Prints an event, if events are what is printed.
    pub(super) fn event(&self, event: &Event<'_>, console: &mut Console) {
        if matches!(self.shape, Shape::Events) {
            console.value(event, String::new);
        }
    }

    /// Prints a message, above the bar if there is one.
    pub(super) fn note(&self, message: &str, console: &Console) {
        match &self.shape {
            Shape::Bar(bar) => bar.suspend(|| console.note(message)),
            Shape::Lines(_) | Shape::Events => console.note(message),
        }
    }

    /// Takes the bar away.
    pub(super) fn clear(self) {
        if let Shape::Bar(bar) = self.shape {
            bar.finish_and_clear();
        }
    }
}

/// Shows the progress of several jobs: a line for each, or events. Bars of many VMs would not fit a terminal.
pub(super) struct DrainView {
    format: Format,
    lines: BTreeMap<VmName, (LineFilter, f64)>,
}

impl DrainView {
    pub(super) fn new(format: Format) -> Self {
        Self { format, lines: BTreeMap::new() }
    }

    pub(super) fn started(&mut self, vm: &VmName, job: &JobId, console: &mut Console) {
        self.lines.insert(vm.clone(), (LineFilter::default(), 0.0));
        match self.format {
            Format::Jsonl => console.value(&Event::Started { job }, String::new),
            Format::Text | Format::Json => {
                let now = render::timestamp(SystemTime::now());
                console.progress(&format!("{now} {vm}: begun, {job}"));
            }
        }
    }

    pub(super) fn show(&mut self, vm: &VmName, progress: &Progress, console: &mut Console) {
        if self.format == Format::Jsonl {
            return console.value(&Event::Progress(progress), String::new);
        }
        let (filter, percent) = self.lines.entry(vm.clone()).or_default();
        *percent = percent.max(progress.percent.min(100.0));
        if filter.admits(progress) {
            let line = render::progress_line(progress, *percent);
            console.progress(&format!("{} {vm}: {line}", render::timestamp(SystemTime::now())));
        }
    }
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("RAM [{bar:20}] {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    let target = ProgressDrawTarget::stderr();
    let bar = ProgressBar::with_draw_target(Some(BAR_PARTS), target).with_style(style);
    // Else a change that comes soon after another waits for the next one to be drawn.
    bar.enable_steady_tick(REDRAW_INTERVAL);
    bar
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the bar's parts before"
)]
fn parts(percent: f64) -> u64 {
    (percent.clamp(0.0, 100.0) / 100.0 * BAR_PARTS as f64) as u64
}

/// Lets through one line a second, and the first of each phase.
#[derive(Default)]
struct LineFilter {
    last: Option<(String, u64)>,
}

impl LineFilter {
    fn admits(&mut self, progress: &Progress) -> bool {
        let is_due = self.last.as_ref().is_none_or(|(phase, at_ms)| {
            *phase != progress.phase || progress.elapsed_ms >= at_ms + LINE_INTERVAL_MS
        });
        if is_due {
            self.last = Some((progress.phase.clone(), progress.elapsed_ms));
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(phase: &str, elapsed_ms: u64) -> Progress {
        Progress {
            job: "j1".parse().unwrap(),
            phase: phase.to_owned(),
            elapsed_ms,
            round: 1,
            percent: 10.0,
            memory_done_bytes: 0,
            memory_total_bytes: 0,
            remaining_bytes: 0,
            wire_bytes: 0,
            rate_bytes_per_second: 0,
            dirty_bytes_per_second: 0,
            eta_ms: None,
        }
    }

    #[test]
    fn one_line_a_second_and_each_phase() {
        let mut filter = LineFilter::default();
        let admitted: Vec<bool> = [
            ("preparing", 0),
            ("preparing", 999),
            ("copying", 1_000),
            ("copying", 1_500),
            ("copying", 2_000),
            ("stopping", 2_010),
            ("flushing", 2_020),
        ]
        .map(|(phase, at_ms)| filter.admits(&progress(phase, at_ms)))
        .to_vec();
        assert_eq!(admitted, [true, false, true, false, true, true, true]);
    }

    #[test]
    fn the_bar_is_never_longer_than_its_parts() {
        assert_eq!([-1.0, 0.0, 45.12, 100.0, 1e9].map(parts), [0, 0, 451, 1000, 1000]);
    }
}
