//! Medians and spreads of few numbers, and whether an aim is met.

use crate::record::Run;
use crate::tables::{Aim, Cell, Contender, Metric, Standing};

/// Few numbers in short.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    /// The smallest.
    pub(crate) least: f64,
    /// A quarter is below.
    pub(crate) lower_quartile: f64,
    /// Half is below.
    pub(crate) median: f64,
    /// A quarter is above.
    pub(crate) upper_quartile: f64,
    /// The largest.
    pub(crate) most: f64,
}

impl Spread {
    /// None of no numbers.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        Some(Self {
            least,
            lower_quartile: quantile(&values, 1),
            median: quantile(&values, 2),
            upper_quartile: quantile(&values, 3),
            most,
        })
    }
}

/// The quarters of sorted numbers, between two neighbours in proportion.
fn quantile(sorted: &[f64], quarters: usize) -> f64 {
    let position = (sorted.len() - 1) * quarters;
    let (index, rest) = (position / 4, position % 4);
    let next = sorted[(index + 1).min(sorted.len() - 1)];
    let share = [0.0, 0.25, 0.5, 0.75][rest];
    sorted[index] + (next - sorted[index]) * share
}

/// The runs of one cell.
#[derive(Debug)]
pub(crate) struct CellRuns<'r> {
    /// The cell.
    pub(crate) cell: &'static Cell,
    /// Its runs, of all contenders.
    pub(crate) runs: &'r [Run],
}

impl<'r> CellRuns<'r> {
    /// The runs of a contender.
    pub(crate) fn of(&self, contender: &str) -> impl Iterator<Item = &'r Run> {
        self.runs.iter().filter(move |run| run.contender == contender)
    }

    /// A number over the completed runs of a contender.
    pub(crate) fn spread(&self, contender: &str, metric: Metric) -> Option<Spread> {
        let completed = self.of(contender).filter(|run| run.has_completed());
        Spread::of(completed.filter_map(|run| run.value(metric)).collect())
    }

    /// A number over the completed runs of the cell's subject.
    pub(crate) fn subject(&self, metric: Metric) -> Option<Spread> {
        self.spread(self.cell.subject.name, metric)
    }

    /// Whether there are runs, and every one completed.
    pub(crate) fn always_completed(&self, contender: &str) -> bool {
        let mut runs = self.of(contender).peekable();
        runs.peek().is_some() && runs.all(Run::has_completed)
    }

    /// The competing stock mode with the least median, among those that always completed.
    pub(crate) fn best_stock(&self, metric: Metric) -> Option<(&'static Contender, f64)> {
        let competes = |contender: &&'static Contender| {
            contender.is_stock()
                && contender.standing == Standing::Competes
                && self.always_completed(contender.name)
        };
        let stock = self.cell.contenders.iter().copied().filter(competes);
        let medians = stock
            .filter_map(|contender| Some((contender, self.spread(contender.name, metric)?.median)));
        medians.min_by(|one, other| one.1.total_cmp(&other.1))
    }

    /// The subject's median by stock's best.
    pub(crate) fn ratio(&self, metric: Metric) -> Option<f64> {
        let (_, best) = self.best_stock(metric)?;
        Some(self.subject(metric)?.median / best)
    }

    /// The subject's median by that of a contender.
    pub(crate) fn ratio_to(&self, contender: &Contender, metric: Metric) -> Option<f64> {
        Some(self.subject(metric)?.median / self.spread(contender.name, metric)?.median)
    }

    /// Whether an aim is met; none when it was not measured.
    pub(crate) fn meets(&self, aim: &Aim) -> Option<bool> {
        let subject = self.cell.subject.name;
        self.of(subject).next()?;
        if !self.always_completed(subject) {
            return Some(false);
        }
        match aim {
            Aim::AtMost(metric, limit) => Some(self.subject(*metric)?.median <= *limit),
            Aim::AtMostTimesBest(metric, factor) => Some(self.ratio(*metric)? <= *factor),
            Aim::AtMostTimes(metric, factor, contender) => {
                Some(self.ratio_to(contender, *metric)? <= *factor)
            }
            Aim::Completes => Some(true),
            Aim::CompletesByPrecopy => Some(self.of(subject).all(was_precopy)),
        }
    }
}

/// Nothing was sent after the guest ran at the destination.
fn was_precopy(run: &Run) -> bool {
    let report = run.measured.report.as_ref();
    run.has_completed() && report.is_some_and(|report| report.wire_bytes.postcopy == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Conditions;
    use crate::record::{Ending, Measured};
    use crate::tables::MOVES;

    #[test]
    fn quartiles_lie_between_neighbours() {
        let spread = Spread::of(vec![4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((spread.least, spread.median, spread.most), (1.0, 2.5, 4.0));
        assert_eq!((spread.lower_quartile, spread.upper_quartile), (1.75, 3.25));
        assert_eq!(Spread::of(vec![7.0]).unwrap().upper_quartile, 7.0);
        assert_eq!(Spread::of(vec![]), None);
    }

    #[test]
    fn the_best_of_stock_completed_every_time() {
        let cell = &MOVES.cells[0];
        let runs = [
            run(cell, "sterna", Some(1300.0)),
            run(cell, "precopy", Some(1000.0)),
            run(cell, "multifd-zstd", Some(500.0)),
            run(cell, "multifd-zstd", None),
        ];
        let of_cell = CellRuns { cell, runs: &runs };
        let (best, median) = of_cell.best_stock(Metric::TotalMs).unwrap();
        assert_eq!((best.name, median), ("precopy", 1000.0));
        assert_eq!(of_cell.meets(&Aim::AtMostTimesBest(Metric::TotalMs, 1.3)), Some(true));
        assert_eq!(of_cell.meets(&Aim::AtMostTimesBest(Metric::TotalMs, 1.2)), Some(false));
        assert_eq!(of_cell.meets(&Aim::AtMost(Metric::DowntimeMs, 20.0)), None);
    }

    #[test]
    fn an_aim_is_missed_when_one_run_failed_and_open_when_none_was_made() {
        let cell = &MOVES.cells[0];
        let runs = [run(cell, "sterna", Some(1.0)), run(cell, "sterna", None)];
        let aim = Aim::AtMost(Metric::TotalMs, 2.0);
        assert_eq!(CellRuns { cell, runs: &runs }.meets(&aim), Some(false));
        assert_eq!(CellRuns { cell, runs: &[] }.meets(&aim), None);
    }

    fn run(cell: &'static Cell, name: &str, total_ms: Option<f64>) -> Run {
        let contender = cell.contenders.iter().find(|contender| contender.name == name).unwrap();
        let ending = if total_ms.is_some() { Ending::Completed } else { Ending::NotInTime };
        Run {
            cell: cell.name(),
            contender: name.to_owned(),
            number: 1,
            definition: Run::definition(cell, contender),
            commit: String::new(),
            conditions: Conditions {
                date: "2026-01-01T00:00:00Z".to_owned(),
                busy_percent: 0.0,
                load_average: 0.0,
            },
            measured: Measured { ending, total_ms, ..Measured::default() },
        }
    }
}
