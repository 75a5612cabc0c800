use std::net::Ipv4Addr;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// The largest configuration that is read, in bytes.
const MAX_CONFIG: u64 = 1024 * 1024;
/// More plugins than any network has.
const MAX_PLUGINS: usize = 64;
/// What the daemon's own configuration speaks.
const CNI_VERSION: &str = "1.0.0";
/// Linux's limit is 15 bytes.
const MAX_DEVICE_NAME: usize = 15;

/// What plugins are to do, in their order: a CNI network configuration list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkList {
    cni_version: String,
    name: String,
    plugins: Vec<Map<String, Value>>,
}

impl NetworkList {
    /// Reads a file: a list (`.conflist`), or the configuration of a single plugin (`.conf`). Blocks.
    pub fn read(path: &Path) -> Result<Self> {
        use std::io::Read as _;
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(Error::io("open", path))?;
        file.take(MAX_CONFIG + 1).read_to_string(&mut text).map_err(Error::io("read", path))?;
        let wrong = |reason: String| Error::Config { path: path.to_owned(), reason };
        if text.len() as u64 > MAX_CONFIG {
            return Err(wrong(format!("it is larger than {MAX_CONFIG} bytes")));
        }
        Self::parse(&text).map_err(wrong)
    }

    /// The arrangement of the daemon's own: a bridge with addresses from `subnet` (`10.10.0.0/16`), masqueraded towards
    /// the outside, and closed towards other bridges.
    ///
    /// # Errors
    /// [`Error::Bridge`] if the name is none for a network device, or the subnet none of version 4.
    pub fn bridge(name: &str, subnet: &str) -> Result<Self> {
        let is_name = (1..=MAX_DEVICE_NAME).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':')
            && name != "."
            && name != "..";
        if !is_name {
            return Err(Error::Bridge(format!("bridgeName {name:?} is no name for a network device")));
        }
        let is_subnet = subnet.split_once('/').is_some_and(|(address, bits)| {
            address.parse::<Ipv4Addr>().is_ok()
                && bits.parse::<u8>().is_ok_and(|bits| (1..=30).contains(&bits))
        });
        if !is_subnet {
            return Err(Error::Bridge(format!(
                "bridgeSubnet {subnet:?} is no IPv4 subnet such as 10.10.0.0/16"
            )));
        }
        let plugins = [
            json!({
                "type": "bridge",
                "bridge": name,
                "isDefaultGateway": true,
                "ipMasq": true,
                "ipam": { "type": "host-local", "ranges": [[{ "subnet": subnet }]] },
            }),
            json!({ "type": "firewall", "ingressPolicy": "same-bridge" }),
        ];
        let plugins = plugins.into_iter().filter_map(|plugin| match plugin {
            Value::Object(plugin) => Some(plugin),
            _ => None,
        });
        Ok(Self {
            cni_version: CNI_VERSION.to_owned(),
            name: "buildkit".to_owned(),
            plugins: plugins.collect(),
        })
    }

    fn parse(text: &str) -> std::result::Result<Self, String> {
        let mut whole: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| format!("it is no JSON object: {error}"))?;
        let text_of = |whole: &Map<String, Value>, key: &str| match whole.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(format!("`{key}` is no text")),
        };
        let cni_version = text_of(&whole, "cniVersion")?.unwrap_or_else(|| "0.3.1".to_owned());
        let name = text_of(&whole, "name")?.filter(|name| is_plain(name)).ok_or("it has no usable `name`")?;
        let plugins = match whole.remove("plugins") {
            None => vec![Value::Object(whole)],
            Some(Value::Array(plugins)) => plugins,
            Some(_) => return Err("`plugins` is no list".to_owned()),
        };
        if plugins.is_empty() || plugins.len() > MAX_PLUGINS {
            return Err(format!("it has {} plugins, not 1 to {MAX_PLUGINS}", plugins.len()));
        }
        let plugins = plugins.into_iter().map(|plugin| {
            let Value::Object(plugin) = plugin else { return Err("a plugin is no object".to_owned()) };
            match kind(&plugin) {
                Some(_) => Ok(plugin),
                None => Err("a plugin has no usable `type`".to_owned()),
            }
        });
        Ok(Self { cni_version, name, plugins: plugins.collect::<std::result::Result<_, _>>()? })
    }

    pub(crate) fn plugins(&self) -> &[Map<String, Value>] {
        &self.plugins
    }

    /// The programs that are needed: the plugins, and what they start to find addresses.
    pub(crate) fn programs(&self) -> Vec<&str> {
        let own = self.plugins.iter().filter_map(kind);
        let addresses = self.plugins.iter().filter_map(|plugin| kind(plugin.get("ipam")?.as_object()?));
        own.chain(addresses).collect()
    }

    /// The same with other names for its programs.
    pub(crate) fn with_prefix(mut self, prefix: &str) -> Self {
        let rename = |of: &mut Map<String, Value>| {
            if let Some(name) = kind(of) {
                let name = format!("{prefix}{name}");
                of.insert("type".to_owned(), Value::String(name));
            }
        };
        for plugin in &mut self.plugins {
            rename(plugin);
            if let Some(Value::Object(addresses)) = plugin.get_mut("ipam") {
                rename(addresses);
            }
        }
        self
    }

    /// What one of the plugins is told on its standard input.
    pub(crate) fn input(&self, plugin: &Map<String, Value>, previous: Option<&Value>) -> Value {
        let mut input = plugin.clone();
        input.insert("cniVersion".to_owned(), Value::String(self.cni_version.clone()));
        input.insert("name".to_owned(), Value::String(self.name.clone()));
        if let Some(previous) = previous {
            input.insert("prevResult".to_owned(), previous.clone());
        }
        Value::Object(input)
    }
}

