use crate::source::LineRange;

/// Directives while the file is read from its top.
#[derive(Debug)]
pub(super) struct Directives {
    pub(super) escape: char,
    seen: Vec<&'static str>,
    done: bool,
}

const KNOWN: [&str; 3] = ["syntax", "escape", "check"];

impl Default for Directives {
    fn default() -> Self {
        Self { escape: '\\', seen: Vec::new(), done: false }
    }
}

impl Directives {
    /// Ends the zone in which directives are looked for.
    pub(super) fn done(&mut self) {
        self.done = true;
    }

    /// Reads a comment line (its mark included); says whether it is a directive.
    pub(super) fn comment(&mut self, line: &str) -> Result<bool, String> {
        if self.done {
            return Ok(false);
        }
        let known = key_value(line, "#").and_then(|(key, value)| {
            Some((*KNOWN.iter().find(|known| key.eq_ignore_ascii_case(known))?, value))
        });
        let Some((key, value)) = known else {
            self.done = true;
            return Ok(false);
        };
        if self.seen.contains(&key) {
            return Err(format!("only one {key} parser directive can be used"));
        }
        self.seen.push(key);
        if key == "escape" {
            self.escape = match value {
                "\\" => '\\',
                "`" => '`',
                other => return Err(format!("invalid escape token '{other}' does not match ` or \\")),
            };
        }
        Ok(true)
    }
}

/// Splits `MARK key = value`.
fn key_value<'a>(line: &'a str, mark: &str) -> Option<(&'a str, &'a str)> {
    let (key, value) = line.strip_prefix(mark)?.trim_start().split_once('=')?;
    let (key, value) = (key.trim_end(), value.trim());
    let named =
        key.starts_with(|c: char| c.is_ascii_alphabetic()) && key.chars().all(|c| c.is_ascii_alphanumeric());
    (named && !value.is_empty()).then_some((key, value))
}

/// A directive found in raw bytes: the value up to its first space, the whole value, and its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) first: String,
    pub(crate) value: String,
    pub(crate) lines: Vec<LineRange>,
}

/// Finds a directive in comments that start with `#`.
pub(crate) fn directive(name: &str, data: &[u8]) -> Option<Found> {
    let (data, skipped) = skip_shebang(data);
    in_comments(name, data, "#", skipped)
}

/// Finds the syntax directive in any of its forms: `#` comments, `//` comments, a JSON file.
pub(crate) fn detect_syntax(data: &[u8]) -> Option<Found> {
    let (rest, skipped) = skip_shebang(data);
    in_comments("syntax", rest, "#", skipped).or_else(|| in_comments("syntax", rest, "//", skipped)).or_else(
        || {
            let file: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(rest).ok()?;
            let value = file.get("syntax")?.as_str()?.to_owned();
            Some(Found { first: value.clone(), value, lines: vec![LineRange::line(skipped)] })
        },
    )
}

fn found(value: &str, lines: Vec<LineRange>) -> Option<Found> {
    let first = value.split(' ').next().unwrap_or_default();
    (!value.is_empty()).then(|| Found { first: first.to_owned(), value: value.to_owned(), lines })
}

fn in_comments(name: &str, data: &[u8], mark: &str, skipped: usize) -> Option<Found> {
    for (at, line) in data.split(|&b| b == b'\n').enumerate() {
        let line = String::from_utf8_lossy(line);
        let (key, value) = key_value(line.trim_end_matches('\r'), mark)?;
        if key.eq_ignore_ascii_case(name) {
            return found(value, vec![LineRange::line(skipped + at + 1)]);
        }
        if !KNOWN.iter().any(|known| key.eq_ignore_ascii_case(known)) {
            return None;
        }
    }
    None
}

/// Drops a byte order mark and one `#!` line; says how many lines that were.
fn skip_shebang(data: &[u8]) -> (&[u8], usize) {
    let data = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    if !data.starts_with(b"#!") {
        return (data, 0);
    }
    match data.iter().position(|&b| b == b'\n') {
        Some(at) => (&data[at + 1..], 1),
        None => (&[], 1),
    }
}
