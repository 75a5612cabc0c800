//! The cache that the images of a build carry in their configs.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use kiln_cache::BlobProvider;
use kiln_exporter::{BoxError, ExportedLayer, InlineCache, LayerOptions, Tools};
use kiln_remotecache::{Mode, Walk, collect};
use kiln_solver::{ResultKey, VertexDigest, VertexProgress, WarningEvent};

use crate::build::BuildState;

/// Makes the records for the images of one exporter.
pub(crate) struct ImageRecords {
    pub(crate) state: Arc<BuildState>,
    pub(crate) tools: Tools,
    pub(crate) provider: Arc<dyn BlobProvider>,
    pub(crate) progress: VertexProgress,
    /// By the id of their platform; the only one has the empty id.
    pub(crate) results: Arc<BTreeMap<String, ResultKey>>,
    /// Images go without a cache that cannot be made.
    pub(crate) ignore_error: bool,
}

impl std::fmt::Debug for ImageRecords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageRecords").field("state", &self.state).finish_non_exhaustive()
    }
}

impl ImageRecords {
    async fn make(
        &self,
        result: &ResultKey,
        layers: &[ExportedLayer],
        options: &LayerOptions,
    ) -> kiln_remotecache::Result<Option<Vec<u8>>> {
        let keys = self.state.job.keys();
        let walk = Walk {
            keys: &keys,
            mode: Mode::Min,
            layers: options,
            maker: self.tools.layers(),
            provider: &*self.provider,
        };
        // A job that has ended has nobody to export for.
        let Ok(graph) = self.state.job.key_graph(std::slice::from_ref(result)) else { return Ok(None) };
        Ok(collect(walk, &graph).await?.into_inline(layers))
    }
}

#[async_trait]
impl InlineCache for ImageRecords {
    async fn records(
        &self,
        platform: &str,
        layers: &[ExportedLayer],
        options: &LayerOptions,
    ) -> Result<Option<Vec<u8>>, BoxError> {
        let Some(result) = self.results.get(platform).or_else(|| self.results.get("")) else {
            return Ok(None);
        };
        match self.make(result, layers, options).await {
            Ok(None) => {
                self.progress.warn(warning("failed to match any cache with layers".to_owned()));
                Ok(None)
            }
            Err(error) if self.ignore_error => {
                let reason = crate::error::chain(&error);
                self.progress.warn(warning(format!("exporting without inline cache: {reason}")));
                Ok(None)
            }
            made => Ok(made?),
        }
    }
}

/// A warning of one line; whoever passes it on says of which vertex.
pub(crate) fn warning(short: String) -> WarningEvent {
    WarningEvent {
        vertex: VertexDigest(kiln_digest::Digest::of("")),
        level: 1,
        short: short.into(),
        detail: Vec::new(),
        url: String::new(),
        file: String::new(),
        language: String::new(),
        data: Default::default(),
        ranges: Vec::new(),
    }
}
