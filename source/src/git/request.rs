//! What a source op asks for when it names a git repository.

use kiln_registry::Secret;
use kiln_solver::CacheMapPart;

use crate::error::{Error, Result};
use crate::git::listing::Resolved;
use crate::git::remote::Remote;
use crate::key::cache_map;

/// What the times of a checkout's files are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mtime {
    /// When they were checked out.
    #[default]
    Checkout,
    /// When the commit was made.
    Commit,
}

/// A checkout that a source op asks for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GitRequest {
    /// The repository.
    pub remote: Remote,
    /// What its address has in the way of credentials: `user:password`.
    pub(crate) credentials: Option<Secret>,
    /// Branch, tag, full name or commit; empty: the default branch.
    pub reference: String,
    /// The directory that is wanted, without a leading `/`; empty: all.
    pub subdir: String,
    /// With `.git`.
    pub keep_git_dir: bool,
    /// What the commit, or the tag, must begin with; empty: anything.
    pub checksum: String,
    /// Without submodules.
    pub skip_submodules: bool,
    /// The times of the files.
    pub mtime: Mtime,
    /// The commit that `checksum` names is fetched itself, and what it is called is believed.
    pub fetch_by_commit: bool,
    /// The secret that is an `Authorization` header; empty: none.
    pub auth_header_secret: String,
    /// The secret that is a token; empty: none.
    pub auth_token_secret: String,
    /// Host keys in the form of `known_hosts`; empty: any.
    pub known_hosts: String,
    /// The agent that has keys; empty: none.
    pub ssh_agent: String,
}

