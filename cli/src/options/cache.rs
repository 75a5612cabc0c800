//! Caches to read and to write.

use std::collections::BTreeMap;

use kiln_client::CacheEntry;

use crate::error::{Error, Result};
use crate::options::csv_pairs;
use crate::run::warning;

/// Attributes that the `gha` cache takes from the environment.
const GITHUB: [(&str, &str); 3] =
    [("url", "ACTIONS_CACHE_URL"), ("token", "ACTIONS_RUNTIME_TOKEN"), ("url_v2", "ACTIONS_RESULTS_URL")];

/// Reads a value of `--export-cache`.
///
/// # Errors
/// For what is no cache.
pub fn cache_export(text: &str) -> Result<CacheEntry> {
    let mut entry = read(text, "--export-cache")?;
    entry.attrs.entry("mode".to_owned()).or_insert_with(|| "min".to_owned());
    Ok(entry)
}

/// Reads a value of `--import-cache`.
///
/// # Errors
/// For what is no cache.
pub fn cache_import(text: &str) -> Result<CacheEntry> {
    read(text, "--import-cache")
}

fn read(text: &str, flag: &str) -> Result<CacheEntry> {
    if !text.contains("type=") {
        warning(&format!(
            "{flag} <ref> is deprecated. Please use {flag} type=registry,ref=<ref>,<opt>=<optval>[,<opt>=<optval>] instead"
        ));
        let attrs = BTreeMap::from([("ref".to_owned(), text.to_owned())]);
        return Ok(CacheEntry { kind: "registry".to_owned(), attrs });
    }
    let mut entry = CacheEntry::default();
    for (key, value) in csv_pairs(text)? {
        if key == "type" {
            entry.kind = value;
        } else {
            entry.attrs.insert(key, value);
        }
    }
    if entry.kind.is_empty() {
        return Err(Error::option(format!("{flag} requires type=<type>")));
    }
    if entry.kind == "gha" {
        for (key, variable) in GITHUB {
            if let Ok(value) = std::env::var(variable) {
                entry.attrs.entry(key.to_owned()).or_insert(value);
            }
        }
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: &str) {
        let got = match cache_export(text) {
            Ok(entry) => format!("{} {:?}", entry.kind, entry.attrs),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, want);
    }

    #[test]
    fn caches() {
        check("type=local,dest=d,mode=max", r#"local {"dest": "d", "mode": "max"}"#);
        check("type=inline", r#"inline {"mode": "min"}"#);
        check("r.example/x", r#"registry {"mode": "min", "ref": "r.example/x"}"#);
        check("mytype=x", "--export-cache requires type=<type>");
        check("type=local,x", "invalid value x");
    }
}
