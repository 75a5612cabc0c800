//! One line of comma-separated values.

use crate::error::{Error, Result};

/// Splits a line of comma-separated values. A field in double quotes may contain commas, and quotes written twice.
///
/// # Errors
/// For quotes out of place and for an empty line.
pub fn csv_fields(line: &str) -> Result<Vec<String>> {
    if line.is_empty() {
        return Err(Error::option("EOF"));
    }
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let column = line.len() - rest.len();
        let (field, tail) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted, column)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                let (field, tail) = rest.split_at(end);
                if let Some(quote) = field.find('"') {
                    return Err(misplaced(column + quote, "bare \" in non-quoted-field"));
                }
                (field.to_owned(), tail)
            }
        };
        fields.push(field);
        match tail.strip_prefix(',') {
            Some(tail) => rest = tail,
            None => return Ok(fields),
        }
    }
}

/// What follows an opening quote at `column`: the field, and the rest of the line from the comma on.
fn quoted_field(text: &str, column: usize) -> Result<(String, &str)> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let stray =
            || misplaced(column + 1 + text.len() - rest.len(), "extraneous or missing \" in quoted-field");
        let (before, tail) = rest.split_once('"').ok_or_else(stray)?;
        field.push_str(before);
        match tail.strip_prefix('"') {
            Some(tail) => {
                field.push('"');
                rest = tail;
            }
            None if tail.is_empty() || tail.starts_with(',') => return Ok((field, tail)),
            None => {
                let column = column + text.len() - tail.len();
                return Err(misplaced(column, "extraneous or missing \" in quoted-field"));
            }
        }
    }
}

fn misplaced(at: usize, what: &str) -> Error {
    Error::option(format!("parse error on line 1, column {}: {what}", at + 1))
}

/// Splits a line into keys, in small letters, and values.
///
/// # Errors
/// As [`csv_fields`], and `invalid value` for a field without `=`.
pub fn csv_pairs(line: &str) -> Result<Vec<(String, String)>> {
    csv_fields(line)?
        .into_iter()
        .map(|field| match field.split_once('=') {
            Some((key, value)) => Ok((key.to_lowercase(), value.to_owned())),
            None => Err(Error::option(format!("invalid value {field}"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, want: &str) {
        let got = csv_fields(line).map_or_else(|error| error.to_string(), |fields| fields.join("|"));
        assert_eq!(got, want);
    }

    #[test]
    fn quoting() {
        check("a=b,c=d", "a=b|c=d");
        check(r#""name=a,b",x"#, "name=a,b|x");
        check(r#""say ""hi""",x,"#, r#"say "hi"|x|"#);
        check("", "EOF");
        check(r#"a"b"#, r#"parse error on line 1, column 2: bare " in non-quoted-field"#);
        check(r#""a"b"#, r#"parse error on line 1, column 3: extraneous or missing " in quoted-field"#);
        check(r#""type=tar"#, r#"parse error on line 1, column 2: extraneous or missing " in quoted-field"#);
        check(
            r#""type"=tar""#,
            r#"parse error on line 1, column 6: extraneous or missing " in quoted-field"#,
        );
    }
}
