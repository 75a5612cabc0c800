//! Which addresses serve a host's references, and how they are spoken to.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// How registries are reached.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Entries by host, as the host is written in references (`docker.io`, `localhost:5000`).
    pub hosts: BTreeMap<String, HostConfig>,
    /// Requests to one host at a time; documents (manifests, tokens) get one slot more.
    pub max_concurrency: usize,
    /// The `User-Agent` of every request.
    pub user_agent: String,
    /// How long a transfer may stand still before it is broken off and resumed.
    pub stall_timeout: Duration,
    /// The first pause of the retries; it doubles.
    pub retry_pause: Duration,
    /// Retrying ends once the pause would reach this.
    pub retry_limit: Duration,
    /// The largest manifest or index that is read, in bytes.
    pub max_document: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            max_concurrency: 4,
            user_agent: concat!("buildkit/kiln-", env!("CARGO_PKG_VERSION")).to_owned(),
            stall_timeout: Duration::from_secs(60),
            retry_pause: Duration::from_secs(1),
            retry_limit: Duration::from_secs(8),
            max_document: 4 << 20,
        }
    }
}

/// What the configuration says of one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostConfig {
    /// Hosts to ask first, in order, each with an optional path (`mirror.example/docker`). Their own
    /// entries say how they are spoken to.
    pub mirrors: Vec<String>,
    /// Plain HTTP; unset means only for `localhost` and loopback addresses.
    pub http: Option<bool>,
    /// HTTPS without verification.
    pub insecure: Option<bool>,
    /// Certificate authorities (PEM files) trusted besides the system's.
    pub ca: Vec<PathBuf>,
    /// Client certificates.
    pub keypairs: Vec<KeyPair>,
    /// Directories of `*.crt` (authorities) and `x.cert` with `x.key` (client certificates).
    pub tls_config_dirs: Vec<PathBuf>,
}

/// A client certificate and its key, both PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPair {
    /// The private key.
    pub key: PathBuf,
    /// The certificate chain.
    pub cert: PathBuf,
}

/// How a host is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Scheme {
    Https,
    Http,
    /// HTTPS, and plain HTTP from then on once the host turned out not to speak TLS.
    Either,
}

/// Where requests for a host's references go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// `host[:port]` of the address.
    pub(crate) host: String,
    /// `/v2`, or `/v2/<path>` for a mirror with a path.
    pub(crate) base: String,
    pub(crate) scheme: Scheme,
    /// The certificate is not looked at.
    pub(crate) insecure: bool,
    /// Mirrors are only read from, and told whose content is wanted.
    pub(crate) mirror: bool,
    /// The entry with the certificates.
    pub(crate) entry: String,
}

