//! Finding a cache's config: what is there is told by its content.

use std::collections::HashMap;
use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use kiln_content::{Descriptor, media_type};
use kiln_digest::Digest;
use serde::Deserialize;

use crate::CONFIG_TYPE;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::inline;

/// The largest manifest, index or config, in bytes.
pub(crate) const MAX_DOCUMENT: u64 = 1 << 20;

/// Where a cache is read from.
///
/// 1. `read` returns the bytes of a document, however it is stored, and none beyond `limit`. A descriptor of size 0 is
///    of unknown size. Whoever calls checks the digest.
/// 2. `has` tells whether a layer's blob can be had now, without reading it.
/// 3. `layer_source` is the text by which the catalogue's provider of blobs finds layers later.
#[async_trait]
pub trait CacheOrigin: fmt::Debug + Send + Sync {
    /// Reads a document.
    async fn read(&self, document: &Descriptor, limit: u64) -> Result<Bytes>;

    /// Looks whether a blob is there.
    async fn has(&self, blob: &Descriptor) -> Result<bool>;

    /// Says where its layers are.
    fn layer_source(&self, root: &Digest) -> String;
}

/// A cache that was found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Opened {
    /// What kind of document holds it together.
    pub kind: String,
    /// Its records.
    pub config: Config,
    /// Its layers, by digest.
    pub layers: HashMap<Digest, Descriptor>,
    /// What is worth a warning, although it is no reason to give up.
    pub notes: Vec<String>,
}

/// Reads the cache that `root` names: one with a config of its own, or one that images carry in theirs. An image without
/// one is an empty cache, and a note says so.
///
/// # Errors
/// Those of the origin; [`Error::TooLarge`], [`Error::Document`], [`Error::Records`].
pub async fn open(origin: &dyn CacheOrigin, root: &Descriptor) -> Result<Opened> {
    let outline = Outline::parse(&document(origin, root, MAX_DOCUMENT).await?)?;
    let kind = outline.kind();
    let is_config = |blob: &&Descriptor| blob.media_type == CONFIG_TYPE;
    let config = match &outline.manifests {
        Some(manifests) => manifests.iter().find(is_config),
        None => outline.config.as_ref().filter(is_config),
    };
    let Some(config) = config else {
        let inline::Found { config, layers, notes } = inline::read(origin, root.digest, outline).await?;
        return Ok(Opened { kind, config, layers, notes });
    };
    let config = Config::parse(&document(origin, config, MAX_DOCUMENT).await?)?;
    let layers = outline.manifests.or(outline.layers).unwrap_or_default().into_iter();
    let layers = layers.filter(|layer| !is_config(&layer)).map(|layer| (layer.digest, layer)).collect();
    Ok(Opened { kind, config, layers, notes: Vec::new() })
}

/// Reads a document of at most `limit` bytes.
pub(crate) async fn document(origin: &dyn CacheOrigin, document: &Descriptor, limit: u64) -> Result<Bytes> {
    within(&document.digest, document.size, limit)?;
    let bytes = origin.read(document, limit).await?;
    within(&document.digest, bytes.len() as u64, limit)?;
    let actual = Digest::of(&bytes);
    if actual != document.digest {
        return Err(Error::Digest { expected: document.digest, actual });
    }
    Ok(bytes)
}

/// Refuses what is larger than any honest document.
pub(crate) fn within(digest: &Digest, size: u64, limit: u64) -> Result<()> {
    if size > limit {
        return Err(Error::TooLarge { digest: *digest, size, limit });
    }
    Ok(())
}

/// What tells manifests from indexes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Outline {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    pub(crate) manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    pub(crate) config: Option<Descriptor>,
    #[serde(default)]
    pub(crate) layers: Option<Vec<Descriptor>>,
}

impl Outline {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes)
            .map_err(|error| Error::Document { what: "cache manifest", reason: error.to_string() })
    }

    fn kind(&self) -> String {
        match self.media_type.as_deref() {
            Some(kind) if !kind.is_empty() => kind.chars().take(200).collect(),
            _ if self.manifests.is_some() => media_type::OCI_INDEX.to_owned(),
            _ => media_type::OCI_MANIFEST.to_owned(),
        }
    }
}
