//! Image references as users write them.

/// A parsed reference, its domain filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    domain: String,
    path: String,
    tag: String,
    digest: String,
}

const INVALID: &str = "invalid reference format";

impl Reference {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(format!(
                "invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
            ));
        }
        let (domain, rest) = split_domain(text);
        let name_end = rest.find([':', '@']).unwrap_or(rest.len());
        if rest[..name_end] != rest[..name_end].to_lowercase() {
            let name = &rest[..name_end];
            return Err(format!("{INVALID}: repository name ({name}) must be lowercase"));
        }
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest.to_owned(), digest),
            None => (rest, ""),
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest.as_str(), None),
        };
        let valid = is_domain(&domain)
            && path.split('/').all(is_component)
            && tag.is_none_or(is_tag)
            && digest.is_empty() != text.contains('@')
            && (digest.is_empty() || has_digest_form(digest));
        if !valid {
            return Err(INVALID.to_owned());
        }
        if !digest.is_empty() {
            check_digest(digest)?;
        }
        if domain.len() + 1 + path.len() > 255 {
            return Err("repository name must not be more than 255 characters".to_owned());
        }
        Ok(Self {
            domain,
            path: path.to_owned(),
            tag: tag.unwrap_or_default().to_owned(),
            digest: digest.to_owned(),
        })
    }

    /// With the tag `latest` if there is neither tag nor digest.
    pub(crate) fn with_default_tag(mut self) -> Self {
        if self.tag.is_empty() && self.digest.is_empty() {
            self.tag = "latest".to_owned();
        }
        self
    }

    pub(crate) fn with_digest(mut self, digest: &str) -> Self {
        self.digest = digest.to_owned();
        self
    }

    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The whole reference.
    pub(crate) fn full(&self) -> String {
        self.suffixed(&self.name())
    }

    /// As people write it: without the default domain and folder.
    pub(crate) fn familiar(&self) -> String {
        let name = match (self.domain.as_str(), self.path.strip_prefix("library/")) {
            ("docker.io", Some(short)) if !short.contains('/') => short.to_owned(),
            ("docker.io", _) => self.path.clone(),
            _ => self.name(),
        };
        self.suffixed(&name)
    }

    fn suffixed(&self, name: &str) -> String {
        let mut text = name.to_owned();
        for (mark, part) in [(':', &self.tag), ('@', &self.digest)] {
            if !part.is_empty() {
                text.push(mark);
                text.push_str(part);
            }
        }
        text
    }
}

/// Checks the length and letters of a digest.
pub(crate) fn check_digest(digest: &str) -> Result<(), String> {
    let form = "invalid checksum digest format";
    let (algorithm, hex) = digest.split_once(':').ok_or(form)?;
    let algorithm_ok = algorithm
        .split(['+', '.', '_', '-'])
        .all(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()));
    if !algorithm_ok || hex.is_empty() || !hex.chars().all(|c| c.is_ascii_alphanumeric() || "=_-".contains(c))
    {
        return Err(form.to_owned());
    }
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err("unsupported digest algorithm".to_owned()),
    };
    if hex.len() != length {
        return Err("invalid checksum digest length".to_owned());
    }
    if !hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Err(form.to_owned());
    }
    Ok(())
}

fn split_domain(text: &str) -> (String, String) {
    let (domain, rest) = match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first != first.to_lowercase() =>
        {
            (if first == "index.docker.io" { "docker.io" } else { first }, rest)
        }
        _ => ("docker.io", text),
    };
    let rest = if domain == "docker.io" && !rest.contains('/') {
        format!("library/{rest}")
    } else {
        rest.to_owned()
    };
    (domain.to_owned(), rest)
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.rsplit_once(':') {
        Some((host, port)) if !domain.ends_with(']') => (host, Some(port)),
        _ => (domain, None),
    };
    let host_ok = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => !v6.is_empty() && v6.chars().all(|c| c.is_ascii_hexdigit() || c == ':'),
        None => host.split('.').all(|part| {
            !part.is_empty()
                && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
                && !part.starts_with('-')
                && !part.ends_with('-')
        }),
    };
    host_ok && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// Runs of lower case letters and digits, separated by `.`, `_`, `__` or dashes.
fn is_component(part: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !part.starts_with(alphanumeric) || !part.ends_with(alphanumeric) {
        return false;
    }
    part.split(alphanumeric)
        .filter(|gap| !gap.is_empty())
        .all(|gap| matches!(gap, "." | "_" | "__") || gap.bytes().all(|b| b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.starts_with(word) && tag.len() <= 128 && tag.chars().all(|c| word(c) || c == '.' || c == '-')
}

fn has_digest_form(digest: &str) -> bool {
    let Some((algorithm, hex)) = digest.split_once(':') else { return false };
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic()) && part.chars().all(|c| c.is_ascii_alphanumeric())
    };
    algorithm.split(['-', '_', '+', '.']).all(part)
        && hex.len() >= 32
        && hex.bytes().all(|b| b.is_ascii_hexdigit())
}
