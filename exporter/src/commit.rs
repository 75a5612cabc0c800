//! Manifests, configs and indexes written into the content store.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::try_join_all;
use kiln_cache::{BlobProvider, Ref};
use kiln_content::{ContentStoreExt as _, Descriptor, ImageConfig, Index, Manifest, Platform, media_type};
use kiln_digest::Digest;
use kiln_solver::VertexProgress;

use crate::annotations::Annotations;
use crate::attrs::ImageAttrs;
use crate::config;
use crate::error::{Error, Result};
use crate::exporter::{ExportRequest, Tools};
use crate::layers::{ExportedLayer, LayerOptions, manifest_descriptor};
use crate::platforms::{epoch_of, platforms_of, state_of};
use crate::progress::begin;
use crate::source::{Source, keys};
use crate::timestamp::Timestamp;

/// An image in the content store, but for lazy layers.
#[derive(Clone, Debug)]
pub(crate) struct Committed {
    pub(crate) descriptor: Descriptor,
    /// The config, when there is one only.
    pub(crate) config: Option<Digest>,
    pub(crate) layers: Vec<ExportedLayer>,
}

/// Writes the image of a result.
pub(crate) async fn commit(tools: &Tools, request: &ExportRequest, attrs: &ImageAttrs) -> Result<Committed> {
    let source = &request.source;
    check(source, attrs)?;
    let platforms = platforms_of(source, "cannot export multiple platforms without multi-platform enabled")?;
    let commit = Commit { tools, attrs, progress: &request.progress, provider: &*request.provider };
    let states: Vec<Option<Ref>> =
        platforms.iter().map(|platform| state_of(source, &platform.id)).collect::<Result<_>>()?;
    let layers = commit.layers(&states).await?;
    let mut images = Vec::new();
    for (platform, layers) in platforms.iter().zip(layers) {
        let epoch = epoch_of(source, attrs.epoch, Some(&platform.id))?;
        let base = config::parse_base(source.metadata_for(keys::BASE_CONFIG, Some(&platform.id)))?;
        let layers = commit.rewritten(layers, base.as_ref(), epoch).await?;
        images.push((platform, base, epoch, layers));
    }
    if !source.is_map() {
        let annotations = attrs.annotations.of(None);
        if !annotations.index.is_empty() || !annotations.index_descriptor.is_empty() {
            return Err(Error::invalid("index annotations not supported for single platform export"));
        }
    }
    let mut manifests = Vec::new();
    let mut all_layers: Vec<ExportedLayer> = Vec::new();
    let mut only_config = None;
    for (platform, base, epoch, layers) in images {
        let image_config = source.metadata_for(keys::CONFIG, Some(&platform.id));
        let cache = inline_cache(request, &platform.id, &layers, &attrs.layers).await?;
        let image_config = config::patch(image_config, base.as_ref(), &layers, epoch, cache.as_deref())?;
        let annotations = attrs.annotations.of(source.is_map().then_some(&platform.platform));
        let (mut descriptor, config) = commit.manifest(image_config, &layers, annotations).await?;
        descriptor.platform = Some(platform.platform.clone());
        manifests.push(descriptor);
        only_config = Some(config);
        all_layers.extend(layers);
    }
    if !source.is_map()
        && let Some(descriptor) = manifests.pop()
    {
        return Ok(Committed { descriptor, config: only_config, layers: all_layers });
    }
    let descriptor = commit.index(manifests).await?;
    Ok(Committed { descriptor, config: None, layers: all_layers })
}

/// The cache that an image of these layers carries.
async fn inline_cache(
    request: &ExportRequest,
    platform: &str,
    layers: &[ExportedLayer],
    options: &LayerOptions,
) -> Result<Option<Vec<u8>>> {
    let Some(cache) = &request.inline_cache else { return Ok(None) };
    let _part = begin(&request.progress, "preparing layers for inline cache");
    cache.records(platform, layers, options).await.map_err(Error::InlineCache)
}

fn check(source: &Source, attrs: &ImageAttrs) -> Result<()> {
    source.refuse_attestations(attrs.inline_attestations)?;
    let known: Vec<Platform> = match source.is_map() {
        true => source.refs.keys().filter_map(|id| Platform::parse(id).ok()).collect(),
        false => Vec::new(),
    };
    for (platform, annotations) in attrs.annotations.iter() {
        let found = |platform: &str| known.iter().any(|known| known.to_string() == platform);
        if source.is_map() && !platform.is_empty() && source.find(platform).is_none() && !found(platform) {
            return Err(Error::invalid(format!(
                "invalid annotation: no platform {platform} found in source"
            )));
        }
        let Annotations { index, index_descriptor, manifest_descriptor, .. } = annotations;
        let needs_oci = [index, index_descriptor, manifest_descriptor].iter().any(|map| !map.is_empty());
        if needs_oci && !attrs.oci() {
            return Err(Error::invalid("cannot export annotations with \"oci-mediatypes=false\""));
        }
    }
    Ok(())
}

struct Commit<'a> {
    tools: &'a Tools,
    attrs: &'a ImageAttrs,
    progress: &'a VertexProgress,
    provider: &'a dyn BlobProvider,
}

