//! Writing a cache: the config, what holds it together, and the layers.

use std::fmt;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use kiln_cache::BlobProvider;
use kiln_content::{ContentStore, ContentStoreExt as _, Descriptor, Index, Manifest, json, media_type};
use kiln_exporter::{ExportedLayer, LayerMaker, Timestamp};
use kiln_solver::{StatusUpdate, VertexProgress};

use crate::attrs::ExportAttrs;
use crate::error::Result;
use crate::records::Records;
use crate::{CONFIG_TYPE, CREATED_AT, UNCOMPRESSED};

/// Where a cache is written to.
///
/// 1. After `write` returned `Ok`, the place has all layers, the config and the root document.
/// 2. The root comes last: a cache that was broken off is not one.
/// 3. What is there already is not sent, and need not be brought here.
#[async_trait]
pub trait CacheTarget: fmt::Debug + Send + Sync {
    /// Writes all of it.
    async fn write(&self, documents: &Documents, supply: &Export<'_>) -> Result<()>;
}

/// What is written.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Documents {
    /// The root: a manifest or an index.
    pub root: Descriptor,
    /// Its bytes.
    pub root_bytes: Bytes,
    /// The config.
    pub config: Descriptor,
    /// Its bytes.
    pub config_bytes: Bytes,
    /// The layers in the order of the config, each blob once.
    pub layers: Vec<ExportedLayer>,
}

/// An export under way.
#[derive(Clone, Copy)]
pub struct Export<'a> {
    /// How it is written.
    pub attrs: &'a ExportAttrs,
    /// Where layers are once they are made, and documents of the cache too.
    pub content: &'a dyn ContentStore,
    /// Brings lazy layers.
    pub maker: &'a LayerMaker,
    /// From whom.
    pub provider: &'a dyn BlobProvider,
    /// Where progress goes.
    pub progress: &'a VertexProgress,
}

impl fmt::Debug for Export<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export").field("attrs", self.attrs).finish_non_exhaustive()
    }
}

impl Export<'_> {
    /// Writes records; returns the root's descriptor, none if there is no result to write.
    ///
    /// # Errors
    /// Those of the target and of bringing layers.
    ///
    /// # Cancel safety
    /// Blobs that were written stay.
    pub async fn write(&self, records: Records, target: &dyn CacheTarget) -> Result<Option<Descriptor>> {
        let (config, layers) = records.into_config();
        if config.is_empty() {
            drop(self.begin("skipping cache export for empty result".to_owned()));
            return Ok(None);
        }
        let documents = self.documents(config.to_bytes(), layers);
        target.write(&documents, self).await?;
        Ok(Some(documents.root))
    }

    fn documents(&self, config: Vec<u8>, layers: Vec<ExportedLayer>) -> Documents {
        let config_bytes = Bytes::from(config);
        let config = Descriptor::of(CONFIG_TYPE, &config_bytes);
        let mut described: Vec<Descriptor> = Vec::new();
        let mut once: Vec<ExportedLayer> = Vec::new();
        // A blob that stands on different ones is listed as often as in the config, side by side, and written once.
        for layer in layers {
            described.push(self.describe(&layer));
            if once.last().is_none_or(|last| last.descriptor.digest != layer.descriptor.digest) {
                once.push(layer);
            }
        }
        let (kind, root) = if self.attrs.image_manifest {
            let manifest = Manifest {
                schema_version: 2,
                media_type: media_type::OCI_MANIFEST.to_owned(),
                artifact_type: String::new(),
                config: config.clone(),
                layers: described,
                subject: None,
                annotations: Default::default(),
            };
            (media_type::OCI_MANIFEST, json::compact(&manifest))
        } else {
            let kind = if self.attrs.oci { media_type::OCI_INDEX } else { media_type::DOCKER_INDEX };
            described.push(config.clone());
            let index = Index {
                schema_version: 2,
                media_type: kind.to_owned(),
                artifact_type: String::new(),
                manifests: described,
                subject: None,
                annotations: Default::default(),
            };
            (kind, json::compact(&index))
        };
        let root_bytes = Bytes::from(root);
        let root = Descriptor::of(kind, &root_bytes);
        Documents { root, root_bytes, config, config_bytes, layers: once }
    }

    /// A layer's descriptor as the root has it.
    fn describe(&self, layer: &ExportedLayer) -> Descriptor {
        let mut descriptor = layer.descriptor.clone();
        descriptor.media_type = if self.attrs.oci {
            media_type::to_oci_layer(&descriptor.media_type)
        } else {
            media_type::to_docker_layer(&descriptor.media_type)
        };
        descriptor.urls.clear();
        descriptor.platform = None;
        descriptor.annotations.retain(|key, _| key.starts_with("containerd.io/snapshot/stargz/"));
        let created_at = Timestamp::from(layer.created_at).to_string();
        descriptor.annotations.insert(CREATED_AT.to_owned(), created_at);
        descriptor.annotations.insert(UNCOMPRESSED.to_owned(), layer.diff_id.to_string());
        descriptor
    }

    /// Makes a layer's blob present in the content store.
    ///
    /// # Errors
    /// Those of its provider.
    pub async fn bring(&self, layer: &ExportedLayer) -> Result<()> {
        Ok(self.maker.fetch(layer, self.provider).await?)
    }

    /// Puts a document into the content store, for targets that send from there.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn keep(&self, bytes: &Bytes) -> Result<()> {
        self.content.put(bytes.clone()).await?;
        Ok(())
    }

    /// Shows that a part begins; it ends when the answer is dropped.
    pub fn begin(&self, id: String) -> impl Drop + use<> {
        let update = StatusUpdate { id, started: Some(SystemTime::now()), ..StatusUpdate::default() };
        self.progress.status(update.clone());
        Part { progress: self.progress.clone(), update }
    }

    /// What the part that writes the root is called.
    pub(crate) fn root_part(&self, root: &Descriptor) -> String {
        let what = if self.attrs.image_manifest { "image manifest" } else { "manifest" };
        format!("writing cache {what} {}", root.digest)
    }
}

struct Part {
    progress: VertexProgress,
    update: StatusUpdate,
}

impl Drop for Part {
    fn drop(&mut self) {
        self.update.completed = Some(SystemTime::now());
        self.progress.status(self.update.clone());
    }
}
