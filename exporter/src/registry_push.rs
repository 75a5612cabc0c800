//! Pushing over the distribution protocol.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use kiln_content::{ContentStore, Descriptor};
use kiln_digest::Digest;
use kiln_registry::{Access, Credentials, Observer, PushOptions, Reference, Registry, Supply};
use kiln_solver::{Stream, VertexProgress};

use crate::error::BoxError;
use crate::push::{PushRequest, Pusher};

/// Lends the credentials of a session.
pub type LendCredentials = Arc<dyn Fn(&str) -> Arc<dyn Credentials> + Send + Sync>;

/// Pushes to registries.
pub struct RegistryPusher {
    registry: Registry,
    content: Arc<dyn ContentStore>,
    credentials: LendCredentials,
}

impl fmt::Debug for RegistryPusher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryPusher").field("registry", &self.registry).finish_non_exhaustive()
    }
}

impl RegistryPusher {
    /// Pushes what is in `content` through `registry`.
    pub fn new(registry: Registry, content: Arc<dyn ContentStore>, credentials: LendCredentials) -> Self {
        Self { registry, content, credentials }
    }
}

#[async_trait]
impl Pusher for RegistryPusher {
    async fn push(&self, request: PushRequest) -> Result<(), BoxError> {
        let reference = Reference::parse(&request.name)?.or_latest();
        let registry =
            if request.insecure { self.registry.insecure(reference.host()) } else { self.registry.clone() };
        let origins = origins(&request);
        let supply = Layers { request: &request };
        let observer = Log(request.progress.clone());
        let credentials = (self.credentials)(&request.session);
        let options = PushOptions::default().by_digest(request.by_digest).origins(&origins).supply(&supply);
        let access = Access::new(&*credentials).observed(&observer);
        registry.push(&reference, &request.root, &*self.content, options, access).await?;
        Ok(())
    }
}

/// Repositories that layers came from.
fn origins(request: &PushRequest) -> BTreeMap<Digest, Vec<Reference>> {
    let mut origins: BTreeMap<Digest, Vec<Reference>> = BTreeMap::new();
    for layer in request.layers.iter().filter(|layer| !layer.source.is_empty()) {
        if let Ok(reference) = Reference::parse(&layer.source) {
            origins.entry(layer.descriptor.digest).or_default().push(reference);
        }
    }
    origins
}

/// Brings lazy layers when the registry turns out to lack them.
struct Layers<'a> {
    request: &'a PushRequest,
}

impl fmt::Debug for Layers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layers").finish_non_exhaustive()
    }
}

#[async_trait]
impl Supply for Layers<'_> {
    async fn supply(&self, descriptor: &Descriptor) -> Result<(), BoxError> {
        let known = self.request.layers.iter().find(|layer| layer.descriptor.digest == descriptor.digest);
        let layer = known.ok_or_else(|| format!("nobody can provide blob `{}`", descriptor.digest))?;
        self.request.provider.fetch(&layer.source, &layer.descriptor).await
    }
}

#[derive(Debug)]
struct Log(VertexProgress);

impl Observer for Log {
    fn log(&self, line: &str) {
        self.0.log(Stream::Stderr, line.as_bytes());
    }
}
