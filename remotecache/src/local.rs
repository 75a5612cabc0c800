//! Caches in a directory of the client, through the content store that its session offers.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kiln_content::Descriptor;
use kiln_digest::Digest;
use kiln_exporter::ExportedLayer;
use kiln_session::blobs::Blobs;
use kiln_session::{APPEAR_TIMEOUT, Sessions};
use kiln_source::image::{Layout, Origin};

use crate::error::{Error, Result};
use crate::export::{CacheTarget, Documents, Export};
use crate::open::{CacheOrigin, within};

/// Blobs on their way at a time.
const PARALLEL: usize = 4;

/// A directory of a client.
#[derive(Clone, Debug)]
pub struct LocalCache {
    sessions: Sessions,
    session: String,
    dir: String,
}

impl LocalCache {
    fn new(sessions: &Sessions, session: &str, dir: &str, what: &str) -> Result<Self> {
        if session.is_empty() {
            return Err(Error::invalid(format!("local cache {what} requires session")));
        }
        Ok(Self { sessions: sessions.clone(), session: session.to_owned(), dir: dir.to_owned() })
    }

    /// The directory that an export names as `dest`.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn target(sessions: &Sessions, session: &str, attrs: &BTreeMap<String, String>) -> Result<Self> {
        match attrs.get("dest").filter(|dest| !dest.is_empty()) {
            Some(dest) => Self::new(sessions, session, dest, "exporter"),
            None => Err(Error::invalid("local cache exporter requires dest")),
        }
    }

    /// The directory that an import names as `src`, and its root.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn origin(
        sessions: &Sessions,
        session: &str,
        attrs: &BTreeMap<String, String>,
    ) -> Result<(Self, Descriptor)> {
        let Some(digest) = attrs.get("digest").filter(|digest| !digest.is_empty()) else {
            return Err(Error::invalid("local cache importer requires explicit digest"));
        };
        let digest = digest
            .parse()
            .map_err(|_| Error::invalid(format!("invalid digest `{digest}` of a local cache import")))?;
        let Some(src) = attrs.get("src").filter(|src| !src.is_empty()) else {
            return Err(Error::invalid("local cache importer requires src"));
        };
        if src.contains('\n') {
            return Err(Error::invalid("the directory of a local cache import has a line break in its name"));
        }
        Ok((Self::new(sessions, session, src, "importer")?, Descriptor::new("", digest, 0)))
    }

    async fn blobs(&self) -> Result<Blobs> {
        let session = self.sessions.get(&self.session, APPEAR_TIMEOUT).await?;
        Ok(Blobs::new(session, format!("local:{}", self.dir)))
    }
}

#[async_trait]
impl CacheOrigin for LocalCache {
    async fn read(&self, document: &Descriptor, limit: u64) -> Result<Bytes> {
        let blobs = self.blobs().await?;
        let size = blobs.size(&document.digest).await?.ok_or(Error::NotFound(document.digest))?;
        within(&document.digest, size, limit)?;
        Ok(blobs.read_all(&document.digest, limit).await?)
    }

    async fn has(&self, blob: &Descriptor) -> Result<bool> {
        Ok(self.blobs().await?.size(&blob.digest).await? == Some(blob.size))
    }

    fn layer_source(&self, root: &Digest) -> String {
        Origin::Layout(Layout::cache(&self.dir, *root, &self.session)).to_string()
    }
}

#[async_trait]
impl CacheTarget for LocalCache {
    async fn write(&self, documents: &Documents, supply: &Export<'_>) -> Result<()> {
        let blobs = self.blobs().await?;
        let layers = documents.layers.iter().map(|layer| write_layer(&blobs, layer, supply));
        let layers: Vec<_> = layers.collect();
        stream::iter(layers).buffer_unordered(PARALLEL).try_collect::<()>().await?;
        let part = supply.begin(format!("writing config {}", documents.config.digest));
        put(&blobs, &documents.config, &documents.config_bytes).await?;
        drop(part);
        let _part = supply.begin(supply.root_part(&documents.root));
        put(&blobs, &documents.root, &documents.root_bytes).await
    }
}

async fn write_layer(blobs: &Blobs, layer: &ExportedLayer, supply: &Export<'_>) -> Result<()> {
    let Descriptor { digest, size, .. } = &layer.descriptor;
    let _part = supply.begin(format!("writing layer {digest}"));
    if blobs.size(digest).await? == Some(*size) {
        return Ok(());
    }
    supply.bring(layer).await?;
    let file = supply.content.open(digest).await?.ok_or(Error::NotFound(*digest))?;
    Ok(blobs.write_file(digest, *size, file).await?)
}

async fn put(blobs: &Blobs, descriptor: &Descriptor, bytes: &Bytes) -> Result<()> {
    let content = stream::iter([Ok(bytes.clone())]);
    Ok(blobs.write(&descriptor.digest, descriptor.size, content.boxed()).await?)
}
