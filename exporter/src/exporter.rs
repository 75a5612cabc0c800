//! The port, and how an exporter is made from what a client asks for.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use kiln_cache::BlobProvider;
use kiln_content::{CodecPool, ContentStore, Descriptor};
use kiln_session::{Session, Sessions};
use kiln_solver::VertexProgress;

use crate::archive::ArchiveExporter;
use crate::error::{BoxError, Error, Result};
use crate::image::ImageExporter;
use crate::layers::{ExportedLayer, LayerMaker, LayerOptions};
use crate::local::LocalExporter;
use crate::push::Pusher;
use crate::source::Source;
use crate::tar::TarExporter;

/// How long a client may take to show up.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// The types of exporters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Image in the content store, and pushed.
    Image,
    /// OCI layout, as an archive or a directory.
    Oci,
    /// The same, readable by `docker load`.
    Docker,
    /// Files in a directory of the client.
    Local,
    /// Files in a tar.
    Tar,
}

impl Kind {
    /// Returns the name that clients use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Oci => "oci",
            Self::Docker => "docker",
            Self::Local => "local",
            Self::Tar => "tar",
        }
    }

    /// Returns the name of the vertex that the export is shown as.
    pub fn vertex_name(self) -> &'static str {
        match self {
            Self::Image => "exporting to image",
            Self::Oci => "exporting to oci image format",
            Self::Docker => "exporting to docker image format",
            Self::Local => "exporting to client directory",
            Self::Tar => "exporting to client tarball",
        }
    }
}

/// The version whose defaults a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Compatibility(u64);

impl Compatibility {
    /// The current version.
    pub const CURRENT: Self = Self(30);
    const SUPPORTED: [u64; 3] = [10, 20, 30];

    /// Checks the version of a solve request; 0 is the current one.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a version that is not known.
    pub fn parse(version: u64) -> Result<Self> {
        match version {
            0 => Ok(Self::CURRENT),
            known if Self::SUPPORTED.contains(&known) => Ok(Self(known)),
            newer if newer > Self::CURRENT.0 => Err(Error::invalid(format!(
                "unsupported compatibility-version {newer}: upgrade buildkit (max supported: {})",
                Self::CURRENT.0
            ))),
            other => {
                let list: Vec<String> = Self::SUPPORTED.iter().map(u64::to_string).collect();
                Err(Error::invalid(format!(
                    "unsupported compatibility-version {other} (supported: [{}])",
                    list.join(" ")
                )))
            }
        }
    }

    pub(crate) fn has_oci_defaults(self) -> bool {
        self.0 >= 30
    }

    pub(crate) fn has_zstd(self) -> bool {
        self.0 >= 20
    }

    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

/// What all exporters of a daemon share.
#[derive(Clone, Debug)]
pub struct Tools {
    pub(crate) content: Arc<dyn ContentStore>,
    pub(crate) layers: Arc<LayerMaker>,
    pub(crate) pusher: Option<Arc<dyn Pusher>>,
}

impl Tools {
    /// Exports through `content`; layers are compressed by the threads of `pool`.
    pub fn new(content: Arc<dyn ContentStore>, pool: CodecPool) -> Self {
        Self { layers: Arc::new(LayerMaker::new(Arc::clone(&content), pool)), content, pusher: None }
    }

    /// Pushes through `pusher`.
    #[must_use]
    pub fn with_pusher(mut self, pusher: Arc<dyn Pusher>) -> Self {
        self.pusher = Some(pusher);
        self
    }

    /// What makes layers, for cache exporters.
    pub fn layers(&self) -> &Arc<LayerMaker> {
        &self.layers
    }
}

/// Makes the cache records that an image carries in its config.
///
/// 1. `records` gets a platform of the result and the image's layers for it, bottom first, as the image has them.
/// 2. It returns the records as JSON, none if the build's cache has no result that consists of such layers.
#[async_trait]
pub trait InlineCache: fmt::Debug + Send + Sync {
    /// Makes the records for one image.
    async fn records(
        &self,
        platform: &str,
        layers: &[ExportedLayer],
        options: &LayerOptions,
    ) -> Result<Option<Vec<u8>>, BoxError>;
}

/// One export.
pub struct ExportRequest {
    /// What to export.
    pub source: Source,
    /// The version whose defaults apply.
    pub compatibility: Compatibility,
    /// Brings layers that are not here yet.
    pub provider: Arc<dyn BlobProvider>,
    /// The sessions of the daemon.
    pub sessions: Sessions,
    /// The session of the client that asked.
    pub session: String,
    /// Makes the cache that images carry, when that is wanted.
    pub inline_cache: Option<Arc<dyn InlineCache>>,
    /// Where progress goes.
    pub progress: VertexProgress,
}

impl ExportRequest {
    pub(crate) async fn client(&self) -> Result<Session> {
        Ok(self.sessions.get(&self.session, CLIENT_TIMEOUT).await?)
    }
}

impl fmt::Debug for ExportRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExportRequest")
            .field("source", &self.source)
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

/// What is left to do when all exporters are done; it gets a progress of its own.
pub type Finalize = Box<dyn FnOnce(VertexProgress) -> BoxFuture<'static, Result<()>> + Send>;

/// What an export resulted in.
#[derive(Default)]
pub struct Exported {
    /// Keys for the client.
    pub response: BTreeMap<String, String>,
    /// The top document, for the history.
    pub descriptor: Option<Descriptor>,
    /// The pushing, when there is something to push.
    pub finalize: Option<Finalize>,
}

impl fmt::Debug for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exported")
            .field("response", &self.response)
            .field("descriptor", &self.descriptor)
            .field("finalize", &self.finalize.is_some())
            .finish()
    }
}

/// Turns results into something outside the daemon.
///
/// 1. The same source and attributes give the same bytes, but for times when there is no epoch.
/// 2. A dropped future leaves nothing that looks complete.
#[async_trait]
pub trait Exporter: fmt::Debug + Send + Sync + 'static {
    /// What type it is.
    fn kind(&self) -> Kind;
    /// Its position among the exporters of the solve.
    fn id(&self) -> usize;
    /// Exports.
    async fn export(&self, request: ExportRequest) -> Result<Exported>;
}

/// Makes the exporter number `id` of a solve, of the type and with the attributes that the client asked for.
///
/// # Errors
/// [`Error::UnknownType`]; [`Error::Invalid`] for attributes that are no good.
pub fn resolve(
    kind: &str,
    id: usize,
    attrs: &BTreeMap<String, String>,
    tools: &Tools,
) -> Result<Arc<dyn Exporter>> {
    Ok(match kind {
        "image" => Arc::new(ImageExporter::new(id, attrs, tools.clone())?),
        "oci" => Arc::new(ArchiveExporter::new(Kind::Oci, id, attrs, tools.clone())?),
        "docker" => Arc::new(ArchiveExporter::new(Kind::Docker, id, attrs, tools.clone())?),
        "local" => Arc::new(LocalExporter::new(id, attrs)?),
        "tar" => Arc::new(TarExporter::new(id, attrs)?),
        other => return Err(Error::UnknownType(other.to_owned())),
    })
}
