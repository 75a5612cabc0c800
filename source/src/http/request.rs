//! What a source op asks for when it names a file on a web server.

use std::collections::BTreeMap;

use kiln_content::json;
use kiln_digest::Digest;
use kiln_solver::{CacheMap, CacheMapPart};
use reqwest::Url;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::http::client::Fetched;
use crate::http::filename::filename;
use crate::key::cache_map;

/// Headers that a build may set, as they are written.
const HEADERS: [&str; 2] = ["Accept", "User-Agent"];
const HEADER_PREFIX: &str = "http.header.";
/// The host that stands for the client itself.
pub(crate) const SESSION_HOST: &str = "buildkit-session";
/// The longest address, in bytes.
const MAX_URL: usize = 64 << 10;

/// A file that a source op asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpRequest {
    /// Where it is.
    pub url: Url,
    /// What it must be.
    pub checksum: Option<Digest>,
    /// What it is to be called; empty: as the server or the address says.
    pub filename: String,
    /// Its permission bits; 0 is the default.
    pub perm: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// The secret that is its `Authorization` header; empty: the host's own, if there is one.
    pub auth_secret: String,
    /// Headers of the request, by name.
    pub headers: BTreeMap<&'static str, String>,
}

/// What a key is the digest of. The fields and their order are the reference's.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Key<'a> {
    filename: &'a str,
    perm: u32,
    #[serde(rename = "UID")]
    uid: u32,
    #[serde(rename = "GID")]
    gid: u32,
    checksum: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    last_mod_time: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    auth_header_secret: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    header: Vec<Header<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Header<'a> {
    name: &'a str,
    value: &'a str,
}

