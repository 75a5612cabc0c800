//! Manifests and indexes as registries serve them: told apart by what they contain.

use bytes::Bytes;
use kiln_content::{Descriptor, Index, Manifest, media_type};
use serde::Deserialize;

use crate::error::{Error, Result};

/// What a request for a manifest accepts.
pub(crate) const ACCEPT: &str = "application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, */*";

/// A parsed manifest or index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Box<Manifest>),
    /// A choice of manifests.
    Index(Box<Index>),
}

/// The fields that tell the kinds apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    config: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default, rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Parses a manifest or index.
    ///
    /// # Errors
    /// [`Error::InvalidManifest`] when it is neither, both, of the removed schema 1, or not what its own
    /// media type says.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let outline = Outline::parse(bytes)?;
        let fail = |reason: &dyn std::fmt::Display| Error::InvalidManifest { reason: reason.to_string() };
        if outline.is_index()? {
            Index::parse(bytes).map(|index| Self::Index(Box::new(index))).map_err(|e| fail(&with_cause(&e)))
        } else {
            Manifest::parse(bytes)
                .map(|manifest| Self::Manifest(Box::new(manifest)))
                .map_err(|e| fail(&with_cause(&e)))
        }
    }

    /// Returns what the document refers to: config and layers, or manifests.
    #[must_use]
    pub fn children(&self) -> Vec<&Descriptor> {
        match self {
            Self::Manifest(manifest) => std::iter::once(&manifest.config).chain(&manifest.layers).collect(),
            Self::Index(index) => index.manifests.iter().collect(),
        }
    }
}

impl Outline {
    fn parse(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|error| Error::InvalidManifest { reason: error.to_string() })
    }

    fn is_index(&self) -> Result<bool> {
        let fail = |reason: &str| Err(Error::InvalidManifest { reason: reason.to_owned() });
        let manifest = self.config.is_some() || self.layers.is_some();
        let index = self.manifests.is_some();
        if self.fs_layers.is_some() || self.schema_version == Some(1) {
            return fail(
                "Docker schema 1 images are no longer supported, rebuild the image in a newer format",
            );
        }
        let index = match (manifest, index) {
            (true, true) => return fail("invalid ambiguous manifest and manifest list"),
            (false, false) => return fail("it has neither layers nor manifests"),
            (_, index) => index,
        };
        match self.media_type.as_deref() {
            None | Some("") => {}
            Some(declared)
                if media_type::is_index(declared) == index && media_type::is_manifest(declared) != index => {}
            Some(_) => return fail("its media type disagrees with its content"),
        }
        Ok(index)
    }
}

/// Returns the media type of a document: what it declares, else the Docker type of its kind.
pub(crate) fn sniff(bytes: &Bytes) -> Result<String> {
    let outline = Outline::parse(bytes)?;
    let index = outline.is_index()?;
    Ok(match outline.media_type {
        Some(declared) if !declared.is_empty() => declared,
        _ if index => media_type::DOCKER_INDEX.to_owned(),
        _ => media_type::DOCKER_MANIFEST.to_owned(),
    })
}

/// Tells the media types that the `manifests` endpoint serves.
pub(crate) fn is_document(kind: &str) -> bool {
    media_type::is_index(kind)
        || media_type::is_manifest(kind)
        || kind.starts_with("application/vnd.docker.distribution.manifest.v1")
}

fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(json: &str, want: &str) {
        let bytes = Bytes::copy_from_slice(json.as_bytes());
        let got = match sniff(&bytes) {
            Ok(kind) => kind,
            Err(Error::InvalidManifest { reason }) => reason,
            Err(other) => other.to_string(),
        };
        assert_eq!(got, want, "{json}");
    }

    #[test]
    fn kinds_are_told_by_content() {
        check(r#"{"config":{},"layers":[]}"#, media_type::DOCKER_MANIFEST);
        check(r#"{"layers":[]}"#, media_type::DOCKER_MANIFEST);
        check(r#"{"manifests":[]}"#, media_type::DOCKER_INDEX);
        check(
            r#"{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#,
            media_type::OCI_INDEX,
        );
    }

    #[test]
    fn confusing_documents_are_refused() {
        check(r#"{"config":{},"manifests":[]}"#, "invalid ambiguous manifest and manifest list");
        check(
            r#"{"mediaType":"application/vnd.oci.image.index.v1+json","layers":[]}"#,
            "its media type disagrees with its content",
        );
        check(r#"{"mediaType":"text/plain","layers":[]}"#, "its media type disagrees with its content");
        check(
            r#"{"schemaVersion":1,"fsLayers":[]}"#,
            "Docker schema 1 images are no longer supported, rebuild the image in a newer format",
        );
        check("{}", "it has neither layers nor manifests");
        check("[", "EOF while parsing a list at line 1 column 1");
    }
}
