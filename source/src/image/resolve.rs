//! Resolving: reference, index, manifest, config. Layers are named here and fetched by whoever reads them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use kiln_cache::{CacheManager, LayerBlob, RecordOptions, RecordType, Ref};
use kiln_content::{ContentStore, Descriptor, ImageConfig, Platform, media_type};
use kiln_digest::Digest;
use kiln_registry::{Access, Document, Reference, Registry};
use kiln_solver::{CacheMapPart, VertexProgress};
use tokio::sync::OnceCell;

use crate::error::{Error, Result};
use crate::image::holders::OneByOne;
use crate::image::key::{config_key, manifest_key};
use crate::image::provider::Layouts;
use crate::image::request::{ImageRequest, Origin};
use crate::key::cache_map;
use crate::platform::{best_match, matches};
use crate::progress::{Reporter, Step};

/// Indexes in indexes, beyond these, are not followed.
const MAX_DEPTH: usize = 4;
/// The largest manifest, index or config, in bytes.
const MAX_DOCUMENT: u64 = 8 << 20;
/// How long documents stay after their last use.
const DOCUMENT_LEASE: Duration = Duration::from_secs(24 * 3600);
/// Repositories remembered for one root.
const MAX_REPOSITORIES: usize = 16;
/// Platforms listed in an error.
const MAX_OFFERED: usize = 12;

/// Finds images and makes lazy refs of them.
#[derive(Clone, Debug)]
pub struct Images {
    registry: Registry,
    content: Arc<dyn ContentStore>,
    cache: CacheManager,
    fetching: Arc<Mutex<HashMap<Digest, Weak<Fetching>>>>,
}

/// Held by whoever fetches a blob; the next in line finds it there, or takes over.
type Fetching = tokio::sync::Mutex<()>;

/// An image for one platform.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Image {
    /// Where it came from.
    pub origin: Origin,
    /// What the reference names: an index or a manifest.
    pub root: Descriptor,
    /// The manifest chosen for the platform.
    pub manifest: Descriptor,
    /// The image config's descriptor.
    pub config: Descriptor,
    /// The image config as it was stored.
    pub config_bytes: Bytes,
    /// The layers, bottom first.
    pub layers: Vec<Descriptor>,
}

/// What a build has resolved already, so that a reference means one thing throughout.
#[derive(Debug, Default)]
pub struct Resolutions(Mutex<HashMap<(Origin, Platform), Slot>>);

/// Whoever comes first resolves; when that one goes away, the next takes over.
type Slot = Arc<OnceCell<Arc<Image>>>;

impl Resolutions {
    /// Makes an empty memory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn slot(&self, request: &ImageRequest) -> Slot {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry((request.origin.clone(), request.platform.clone())).or_default().clone()
    }
}

/// By whose leave documents are read.
#[derive(Clone, Copy)]
struct From<'a> {
    origin: &'a Origin,
    access: Access<'a>,
    layouts: &'a dyn Layouts,
}

