use std::fmt::Write as _;
use std::net::IpAddr;

use crate::error::{Error, Result};

/// Name resolution as configured for steps. Each list that is not empty replaces the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsConfig {
    /// Addresses of name servers.
    pub nameservers: Vec<String>,
    /// Such as `ndots:2`.
    pub options: Vec<String>,
    /// Domains that short names are looked up in.
    pub search_domains: Vec<String>,
}

/// Used where the host's servers cannot be reached from a network namespace of its own.
const PUBLIC_SERVERS: [&str; 4] = ["8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"];

/// Makes the `resolv.conf` of steps out of the host's.
///
/// # Errors
/// [`Error::BadNameserver`] if the configuration names one that is no address.
pub(crate) fn make(host: &str, dns: &DnsConfig, host_network: bool) -> Result<String> {
    let mut parsed = Parsed::parse(host);
    if !dns.nameservers.is_empty() {
        for address in &dns.nameservers {
            if parse_address(address).is_none() {
                return Err(Error::BadNameserver { address: address.clone() });
            }
        }
        parsed.nameservers = dns.nameservers.clone();
    }
    if !dns.search_domains.is_empty() {
        parsed.search = dns.search_domains.clone();
    }
    if !dns.options.is_empty() {
        parsed.options = dns.options.clone();
    }
    if !host_network || parsed.nameservers.is_empty() {
        parsed.nameservers.retain(|address| parse_address(address).is_some_and(|ip| !ip.is_loopback()));
        if parsed.nameservers.is_empty() {
            parsed.nameservers = PUBLIC_SERVERS.map(str::to_owned).to_vec();
        }
    }
    Ok(parsed.render())
}

/// Whether the only server is the stub of systemd-resolved, which no other network namespace reaches.
pub(crate) fn is_resolved_stub(host: &str) -> bool {
    Parsed::parse(host).nameservers == ["127.0.0.53"]
}

#[derive(Debug, Default)]
struct Parsed {
    nameservers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

impl Parsed {
    fn parse(text: &str) -> Self {
        let mut parsed = Self::default();
        for line in text.lines() {
            let words = |words: std::str::SplitWhitespace<'_>| words.map(str::to_owned).collect::<Vec<_>>();
            let mut fields = line.split_whitespace();
            match fields.next() {
                Some("nameserver") => {
                    let address = fields.next().unwrap_or_default();
                    if parse_address(address).is_some() {
                        parsed.nameservers.push(address.to_owned());
                    }
                }
                // The last one counts.
                Some("search" | "domain") => parsed.search = words(fields),
                Some("options") => parsed.options.extend(words(fields)),
                _ => {}
            }
        }
        parsed
    }

    fn render(&self) -> String {
        let mut text = String::new();
        if !self.search.is_empty() && self.search != ["."] {
            let _ = writeln!(text, "search {}", self.search.join(" "));
        }
        for address in &self.nameservers {
            let _ = writeln!(text, "nameserver {address}");
        }
        if !self.options.is_empty() {
            let _ = writeln!(text, "options {}", self.options.join(" "));
        }
        text
    }
}

/// An address, perhaps with a zone (`fe80::1%eth0`).
fn parse_address(text: &str) -> Option<IpAddr> {
    match text.split_once('%') {
        Some((address, zone)) if !zone.is_empty() => address.parse().ok().filter(IpAddr::is_ipv6),
        Some(_) => None,
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(host: &str, dns: &DnsConfig, host_network: bool, want: &str) {
        assert_eq!(make(host, dns, host_network).unwrap(), want);
    }

    const PUBLIC: &str = "nameserver 8.8.8.8\nnameserver 8.8.4.4\nnameserver 2001:4860:4860::8888\n\
        nameserver 2001:4860:4860::8844\n";

    #[test]
    fn servers_search_and_options() {
        let none = DnsConfig::default();
        let host = "# made by hand\nnameserver 127.0.0.1\nnameserver 10.0.0.2 # office\nsearch a b\nsearch c\n\
            options ndots:1\noptions rotate\nsortlist x\nnameserver nonsense\n";
        check(host, &none, false, "search c\nnameserver 10.0.0.2\noptions ndots:1 rotate\n");
        let all = "search c\nnameserver 127.0.0.1\nnameserver 10.0.0.2\noptions ndots:1 rotate\n";
        check(host, &none, true, all);
        check("", &none, false, PUBLIC);
        check("", &none, true, PUBLIC);
        check("nameserver ::1\nnameserver 127.0.0.53\n", &none, false, PUBLIC);
        check("nameserver fe80::1%eth0\n", &none, false, "nameserver fe80::1%eth0\n");
        let dns = DnsConfig {
            nameservers: vec!["9.9.9.9".into()],
            options: vec!["edns0".into()],
            search_domains: vec!["corp".into()],
        };
        check(host, &dns, false, "search corp\nnameserver 9.9.9.9\noptions edns0\n");
        let bad = DnsConfig { nameservers: vec!["dns.corp".into()], ..DnsConfig::default() };
        assert_eq!(make("", &bad, false).unwrap_err().to_string(), "bad nameserver address `dns.corp`");
    }

    #[test]
    fn the_stub_of_systemd_resolved() {
        assert!(is_resolved_stub("nameserver 127.0.0.53\noptions edns0\n"));
        assert!(!is_resolved_stub("nameserver 127.0.0.53\nnameserver 1.1.1.1\n"));
    }
}
