use crate::source::{LineRange, SourceFile};

/// Lines of a file around a place, with the place marked. `lines` are those of the file.
pub(super) fn excerpt(file: &SourceFile, lines: &[&str], ranges: &[LineRange]) -> String {
    let (Some(first), Some(last)) = (
        ranges.iter().map(|range| range.start).min(),
        ranges.iter().map(|range| range.end.max(range.start)).max(),
    ) else {
        return String::new();
    };
    if first < 1 || first > lines.len() {
        return String::new();
    }
    let (mut start, mut end) = (first, last.min(lines.len()));
    let context = if start == end { 4 } else { 2 };
    let mut added = 0;
    while added < context {
        if start > 1 {
            start -= 1;
            added += 1;
        }
        if end < lines.len() {
            end += 1;
            added += 1;
        }
        // Counting each round ends it for a file that has no more lines.
        added += 1;
    }
    let rule = "--------------------";
    let mut out = format!("{}:{first}\n{rule}\n", file.filename);
    for number in start..=end {
        let marked = ranges.iter().any(|range| range.start <= number && number <= range.end.max(range.start));
        let mark = if marked { ">>>" } else { "   " };
        out.push_str(&format!(" {number:3} | {mark} {}\n", lines[number - 1]));
    }
    out + rule + "\n"
}
