//! The plot of all ratios: what Sterna needs by what the best of stock's modes needs.

use std::path::Path;

use plotters::prelude::*;
use sterna_e2e::Result;

use super::Drawn;
use crate::statistics::CellRuns;
use crate::tables::Metric;

const WIDTH_PX: u32 = 900;
const ROW_PX: u32 = 26;
/// Title, axis and legend.
const FRAME_PX: u32 = 130;
const LABELS_PX: u32 = 190;
/// The smallest and the largest ratio that are told apart; what is beyond stands at the edge.
const RANGE: std::ops::Range<f64> = 0.05..8.0;
const MARK_PX: u32 = 5;

/// A metric, its name in the legend, its colour.
const MARKS: [(Metric, &str, RGBColor); 3] = [
    (Metric::TotalMs, "total time", RGBColor(0x1b, 0x6c, 0xa8)),
    (Metric::DowntimeMs, "downtime", RGBColor(0xd1, 0x49, 0x2e)),
    (Metric::Bytes, "bytes on the wire", RGBColor(0x3d, 0x8b, 0x37)),
];

/// Draws the ratios of all cells that have one.
///
/// # Errors
/// The file cannot be written.
pub(in crate::render) fn draw_all(cells: &[CellRuns<'_>], path: &Path) -> Result<()> {
    let rows: Vec<&CellRuns<'_>> =
        cells.iter().filter(|runs| runs.ratio(Metric::TotalMs).is_some()).collect();
    super::written(draw(&rows, path), path)
}

fn draw(rows: &[&CellRuns<'_>], path: &Path) -> Drawn {
    let count = u32::try_from(rows.len())?;
    let area =
        SVGBackend::new(path, (WIDTH_PX, FRAME_PX + ROW_PX * count.max(1))).into_drawing_area();
    area.fill(&WHITE)?;
    let rows_axis = 0.0..f64::from(count.max(1));
    let mut chart = ChartBuilder::on(&area)
        .caption(
            "Sterna by the best of stock QEMU's modes (left of 1 is better)",
            ("sans-serif", 18),
        )
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(LABELS_PX)
        .build_cartesian_2d(RANGE.log_scale(), rows_axis)?;
    let mesh = &mut chart.configure_mesh();
    mesh.disable_y_mesh()
        .disable_y_axis()
        .y_labels(0)
        .x_desc("ratio")
        .x_label_formatter(&|x| format!("{x}"));
    mesh.draw()?;
    let one = [(1.0, 0.0), (1.0, f64::from(count.max(1)))];
    chart.draw_series(LineSeries::new(one, BLACK.stroke_width(2)))?;
    // The first cell is the uppermost.
    let height = |row: usize| f64::from(count) - 0.5 - f64::from(u32::try_from(row).unwrap_or(0));
    for (metric, name, colour) in MARKS {
        let marks = rows.iter().enumerate().filter_map(|(row, runs)| {
            let ratio = runs.ratio(metric)?.clamp(RANGE.start, RANGE.end);
            Some(Circle::new((ratio, height(row)), MARK_PX, colour.filled()))
        });
        chart
            .draw_series(marks)?
            .label(name)
            .legend(move |(x, y)| Circle::new((x + 8, y), MARK_PX, colour.filled()));
    }
    for (row, runs) in rows.iter().enumerate() {
        let (_, y) = chart.backend_coord(&(1.0, height(row)));
        let style = ("sans-serif", 13).into_font().color(&BLACK);
        area.draw_text(&runs.cell.name(), &style, (12, y - 8))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    area.present()?;
    Ok(())
}