impl GitRequest {
    /// Asks for what `git://<rest>` with `attrs` names; unknown attributes mean nothing.
    ///
    /// # Errors
    /// [`Error::Remote`], [`Error::Attribute`], [`Error::NotSupported`].
    pub fn from_attrs<'a>(
        rest: &str,
        attrs: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<Self> {
        let (address, fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let fragment = percent_encoding::percent_decode_str(fragment)
            .decode_utf8()
            .map_err(|_| Error::attribute("git ref", fragment))?;
        let (reference, subdir) = fragment.split_once(':').unwrap_or((&fragment, ""));
        let mut full_url = None;
        let mut asked = Asked::default();
        for (key, value) in attrs {
            let on = value == "true";
            match key.as_str() {
                "git.fullurl" => full_url = Some(value.as_str()),
                "git.keepgitdir" => asked.keep_git_dir = on,
                "git.skipsubmodules" => asked.skip_submodules = on,
                "git.fetchbycommit" => asked.fetch_by_commit = on,
                "git.checksum" => asked.checksum.clone_from(value),
                "git.authheadersecret" => asked.auth_header_secret.clone_from(value),
                "git.authtokensecret" => asked.auth_token_secret.clone_from(value),
                "git.knownsshhosts" => asked.known_hosts.clone_from(value),
                "git.mountsshsock" => asked.ssh_agent.clone_from(value),
                "git.mtime" => {
                    asked.mtime = match value.as_str() {
                        "" | "checkout" => Mtime::Checkout,
                        "commit" => Mtime::Commit,
                        other => return Err(Error::attribute("git mtime", other)),
                    }
                }
                "git.bundle" if !value.is_empty() => {
                    return Err(Error::NotSupported("a git bundle as a source"));
                }
                "git.checkoutbundle" if on => return Err(Error::NotSupported("a git bundle as a result")),
                "git.sig.pubkey" if !value.is_empty() => {
                    return Err(Error::NotSupported("verifying the signature of a git commit"));
                }
                _ => {}
            }
        }
        let (remote, credentials) = Remote::parse(full_url.unwrap_or(address))?;
        let request = Self {
            remote,
            credentials,
            reference: reference.to_owned(),
            subdir: clean(subdir),
            keep_git_dir: asked.keep_git_dir,
            checksum: asked.checksum,
            skip_submodules: asked.skip_submodules,
            mtime: asked.mtime,
            fetch_by_commit: asked.fetch_by_commit,
            auth_header_secret: asked.auth_header_secret,
            auth_token_secret: asked.auth_token_secret,
            known_hosts: asked.known_hosts,
            ssh_agent: asked.ssh_agent,
        };
        request.check()?;
        Ok(request)
    }

    fn check(&self) -> Result<()> {
        if !is_reference(&self.reference) {
            return Err(Error::attribute("git ref", &self.reference));
        }
        if self.subdir.chars().any(char::is_control) {
            return Err(Error::attribute("directory of a git source", &self.subdir));
        }
        if !self.checksum.chars().all(|c| c.is_ascii_hexdigit()) || self.checksum.len() > 64 {
            return Err(Error::GitChecksum { checksum: self.checksum.chars().take(100).collect() });
        }
        if self.fetch_by_commit && !self.checksum.is_empty() && !is_full(&self.checksum) {
            return Err(Error::FetchByPrefix { checksum: self.checksum.clone() });
        }
        if self.fetch_by_commit && self.checksum.is_empty() && !is_full(&self.reference) {
            return Err(Error::FetchByNothing);
        }
        Ok(())
    }

    /// What the reference is without asking anybody, where that can be.
    pub(crate) fn known(&self) -> Option<Resolved> {
        if is_full(&self.reference) {
            return Some(Resolved::commit(&self.reference, &self.reference));
        }
        if !self.fetch_by_commit {
            return None;
        }
        let name = match self.reference.as_str() {
            "" => self.checksum.clone(),
            name if name.starts_with("refs/") => name.to_owned(),
            name => format!("refs/heads/{name}"),
        };
        Some(Resolved::commit(&self.checksum, &name))
    }

    /// Fails when what the reference names is not what was asked for.
    pub(crate) fn expect(&self, resolved: &Resolved) -> Result<()> {
        let is = |sha: &str| sha.starts_with(&self.checksum);
        if is(&resolved.object) || resolved.peeled.as_deref().is_some_and(is) {
            return Ok(());
        }
        let actual = match &resolved.peeled {
            Some(commit) => format!("{} or {commit}", resolved.object),
            None => resolved.object.clone(),
        };
        Err(Error::GitMismatch { expected: self.checksum.clone(), actual })
    }

    /// Returns the key of what was found.
    #[must_use]
    pub fn key(&self, resolved: &Resolved) -> String {
        let mut key = match self.keep_git_dir {
            true => format!("{}.git#{}", resolved.object, resolved.name),
            false => resolved.commit_sha().to_owned(),
        };
        if !self.subdir.is_empty() {
            key.push(':');
            key.push_str(&self.subdir);
        }
        if self.skip_submodules {
            key.push_str("(skip-submodules)");
        }
        if self.mtime == Mtime::Commit {
            key.push_str("(mtime=commit)");
        }
        key
    }

    /// Returns the one cache map there is.
    #[must_use]
    pub fn cache_map(&self, resolved: &Resolved) -> CacheMapPart {
        cache_map(&self.key(resolved), true)
    }
}

#[derive(Default)]
struct Asked {
    keep_git_dir: bool,
    skip_submodules: bool,
    fetch_by_commit: bool,
    checksum: String,
    auth_header_secret: String,
    auth_token_secret: String,
    known_hosts: String,
    ssh_agent: String,
    mtime: Mtime,
}

/// Whether a text is the whole name of an object.
pub(crate) fn is_full(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a text can be a reference's name, and nothing else: no option, no pattern, no expression.
fn is_reference(text: &str) -> bool {
    let bad = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c);
    !text.starts_with('-')
        && !text.starts_with('/')
        && !text.contains(bad)
        && !text.contains("..")
        && !text.contains("@{")
        && text.len() <= 1024
}

/// A path without `.`, `..` and double or leading slashes; `..` does not lead out.
fn clean(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const SHA: &str = "0123456789012345678901234567890123456789";
    const OTHER: &str = "abcdef6789012345678901234567890123456789";

    fn request(rest: &str, attrs: &[(&str, &str)]) -> Result<GitRequest> {
        let attrs: BTreeMap<String, String> =
            attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        GitRequest::from_attrs(rest, &attrs)
    }

    #[test]
    fn keys_are_those_of_the_reference() {
        let branch = Resolved::commit(SHA, "refs/heads/m");
        let tag = Resolved { object: SHA.into(), peeled: Some(OTHER.into()), name: "refs/tags/v".into() };
        let keep = ("git.keepgitdir", "true");
        let all = [keep, ("git.skipsubmodules", "true"), ("git.mtime", "commit")];
        let all_key = format!("{SHA}.git#refs/heads/m:a/b(skip-submodules)(mtime=commit)");
        for (rest, attrs, resolved, want) in [
            ("h/r#m", &[][..], &branch, SHA.to_owned()),
            ("h/r#m:/a/./b/", &all, &branch, all_key),
            ("h/r#m", &[("git.keepgitdir", "1"), ("git.mtime", "checkout")], &branch, SHA.to_owned()),
            ("h/r#v", &[], &tag, OTHER.to_owned()),
            ("h/r#v", &[keep], &tag, format!("{SHA}.git#refs/tags/v")),
        ] {
            assert_eq!(request(rest, attrs).unwrap().key(resolved), want);
        }
    }

    #[test]
    fn what_needs_nobody() {
        let by = |rest: &str, attrs: &[(&str, &str)]| request(rest, attrs).unwrap().known();
        let commit = [("git.fetchbycommit", "true"), ("git.checksum", SHA)];
        assert_eq!(by(&format!("h/r#{SHA}"), &[]), Some(Resolved::commit(SHA, SHA)));
        assert_eq!(by("h/r#main", &[]), None);
        assert_eq!(by("h/r#main", &commit), Some(Resolved::commit(SHA, "refs/heads/main")));
        assert_eq!(by("h/r#refs/tags/v", &commit), Some(Resolved::commit(SHA, "refs/tags/v")));
        assert_eq!(by("h/r", &commit), Some(Resolved::commit(SHA, SHA)));
    }

    #[test]
    fn bad_requests_are_named() {
        for (rest, attrs, want) in [
            ("h/r#-x", &[][..], "invalid git ref -x"),
            ("h/r#a..b", &[], "invalid git ref a..b"),
            ("h/r#*", &[], "invalid git ref *"),
            ("h/r#a%0ab", &[], "invalid git ref a\nb"),
            ("h/r", &[("git.mtime", "now")], "invalid git mtime now"),
            ("h/r", &[("git.checksum", "xyz")], "invalid checksum xyz for Git URL, expected hex commit hash"),
            (
                "h/r",
                &[("git.checksum", "abc"), ("git.fetchbycommit", "true")],
                "fetch-by-commit requires a full commit SHA checksum, got \"abc\"",
            ),
            (
                "h/r#main",
                &[("git.fetchbycommit", "true")],
                "fetch-by-commit requires a checksum or a commit SHA ref",
            ),
            ("h/r", &[("git.bundle", "x")], "a git bundle as a source is not supported yet"),
            (
                "h/r",
                &[("git.sig.pubkey", "x")],
                "verifying the signature of a git commit is not supported yet",
            ),
        ] {
            assert_eq!(request(rest, attrs).unwrap_err().to_string(), want);
        }
        let file = request("h/r", &[("git.fullurl", "file:///etc")]).unwrap_err().to_string();
        assert!(file.contains("`file` is not spoken"), "{file}");
    }

    #[test]
    fn a_checksum_may_be_a_beginning() {
        let tag = Resolved { object: SHA.into(), peeled: Some(OTHER.into()), name: "refs/tags/v".into() };
        let asked = |sum: &str| request("h/r", &[("git.checksum", sum)]).unwrap().expect(&tag);
        asked("0123").unwrap();
        asked("abcdef").unwrap();
        let error = asked("ABCDEF").unwrap_err().to_string();
        assert_eq!(error, format!("expected checksum to match ABCDEF, got {SHA} or {OTHER}"));
    }
}
