//! Pushing images with the credentials of the client that asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use kiln_cache::BlobProvider;
use kiln_content::Descriptor;
use kiln_digest::Digest;
use kiln_exporter::{ExportedLayer, LayerMaker, PushRequest, Pusher};
use kiln_registry::{Access, BoxError, Observer, PushOptions, Reference, Registry, Supply};
use kiln_session::{FixedWaiters, Lender, Sessions};
use kiln_solver::{StatusUpdate, VertexProgress};
use kiln_source::SessionCredentials;

/// Pushes through the daemon's registry client.
#[derive(Debug)]
pub(crate) struct RegistryPusher {
    pub(crate) registry: Registry,
    pub(crate) content: Arc<dyn kiln_content::ContentStore>,
    pub(crate) sessions: Sessions,
    pub(crate) layers: Arc<LayerMaker>,
}

#[async_trait]
impl Pusher for RegistryPusher {
    async fn push(&self, request: PushRequest) -> Result<(), BoxError> {
        let reference = Reference::parse(&request.name)?;
        let registry =
            if request.insecure { self.registry.insecure(reference.host()) } else { self.registry.clone() };
        let lender =
            Lender::new(self.sessions.clone(), Arc::new(FixedWaiters(vec![request.session.clone()])));
        let credentials = SessionCredentials::new(lender);
        let observer = Shown { progress: request.progress.clone(), started: std::time::SystemTime::now() };
        let mut origins: BTreeMap<Digest, Vec<Reference>> = BTreeMap::new();
        for layer in &request.layers {
            if let Ok(origin) = Reference::parse(&layer.source) {
                origins.entry(layer.descriptor.digest).or_default().push(origin);
            }
        }
        let supply = Lazy { layers: &request.layers, maker: &self.layers, provider: &*request.provider };
        let options = PushOptions::default().by_digest(request.by_digest).origins(&origins).supply(&supply);
        let access = Access::new(&credentials).observed(&observer);
        registry.push(&reference, &request.root, &*self.content, options, access).await?;
        Ok(())
    }
}

/// Layers of base images that are fetched only when the registry lacks them.
struct Lazy<'a> {
    layers: &'a [ExportedLayer],
    maker: &'a LayerMaker,
    provider: &'a dyn BlobProvider,
}

impl std::fmt::Debug for Lazy<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lazy").field("layers", &self.layers.len()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Supply for Lazy<'_> {
    async fn supply(&self, descriptor: &Descriptor) -> Result<(), BoxError> {
        let layer = self.layers.iter().find(|l| l.descriptor.digest == descriptor.digest);
        let layer =
            layer.ok_or_else(|| format!("blob `{}` is not in the content store", descriptor.digest))?;
        self.maker.fetch(layer, self.provider).await?;
        Ok(())
    }
}

/// What is sent, as progress.
#[derive(Debug)]
struct Shown {
    progress: VertexProgress,
    started: std::time::SystemTime,
}

impl Observer for Shown {
    fn sent(&self, digest: &Digest, current: u64, total: u64) {
        self.progress.status(StatusUpdate {
            id: format!("pushing {digest}"),
            name: "pushing".to_owned(),
            current: i64::try_from(current).unwrap_or(i64::MAX),
            total: i64::try_from(total).unwrap_or(i64::MAX),
            started: Some(self.started),
            completed: (current >= total).then(std::time::SystemTime::now),
        });
    }

    fn log(&self, line: &str) {
        self.progress.log(kiln_solver::Stream::Stderr, line.as_bytes());
    }
}
