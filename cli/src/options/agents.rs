//! SSH agents and other sockets to forward.

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use kiln_client::attach::AgentSource;

use crate::error::{Error, Result};
use crate::go::{io_text, parse_bool, quote};

/// Reads the values of `--ssh`: `default`, or an id with `=`, the path of a socket and `raw=true`.
///
/// # Errors
/// For what is no agent. Keys in files are not supported yet.
pub fn agents<S: AsRef<str>>(values: &[S]) -> Result<BTreeMap<String, AgentSource>> {
    let mut agents = BTreeMap::new();
    for value in values {
        let wanted = Wanted::parse(value.as_ref())?;
        let source = wanted
            .source()
            .map_err(|error| error.within(&format!("failed to convert agent config {}", wanted.shown())))?;
        if agents.insert(wanted.id.clone(), source).is_some() {
            return Err(Error::option(format!("duplicate agent ID {}", quote(&wanted.id))));
        }
    }
    Ok(agents)
}

struct Wanted {
    id: String,
    paths: Vec<String>,
    raw: bool,
}

impl Wanted {
    fn parse(text: &str) -> Result<Self> {
        let (id, paths) = text.split_once('=').unwrap_or((text, ""));
        let mut wanted = Self { id: id.to_owned(), paths: Vec::new(), raw: false };
        for path in paths.split(',').filter(|path| !path.is_empty()) {
            match path.strip_prefix("raw=") {
                Some(raw) => {
                    let context = format!("invalid value for 'raw': {raw}");
                    wanted.raw = parse_bool(raw).map_err(|error| error.within(&context))?;
                }
                None => wanted.paths.push(path.to_owned()),
            }
        }
        Ok(wanted)
    }

    /// As the reference prints its configuration.
    fn shown(&self) -> String {
        format!("{{{} [{}] {}}}", self.id, self.paths.join(" "), self.raw)
    }

    fn source(&self) -> Result<AgentSource> {
        let mut paths = self.paths.clone();
        if paths.is_empty() {
            paths.extend(std::env::var("SSH_AUTH_SOCK").ok().filter(|path| !path.is_empty()));
        }
        let within = |error: Error| {
            error.within(&format!("failed to convert agent config for ID: {}", quote(&self.id)))
        };
        let Some(first) = paths.first() else {
            return Err(Error::option("invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set"));
        };
        for path in &paths {
            let metadata = std::fs::metadata(Path::new(path))
                .map_err(|error| within(Error::option(format!("stat {path}: {}", io_text(&error)))))?;
            if !metadata.file_type().is_socket() {
                return Err(within(Error::option(format!(
                    "{path} is no socket: keys in files are not supported yet, use an agent"
                ))));
            }
            if paths.len() > 1 {
                return Err(within(Error::option("only single socket allowed")));
            }
        }
        Ok(AgentSource { socket: PathBuf::from(first), raw: self.raw })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(values: &[&str], want: &str) {
        let got = agents(values).map_or_else(|error| error.to_string(), |agents| format!("{agents:?}"));
        assert_eq!(got, want);
    }

    #[test]
    fn forms() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let path = socket.display().to_string();
        let raw = format!("a={path},raw=true");
        check(&[&raw], &format!("{{\"a\": AgentSource {{ socket: {path:?}, raw: true }}}}"));
        check(&[&raw, &raw], "duplicate agent ID \"a\"");
        check(
            &[&format!("a={path},{path}")],
            &format!(
                "failed to convert agent config {{a [{path} {path}] false}}: failed to convert agent config for ID: \"a\": only single socket allowed"
            ),
        );
        check(
            &["default=/no/such/sock"],
            "failed to convert agent config {default [/no/such/sock] false}: failed to convert agent config for ID: \"default\": stat /no/such/sock: no such file or directory",
        );
        check(
            &["a=x,raw=foo"],
            "invalid value for 'raw': foo: strconv.ParseBool: parsing \"foo\": invalid syntax",
        );
    }
}
