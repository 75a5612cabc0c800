//! Source identifiers in their canonical form.

use kiln_llb::pb;
use kiln_patterns::clean_absolute;

/// Returns the identifier that the daemon puts in place of the one sent, `None` if it does not parse (it
/// is then kept as it is).
pub fn canonical_identifier(source: &pb::SourceOp) -> Option<String> {
    let (scheme, rest) = source.identifier.split_once("://")?;
    let attr = |name: &str| source.attrs.get(name).map(String::as_str);
    let rest = match scheme {
        "docker-image" | "oci-layout" | "docker-image+blob" => reference(rest)?,
        "oci-layout+blob" => {
            attr("oci.store").filter(|store| !store.is_empty())?;
            reference(rest)?
        }
        "git" => git(rest, attr("git.fullurl"))?,
        "local" => match attr("local.session").and_then(|session| session.split_once(':')) {
            Some((prefix, _)) => format!("{prefix}-{rest}"),
            None => rest.to_owned(),
        },
        "http" | "https" => rest.to_owned(),
        _ => return None,
    };
    Some(format!("{scheme}://{rest}"))
}

/// Follows containerd's pkg/reference: a locator, then a tag or digest.
fn reference(text: &str) -> Option<String> {
    if text.contains("://") {
        return None;
    }
    let url = Url::parse(text)?;
    if url.host.is_empty() {
        return None;
    }
    let at = url.path.find([':', '@'])?;
    let (path, object) = url.path.split_at_checked(at)?;
    let separator = if object.starts_with('@') { "" } else { ":" };
    let object = object.strip_prefix(':').unwrap_or(object);
    if object.is_empty() {
        return None;
    }
    Some(format!("{}{separator}{object}", join(&url.host, path)))
}

fn git(rest: &str, full_url: Option<&str>) -> Option<String> {
    let (remote, fragment) = parse_remote(&with_transport(rest))?;
    let (git_ref, subdir) = fragment.split_once(':').unwrap_or((&fragment, ""));
    if git_ref.starts_with('-') {
        return None;
    }
    let remote = match full_url {
        Some(full) => {
            let full = with_transport(full);
            parse_remote(&full).map_or(full, |(remote, _)| remote)
        }
        None => remote,
    };
    let subdir = clean_absolute(subdir);
    let subdir = subdir.trim_start_matches('/');
    let mut out = remote;
    if !git_ref.is_empty() || !subdir.is_empty() {
        out.push('#');
        out.push_str(git_ref);
        if !subdir.is_empty() {
            out.push(':');
            out.push_str(subdir);
        }
    }
    Some(out)
}

fn with_transport(remote: &str) -> String {
    let has = match protocol(remote) {
        Some(protocol) => is_supported(protocol),
        None => scp(remote).is_some(),
    };
    if has { remote.to_owned() } else { format!("https://{remote}") }
}

/// Returns host and path joined, and the decoded fragment.
fn parse_remote(remote: &str) -> Option<(String, String)> {
    if let Some(protocol) = protocol(remote) {
        if !is_supported(protocol) {
            return None;
        }
        let url = Url::parse(remote.get(protocol.len() + 3..)?)?;
        return Some((format!("{}{}", url.host, clean_absolute(&url.path)), url.fragment));
    }
    let (host, path, fragment) = scp(remote)?;
    Some((format!("{host}{}", clean_absolute(path)), fragment.to_owned()))
}

/// Returns what stands before `://` if it looks like a protocol.
fn protocol(remote: &str) -> Option<&str> {
    let (protocol, _) = remote.split_once("://")?;
    let valid = !protocol.is_empty() && protocol.bytes().all(|b| b.is_ascii_alphanumeric());
    valid.then_some(protocol)
}

fn is_supported(protocol: &str) -> bool {
    ["http", "https", "ssh", "git"].iter().any(|p| p.eq_ignore_ascii_case(protocol))
}

/// Splits `user@host:path[?query][#fragment]`.
fn scp(remote: &str) -> Option<(&str, &str, &str)> {
    let (user, rest) = remote.split_once('@')?;
    let (host, path) = rest.split_once(':')?;
    let valid = |text: &str, extra: &[u8]| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || extra.contains(&b))
    };
    if !valid(user, b"-_") || !valid(host, b"-.") || remote.contains('\n') {
        return None;
    }
    let (path, fragment) = path.split_once('#').unwrap_or((path, ""));
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    Some((host, path, fragment))
}

struct Url {
    host: String,
    /// Decoded.
    path: String,
    /// Decoded.
    fragment: String,
}

impl Url {
    /// Parses what follows `scheme://`.
    fn parse(text: &str) -> Option<Self> {
        if text.bytes().any(|b| b < b' ' || b == 0x7f) {
            return None;
        }
        let (text, fragment) = text.split_once('#').unwrap_or((text, ""));
        let text = text.split_once('?').map_or(text, |(text, _)| text);
        let (authority, path) = text.split_at_checked(text.find('/').unwrap_or(text.len()))?;
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let port = match host.rfind(']') {
            Some(end) => host.get(end + 1..)?.strip_prefix(':'),
            None => host.split_once(':').map(|(_, port)| port),
        };
        if port.is_some_and(|port| port.bytes().any(|b| !b.is_ascii_digit())) {
            return None;
        }
        if host.bytes().any(|b| matches!(b, b' ' | b'%' | b'\\' | b'^' | b'{' | b'}' | b'|' | b'`')) {
            return None;
        }
        Some(Self { host: host.to_owned(), path: decode(path)?, fragment: decode(fragment)? })
    }
}

fn decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        out.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
    }
    String::from_utf8(out).ok()
}

/// Joins like Go's `path.Join` of a host and a path.
fn join(host: &str, path: &str) -> String {
    let joined = clean_absolute(&format!("{host}/{path}"));
    joined.trim_start_matches('/').to_owned()
}