impl HttpRequest {
    /// Asks for what `identifier`, a whole URL, with `attrs` names; unknown attributes mean nothing.
    ///
    /// # Errors
    /// [`Error::Attribute`], [`Error::Url`], [`Error::NotSupported`].
    pub fn from_attrs<'a>(
        identifier: &str,
        attrs: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<Self> {
        let invalid = |reason: String| Error::Url { url: identifier.chars().take(200).collect(), reason };
        if identifier.len() > MAX_URL {
            return Err(invalid(format!("it is longer than {MAX_URL} bytes")));
        }
        let url = Url::parse(identifier).map_err(|error| invalid(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(invalid("it is no http or https address".to_owned()));
        }
        let mut request = Self {
            url,
            checksum: None,
            filename: String::new(),
            perm: 0,
            uid: 0,
            gid: 0,
            auth_secret: String::new(),
            headers: BTreeMap::new(),
        };
        let mut signature = [false; 2];
        for (key, value) in attrs {
            match key.as_str() {
                "http.checksum" => {
                    let parsed =
                        value.parse().map_err(|_| Error::attribute("checksum of an http source", value));
                    request.checksum = Some(parsed?);
                }
                "http.filename" => request.filename.clone_from(value),
                "http.perm" => request.perm = number("mode of an http source", value, 0o7777)?,
                "http.uid" => request.uid = number("owner of an http source", value, u32::MAX)?,
                "http.gid" => request.gid = number("group of an http source", value, u32::MAX)?,
                "http.authheadersecret" => request.auth_secret.clone_from(value),
                "http.sig.pubkey" => signature[0] = !value.is_empty(),
                "http.sig.signature" => signature[1] = !value.is_empty(),
                other => {
                    let name = other.strip_prefix(HEADER_PREFIX);
                    let name = name.and_then(|n| HEADERS.into_iter().find(|h| h.eq_ignore_ascii_case(n)));
                    if let Some(name) = name {
                        if reqwest::header::HeaderValue::from_str(value).is_err() {
                            return Err(Error::attribute("header of an http source", value));
                        }
                        request.headers.insert(name, value.clone());
                    }
                }
            }
        }
        match signature {
            [false, false] => Ok(request),
            [true, true] => Err(Error::NotSupported("verifying the signature of an http source")),
            _ => Err(Error::HalfSignature),
        }
    }

    /// The digest of the one key there is.
    pub(crate) fn key(&self, filename: &str, checksum: &Digest, last_modified: &str) -> Digest {
        Digest::of(json::compact(&Key {
            filename,
            perm: self.perm,
            uid: self.uid,
            gid: self.gid,
            checksum: &checksum.to_string(),
            last_mod_time: last_modified,
            auth_header_secret: &self.auth_secret,
            header: self.headers.iter().map(|(name, value)| Header { name, value }).collect(),
        }))
    }

    /// Returns the cache map, where it follows from the request alone: when it says what the file must be.
    #[must_use]
    pub fn known_map(&self) -> Option<CacheMap> {
        let checksum = self.checksum.as_ref()?;
        let key = self.key(&filename(&self.filename, None, &self.url), checksum, "");
        Some(cache_map(&key.to_string(), true).map)
    }

    /// Returns the one cache map there is, of the file that was fetched.
    #[must_use]
    pub fn cache_map(&self, fetched: &Fetched) -> CacheMapPart {
        if let Some(map) = self.known_map() {
            return CacheMapPart { map, last: true };
        }
        let modified = fetched.last_modified.as_deref().unwrap_or_default();
        cache_map(&self.key(&fetched.filename, &fetched.digest, modified).to_string(), true)
    }

    /// Names everything that the file depends on besides the server, so that earlier ones are found again.
    pub(crate) fn identity(&self) -> Digest {
        let headers: Vec<_> = self.headers.iter().collect();
        let (url, secret) = (self.url.as_str(), &self.auth_secret);
        Digest::of(json::compact(&(url, &self.filename, self.perm, self.uid, self.gid, secret, headers)))
    }

    /// The address as people may see it: without credentials, and without its query, which may hold some.
    #[must_use]
    pub fn shown(&self) -> String {
        shown(&self.url)
    }

    /// What the client calls the body, if it is the client who has it.
    pub(crate) fn of_session(&self) -> Option<&str> {
        (self.url.host_str() == Some(SESSION_HOST)).then(|| self.url.path())
    }
}

pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Fails only for addresses that have no host.
    let _without = (url.set_username(""), url.set_password(None));
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

/// Reads a number as Go's base 0 does: `0x`, `0o`, `0b`, a leading 0 for octal, underscores after a prefix.
fn number(what: &'static str, text: &str, max: u32) -> Result<u32> {
    let fail = || Error::attribute(what, text);
    let lower = text.to_ascii_lowercase();
    let (digits, radix) = match lower.as_bytes() {
        [b'0', b'x', ..] => (lower.get(2..), 16),
        [b'0', b'o', ..] => (lower.get(2..), 8),
        [b'0', b'b', ..] => (lower.get(2..), 2),
        [b'0', _, ..] => (lower.get(1..), 8),
        _ => (Some(lower.as_str()), 10),
    };
    let digits = digits.ok_or_else(fail)?;
    let digits = if radix == 10 { digits.to_owned() } else { digits.replace('_', "") };
    if !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(fail());
    }
    u32::from_str_radix(&digits, radix).ok().filter(|number| *number <= max).ok_or_else(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(url: &str, attrs: &[(&str, &str)]) -> Result<HttpRequest> {
        let attrs: BTreeMap<String, String> =
            attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        HttpRequest::from_attrs(url, &attrs)
    }

    /// The reference's keys; its example checksums are no digests, so the JSON is checked by its parts.
    #[test]
    fn keys_are_digests_of_the_references_json() {
        let text = |key: Key<'_>| String::from_utf8(json::compact(&key)).unwrap();
        let plain = |last_mod_time| Key {
            filename: "f",
            perm: 0,
            uid: 0,
            gid: 0,
            checksum: "sha256:aa",
            last_mod_time,
            auth_header_secret: "",
            header: Vec::new(),
        };
        for (time, want) in [
            ("", "12cd9c2916bdb2f9d8593ab564bbf7adfda25da9bdc8a90b080b5f0c556e02c7"),
            (
                "Thu, 02 Jan 2020 03:04:05 GMT",
                "83339ab865f334ac8bcf3f8e1d08c22b21ae94f69809c734a0f2514704d6ebf7",
            ),
        ] {
            assert_eq!(Digest::of(text(plain(time))).hex(), want);
        }
        let full = Key {
            auth_header_secret: "s",
            header: vec![Header { name: "Accept", value: "a" }],
            perm: 0o644,
            ..plain("")
        };
        assert_eq!(
            text(full),
            r#"{"Filename":"f","Perm":420,"UID":0,"GID":0,"Checksum":"sha256:aa","AuthHeaderSecret":"s","Header":[{"Name":"Accept","Value":"a"}]}"#
        );
    }

    #[test]
    fn a_file_of_known_content_has_a_key_at_once() {
        let sum = Digest::of("x").to_string();
        let known = request("http://h/a.txt", &[("http.checksum", sum.as_str())]).unwrap();
        let named = request("http://h/b", &[("http.checksum", &sum), ("http.filename", "a.txt")]).unwrap();
        assert!(known.known_map().is_some());
        assert_eq!(known.known_map(), named.known_map());
        assert!(request("http://h/a.txt", &[]).unwrap().known_map().is_none());
    }

    #[test]
    fn attributes() {
        let asked = request(
            "https://u:p@h/f?sig=1",
            &[
                ("http.perm", "0644"),
                ("http.uid", "7"),
                ("http.gid", "0x8"),
                ("http.header.accept", "text/plain"),
                ("http.header.cookie", "x"),
                ("other", "x"),
            ],
        )
        .unwrap();
        assert_eq!((asked.perm, asked.uid, asked.gid), (0o644, 7, 8));
        assert_eq!(asked.headers, BTreeMap::from([("Accept", "text/plain".to_owned())]));
        assert_eq!(asked.shown(), "https://h/f");
        for (attrs, want) in [
            ([("http.perm", "999"), ("", "")], None),
            ([("http.perm", "rw"), ("", "")], Some("invalid mode of an http source rw")),
            ([("http.perm", "0o17777"), ("", "")], Some("invalid mode of an http source 0o17777")),
            ([("http.uid", "-1"), ("", "")], Some("invalid owner of an http source -1")),
            ([("http.checksum", "sha256:x"), ("", "")], Some("invalid checksum of an http source sha256:x")),
            ([("http.header.accept", "a\nb"), ("", "")], Some("invalid header of an http source a\nb")),
            (
                [("http.sig.pubkey", "k"), ("", "")],
                Some("http signature verification requires both pubkey and signature"),
            ),
            (
                [("http.sig.pubkey", "k"), ("http.sig.signature", "s")],
                Some("verifying the signature of an http source is not supported yet"),
            ),
        ] {
            let got = request("http://h/f", &attrs).err().map(|error| error.to_string());
            assert_eq!(got.as_deref(), want, "{attrs:?}");
        }
        for url in ["http://", "ftp://h/x", "http://[", "http://h:99999/"] {
            assert!(matches!(request(url, &[]), Err(Error::Url { .. })), "{url}");
        }
    }
}
