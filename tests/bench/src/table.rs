//! A small table, readable in a terminal and as Markdown alike.

use std::fmt;

/// Rows of cells under a heading; the first columns hold text, the others numbers.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    text_columns: usize,
}

impl Table {
    /// An empty table, of whose columns the first `text_columns` are flush left and the others flush right.
    pub(crate) fn new(heading: &[&str], text_columns: usize) -> Self {
        Self { rows: vec![heading.iter().map(|cell| (*cell).to_owned()).collect()], text_columns }
    }

    /// Adds a row with as many cells as the heading.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, row) in self.rows.iter().enumerate() {
            for (column, cell) in row.iter().enumerate() {
                let width = self.width(column);
                match column < self.text_columns {
                    true => write!(f, "| {cell:<width$} ")?,
                    false => write!(f, "| {cell:>width$} ")?,
                }
            }
            writeln!(f, "|")?;
            if number == 0 {
                self.rule(f)?;
            }
        }
        Ok(())
    }
}

impl Table {
    fn rule(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for column in 0..self.rows[0].len() {
            let line = "-".repeat(self.width(column) + 1);
            match column < self.text_columns {
                true => write!(f, "|-{line}")?,
                false => write!(f, "|{line}:")?,
            }
        }
        writeln!(f, "|")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["who", "MB"], 1);
        table.row(["podway".to_owned(), "9.5".to_owned()]);
        table.row(["kube".to_owned(), "110.0".to_owned()]);
        let expected = "\
| who    |    MB |
|--------|------:|
| podway |   9.5 |
| kube   | 110.0 |
";
        assert_eq!(table.to_string(), expected);
    }
}
