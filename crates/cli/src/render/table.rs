//! Aligned columns.

/// Rows of cells, and how each column is aligned.
pub(super) struct Table<const COLUMNS: usize> {
    columns: [Align; COLUMNS],
    rows: Vec<[String; COLUMNS]>,
}

/// On which side a column is even.
#[derive(Clone, Copy)]
pub(super) enum Align {
    Left,
    Right,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    pub(super) const fn new(columns: [Align; COLUMNS]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: [impl Into<String>; COLUMNS]) {
        self.rows.push(cells.map(Into::into));
    }

    /// The lines, each after `indent`, two spaces between columns, no spaces at the end.
    pub(super) fn lines(&self, indent: &str) -> Vec<String> {
        let width = |at: usize| self.rows.iter().map(|row| row[at].chars().count()).max();
        let widths: [usize; COLUMNS] = std::array::from_fn(|at| width(at).unwrap_or(0));
        self.rows.iter().map(|row| self.line(row, widths, indent)).collect()
    }

    fn line(&self, row: &[String; COLUMNS], widths: [usize; COLUMNS], indent: &str) -> String {
        let cells =
            row.iter().zip(widths).zip(self.columns).map(|((cell, width), align)| match align {
                Align::Left => format!("{cell:<width$}"),
                Align::Right => format!("{cell:>width$}"),
            });
        format!("{indent}{}", cells.collect::<Vec<_>>().join("  ")).trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_even() {
        let mut table = Table::new([Align::Left, Align::Right, Align::Left]);
        table.row(["a", "1", ""]);
        table.row(["née", "100", "x"]);
        assert_eq!(table.lines("  "), ["  a      1", "  née  100  x"]);
    }
}
