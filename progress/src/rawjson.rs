use std::io::{self, Write};

use crate::status::SolveStatus;

/// Writes one update as one line of JSON, with `<`, `>` and `&` escaped as the reference's encoder does.
pub(crate) fn write(out: &mut dyn Write, status: &SolveStatus) -> io::Result<()> {
    let json = serde_json::to_string(status)?;
    let mut line = String::with_capacity(json.len() + 1);
    for c in json.chars() {
        match c {
            '<' => line.push_str("\\u003c"),
            '>' => line.push_str("\\u003e"),
            '&' => line.push_str("\\u0026"),
            '\u{2028}' => line.push_str("\\u2028"),
            '\u{2029}' => line.push_str("\\u2029"),
            c => line.push(c),
        }
    }
    line.push('\n');
    out.write_all(line.as_bytes())
}
