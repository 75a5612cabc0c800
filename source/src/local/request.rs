//! What a source op asks for when it names a client's directory.

use kiln_content::json;
use kiln_digest::Digest;
use kiln_solver::CacheMapPart;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::key::cache_map;

/// When a file that is there already counts as the one that the client lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Differ {
    /// When size, times, mode, owner, device and link target agree.
    #[default]
    Metadata,
    /// Never: everything is sent again.
    None,
}

/// A directory that a source op asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LocalRequest {
    /// The name that the client knows it by.
    pub name: String,
    /// The session to ask; empty: any of the build.
    pub session: String,
    /// Only what matches these.
    pub include: Option<Vec<String>>,
    /// Nothing that matches these.
    pub exclude: Option<Vec<String>>,
    /// These paths, and what links on the way to them point to.
    pub follow: Option<Vec<String>>,
    /// Tells apart directories of one client that have the same name.
    pub hint: String,
    /// What counts as changed.
    pub differ: Differ,
    /// Only what is known of the files, not their contents.
    pub metadata_only: bool,
    /// Files that are sent whole all the same.
    pub metadata_exceptions: Option<Vec<String>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Key<'a> {
    #[serde(rename = "SessionID")]
    session: &'a str,
    include_patterns: Option<&'a [String]>,
    exclude_patterns: Option<&'a [String]>,
    follow_paths: Option<&'a [String]>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    metadata_transfer: bool,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    metadata_exceptions: &'a [String],
}

impl LocalRequest {
    /// Asks for what `local://<name>` with `attrs` names; unknown attributes mean nothing.
    ///
    /// # Errors
    /// [`Error::List`], [`Error::Attribute`].
    pub fn from_attrs<'a>(
        name: &str,
        attrs: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<Self> {
        let mut request = Self { name: name.to_owned(), ..Self::default() };
        for (key, value) in attrs {
            match key.as_str() {
                "local.session" => match value.split_once(':') {
                    Some((prefix, id)) => {
                        request.name = format!("{prefix}-{name}");
                        request.session = id.to_owned();
                    }
                    None => request.session.clone_from(value),
                },
                "local.includepattern" => request.include = list("include patterns", value)?,
                "local.excludepatterns" => request.exclude = list("exclude patterns", value)?,
                "local.followpaths" => request.follow = list("follow paths", value)?,
                "local.sharedkeyhint" => request.hint.clone_from(value),
                "local.differ" if value == "none" => request.differ = Differ::None,
                "local.metadatatransfer" => {
                    request.metadata_only = go_bool(value).ok_or_else(|| Error::Attribute {
                        what: "value for local.metadatatransfer",
                        value: format!("{value:?}"),
                    })?;
                }
                "local.metadatatransferexclude" => {
                    request.metadata_exceptions = list("metadata exceptions", value)?;
                }
                _ => {}
            }
        }
        Ok(request)
    }

    /// Returns the key; `first_session` is the first session of the build.
    ///
    /// # Errors
    /// [`Error::NoSession`] when neither the request nor the build has one.
    pub fn key(&self, first_session: Option<&str>) -> Result<String> {
        Ok(format!("session:{}:{}", self.name, self.pin(first_session)?))
    }

    /// Returns the one cache map there is.
    ///
    /// # Errors
    /// As [`LocalRequest::key`].
    pub fn cache_map(&self, first_session: Option<&str>) -> Result<CacheMapPart> {
        Ok(cache_map(&self.key(first_session)?, true))
    }

    /// Returns the digest of what is asked for, which also is the source's pin.
    ///
    /// # Errors
    /// As [`LocalRequest::key`].
    pub fn pin(&self, first_session: Option<&str>) -> Result<Digest> {
        let session = match self.session.as_str() {
            "" => first_session.filter(|id| !id.is_empty()).ok_or(Error::NoSession)?,
            own => own,
        };
        Ok(Digest::of(json::compact(&Key {
            session,
            include_patterns: self.include.as_deref(),
            exclude_patterns: self.exclude.as_deref(),
            follow_paths: self.follow.as_deref(),
            metadata_transfer: self.metadata_only,
            metadata_exceptions: self.metadata_exceptions.as_deref().unwrap_or_default(),
        })))
    }

    /// Returns the name that the received directory is kept under between builds.
    #[must_use]
    pub fn shared_key(&self, session_shared_key: &str) -> String {
        let suffix = if self.metadata_only { ":metadata" } else { "" };
        format!("{}:{}:{session_shared_key}{suffix}", self.name, self.hint)
    }
}

/// Reads a JSON list of strings; `null` is none.
fn list(what: &'static str, value: &str) -> Result<Option<Vec<String>>> {
    serde_json::from_str(value).map_err(|source| Error::List { what, value: value.to_owned(), source })
}

/// Reads what Go takes for a boolean.
fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[track_caller]
    fn check(pairs: &[(&str, &str)], session: Option<&str>, want: &str) {
        let attrs: BTreeMap<String, String> =
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let got = LocalRequest::from_attrs("ctx", &attrs).and_then(|request| request.key(session));
        assert_eq!(got.unwrap_or_else(|error| error.to_string()), want);
    }

    const PLAIN: &str = "session:ctx:sha256:6e005133e51a5fcd339f1675e22dd1379ae4d466daa3b497c074f7c13acfec6e";

    #[test]
    fn keys_are_those_of_the_reference() {
        check(&[], Some("sess"), PLAIN);
        check(&[("local.session", "sess")], Some("other"), PLAIN);
        check(
            &[
                ("local.includepattern", r#"["a","b"]"#),
                ("local.followpaths", "[]"),
                ("local.metadatatransfer", "true"),
            ],
            Some("sess"),
            "session:ctx:sha256:ad2ff991b30b54a415c98ae418c760334de0ddea1887413f681b8b2c6dde2b09",
        );
    }

    #[test]
    fn what_does_not_change_the_files_is_not_in_the_key() {
        check(
            &[("local.unique", "x"), ("local.sharedkeyhint", "y"), ("local.differ", "none")],
            Some("sess"),
            PLAIN,
        );
    }

    #[test]
    fn a_session_may_bring_a_prefix() {
        check(&[("local.session", "p:sess")], None, &PLAIN.replace("session:ctx", "session:p-ctx"));
    }

    #[test]
    fn bad_attributes_are_named() {
        check(&[], None, "could not access local files without session");
        check(&[("local.includepattern", "{")], Some("s"), "invalid include patterns {");
        check(
            &[("local.metadatatransfer", "yes")],
            Some("s"),
            r#"invalid value for local.metadatatransfer "yes""#,
        );
    }

    #[test]
    fn directories_are_kept_apart_by_client_and_kind() {
        let request = LocalRequest { name: "ctx".into(), hint: "h".into(), ..LocalRequest::default() };
        assert_eq!(request.shared_key("k"), "ctx:h:k");
        let request = LocalRequest { metadata_only: true, ..request };
        assert_eq!(request.shared_key("k"), "ctx:h:k:metadata");
    }
}
