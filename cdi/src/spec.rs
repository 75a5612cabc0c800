//! The files.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

/// The largest file that is read, in bytes.
const MAX_SPEC: u64 = 1024 * 1024;
/// More devices than any file has.
const MAX_DEVICES: usize = 4096;

/// One file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Spec {
    /// `vendor/class`.
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) devices: Vec<Device>,
    /// For every device of the file.
    #[serde(default)]
    pub(crate) container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Device {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) container_edits: Edits,
}

/// What changes in a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Edits {
    pub(crate) env: Vec<String>,
    pub(crate) device_nodes: Vec<Node>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) additional_gids: Vec<u32>,
    /// What is not done: whether there is any is all that counts.
    hooks: Vec<Ignored>,
    net_devices: Vec<Ignored>,
    intel_rdt: Option<Ignored>,
}

#[derive(Clone, Debug, Deserialize)]
struct Ignored {}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Node {
    pub(crate) path: String,
    pub(crate) host_path: Option<String>,
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) major: Option<i64>,
    pub(crate) minor: Option<i64>,
    pub(crate) file_mode: Option<u32>,
    pub(crate) permissions: Option<String>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Mount {
    pub(crate) host_path: String,
    pub(crate) container_path: String,
    #[serde(default)]
    pub(crate) options: Vec<String>,
}

impl Spec {
    /// Reads a file. Blocks.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        use std::io::Read as _;
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
        file.take(MAX_SPEC + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
        if text.len() as u64 > MAX_SPEC {
            return Err(format!("it is larger than {MAX_SPEC} bytes"));
        }
        Self::parse(&text)
    }

    /// JSON is YAML too.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let spec: Self = serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?;
        let is_kind =
            spec.kind.split_once('/').is_some_and(|(vendor, class)| is_name(vendor) && is_name(class));
        if !is_kind {
            return Err(format!("kind {:?} is not of the form vendor/class", spec.kind));
        }
        if spec.devices.len() > MAX_DEVICES {
            return Err(format!("it has more than {MAX_DEVICES} devices"));
        }
        match spec.devices.iter().find(|device| !is_name(&device.name)) {
            Some(device) => Err(format!("{:?} is no name of a device", device.name)),
            None => Ok(spec),
        }
    }
}

impl Edits {
    /// What of it is not done.
    pub(crate) fn not_done(&self) -> Option<&'static str> {
        [
            (!self.hooks.is_empty(), "hooks"),
            (!self.net_devices.is_empty(), "network devices"),
            (self.intel_rdt.is_some(), "Intel RDT classes"),
        ]
        .into_iter()
        .find_map(|(wanted, what)| wanted.then_some(what))
    }
}

fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte);
    (1..=256).contains(&name.len()) && name.bytes().all(plain)
}
