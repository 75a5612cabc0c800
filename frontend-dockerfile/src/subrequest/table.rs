/// Aligns columns; each cell but the last of its row is padded by at least `padding` spaces.
pub(super) fn table(rows: &[Vec<String>], padding: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = rows.iter().filter(|row| column + 1 < row.len()).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default() + padding
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            if column + 1 < row.len() {
                out.push_str(&format!("{cell:width$}", width = widths[column]));
            } else {
                out.push_str(cell);
            }
        }
        out.push('\n');
    }
    out
}
