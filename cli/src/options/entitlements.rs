//! What a build may do beyond the usual.

use crate::error::{Error, Result};
use crate::go::quote;
use crate::options::csv_fields;

/// Checks a value of `--allow`.
///
/// # Errors
/// For an entitlement that does not exist.
pub fn entitlement(text: &str) -> Result<String> {
    match text {
        "network.host" | "security.insecure" | "device" => return Ok(text.to_owned()),
        _ => {}
    }
    let Some(device) = text.strip_prefix("device=") else {
        return Err(Error::option(format!("unknown entitlement {text}")));
    };
    for (position, field) in csv_fields(device)?.iter().enumerate() {
        match field.split_once('=') {
            None if position == 0 => {}
            None => return Err(Error::option(format!("invalid device config {}", quote(field)))),
            Some(("name" | "alias", _)) => {}
            Some((key, _)) => {
                return Err(Error::option(format!("unknown device config key {}", quote(key))));
            }
        }
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entitlements() {
        for (text, want) in [
            ("network.host", "network.host"),
            ("device", "device"),
            ("device=vendor.com/a=x,alias=y", "unknown device config key \"vendor.com/a\""),
            ("device=x,alias=y", "device=x,alias=y"),
            ("device=x,y", "invalid device config \"y\""),
            ("nosuch", "unknown entitlement nosuch"),
        ] {
            assert_eq!(entitlement(text).unwrap_or_else(|error| error.to_string()), want);
        }
    }
}
