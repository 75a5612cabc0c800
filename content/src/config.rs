//! The image config: how to run an image and how it was made.

use std::collections::BTreeMap;

use kiln_digest::Digest;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::json;
use crate::platform::Platform;

type Set = BTreeMap<String, Empty>;

/// A JSON object without fields, the value in maps that are used as sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// The config of an image, as far as an engine looks at it. Field order is that of the OCI document.
///
/// To change a config and keep what is unknown here, edit it as a map of raw values instead (exporters do).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ImageConfig {
    /// When it was made, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// Which system it is for.
    #[serde(flatten)]
    pub platform: Platform,
    /// How to run it.
    #[serde(default, deserialize_with = "json::null_is_default")]
    pub config: Config,
    /// Its layers.
    #[serde(default, deserialize_with = "json::null_is_default")]
    pub rootfs: RootFs,
    /// How each layer came to be, bottom first.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "json::null_is_default")]
    pub history: Vec<History>,
}

impl ImageConfig {
    /// Parses a config.
    ///
    /// # Errors
    /// [`Error::Json`] when `bytes` are no config.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|source| Error::Json { document: "image config", source })
    }
}

/// How to run an image: the `config` part, with Docker's additions.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Config {
    /// User and group to run as.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Ports that are listened on.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "json::null_is_default")]
    pub exposed_ports: Set,
    /// `NAME=value` pairs.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "json::null_is_default")]
    pub env: Vec<String>,
    /// What every command line starts with.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "json::null_is_default")]
    pub entrypoint: Vec<String>,
    /// Default arguments.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "json::null_is_default")]
    pub cmd: Vec<String>,
    /// Directories that hold data of their own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "json::null_is_default")]
    pub volumes: Set,
    /// Directory to start in.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Free keys and values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "json::null_is_default")]
    pub labels: BTreeMap<String, String>,
    /// Signal that asks the process to stop.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Whether arguments are already escaped (Windows).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub args_escaped: bool,
    /// How health is checked; kept as it came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Box<RawValue>>,
    /// Instructions for images built on top.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "json::null_is_default")]
    pub on_build: Vec<String>,
    /// Seconds to wait before a process is killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    /// The shell of shell-form instructions.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "json::null_is_default")]
    pub shell: Vec<String>,
}

/// The layers of an image by their uncompressed digests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Diff IDs, bottom first. None is written as `null`.
    #[serde(default, with = "json::null_when_empty")]
    pub diff_ids: Vec<Digest>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: "layers".to_owned(), diff_ids: Vec::new() }
    }
}

/// How one layer (or none) came to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// When, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// By what command.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// By whom.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// Free text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// Whether there is no layer for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}
