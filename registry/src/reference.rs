//! Image references: `host/path[:tag][@digest]`, and the short names that people type.

use std::fmt;
use std::str::FromStr;

use kiln_digest::Digest;

use crate::{Error, Result};

/// The host of references that name none.
const DEFAULT_HOST: &str = "docker.io";
/// An older name of the same host.
const LEGACY_DEFAULT_HOST: &str = "index.docker.io";
/// The namespace of one-word names on the default host.
const OFFICIAL_NAMESPACE: &str = "library/";
/// The longest `host/path`.
const MAX_NAME: usize = 255;
/// The longest reference that is looked at: name, tag and a SHA-512 digest.
const MAX_REFERENCE: usize = MAX_NAME + 1 + MAX_TAG + 1 + 7 + 128;
const MAX_TAG: usize = 128;

/// A parsed image reference whose host is known.
///
/// ```
/// use kiln_registry::Reference;
/// let reference: Reference = "busybox".parse()?;
/// assert_eq!(reference.to_string(), "docker.io/library/busybox");
/// assert_eq!(reference.or_latest().to_string(), "docker.io/library/busybox:latest");
/// # Ok::<(), kiln_registry::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    host: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses a reference as people type it: a missing host is `docker.io`, one word there is below
    /// `library/`. A missing tag stays missing.
    ///
    /// # Errors
    /// [`Error::InvalidReference`].
    pub fn parse(input: &str) -> Result<Self> {
        let fail =
            |reason| Error::InvalidReference { input: input.chars().take(MAX_REFERENCE).collect(), reason };
        if input.is_empty() {
            return Err(fail("it is empty"));
        }
        if input.len() > MAX_REFERENCE {
            return Err(fail("it is too long"));
        }
        if input.len() == 64 && input.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f')) {
            return Err(fail("cannot specify 64-byte hexadecimal strings"));
        }
        let (host, rest) = split_host(input);
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|_| fail("the digest is not valid"))?;
                (rest, Some(digest))
            }
            None => (rest, None),
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(fail("repository name must be lowercase"));
        }
        let path = if host == DEFAULT_HOST && !path.contains('/') {
            format!("{OFFICIAL_NAMESPACE}{path}")
        } else {
            path.to_owned()
        };
        if !is_host(&host) {
            return Err(fail("the host is not valid"));
        }
        if !is_path(&path) {
            return Err(fail("the repository name is not valid"));
        }
        if host.len() + 1 + path.len() > MAX_NAME {
            return Err(fail("repository name must not be more than 255 characters"));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(fail("the tag is not valid"));
        }
        Ok(Self { host, path, tag: tag.map(str::to_owned), digest })
    }

    /// Returns the host as written in names (`docker.io`, not the address that serves it).
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the repository path on the host.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns `host/path`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    /// Returns the tag.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Adds the tag `latest` when there is neither tag nor digest.
    #[must_use]
    pub fn or_latest(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".to_owned());
        }
        self
    }

    /// Returns the reference pinned to `digest`.
    #[must_use]
    pub fn with_digest(mut self, digest: Digest) -> Self {
        self.digest = Some(digest);
        self
    }

    /// Returns the reference with `tag` instead of its own.
    ///
    /// # Errors
    /// [`Error::InvalidReference`].
    pub fn with_tag(mut self, tag: &str) -> Result<Self> {
        if !is_tag(tag) {
            return Err(Error::InvalidReference {
                input: tag.chars().take(MAX_TAG).collect(),
                reason: "the tag is not valid",
            });
        }
        self.tag = Some(tag.to_owned());
        Ok(self)
    }

    /// Returns the repository alone.
    #[must_use]
    pub fn without_object(mut self) -> Self {
        self.tag = None;
        self.digest = None;
        self
    }

    /// Returns the short form that people type: without the default host and namespace.
    #[must_use]
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        match full.strip_prefix("docker.io/") {
            Some(rest) => match rest.strip_prefix(OFFICIAL_NAMESPACE) {
                Some(short) if !short.contains('/') => short.to_owned(),
                _ => rest.to_owned(),
            },
            None => full,
        }
    }

    /// What a manifest request asks for: the digest, else the tag.
    pub(crate) fn object(&self) -> Option<String> {
        match &self.digest {
            Some(digest) => Some(digest.to_string()),
            None => self.tag.clone(),
        }
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(input: &str) -> Result<Self> {
        Self::parse(input)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Splits off the host. A first component is one when it could not be a repository name: it has a dot,
/// a port or an upper-case letter, or is `localhost`.
fn split_host(input: &str) -> (String, &str) {
    match input.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            let host = if first == LEGACY_DEFAULT_HOST { DEFAULT_HOST } else { first };
            (host.to_owned(), rest)
        }
        _ => (DEFAULT_HOST.to_owned(), input),
    }
}

