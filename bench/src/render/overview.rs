//! One line for each cell: Sterna, the best of stock, the ratio.

use super::format::with_unit;
use crate::statistics::CellRuns;
use crate::tables::Metric;

/// A heading and its figure.
type Column = (&'static str, Metric);

/// The overview of all cells.
pub(super) fn table(cells: &[CellRuns<'_>], columns: &[Column]) -> String {
    let mut text =
        "| Sterna : the best of stock's modes (its name), ratio | stock modes that complete |"
            .to_owned();
    for (title, _) in columns {
        text += &format!(" {title} |");
    }
    text += &format!("\n|---|---|{}\n", "---|".repeat(columns.len()));
    for cell in cells {
        text += &line(cell, columns);
    }
    text
}

fn line(runs: &CellRuns<'_>, columns: &[Column]) -> String {
    let modes = runs.cell.contenders.iter().filter(|who| who.is_stock());
    let tried: Vec<_> = modes.filter(|who| runs.of(who.name).next().is_some()).collect();
    let complete = tried.iter().filter(|who| runs.always_completed(who.name)).count();
    let mut text = format!("| {} | {complete} of {} |", runs.cell.title(), tried.len());
    for (_, metric) in columns {
        text += &format!(" {} |", compared(runs, *metric));
    }
    text.push('\n');
    text
}

fn compared(runs: &CellRuns<'_>, metric: Metric) -> String {
    let ours = runs.subject(metric).map(|spread| with_unit(spread.median, metric));
    let ours = ours.unwrap_or_else(|| "not completed".to_owned());
    match runs.best_stock(metric).zip(runs.ratio(metric)) {
        Some(((best, median), ratio)) => {
            let stock = with_unit(median, metric);
            format!("{ours} : {stock} ({}) **{ratio:.2}**", best.name)
        }
        None => format!("{ours} : none"),
    }
}
