//! Caches in registries.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use kiln_content::Descriptor;
use kiln_digest::Digest;
use kiln_registry::{Access, Credentials, PushOptions, Reference, Registry, Supply};

use crate::error::{BoxError, Error, Result};
use crate::export::{CacheTarget, Documents, Export};
use crate::open::{CacheOrigin, within};

/// A repository with a tag.
#[derive(Clone, Debug)]
pub struct RegistryCache {
    registry: Registry,
    reference: Reference,
    credentials: Arc<dyn Credentials>,
}

impl RegistryCache {
    /// What an export or import names as `ref`.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Registry`].
    pub fn new(
        registry: &Registry,
        credentials: Arc<dyn Credentials>,
        attrs: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let Some(name) = attrs.get("ref").filter(|name| !name.is_empty()) else {
            return Err(Error::invalid("missing ref"));
        };
        let reference = Reference::parse(name)?.or_latest();
        let registry = match attrs.get("registry.insecure").map(String::as_str) {
            None | Some("0" | "f" | "F" | "false" | "FALSE" | "False") => registry.clone(),
            Some("" | "1" | "t" | "T" | "true" | "TRUE" | "True") => registry.insecure(reference.host()),
            Some(other) => {
                return Err(Error::invalid(format!(
                    "failed to parse registry.insecure: invalid boolean {other:?}"
                )));
            }
        };
        Ok(Self { registry, reference, credentials })
    }

    /// Finds out what the tag names now.
    ///
    /// # Errors
    /// The registry's answer.
    pub async fn resolve(&self) -> Result<Descriptor> {
        Ok(self.registry.resolve(&self.reference, Access::new(&*self.credentials)).await?)
    }
}

#[async_trait]
impl CacheOrigin for RegistryCache {
    async fn read(&self, document: &Descriptor, limit: u64) -> Result<Bytes> {
        within(&document.digest, document.size, limit)?;
        Ok(self.registry.read(&self.reference, document, Access::new(&*self.credentials)).await?)
    }

    async fn has(&self, blob: &Descriptor) -> Result<bool> {
        Ok(self.registry.has_blob(&self.reference, blob, Access::new(&*self.credentials)).await?)
    }

    fn layer_source(&self, _root: &Digest) -> String {
        self.reference.to_string()
    }
}

#[async_trait]
impl CacheTarget for RegistryCache {
    async fn write(&self, documents: &Documents, supply: &Export<'_>) -> Result<()> {
        supply.keep(&documents.config_bytes).await?;
        supply.keep(&documents.root_bytes).await?;
        let layers = Layers { documents, supply };
        let options = PushOptions::default().supply(&layers);
        let _part = supply.begin(supply.root_part(&documents.root));
        let access = Access::new(&*self.credentials);
        self.registry.push(&self.reference, &documents.root, supply.content, options, access).await?;
        Ok(())
    }
}

/// Brings lazy layers when the registry turns out to lack them.
struct Layers<'a> {
    documents: &'a Documents,
    supply: &'a Export<'a>,
}

impl std::fmt::Debug for Layers<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layers").finish_non_exhaustive()
    }
}

#[async_trait]
impl Supply for Layers<'_> {
    async fn supply(&self, blob: &Descriptor) -> Result<(), BoxError> {
        let known = self.documents.layers.iter().find(|layer| layer.descriptor.digest == blob.digest);
        let layer = known.ok_or_else(|| format!("nobody can provide blob `{}`", blob.digest))?;
        Ok(self.supply.bring(layer).await?)
    }
}