impl Images {
    /// Makes a finder over its ports.
    #[must_use]
    pub fn new(registry: Registry, content: Arc<dyn ContentStore>, cache: CacheManager) -> Self {
        Self { registry, content, cache, fetching: Arc::default() }
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(crate) fn content(&self) -> &dyn ContentStore {
        &*self.content
    }

    /// Waits until nobody else fetches the blob.
    pub(crate) async fn turn_to_fetch(&self, digest: &Digest) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
            fetching.retain(|_, turn| turn.strong_count() > 0);
            let known = fetching.get(digest).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let turn = Arc::new(Fetching::default());
                fetching.insert(*digest, Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }

    /// Resolves an image: its root, the manifest for the platform, and the config. No layer is fetched.
    /// What `memory` has is not asked for again.
    ///
    /// # Errors
    /// [`Error::NoPlatform`], [`Error::Checksum`], [`Error::InvalidImage`], or the registry's answer.
    ///
    /// # Cancel safety
    /// Documents that arrived stay in the content store.
    pub async fn resolve(
        &self,
        request: &ImageRequest,
        memory: &Resolutions,
        access: Access<'_>,
        layouts: &dyn Layouts,
        progress: &VertexProgress,
    ) -> Result<Arc<Image>> {
        let slot = memory.slot(request);
        let image = slot
            .get_or_try_init(|| async {
                let _step = Step::start(progress, format!("resolve {}", request.origin.reference()));
                let reporter = Reporter::new(progress.clone());
                let mut holders = OneByOne::new(access.credentials());
                loop {
                    let access = Access::new(holders.current()).observed(&reporter);
                    let from = From { origin: &request.origin, access, layouts };
                    match self.resolve_now(from, &request.platform).await {
                        Ok(image) => return Ok::<_, Error>(Arc::new(image)),
                        Err(error) => holders.refused(error)?,
                    }
                }
            })
            .await?;
        if let Some(expected) = request.checksum.filter(|expected| *expected != image.root.digest) {
            return Err(Error::Checksum {
                reference: request.origin.reference(),
                actual: image.root.digest,
                expected,
            });
        }
        Ok(Arc::clone(image))
    }

    /// Resolves a reference to its root and nothing more.
    ///
    /// # Errors
    /// The registry's answer.
    pub async fn resolve_root(&self, request: &ImageRequest, access: Access<'_>) -> Result<Descriptor> {
        match &request.origin {
            Origin::Registry(reference) => self.registry_root(reference, access).await,
            Origin::Layout(layout) => Ok(Descriptor::new(String::new(), layout.digest, 0)),
        }
    }

    /// Makes the lazy ref of an image: a chain of layers that are fetched when somebody reads them. `None`: it
    /// has no layers.
    ///
    /// # Errors
    /// [`Error::InvalidImage`] when layers and diff IDs do not fit, [`Error::LayerLimit`].
    pub async fn snapshot(&self, image: &Image, request: &ImageRequest) -> Result<Option<Ref>> {
        let reference = image.origin.reference();
        let diff_ids = image.diff_ids()?;
        let layers = image.layers.len();
        let limit = request.layer_limit.unwrap_or(layers);
        let Some(wanted) = image.layers.get(..limit) else {
            return Err(Error::LayerLimit { limit, layers });
        };
        let source = image.origin.to_string();
        let mut top: Option<Ref> = None;
        for (at, (layer, diff_id)) in wanted.iter().zip(diff_ids).enumerate() {
            let record_type = match request.record_type {
                Some(record_type) if at + 1 == limit => record_type,
                _ => RecordType::Regular,
            };
            let options = RecordOptions::new(format!("pulled from {reference}"), record_type);
            let blob = LayerBlob { descriptor: layer.clone(), diff_id, source: source.clone() };
            top = Some(self.cache.lazy_layer(top.as_ref(), blob, options).await?);
        }
        Ok(top)
    }

    async fn resolve_now(&self, from: From<'_>, platform: &Platform) -> Result<Image> {
        let root = match from.origin {
            Origin::Registry(reference) => self.registry_root(reference, from.access).await?,
            Origin::Layout(layout) => from.layouts.descriptor(layout).await?,
        };
        let (manifest, document) = self.choose(from, &root, platform).await?;
        let config_bytes = self.document(from, &document.config).await?;
        if let Origin::Registry(reference) = from.origin {
            self.remember(reference, &root.digest).await?;
        }
        let image = Image {
            origin: from.origin.clone(),
            root,
            manifest,
            config: document.config,
            config_bytes,
            layers: document.layers,
        };
        Ok(image)
    }

    /// Follows indexes down to the manifest for the platform.
    async fn choose(
        &self,
        from: From<'_>,
        root: &Descriptor,
        platform: &Platform,
    ) -> Result<(Descriptor, kiln_content::Manifest)> {
        let mut current = root.clone();
        for _depth in 0..MAX_DEPTH {
            let bytes = self.document(from, &current).await?;
            let index = match Document::parse(&bytes)? {
                Document::Manifest(manifest) => return Ok((current, *manifest)),
                Document::Index(index) => index,
            };
            let mut manifests = index.manifests;
            let offered = offered(&manifests);
            current = loop {
                let Some(at) = best_match(platform, &manifests) else {
                    return Err(Error::NoPlatform {
                        reference: from.origin.reference(),
                        root: current.digest,
                        platform: platform.to_string(),
                        offered,
                    });
                };
                let found = manifests.swap_remove(at);
                if self.suits(from, &found, platform).await? {
                    break found;
                }
            };
        }
        Err(invalid(from.origin, "its indexes are nested too deeply"))
    }

    /// Looks into the config of a manifest that its index says nothing about.
    async fn suits(&self, from: From<'_>, found: &Descriptor, platform: &Platform) -> Result<bool> {
        if found.platform.is_some() || !media_type::is_manifest(&found.media_type) {
            return Ok(true);
        }
        let bytes = self.document(from, found).await?;
        let Document::Manifest(manifest) = Document::parse(&bytes)? else { return Ok(false) };
        if !media_type::is_config(&manifest.config.media_type) {
            return Ok(false);
        }
        let config = self.document(from, &manifest.config).await?;
        Ok(ImageConfig::parse(&config).is_ok_and(|config| matches(platform, &config.platform)))
    }

    /// Finds what a reference names. A digest whose content is here from that repository needs no registry.
    async fn registry_root(&self, reference: &Reference, access: Access<'_>) -> Result<Descriptor> {
        if let Some(digest) = reference.digest()
            && self.repositories(digest).await?.contains(&reference.name())
            && let Some(bytes) = self.content.read_all(digest, MAX_DOCUMENT).await?
            && let Ok(document) = Document::parse(&bytes)
        {
            let kind = match &document {
                Document::Manifest(manifest) => &manifest.media_type,
                Document::Index(index) => &index.media_type,
            };
            let kind = match (kind.as_str(), &document) {
                ("", Document::Manifest(_)) => media_type::DOCKER_MANIFEST,
                ("", Document::Index(_)) => media_type::DOCKER_INDEX,
                (kind, _) => kind,
            };
            return Ok(Descriptor::new(kind, *digest, bytes.len() as u64));
        }
        Ok(self.registry.resolve(reference, access).await?)
    }

    /// Reads a document out of the content store, after fetching it if need be.
    async fn document(&self, from: From<'_>, descriptor: &Descriptor) -> Result<Bytes> {
        if descriptor.size > MAX_DOCUMENT {
            return Err(invalid(
                from.origin,
                &format!(
                    "`{}` has {} bytes, the limit is {MAX_DOCUMENT}",
                    descriptor.digest, descriptor.size
                ),
            ));
        }
        // Reading removes a damaged one, so it is fetched again in the second round.
        for _round in 0..2 {
            match from.origin {
                Origin::Registry(reference) => {
                    self.registry.fetch_into(&*self.content, reference, descriptor, from.access).await?;
                }
                Origin::Layout(layout) => {
                    from.layouts.fetch(layout, descriptor, &*self.content, &mut |_, _| {}).await?;
                }
            }
            let expires = SystemTime::now().checked_add(DOCUMENT_LEASE);
            self.cache.lease_blob("image-documents", descriptor.digest, expires).await?;
            if let Some(bytes) = self.content.read_all(&descriptor.digest, MAX_DOCUMENT).await? {
                return Ok(bytes);
            }
        }
        Err(kiln_content::Error::NotFound(descriptor.digest).into())
    }

    async fn repositories(&self, root: &Digest) -> Result<Vec<String>> {
        let fact = self.cache.fact(&fact_name(root)).await?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&fact).lines().map(str::to_owned).collect())
    }

    /// Remembers that a repository has a root, so that asking for it by digest needs no request.
    async fn remember(&self, reference: &Reference, root: &Digest) -> Result<()> {
        let mut repositories = self.repositories(root).await?;
        let name = reference.name();
        if repositories.contains(&name) {
            return Ok(());
        }
        repositories.insert(0, name);
        repositories.truncate(MAX_REPOSITORIES);
        self.cache.set_fact(&fact_name(root), Some(repositories.join("\n").into_bytes())).await?;
        Ok(())
    }
}

