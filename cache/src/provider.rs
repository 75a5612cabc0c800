//! How a lazy layer gets its bytes.

use kiln_content::Descriptor;
use kiln_digest::Digest;

use crate::BoxError;

/// What the source of a layer begins with if an imported build cache lends it. What cannot be had of such a cache, or
/// turns out not to be what it promised, is no failure: the record is lost, and its step runs again.
pub const IMPORTED: &str = "cache+";

/// Makes blobs present in the content store.
///
/// Implementations keep these:
/// 1. After `fetch` returned `Ok`, the content store has the blob, verified.
/// 2. Dropping the future stops the work and leaves nothing half-written under the blob's name.
/// 3. Calls for different blobs run at the same time; the implementation holds its own limits.
#[async_trait::async_trait]
pub trait BlobProvider: Send + Sync {
    /// Fetches one blob from `source` (the text given with the layer) into the content store.
    async fn fetch(&self, source: &str, descriptor: &Descriptor) -> Result<(), BoxError>;
    /// Hears how unpacking goes. Downloading is reported by the provider itself.
    fn progress(&self, _event: LayerProgress) {}
}

/// Tells whether a source can be asked at all, now: the client that lends it may have gone.
pub trait SourceCheck: std::fmt::Debug + Send + Sync + 'static {
    /// Whether `source`, the text given with a layer, may still have it. Takes no time.
    fn may_have(&self, source: &str) -> bool;
}

/// One step of unpacking a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerProgress {
    /// The layer's blob.
    pub digest: Digest,
    /// Bytes of the blob unpacked so far.
    pub current: u64,
    /// Bytes of the blob.
    pub total: u64,
    /// What happened.
    pub phase: LayerPhase,
}

/// Where in its life an unpacked layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayerPhase {
    /// Unpacking has begun or goes on.
    Extracting,
    /// The layer is unpacked and verified.
    Done,
}

/// Provides nothing: for refs whose layers are all unpacked, or whose blobs are all in the content store.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProvider;

#[async_trait::async_trait]
impl BlobProvider for NoProvider {
    async fn fetch(&self, _source: &str, descriptor: &Descriptor) -> Result<(), BoxError> {
        Err(format!("nobody can provide blob `{}`", descriptor.digest).into())
    }
}
