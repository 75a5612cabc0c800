//! Addresses of repositories, as far as they are safe to hand to `git`.

use std::fmt;

use kiln_registry::Secret;

use crate::error::{Error, Result};

/// What is spoken with a repository; nothing else is, whatever `git` could speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Transport {
    Http,
    Ssh,
    Git,
}

/// The address of a repository, without credentials.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Remote {
    text: String,
    host: String,
    transport: Transport,
}

/// The longest address, in bytes.
const MAX: usize = 8 << 10;

impl Remote {
    /// Reads an address, and the credentials in it. One without transport is taken for `https`.
    ///
    /// # Errors
    /// [`Error::Remote`] for one that `git` might take for something else than an address.
    pub(crate) fn parse(address: &str) -> Result<(Self, Option<Secret>)> {
        let fail = |reason: &str| Error::Remote {
            remote: crate::redacted(address).chars().filter(|c| !c.is_control()).take(200).collect(),
            reason: reason.to_owned(),
        };
        let address = address.split('#').next().unwrap_or_default();
        if address.len() > MAX {
            return Err(fail("it is too long"));
        }
        if address.is_empty() || address.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(fail("it is empty, or has white space or control characters in it"));
        }
        if let Some((host, path)) = scp(address) {
            if host.starts_with('-') || path.starts_with('-') || address.starts_with('-') {
                return Err(fail("a part of it begins with `-`"));
            }
            let remote = Self { text: address.to_owned(), host: host.to_owned(), transport: Transport::Ssh };
            return Ok((remote, None));
        }
        let (scheme, rest) = match address.split_once("://") {
            Some((scheme, rest)) if scheme.chars().all(|c| c.is_ascii_alphanumeric()) => {
                (scheme.to_ascii_lowercase(), rest)
            }
            _ => ("https".to_owned(), address),
        };
        let transport = match scheme.as_str() {
            "http" | "https" => Transport::Http,
            "ssh" => Transport::Ssh,
            "git" => Transport::Git,
            other => return Err(fail(&format!("`{other}` is not spoken: use https, http, ssh or git"))),
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end).unwrap_or((rest, ""));
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        if host.is_empty() || host.starts_with(':') {
            return Err(fail("it names no host"));
        }
        if host.starts_with('-') || authority.starts_with('-') {
            return Err(fail("a part of it begins with `-`"));
        }
        let (name, port) = match host.rfind(']') {
            Some(end) => host.split_at_checked(end + 1).unwrap_or((host, "")),
            None => host.split_at_checked(host.find(':').unwrap_or(host.len())).unwrap_or((host, "")),
        };
        let named = |c: char| c.is_ascii_alphanumeric() || "-._[]:%".contains(c) || !c.is_ascii();
        if !name.chars().all(named)
            || !port.strip_prefix(':').unwrap_or(port).chars().all(|c| c.is_ascii_digit())
        {
            return Err(fail("its host is none"));
        }
        let (kept, credentials) = match (user, transport) {
            (Some(user), Transport::Http) => (String::new(), Some(Secret::new(credentials(user)))),
            // The user is whom the agent's keys are for; there is nobody who could use a password.
            (Some(user), _) => (format!("{}@", user.split(':').next().unwrap_or_default()), None),
            (None, _) => (String::new(), None),
        };
        let text = format!("{scheme}://{kept}{host}{path}");
        Ok((Self { text, host: host.to_owned(), transport }, credentials))
    }

    /// As `git` is told.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn transport(&self) -> Transport {
        self.transport
    }
}

/// `user:password` as it was written, with what is escaped in it.
fn credentials(user: &str) -> String {
    let decode = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    format!("{}:{}", decode(user), decode(password))
}

/// Splits `user@host:path`.
fn scp(address: &str) -> Option<(&str, &str)> {
    let (user, rest) = address.split_once('@')?;
    let (host, path) = rest.split_once(':')?;
    let valid = |text: &str, extra: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
    };
    (valid(user, "-_.") && valid(host, "-.")).then_some((host, path))
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (address, want, host, secret) in [
            ("https://h/r.git", "https://h/r.git", "h", None),
            ("HTTPS://h:8/r.git#main", "https://h:8/r.git", "h:8", None),
            ("h.x/r", "https://h.x/r", "h.x", None),
            ("https://u:p%40@h/r", "https://h/r", "h", Some("u:p@")),
            ("https://token@h/r", "https://h/r", "h", Some("token:")),
            ("ssh://git@h:22/r", "ssh://git@h:22/r", "h:22", None),
            ("ssh://git:x@h/r", "ssh://git@h/r", "h", None),
            ("git@h:o/r.git", "git@h:o/r.git", "h", None),
            ("git://[::1]:9/r", "git://[::1]:9/r", "[::1]:9", None),
        ] {
            let (remote, credentials) = Remote::parse(address).unwrap();
            assert_eq!((remote.as_str(), remote.host()), (want, host));
            assert_eq!(credentials.as_ref().map(Secret::expose), secret, "{address}");
        }
    }

    #[test]
    fn what_git_might_take_for_something_else() {
        for address in [
            "",
            "file:///etc",
            "ext::sh -c true",
            "ext::sh",
            "fd::7",
            "/etc",
            "./r",
            "--upload-pack=x",
            "-u:x",
            "ssh://-oProxyCommand=x/r",
            "ssh://u@-oProxyCommand=x/r",
            "git@h:-x",
            "https://h\n/r",
            "https://h/r x",
            "https://",
            "https://:80/",
            "https://h:x/",
        ] {
            let got = Remote::parse(address);
            assert!(matches!(got, Err(Error::Remote { .. })), "{address}: {got:?}");
        }
    }
}
