//! Manifests and indexes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::descriptor::Descriptor;
use crate::error::{Error, Result};
use crate::json;

/// What an image consists of. Field order is that of the OCI document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    #[serde(default)]
    pub schema_version: u32,
    /// Its own media type.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// What kind of artifact this is, when it is no image.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub artifact_type: String,
    /// The image config.
    pub config: Descriptor,
    /// The layers, bottom first. None is written as `null`.
    #[serde(default, with = "json::null_when_empty")]
    pub layers: Vec<Descriptor>,
    /// What this manifest is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free keys and values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "json::null_is_default")]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// Parses a manifest.
    ///
    /// # Errors
    /// [`Error::Json`] when `bytes` are no manifest.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|source| Error::Json { document: "image manifest", source })
    }

    /// Writes it with two spaces of indentation.
    pub fn to_bytes(&self) -> Vec<u8> {
        json::pretty(self)
    }
}

/// A list of manifests, usually one for each platform. Field order is that of the OCI document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    #[serde(default)]
    pub schema_version: u32,
    /// Its own media type.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// What kind of artifact this is, when it is no image.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub artifact_type: String,
    /// The manifests. None is written as `null`.
    #[serde(default, with = "json::null_when_empty")]
    pub manifests: Vec<Descriptor>,
    /// What this index is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free keys and values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "json::null_is_default")]
    pub annotations: BTreeMap<String, String>,
}

impl Index {
    /// Parses an index.
    ///
    /// # Errors
    /// [`Error::Json`] when `bytes` are no index.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|source| Error::Json { document: "image index", source })
    }

    /// Writes it with two spaces of indentation.
    pub fn to_bytes(&self) -> Vec<u8> {
        json::pretty(self)
    }
}
