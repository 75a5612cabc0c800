use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::platform::Platform;

/// The search path of images that do not set one.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An image config. Fields stand in the order in which the reference writes them, because the bytes are hashed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Image {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) created: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) author: String,
    pub(crate) architecture: String,
    pub(crate) os: String,
    #[serde(rename = "os.version", skip_serializing_if = "String::is_empty")]
    pub(crate) os_version: String,
    #[serde(rename = "os.features", skip_serializing_if = "is_empty", deserialize_with = "nullable")]
    pub(crate) os_features: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) variant: String,
    pub(crate) rootfs: RootFs,
    #[serde(skip_serializing_if = "is_empty", deserialize_with = "nullable")]
    pub(crate) history: Vec<History>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) config: Config,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RootFs {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// None is written as null, which is what an image without layers has.
    pub(crate) diff_ids: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct History {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) created: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) created_by: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) author: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) comment: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) empty_layer: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Config {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) user: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub(crate) exposed_ports: BTreeMap<String, Empty>,
    #[serde(skip_serializing_if = "is_empty", deserialize_with = "nullable")]
    pub(crate) env: Vec<String>,
    #[serde(skip_serializing_if = "is_empty", deserialize_with = "nullable")]
    pub(crate) entrypoint: Vec<String>,
    #[serde(skip_serializing_if = "is_empty", deserialize_with = "nullable")]
    pub(crate) cmd: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub(crate) volumes: BTreeMap<String, Empty>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) working_dir: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) stop_signal: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) args_escaped: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) healthcheck: Option<Healthcheck>,
    #[serde(skip_serializing_if = "is_empty", deserialize_with = "nullable")]
    pub(crate) on_build: Vec<String>,
    #[serde(skip_serializing_if = "is_empty", deserialize_with = "nullable")]
    pub(crate) shell: Vec<String>,
}

/// The value of a set entry, `{}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Empty {}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Healthcheck {
    #[serde(skip_serializing_if = "is_empty", deserialize_with = "nullable")]
    pub(crate) test: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) interval: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) timeout: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) start_period: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) start_interval: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) retries: i64,
}

fn is_empty<T>(list: &[T]) -> bool {
    list.is_empty()
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

/// Reads null as the default.
fn nullable<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    input: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

impl Image {
    /// Reads a config.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, String> {
        let value: serde_json::Value = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let kind = match &value {
            serde_json::Value::Object(_) => {
                return serde_json::from_value(value).map_err(|error| error.to_string());
            }
            serde_json::Value::Null => return Ok(Self::default()),
            serde_json::Value::Bool(_) => "bool",
            serde_json::Value::Number(_) => "number",
            serde_json::Value::String(_) => "string",
            serde_json::Value::Array(_) => "array",
        };
        Err(format!("json: cannot unmarshal {kind} into Go value of type v1.DockerOCIImage"))
    }

    /// The config of something without one.
    pub(crate) fn empty(platform: &Platform) -> Self {
        let mut image =
            Self { rootfs: RootFs { kind: "layers".to_owned(), diff_ids: None }, ..Self::default() };
        image.set_platform(platform);
        image.config.working_dir = if platform.is_windows() { "\\" } else { "/" }.to_owned();
        image.set_default_path();
        image
    }

    pub(crate) fn platform(&self) -> Platform {
        Platform {
            os: self.os.clone(),
            arch: self.architecture.clone(),
            variant: self.variant.clone(),
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
        }
    }

    pub(crate) fn set_platform(&mut self, platform: &Platform) {
        let Platform { os, arch, variant, os_version, os_features } = platform.clone();
        self.os = os;
        self.architecture = arch;
        self.variant = variant;
        self.os_version = os_version;
        self.os_features = os_features;
    }

    fn set_default_path(&mut self) {
        if self.os != "windows" {
            self.config.env = vec![format!("PATH={DEFAULT_PATH}")];
        }
    }

    /// Sets a variable in place, or appends it.
    pub(crate) fn set_env(&mut self, key: &str, value: &str) {
        let entry = format!("{key}={value}");
        let same = |old: &&mut String| old.split('=').next() == Some(key);
        match self.config.env.iter_mut().find(same) {
            Some(old) => *old = entry,
            None => self.config.env.push(entry),
        }
    }

    /// The config as the reference writes it, which escapes what would be markup in HTML.
    pub(crate) fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        go_json(self)
    }
}

/// Serialises with the reference's escapes.
pub(crate) fn go_json(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let text = serde_json::to_string(value)?;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // These stand inside strings only.
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    Ok(out.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_the_reference() {
        let platform = Platform { os: "linux".to_owned(), arch: "amd64".to_owned(), ..Platform::default() };
        let mut image = Image::empty(&platform);
        image.set_env("A", "<&>");
        image.config.exposed_ports.insert("80/tcp".to_owned(), Empty {});
        image.config.labels.insert("l".to_owned(), "v".to_owned());
        image.config.cmd = vec!["x".to_owned()];
        image.config.args_escaped = true;
        image.config.healthcheck =
            Some(Healthcheck { test: vec!["NONE".to_owned()], interval: 5, ..Healthcheck::default() });
        let want = concat!(
            r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":null},"config":{"#,
            r#""ExposedPorts":{"80/tcp":{}},"#,
            r#""Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","A=\u003c\u0026\u003e"],"#,
            r#""Cmd":["x"],"WorkingDir":"/","Labels":{"l":"v"},"ArgsEscaped":true,"#,
            r#""Healthcheck":{"Test":["NONE"],"Interval":5}}}"#,
        );
        assert_eq!(String::from_utf8(image.to_json().unwrap()).unwrap(), want);
    }
}