impl Image {
    /// Returns the cache map of this image, number `index`: 0 for what it is, 1 for what its layers are.
    ///
    /// # Errors
    /// [`Error::LayerLimit`], [`Error::InvalidImage`].
    pub fn cache_map(&self, request: &ImageRequest, index: usize) -> Result<CacheMapPart> {
        let key = match index {
            0 => None,
            _ => config_key(&self.origin.reference(), &self.config_bytes, request.layer_limit)?,
        };
        let key =
            key.unwrap_or_else(|| manifest_key(&self.root.digest, &request.platform, request.layer_limit));
        Ok(cache_map(&key, index > 0))
    }

    fn diff_ids(&self) -> Result<Vec<Digest>> {
        let config = ImageConfig::parse(&self.config_bytes)
            .map_err(|error| invalid(&self.origin, &format!("failed to parse image config: {error}")))?;
        let diff_ids = config.rootfs.diff_ids;
        if diff_ids.len() != self.layers.len() {
            return Err(invalid(
                &self.origin,
                &format!(
                    "mismatched image rootfs and manifest layers: {} and {}",
                    diff_ids.len(),
                    self.layers.len()
                ),
            ));
        }
        Ok(diff_ids)
    }
}

fn fact_name(root: &Digest) -> String {
    format!("image-root:{root}")
}

fn invalid(origin: &Origin, reason: &str) -> Error {
    Error::InvalidImage { reference: origin.reference(), reason: reason.to_owned() }
}

fn offered(manifests: &[Descriptor]) -> String {
    let mut offered: Vec<String> = manifests
        .iter()
        .filter_map(|manifest| manifest.platform.as_ref())
        .filter(|platform| platform.os != "unknown")
        .map(ToString::to_string)
        .take(MAX_OFFERED)
        .collect();
    if offered.is_empty() {
        offered.push("none".to_owned());
    }
    offered.join(", ")
}
