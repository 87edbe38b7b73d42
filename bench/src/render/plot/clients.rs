//! Replies of redis by time around a move, for each contender: throughput above, latency below.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use sterna_e2e::Result;

use super::Drawn;
use crate::record::Run;
use crate::statistics::CellRuns;
use crate::watch::redis::{RedisRecord, Window};

const SIZE_PX: (u32, u32) = (900, 560);
const LABELS_PX: u32 = 70;
/// What is shown before the command.
const BEFORE_S: f64 = 2.0;
/// Latencies that are told apart.
const LATENCY_US: std::ops::Range<f64> = 100.0..10_000_000.0;

/// One contender's line.
struct Line<'r> {
    title: &'static str,
    redis: &'r RedisRecord,
    start_unix_ms: f64,
    colour: RGBColor,
}

/// Draws the first completed run of each contender in the cell, if its guest has such clients.
///
/// # Errors
/// The file cannot be written.
pub(in crate::render) fn draw_all(cells: &[CellRuns<'_>], path: &Path) -> Result<()> {
    let lines: Vec<Line<'_>> = cells.iter().flat_map(lines).collect();
    if lines.is_empty() { Ok(()) } else { super::written(draw(&lines, path), path) }
}

fn lines<'r>(runs: &CellRuns<'r>) -> Vec<Line<'r>> {
    let colours = [
        BLUE,
        RED,
        GREEN,
        MAGENTA,
        BLACK,
        RGBColor(0xd0, 0x80, 0),
        CYAN,
        RGBColor(0x80, 0x80, 0x80),
    ];
    let contenders = runs.cell.contenders.iter().zip(colours);
    let of = |name| runs.of(name).find(|run| run.has_completed());
    contenders.filter_map(|(who, colour)| line(of(who.name)?, who.title, colour)).collect()
}

fn line<'r>(run: &'r Run, title: &'static str, colour: RGBColor) -> Option<Line<'r>> {
    let redis = run.measured.redis.as_ref()?;
    Some(Line { title, redis, start_unix_ms: run.measured.start_unix_ms?, colour })
}

fn draw(lines: &[Line<'_>], path: &Path) -> Drawn {
    let area = SVGBackend::new(path, SIZE_PX).into_drawing_area();
    area.fill(&WHITE)?;
    let (upper, lower) = area.split_vertically(SIZE_PX.1 / 2);
    let end_s =
        lines.iter().flat_map(|line| line.points(replies)).map(|(at, _)| at).fold(1.0, f64::max);
    let most =
        lines.iter().flat_map(|line| line.points(replies)).map(|(_, of)| of).fold(1.0, f64::max);
    let times = -BEFORE_S..end_s;
    throughput(&upper, lines, times.clone(), most)?;
    latency(&lower, lines, times)?;
    area.present()?;
    Ok(())
}

fn throughput(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    lines: &[Line<'_>],
    times: std::ops::Range<f64>,
    most: f64,
) -> Drawn {
    let mut chart = ChartBuilder::on(area)
        .caption("redis while its VM is moved: seconds from the command", ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(24)
        .y_label_area_size(LABELS_PX)
        .build_cartesian_2d(times, 0.0..most * 1.05)?;
    chart.configure_mesh().y_desc("replies per second").light_line_style(WHITE).draw()?;
    for line in lines {
        let colour = line.colour;
        let series = LineSeries::new(line.points(replies), colour.stroke_width(2));
        chart.draw_series(series)?.label(line.title).legend(move |(x, y)| {
            PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2))
        });
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    Ok(())
}

fn latency(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    lines: &[Line<'_>],
    times: std::ops::Range<f64>,
) -> Drawn {
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .x_label_area_size(24)
        .y_label_area_size(LABELS_PX)
        .build_cartesian_2d(times, LATENCY_US.log_scale())?;
    chart.configure_mesh().y_desc("p99 latency, us").light_line_style(WHITE).draw()?;
    for line in lines {
        chart.draw_series(LineSeries::new(line.points(p99), line.colour.stroke_width(2)))?;
    }
    Ok(())
}

fn replies(window: &Window, window_s: f64) -> Option<f64> {
    Some(f64::from(window.replies) / window_s)
}

fn p99(window: &Window, _: f64) -> Option<f64> {
    window.p99_us.map(|us| f64::from(us).clamp(LATENCY_US.start, LATENCY_US.end))
}

impl Line<'_> {
    /// Seconds from the command and what a window gives, from shortly before the command.
    fn points(&self, value: fn(&Window, f64) -> Option<f64>) -> Vec<(f64, f64)> {
        let window_s = f64::from(self.redis.window_ms) / 1e3;
        let begin_s = (self.redis.start_unix_ms - self.start_unix_ms) / 1e3;
        // The clients are told to end within the last one, which says nothing then.
        let whole = self.redis.windows.split_last().map_or(&[][..], |(_, whole)| whole);
        let windows = (0_u32..).zip(whole);
        windows
            .map(|(number, window)| (begin_s + f64::from(number) * window_s, window))
            .filter(|(at, _)| *at >= -BEFORE_S)
            .filter_map(|(at, window)| Some((at, value(window, window_s)?)))
            .collect()
    }
}
