use crate::clean::clean;

/// Reads the text of a `.dockerignore` file into patterns for [`Patterns::new`](crate::Patterns::new).
///
/// A byte order mark is dropped; a line with `#` in its first column is a comment, an indented one a pattern; the
/// rest is trimmed, cleaned, and loses one leading `/`. A bare `!` is kept, and refused when compiled.
///
/// ```
/// assert_eq!(kiln_patterns::ignore_file("# note\n  /a/../b \n! c\n"), ["b", "!c"]);
/// ```
pub fn ignore_file(text: &str) -> Vec<String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    text.lines().filter(|line| !line.starts_with('#')).filter_map(pattern).collect()
}

fn pattern(line: &str) -> Option<String> {
    let line = line.trim();
    if line.is_empty() {
        return None;
    }
    let (sign, rest) = match line.strip_prefix('!') {
        Some(rest) => ("!", rest.trim()),
        None => ("", line),
    };
    if rest.is_empty() {
        return Some(sign.to_owned());
    }
    let cleaned = clean(rest);
    let anchored = cleaned.strip_prefix('/').filter(|rest| !rest.is_empty()).unwrap_or(&cleaned);
    Some(format!("{sign}{anchored}"))
}
