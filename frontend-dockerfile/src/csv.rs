//! One record of comma separated values, as flags and options have them.

/// Splits one record; a field may be quoted, with `""` for a quote inside.
pub(crate) fn fields(record: &str) -> Result<Vec<String>, String> {
    let record = record.strip_suffix('\n').unwrap_or(record);
    let mut fields = Vec::new();
    let mut rest = record;
    loop {
        if let Some(quoted) = rest.strip_prefix('"') {
            let (field, after) = quoted_field(quoted, record.len() - quoted.len())?;
            fields.push(field);
            match after.strip_prefix(',') {
                Some(next) => rest = next,
                None => return Ok(fields),
            }
        } else {
            let (field, next) = match rest.split_once(',') {
                Some((field, next)) => (field, Some(next)),
                None => (rest, None),
            };
            if let Some(at) = field.find('"') {
                let column = record.len() - rest.len() + at + 1;
                return Err(format!("parse error on line 1, column {column}: bare \" in non-quoted-field"));
            }
            fields.push(field.to_owned());
            match next {
                Some(next) => rest = next,
                None => return Ok(fields),
            }
        }
    }
}

fn quoted_field(text: &str, offset: usize) -> Result<(String, &str), String> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let Some((before, after)) = rest.split_once('"') else {
            let column = offset + text.len() + 1;
            return Err(format!(
                "parse error on line 1, column {column}: extraneous or missing \" in quoted-field"
            ));
        };
        field.push_str(before);
        if let Some(after) = after.strip_prefix('"') {
            field.push('"');
            rest = after;
            continue;
        }
        if !after.is_empty() && !after.starts_with(',') {
            let column = offset + text.len() - after.len();
            return Err(format!(
                "parse error on line 1, column {column}: extraneous or missing \" in quoted-field"
            ));
        }
        return Ok((field, after));
    }
}
