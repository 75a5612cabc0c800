//! Secrets of a build.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_client::attach::SecretSource;

use crate::error::{Error, Result};
use crate::go::quote;
use crate::options::csv_fields;

/// How long a secret may be, in bytes.
const MAX_SECRET: u64 = 500 << 10;

/// Reads the values of `--secret`: `id=…` with `src=…`, `env=…` or neither, and `type=file|env`.
///
/// # Errors
/// For what is no secret, a missing file and one that is too big.
pub fn secrets<S: AsRef<str>>(values: &[S]) -> Result<BTreeMap<String, SecretSource>> {
    values.iter().map(|value| secret(value.as_ref())).collect()
}

fn secret(text: &str) -> Result<(String, SecretSource)> {
    let (mut id, mut file, mut variable) = (String::new(), String::new(), String::new());
    let mut from_environment = false;
    for field in csv_fields(text)? {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| Error::option(format!("invalid field '{field}' must be a key=value pair")))?;
        let key = key.to_lowercase();
        match key.as_str() {
            "type" => match value {
                "file" => from_environment = false,
                "env" => from_environment = true,
                other => return Err(Error::option(format!("unsupported secret type {}", quote(other)))),
            },
            "id" => value.clone_into(&mut id),
            "src" | "source" => value.clone_into(&mut file),
            "env" => value.clone_into(&mut variable),
            _ => return Err(Error::option(format!("unexpected key '{key}' in '{field}'"))),
        }
    }
    if from_environment && variable.is_empty() {
        variable = std::mem::take(&mut file);
    }
    if id.is_empty() {
        return Err(Error::option("secret missing ID"));
    }
    if variable.is_empty() && file.is_empty() {
        if std::env::var_os(&id).is_some() { variable.clone_from(&id) } else { file.clone_from(&id) }
    }
    if !variable.is_empty() {
        use std::os::unix::ffi::OsStringExt as _;
        let value = std::env::var_os(&variable).unwrap_or_default().into_vec();
        return Ok((id, SecretSource::Value(value)));
    }
    let metadata = std::fs::metadata(Path::new(&file)).map_err(|error| {
        Error::io("stat", Path::new(&file), &error).within(&format!("failed to stat {file}"))
    })?;
    if metadata.len() > MAX_SECRET {
        return Err(Error::option(format!("secret {id} too big. max size 500KiB")));
    }
    Ok((id, SecretSource::File(PathBuf::from(file))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: &str) {
        let got = match secret(text) {
            Ok((id, source)) => format!("{id} {source:?}"),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, want);
    }

    #[test]
    fn forms() {
        check("id=x,src=Cargo.toml", r#"x File("Cargo.toml")"#);
        check("id=Cargo.toml", r#"Cargo.toml File("Cargo.toml")"#);
        check("id=PATH", "PATH Value(..)");
        check("id=x,type=env,src=PATH", "x Value(..)");
        check("id=x,env=NOT_SET_ANYWHERE", "x Value(..)");
        check("src=x", "secret missing ID");
        check("id", "invalid field 'id' must be a key=value pair");
        check("id=x,foo=y", "unexpected key 'foo' in 'foo=y'");
        check("id=x,type=foo", "unsupported secret type \"foo\"");
        check(
            "id=x,src=/no/such/file",
            "failed to stat /no/such/file: stat /no/such/file: no such file or directory",
        );
    }

    #[test]
    fn a_big_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("big");
        std::fs::write(&file, vec![0; 512_001]).unwrap();
        check(&format!("id=x,src={}", file.display()), "secret x too big. max size 500KiB");
    }
}