impl Commit<'_> {
    async fn layers(&self, states: &[Option<Ref>]) -> Result<Vec<Vec<ExportedLayer>>> {
        let _part = begin(self.progress, "exporting layers");
        let work: Vec<_> = states.iter().map(|state| self.layers_of(state.as_ref()).boxed()).collect();
        try_join_all(work).await
    }

    async fn layers_of(&self, state: Option<&Ref>) -> Result<Vec<ExportedLayer>> {
        match state {
            Some(state) => self.tools.layers.layers(state, &self.attrs.layers, self.provider).await,
            None => Ok(Vec::new()),
        }
    }

    /// Rewrites the layers above the base image, when that was asked for.
    async fn rewritten(
        &self,
        layers: Vec<ExportedLayer>,
        base: Option<&ImageConfig>,
        epoch: Option<Timestamp>,
    ) -> Result<Vec<ExportedLayer>> {
        if !self.attrs.rewrite_timestamp {
            return Ok(layers);
        }
        let Some(epoch) = epoch else {
            tracing::warn!("rewrite-timestamp is specified, but no source-date-epoch was found");
            return Ok(layers);
        };
        let text = epoch.for_people();
        let id = format!("rewriting layers with source-date-epoch {} ({text})", epoch.seconds());
        let _part = begin(self.progress, id);
        let base = base.map(|base| base.rootfs.diff_ids.as_slice()).unwrap_or_default();
        let kept = layers.iter().zip(base).take_while(|(layer, base)| layer.diff_id == **base).count();
        let above = layers.iter().skip(kept).cloned();
        let work: Vec<_> = above.map(|layer| self.rewritten_layer(layer, epoch).boxed()).collect();
        let rewritten = try_join_all(work).await?;
        Ok(layers.iter().take(kept).cloned().chain(rewritten).collect())
    }

    async fn rewritten_layer(&self, layer: ExportedLayer, epoch: Timestamp) -> Result<ExportedLayer> {
        let options = &self.attrs.layers;
        let rewritten = self.tools.layers.rewrite(&layer, options, epoch.seconds(), self.provider).await;
        // A layer as it is is better than no image.
        Ok(rewritten.unwrap_or_else(|error| {
            tracing::warn!(%error, blob = %layer.descriptor.digest, "cannot rewrite layer to source-date-epoch");
            layer
        }))
    }

    async fn manifest(
        &self,
        config: Vec<u8>,
        layers: &[ExportedLayer],
        annotations: Annotations,
    ) -> Result<(Descriptor, Digest)> {
        let oci = self.attrs.oci();
        let config_type = if oci { media_type::OCI_CONFIG } else { media_type::DOCKER_CONFIG };
        let config_descriptor = Descriptor::of(config_type, &config);
        let config_digest = config_descriptor.digest;
        let manifest = Manifest {
            schema_version: 2,
            media_type: if oci { media_type::OCI_MANIFEST } else { media_type::DOCKER_MANIFEST }.to_owned(),
            artifact_type: String::new(),
            config: config_descriptor,
            layers: layers.iter().map(|layer| manifest_descriptor(layer, &self.attrs.layers, oci)).collect(),
            subject: None,
            annotations: annotations.manifest,
        };
        let bytes = manifest.to_bytes();
        let mut descriptor = Descriptor::of(manifest.media_type, &bytes);
        descriptor.annotations = annotations.manifest_descriptor;
        self.store(format!("exporting manifest {}", descriptor.digest), bytes).await?;
        self.store(format!("exporting config {config_digest}"), config).await?;
        Ok((descriptor, config_digest))
    }

    async fn index(&self, manifests: Vec<Descriptor>) -> Result<Descriptor> {
        let oci = self.attrs.oci();
        let annotations = self.attrs.annotations.of(None);
        let index = Index {
            schema_version: 2,
            media_type: if oci { media_type::OCI_INDEX } else { media_type::DOCKER_INDEX }.to_owned(),
            artifact_type: String::new(),
            manifests,
            subject: None,
            annotations: annotations.index,
        };
        let bytes = index.to_bytes();
        let mut descriptor = Descriptor::of(index.media_type, &bytes);
        descriptor.annotations = annotations.index_descriptor;
        self.store(format!("exporting manifest list {}", descriptor.digest), bytes).await?;
        Ok(descriptor)
    }

    async fn store(&self, part: String, bytes: Vec<u8>) -> Result<()> {
        let _part = begin(self.progress, part);
        self.tools.content.put(Bytes::from(bytes)).await?;
        Ok(())
    }
}

/// Returns the keys that every image export answers with.
pub(crate) fn response(committed: &Committed) -> BTreeMap<String, String> {
    use base64::Engine as _;
    let mut response = BTreeMap::new();
    let descriptor = kiln_content::json::compact(&committed.descriptor);
    response.insert(keys::DIGEST.to_owned(), committed.descriptor.digest.to_string());
    response
        .insert(keys::DESCRIPTOR.to_owned(), base64::engine::general_purpose::STANDARD.encode(descriptor));
    if let Some(config) = committed.config {
        response.insert(keys::CONFIG_DIGEST.to_owned(), config.to_string());
    }
    response
}

#[cfg(test)]
mod tests;