impl Config {
    /// Returns where references of `host` are looked for, in order; the origin is last.
    pub(crate) fn targets(&self, host: &str) -> Vec<Target> {
        let entry = self.hosts.get(host);
        let mut targets: Vec<Target> =
            entry.into_iter().flat_map(|entry| &entry.mirrors).map(|mirror| self.mirror(mirror)).collect();
        let address = match host {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let (scheme, insecure) = scheme(address, entry);
        targets.push(Target {
            host: address.to_owned(),
            base: "/v2".to_owned(),
            scheme,
            insecure,
            mirror: false,
            entry: host.to_owned(),
        });
        targets
    }

    /// Returns how an address outside any registry is spoken to: by its own scheme.
    pub(crate) fn address(&self, url: &reqwest::Url) -> Target {
        let host = url.host_str().unwrap_or_default();
        let host = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        Target {
            scheme: if url.scheme() == "http" { Scheme::Http } else { Scheme::Https },
            insecure: false,
            base: String::new(),
            mirror: false,
            entry: host.clone(),
            host,
        }
    }

    fn mirror(&self, mirror: &str) -> Target {
        let mirror =
            mirror.strip_prefix("https://").or_else(|| mirror.strip_prefix("http://")).unwrap_or(mirror);
        let (host, path) = mirror.split_once('/').unwrap_or((mirror, ""));
        let path = path.trim_matches('/');
        let (scheme, insecure) = scheme(host, self.hosts.get(host));
        Target {
            host: host.to_owned(),
            base: if path.is_empty() { "/v2".to_owned() } else { format!("/v2/{path}") },
            scheme,
            insecure,
            mirror: true,
            entry: host.to_owned(),
        }
    }
}

fn scheme(address: &str, entry: Option<&HostConfig>) -> (Scheme, bool) {
    let plain = match entry.and_then(|entry| entry.http) {
        Some(http) => http,
        None => is_local(address),
    };
    let insecure = entry.and_then(|entry| entry.insecure).unwrap_or(false);
    match (plain, insecure) {
        (true, true) => (Scheme::Either, true),
        (true, false) => (Scheme::Http, false),
        (false, insecure) => (Scheme::Https, insecure),
    }
}

/// Tells the names and addresses of this machine.
pub(crate) fn is_local(address: &str) -> bool {
    let host = host_of(address);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Returns the host without port and brackets.
fn host_of(address: &str) -> &str {
    if let Some(rest) = address.strip_prefix('[') {
        return rest.split_once(']').map_or(rest, |(host, _)| host);
    }
    match address.split_once(':') {
        Some((host, rest)) if !rest.contains(':') => host,
        _ => address,
    }
}

/// Tells whether the address names its port.
pub(crate) fn has_port(address: &str) -> bool {
    let rest = address.rsplit_once(']').map_or(address, |(_, rest)| rest);
    rest.contains(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let entry = |mirrors: &[&str], http, insecure| HostConfig {
            mirrors: mirrors.iter().map(|&m| m.to_owned()).collect(),
            http,
            insecure,
            ..HostConfig::default()
        };
        Config {
            hosts: BTreeMap::from([
                ("docker.io".to_owned(), entry(&["mirror.x/a/b", "plain.x:80"], None, None)),
                ("plain.x:80".to_owned(), entry(&[], Some(true), None)),
                ("bad.x".to_owned(), entry(&[], None, Some(true))),
                ("both.x".to_owned(), entry(&[], Some(true), Some(true))),
                ("localhost:1".to_owned(), entry(&[], Some(false), None)),
                ("localhost:2".to_owned(), entry(&[], None, Some(true))),
            ]),
            ..Config::default()
        }
    }

    #[track_caller]
    fn check(host: &str, want: &[&str]) {
        let got: Vec<String> = config()
            .targets(host)
            .iter()
            .map(|t| {
                format!(
                    "{:?} {}{}{}{}",
                    t.scheme,
                    t.host,
                    t.base,
                    if t.insecure { " insecure" } else { "" },
                    if t.mirror { " mirror" } else { "" },
                )
            })
            .collect();
        assert_eq!(got, want, "{host}");
    }

    #[test]
    fn mirrors_come_first_and_use_their_own_entries() {
        check(
            "docker.io",
            &["Https mirror.x/v2/a/b mirror", "Http plain.x:80/v2 mirror", "Https registry-1.docker.io/v2"],
        );
    }

    #[test]
    fn schemes_follow_the_table() {
        check("other.x", &["Https other.x/v2"]);
        check("plain.x:80", &["Http plain.x:80/v2"]);
        check("bad.x", &["Https bad.x/v2 insecure"]);
        check("both.x", &["Either both.x/v2 insecure"]);
        check("localhost", &["Http localhost/v2"]);
        check("127.3.2.1:5000", &["Http 127.3.2.1:5000/v2"]);
        check("[::1]:5000", &["Http [::1]:5000/v2"]);
        check("localhost:1", &["Https localhost:1/v2"]);
        check("localhost:2", &["Either localhost:2/v2 insecure"]);
        check("localhost.x", &["Https localhost.x/v2"]);
    }
}
