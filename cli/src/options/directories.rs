//! Directories that a build may read, and options of its frontend.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::go::io_text;

/// Reads the values of `--local`: `name=directory`.
///
/// # Errors
/// For what is no pair, and for a path that is no directory.
pub fn locals<S: AsRef<str>>(values: &[S]) -> Result<BTreeMap<String, PathBuf>> {
    let mut locals = BTreeMap::new();
    for value in values {
        let (name, dir) = pair(value.as_ref()).map_err(|error| error.within("invalid local"))?;
        let invalid = |message: String| Error::option(message).within("invalid local");
        match std::fs::metadata(Path::new(dir)) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(invalid(format!("stat {dir}: not a directory"))),
            Err(error) => return Err(invalid(format!("resolve : lstat {dir}: {}", io_text(&error)))),
        }
        locals.insert(name.to_owned(), PathBuf::from(dir));
    }
    Ok(locals)
}

/// Reads the values of `--opt`: `key=value`.
///
/// # Errors
/// For what is no pair.
pub fn frontend_options<S: AsRef<str>>(values: &[S]) -> Result<BTreeMap<String, String>> {
    let read = |value: &S| pair(value.as_ref()).map(|(key, value)| (key.to_owned(), value.to_owned()));
    values.iter().map(read).collect::<Result<_>>().map_err(|error| error.within("invalid opt"))
}

/// Reads the values of `--oci-layout`: `id=directory`.
///
/// # Errors
/// For what is no pair.
pub fn oci_layouts<S: AsRef<str>>(values: &[S]) -> Result<BTreeMap<String, PathBuf>> {
    let read = |value: &S| {
        let value = value.as_ref();
        let (id, dir) = value.split_once('=').ok_or_else(|| {
            let message =
                format!("oci-layout option must be 'id=path/to/layout', instead had invalid {value}");
            Error::option(message).within("invalid oci-layout")
        })?;
        Ok((id.to_owned(), PathBuf::from(dir)))
    };
    values.iter().map(read).collect()
}

fn pair(text: &str) -> Result<(&str, &str)> {
    text.split_once('=').ok_or_else(|| Error::option(format!("invalid value {text}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check<T: std::fmt::Debug>(got: Result<T>, want: &str) {
        assert_eq!(got.map_or_else(|error| error.to_string(), |value| format!("{value:?}")), want);
    }

    #[test]
    fn pairs() {
        check(locals(&["a=src"]), r#"{"a": "src"}"#);
        check(locals(&["x"]), "invalid local: invalid value x");
        check(locals(&["x=missing"]), "invalid local: resolve : lstat missing: no such file or directory");
        check(locals(&["x=Cargo.toml"]), "invalid local: stat Cargo.toml: not a directory");
        check(frontend_options(&["a=b=c", "d="]), r#"{"a": "b=c", "d": ""}"#);
        check(frontend_options(&["x"]), "invalid opt: invalid value x");
        check(
            oci_layouts(&["x"]),
            "invalid oci-layout: oci-layout option must be 'id=path/to/layout', instead had invalid x",
        );
    }
}
