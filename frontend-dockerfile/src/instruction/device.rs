use crate::csv;
use crate::error::{Error, Result};
use crate::go::parse_bool;
use crate::text::with_suggestion;

/// Checks the value of `--device`.
pub(super) fn check(value: &str) -> Result<()> {
    let fields =
        csv::fields(value).map_err(|error| Error::new(format!("failed to parse csv devices: {error}")))?;
    let mut name = String::new();
    for field in fields {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(value)),
            None => (field.to_lowercase(), None),
        };
        match (key.as_str(), value) {
            ("required", None) => {}
            ("name", Some(value)) => {
                if !name.is_empty() {
                    return Err(Error::new(format!("device name already set to {name}")));
                }
                name = value.to_owned();
            }
            ("required", Some(value)) => {
                parse_bool(value).ok_or_else(|| Error::new(format!("invalid value for {key}: {value}")))?;
            }
            _ if name.is_empty() => name = field.clone(),
            (_, None) => return Err(Error::new(format!("invalid field '{field}' must be a key=value pair"))),
            (_, Some(_)) => {
                let message = format!("unexpected key '{key}' in '{field}'");
                return Err(Error::new(with_suggestion(message, &key, ["name", "required"], true)));
            }
        }
    }
    Ok(())
}
