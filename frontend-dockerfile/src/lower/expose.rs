use std::net::IpAddr;

use crate::error::{Error, Result};
use crate::image::Empty;
use crate::instruction::Command;
use crate::lint::Rule;
use crate::lower::Lowering;
use crate::text::quote;

impl Lowering<'_> {
    pub(super) fn expose(&mut self, index: usize, command: &Command, ports: &[String]) -> Result<()> {
        let mut words = Vec::new();
        for port in ports {
            let (found, outcome) = self.lex.expand(port, &self.stages[index].state.env);
            outcome.map_err(Error::new)?;
            words.extend(found.words);
        }
        let mut exposed = Vec::new();
        for word in &words {
            let ports = self.port(command, word)?;
            self.lex.work.spend(ports.len().saturating_mul("65535/tcp".len())).map_err(Error::new)?;
            exposed.extend(ports);
        }
        for port in &exposed {
            self.stages[index].image.config.exposed_ports.insert(port.clone(), Empty {});
        }
        self.history(index, format!("EXPOSE [{}]", exposed.join(" ")), false);
        Ok(())
    }

    /// Reads `[ip:][host port:]port[-port][/protocol]`.
    fn port(&mut self, command: &Command, word: &str) -> Result<Vec<String>> {
        let parts: Vec<&str> = word.split(':').collect();
        let (ip, host, container) = match parts.as_slice() {
            [container] => (String::new(), "", *container),
            [host, container] => (String::new(), *host, *container),
            [ip @ .., host, container] => (ip.join(":"), *host, *container),
            [] => return Ok(Vec::new()),
        };
        let (port, protocol) = container.split_once('/').unwrap_or((container, ""));
        let invalid = |why: String| Error::new(format!("invalid port: {}: {why}", quote(word)));
        if port.is_empty() {
            return Err(invalid("no port specified".to_owned()));
        }
        let lower = protocol.to_lowercase();
        if !["", "tcp", "udp", "sctp"].contains(&lower.as_str()) {
            return Err(invalid(format!("invalid proto: {protocol}")));
        }
        if lower != protocol {
            let message = format!("Defined protocol '{word}' in EXPOSE instruction should be lowercase");
            self.lint.report(Rule::ExposeProtoCasing, &command.comments, &command.ranges, message);
        }
        if !ip.is_empty() || !host.is_empty() {
            let message = format!(
                "EXPOSE instruction should not define an IP address or host-port mapping, found '{word}'"
            );
            self.lint.report(Rule::ExposeInvalidFormat, &command.comments, &command.ranges, message);
        }
        let address = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(&ip);
        if !address.is_empty() && address.parse::<IpAddr>().is_err() {
            return Err(Error::new(format!("invalid IP address: {address}")));
        }
        let (first, last) =
            range(port).ok_or_else(|| Error::new(format!("invalid containerPort: {port}")))?;
        if !host.is_empty() {
            let (host_first, host_last) =
                range(host).ok_or_else(|| Error::new(format!("invalid hostPort: {host}")))?;
            if last - first != host_last - host_first && first != last {
                return Err(Error::new(format!(
                    "invalid ranges specified for container and host Ports: {port} and {host}"
                )));
            }
        }
        let protocol = if lower.is_empty() { "tcp" } else { &lower };
        Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
    }
}

fn range(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| text.strip_prefix('+').unwrap_or(text).parse::<u16>().ok();
    match text.split_once('-') {
        None => number(text).map(|port| (port, port)),
        Some((first, last)) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some((first, last))
        }
    }
}