fn is_host(host: &str) -> bool {
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        let Some((address, rest)) = rest.split_once(']') else {
            return false;
        };
        if address.is_empty() || !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
            return false;
        }
        match rest.strip_prefix(':') {
            Some(port) => return is_port(port),
            None => return rest.is_empty(),
        }
    } else {
        match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        }
    };
    port.is_none_or(is_port)
        && name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

fn is_port(port: &str) -> bool {
    (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit())
}

fn is_path(path: &str) -> bool {
    path.split('/').all(is_component)
}

/// Lower-case letters and digits, separated by one dot, one or two underscores, or hyphens.
fn is_component(component: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !alnum(*first) || !alnum(*last) {
        return false;
    }
    bytes.split(|b| alnum(*b)).all(|separator| match separator {
        [] | b"." | b"_" | b"__" => true,
        other => other.iter().all(|b| *b == b'-'),
    })
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(input: &str, want: &str) {
        let got = match Reference::parse(input) {
            Ok(reference) => format!("{} ({})", reference, reference.familiar()),
            Err(Error::InvalidReference { reason, .. }) => format!("error: {reason}"),
            Err(other) => format!("error: {other}"),
        };
        assert_eq!(got, want, "{input}");
    }

    const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    #[test]
    fn short_names_get_the_default_host() {
        check("busybox", "docker.io/library/busybox (busybox)");
        check("busybox:1", "docker.io/library/busybox:1 (busybox:1)");
        check("moby/buildkit", "docker.io/moby/buildkit (moby/buildkit)");
        check("docker.io/busybox", "docker.io/library/busybox (busybox)");
        check("index.docker.io/a/b", "docker.io/a/b (a/b)");
        check("library/x", "docker.io/library/x (x)");
    }

    #[test]
    fn a_host_is_told_by_its_form() {
        check("localhost/a", "localhost/a (localhost/a)");
        check("localhost:5000/a:b", "localhost:5000/a:b (localhost:5000/a:b)");
        check("r.example/a/b/c", "r.example/a/b/c (r.example/a/b/c)");
        check("HOST/a", "HOST/a (HOST/a)");
        check("[::1]:5000/a", "[::1]:5000/a ([::1]:5000/a)");
        check("127.0.0.1:1/a", "127.0.0.1:1/a (127.0.0.1:1/a)");
    }

    #[test]
    fn digests_and_tags_stand_together() {
        check(&format!("a:b@{DIGEST}"), &format!("docker.io/library/a:b@{DIGEST} (a:b@{DIGEST})"));
        check("a@sha256:zz", "error: the digest is not valid");
        check(&format!("a@{DIGEST}@{DIGEST}"), "error: the digest is not valid");
    }

    #[test]
    fn hostile_names_are_refused() {
        check("", "error: it is empty");
        check("A", "error: repository name must be lowercase");
        check("a/../b", "error: the repository name is not valid");
        check("h.x/../b", "error: the repository name is not valid");
        check("h.x//b", "error: the repository name is not valid");
        check("a.-b", "error: the repository name is not valid");
        check("a___b", "error: the repository name is not valid");
        check("a--b__c.d", "docker.io/library/a--b__c.d (a--b__c.d)");
        check("h_x.y/a", "error: the host is not valid");
        check("h.x:/a", "error: the host is not valid");
        check("h.x:80?a=b/a", "error: the host is not valid");
        check("u@h.x/a", "error: the host is not valid");
        check("a:", "error: the tag is not valid");
        check("a:b/c", "error: the host is not valid");
        check("a:b?c", "error: the tag is not valid");
        check(&"a".repeat(300), "error: repository name must not be more than 255 characters");
        check(&"a".repeat(3000), "error: it is too long");
        check(&"a".repeat(64), "error: cannot specify 64-byte hexadecimal strings");
    }

    #[test]
    fn latest_is_added_only_where_nothing_is() {
        for (input, want) in [
            ("a", "docker.io/library/a:latest".to_owned()),
            ("a:b", "docker.io/library/a:b".to_owned()),
            (&format!("a@{DIGEST}"), format!("docker.io/library/a@{DIGEST}")),
        ] {
            let got = Reference::parse(input).unwrap().or_latest().to_string();
            assert_eq!(got, want);
        }
    }
}
