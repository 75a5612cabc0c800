//! Git sources as URLs.

use std::collections::BTreeMap;

use crate::go::parse_bool;
use crate::graph::{Edge, Graph, Meta};
use crate::paths::rooted;
use crate::text::quote;

/// A git source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GitUrl {
    /// URL without query and fragment.
    pub(crate) remote: String,
    host: String,
    path: String,
    is_ssh: bool,
    pub(crate) reference: String,
    pub(crate) subdir: String,
    pub(crate) checksum: String,
    pub(crate) keep_git_dir: Option<bool>,
    pub(crate) submodules: Option<bool>,
    pub(crate) mtime: String,
    pub(crate) fetch_by_commit: bool,
    /// `github.com/…`, which ADD and COPY take for a path.
    pub(crate) looks_local: bool,
}

/// Reads a git URL. None if the text is none; an error if it is one that is wrong.
pub(crate) fn parse(text: &str) -> Option<Result<GitUrl, String>> {
    if text.starts_with("./") || text.starts_with("../") {
        return None;
    }
    if text.starts_with("github.com/") {
        let mut url = split(&format!("https://{text}"))?;
        if let Ok(url) = &mut url {
            url.looks_local = true;
        }
        return Some(url);
    }
    let url = split(text)?;
    let is_http = text.starts_with("http://") || text.starts_with("https://");
    let bare = text.split(['?', '#']).next().unwrap_or(text);
    if is_http && !bare.ends_with(".git") {
        return None;
    }
    Some(url)
}

fn split(text: &str) -> Option<Result<GitUrl, String>> {
    let (rest, fragment) = match text.split_once('#') {
        Some((rest, fragment)) => (rest, fragment),
        None => (text, ""),
    };
    let (base, query) = match rest.split_once('?') {
        Some((base, query)) => (base, query),
        None => (rest, ""),
    };
    let mut url = GitUrl { remote: base.to_owned(), ..GitUrl::default() };
    if let Some((scheme, address)) = base.split_once("://") {
        if !["http", "https", "ssh", "git"].contains(&scheme) {
            return None;
        }
        url.is_ssh = scheme == "ssh";
        let (authority, path) = address.split_once('/').unwrap_or((address, ""));
        url.host = authority.rsplit('@').next().unwrap_or(authority).to_owned();
        url.path = path.to_owned();
    } else {
        // The form of scp: user@host:path.
        let (user, address) = base.split_once('@')?;
        let (host, path) = address.split_once(':')?;
        let word = |text: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        if !word(user) || host.is_empty() || host.contains('/') {
            return None;
        }
        (url.host, url.path, url.is_ssh) = (host.to_owned(), path.to_owned(), true);
    }
    let (reference, subdir) = match fragment.split_once(':') {
        Some((reference, subdir)) => (reference, subdir),
        None => (fragment, ""),
    };
    url.reference = unescape(reference, false);
    url.subdir =
        if subdir.is_empty() { String::new() } else { rooted(&unescape(subdir, false))[1..].to_owned() };
    Some(with_query(url, query))
}

fn with_query(mut url: GitUrl, query: &str) -> Result<GitUrl, String> {
    let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        values.entry(unescape(key, true)).or_default().push(unescape(value, true));
    }
    let (mut tag, mut branch) = (String::new(), String::new());
    for (key, values) in values {
        let value = match values.as_slice() {
            [value] => value.clone(),
            _ => return Err(format!("query {} has multiple values", quote(&key))),
        };
        let boolean = || match value.as_str() {
            "" => Ok(true),
            value => parse_bool(value).ok_or_else(|| format!("invalid {key} value: {}", quote(value))),
        };
        let needs_value =
            ["ref", "tag", "branch", "subdir", "checksum", "commit", "mtime"].contains(&key.as_str());
        if needs_value && value.is_empty() {
            return Err(format!("query {} has no value", quote(&key)));
        }
        match key.as_str() {
            "ref" => set("ref", &mut url.reference, &value)?,
            "tag" => tag = value,
            "branch" => branch = value,
            "subdir" => set("subdir", &mut url.subdir, &rooted(&value)[1..])?,
            "checksum" | "commit" => set("checksum", &mut url.checksum, &value)?,
            "keep-git-dir" => url.keep_git_dir = Some(boolean()?),
            "submodules" => url.submodules = Some(boolean()?),
            "fetch-by-commit" => url.fetch_by_commit = boolean()?,
            "mtime" if value == "checkout" || value == "commit" => url.mtime = value,
            "mtime" => return Err(format!("invalid mtime value: {}", quote(&value))),
            _ => return Err(format!("unexpected query {}", quote(&key))),
        }
    }
    if !tag.is_empty() && !branch.is_empty() {
        return Err("branch conflicts with tag".to_owned());
    }
    if !tag.is_empty() {
        set(
            "ref",
            &mut url.reference,
            &format!("refs/tags/{}", tag.strip_prefix("refs/tags/").unwrap_or(&tag)),
        )?;
    }
    if !branch.is_empty() {
        set(
            "ref",
            &mut url.reference,
            &format!("refs/heads/{}", branch.strip_prefix("refs/heads/").unwrap_or(&branch)),
        )?;
    }
    Ok(url)
}

fn set(key: &str, place: &mut String, value: &str) -> Result<(), String> {
    if !place.is_empty() && place != value {
        return Err(format!("{key} conflicts: {} vs {}", quote(place), quote(value)));
    }
    *place = value.to_owned();
    Ok(())
}

fn unescape(text: &str, query: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(&b) = bytes.get(at) {
        let hex = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (b, hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) if query => out.push(b' '),
            _ => out.push(b),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl GitUrl {
    /// The source op.
    pub(crate) fn to_source(&self, graph: &mut Graph, meta: Meta) -> Edge {
        let mut id = format!("git://{}{}", self.host, rooted(&self.path));
        if !self.reference.is_empty() || !self.subdir.is_empty() {
            id.push('#');
            id.push_str(&self.reference);
            if !self.subdir.is_empty() {
                id.push(':');
                id.push_str(&self.subdir);
            }
        }
        let mut attrs = BTreeMap::new();
        let mut caps = vec!["source.git", "source.git.fullurl"];
        let mut attr = |key: &str, value: &str| attrs.insert(key.to_owned(), value.to_owned());
        attr("git.fullurl", &self.remote);
        attr("git.authheadersecret", "GIT_AUTH_HEADER");
        attr("git.authtokensecret", "GIT_AUTH_TOKEN");
        if self.is_ssh {
            attr("git.mountsshsock", "default");
            caps.extend(["source.git.knownsshhosts", "source.git.mountsshsock"]);
        }
        if self.keep_git_dir == Some(true) {
            attr("git.keepgitdir", "true");
            caps.push("source.git.keepgitdir");
        }
        if !self.checksum.is_empty() {
            attr("git.checksum", &self.checksum);
            caps.push("source.git.checksum");
        }
        if self.submodules == Some(false) {
            attr("git.skipsubmodules", "true");
            caps.push("source.git.skipsubmodules");
        }
        if !self.mtime.is_empty() && self.mtime != "checkout" {
            attr("git.mtime", &self.mtime);
            caps.push("source.git.mtime");
        }
        if self.fetch_by_commit {
            attr("git.fetchbycommit", "true");
            caps.push("source.git.fetchbycommit");
        }
        graph.source(id, attrs, None, meta, &caps)
    }
}