/// The name of a plugin's program.
pub(crate) fn kind(plugin: &Map<String, Value>) -> Option<&str> {
    plugin.get("type").and_then(Value::as_str).filter(|kind| is_plain(kind))
}

/// Whether a name can be part of a path without leading anywhere.
fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=128).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: &str) {
        let got = match NetworkList::parse(text) {
            Ok(list) => format!("{} {} {}", list.cni_version, list.name, list.programs().join(" ")),
            Err(reason) => reason,
        };
        assert_eq!(got, want);
    }

    #[test]
    fn lists_and_single_plugins() {
        let ipam = r#""ipam":{"type":"host-local"}"#;
        check(
            &format!(
                r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{{"type":"bridge",{ipam}}},{{"type":"tuning"}}]}}"#
            ),
            "1.0.0 n bridge tuning host-local",
        );
        check(&format!(r#"{{"name":"n","type":"ptp",{ipam}}}"#), "0.3.1 n ptp host-local");
    }

    #[test]
    fn what_is_no_configuration() {
        check(r#"{"type":"ptp"}"#, "it has no usable `name`");
        check(r#"{"name":"../x","type":"ptp"}"#, "it has no usable `name`");
        check(r#"{"name":"n"}"#, "a plugin has no usable `type`");
        check(r#"{"name":"n","plugins":[{"type":"/bin/sh"}]}"#, "a plugin has no usable `type`");
        check(r#"{"name":"n","plugins":[]}"#, "it has 0 plugins, not 1 to 64");
        check(r#"{"name":"n","plugins":{}}"#, "`plugins` is no list");
        check(r#"{"name":1}"#, "`name` is no text");
        assert!(NetworkList::parse("[]").unwrap_err().starts_with("it is no JSON object"));
    }

    #[test]
    fn bridges() {
        let list = NetworkList::bridge("buildkit0", "10.10.0.0/16").unwrap();
        assert_eq!(list.programs(), ["bridge", "firewall", "host-local"]);
        assert_eq!(
            list.with_prefix("buildkit-cni-").programs(),
            ["buildkit-cni-bridge", "buildkit-cni-firewall", "buildkit-cni-host-local"]
        );
        for (name, subnet) in [
            ("", "10.0.0.0/8"),
            ("a/b", "10.0.0.0/8"),
            ("sixteen-letters-", "10.0.0.0/8"),
            ("b", "10.0.0.0"),
            ("b", "::/8"),
        ] {
            assert!(NetworkList::bridge(name, subnet).is_err(), "{name} {subnet}");
        }
    }
}
