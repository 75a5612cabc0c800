//! Columns aligned with tabs of eight.

const TAB: usize = 8;

/// Rows of cells. Cells above each other in neighbouring rows are as wide as the widest of them, rounded up to whole
/// tabs; the last cell of a row takes no part in that. This is how Go's `text/tabwriter` lays text out when it pads
/// with tabs.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// No rows.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a row. A last cell that is empty means that the row ends in a tab.
    pub fn row<I>(&mut self, cells: I)
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The rows as lines.
    pub fn render(&self) -> String {
        let mut out = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            for (column, cell) in row.iter().enumerate() {
                out.push_str(cell);
                if column + 1 < row.len() {
                    let width = self.width(index, column).div_ceil(TAB) * TAB;
                    let missing = width.saturating_sub(cell.chars().count());
                    out.extend(std::iter::repeat_n('\t', missing.div_ceil(TAB)));
                }
            }
            out.push('\n');
        }
        out
    }

    /// Width of a column around a row: over all rows next to it that have the column too.
    fn width(&self, index: usize, column: usize) -> usize {
        let has = |row: &&Vec<String>| row.len() > column + 1;
        let above = self.rows.iter().take(index).rev().take_while(has);
        let below = self.rows.iter().skip(index).take_while(has);
        above.chain(below).map(|row| row[column].chars().count() + 1).max().unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_end_where_a_row_lacks_them() {
        let mut table = Table::new();
        table.row(["ID:", "x"]);
        table.row(["Platforms:", "linux"]);
        table.row(["Labels:"]);
        table.row(["", "a.long.label:", "1"]);
        table.row(["", "b:", "2"]);
        table.row(["ID", "", ""]);
        let want = "ID:\t\tx\nPlatforms:\tlinux\nLabels:\n\ta.long.label:\t1\n\tb:\t\t2\nID\t\t\t\n";
        assert_eq!(table.render(), want);
    }
}
