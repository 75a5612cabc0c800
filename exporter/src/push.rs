//! The port through which images reach registries.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use kiln_cache::BlobProvider;
use kiln_content::Descriptor;
use kiln_solver::VertexProgress;

use crate::error::BoxError;
use crate::layers::ExportedLayer;

/// What is to be pushed.
#[non_exhaustive]
pub struct PushRequest {
    /// The name as the user wrote it, not normalised.
    pub name: String,
    /// The top document. It and everything below it but lazy layers is in the content store.
    pub root: Descriptor,
    /// Push without a tag.
    pub by_digest: bool,
    /// Plain http, or https without verification.
    pub insecure: bool,
    /// The session whose credentials to use.
    pub session: String,
    /// The layers, some of which may not be in the content store but have a source.
    pub layers: Vec<ExportedLayer>,
    /// Brings such layers.
    pub provider: Arc<dyn BlobProvider>,
    /// Where progress goes.
    pub progress: VertexProgress,
}

impl fmt::Debug for PushRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PushRequest")
            .field("name", &self.name)
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

/// Pushes images.
///
/// 1. After `push` returned `Ok`, the registry has the root under the name and everything below it.
/// 2. What the registry has already is not sent.
#[async_trait]
pub trait Pusher: fmt::Debug + Send + Sync + 'static {
    /// Pushes one image under one name.
    async fn push(&self, request: PushRequest) -> Result<(), BoxError>;
}
