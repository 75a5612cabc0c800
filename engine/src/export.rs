//! The export phase of a build: every exporter at once, then what they left to do.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::{try_join, try_join_all};
use kiln_cache::BlobProvider;
use kiln_digest::Digest;
use kiln_exporter::{Compatibility, ExportRequest, Exported, Exporter, Finalize, InlineCache, Source, Tools};
use kiln_frontend::{FrontendResult, Reference, References};
use kiln_solver::{ResultKey, VertexDigest};

use crate::build::BuildState;
use crate::caches::{self, CacheExports, InlineExport};
use crate::engine::{BuildRequest, BuildResponse};
use crate::error::{Error, Result, chain};
use crate::inline_cache::ImageRecords;
use crate::ops::common;
use crate::reference::SolvedRef;

/// Metadata of frontends that is handed to the client has this prefix there too.
const FRONTEND: &str = "frontend.";

/// Checks a request's exporters before anything is built for them.
pub(crate) fn resolve(tools: &Tools, request: &BuildRequest) -> Result<Vec<Arc<dyn Exporter>>> {
    let made = request
        .exporters
        .iter()
        .enumerate()
        .map(|(id, e)| kiln_exporter::resolve(&e.kind, id, &e.attrs, tools));
    made.collect::<Result<_, _>>().map_err(|e| Error::request(chain(&e)))
}

/// What the results are exported to.
pub(crate) struct Phase<'a> {
    pub(crate) tools: &'a Tools,
    pub(crate) exporters: Vec<Arc<dyn Exporter>>,
    pub(crate) caches: CacheExports,
}

/// Hands the results to every exporter, then writes caches beside what the exporters left to do.
pub(crate) async fn export(
    state: &Arc<BuildState>,
    request: &BuildRequest,
    phase: Phase<'_>,
    result: FrontendResult,
) -> Result<BuildResponse> {
    let Phase { tools, exporters, caches } = phase;
    let compatibility = Compatibility::parse(request.compatibility).map_err(|e| Error::request(chain(&e)))?;
    if !result.attestations.is_empty() {
        return Err(Error::request("attestations are not supported yet"));
    }
    // What nobody reads is not looked at.
    let source = if exporters.is_empty() { Source::default() } else { source(&result).await? };
    let wanted = caches.inline.is_some() || !caches.exports.is_empty();
    let keys = Arc::new(if wanted { keys(&result).await? } else { BTreeMap::new() });
    let running = exporters.iter().map(|exporter| {
        let inline = caches.inline.map(|inline| (inline, tools.clone(), Arc::clone(&keys)));
        one(state, exporter, compatibility, source.clone(), inline)
    });
    let exported = try_join_all(running).await?;

    let (mut response, mut results) = (BTreeMap::new(), BTreeMap::new());
    let mut finalizers = Vec::new();
    for (place, (exporter, exported)) in exporters.iter().zip(exported).enumerate() {
        response.extend(exported.response);
        results.extend(exported.descriptor.map(|descriptor| (place, descriptor)));
        finalizers.extend(exported.finalize.map(|f| finish(state, exporter, f)));
    }
    let keys: Vec<ResultKey> = keys.values().copied().collect();
    let caches = caches::export(state, tools, &caches.exports, &keys);
    let (_, written) = try_join(try_join_all(finalizers), caches).await?;
    response.extend(written);
    for (key, value) in &result.metadata {
        if let (true, Ok(value)) = (key.starts_with(FRONTEND), std::str::from_utf8(value)) {
            response.insert(key.clone(), value.to_owned());
        }
    }
    Ok(BuildResponse { exporter_response: response, metadata: result.metadata, results })
}

/// An export into an image's own configuration: with what, and the keys of all results by id.
type InlineOf = (InlineExport, Tools, Arc<BTreeMap<String, ResultKey>>);

async fn one(
    state: &Arc<BuildState>,
    exporter: &Arc<dyn Exporter>,
    compatibility: Compatibility,
    source: Source,
    inline: Option<InlineOf>,
) -> Result<Exported> {
    let scope =
        state.job.vertex_scope(exporter.kind().vertex_name(), vertex(state, exporter), |cx| async move {
            let provider: Arc<dyn BlobProvider> = Arc::new(common::provider(&state.worker, &cx));
            let inline_cache = inline.map(|(inline, tools, results)| ImageRecords {
                state: Arc::clone(state),
                tools,
                provider: Arc::clone(&provider),
                progress: cx.progress.clone(),
                results,
                ignore_error: inline.ignore_error,
            });
            let request = ExportRequest {
                source,
                compatibility,
                provider,
                inline_cache: inline_cache.map(|records| Arc::new(records) as Arc<dyn InlineCache>),
                sessions: state.worker.sessions.clone(),
                session: state.info.session_id.clone(),
                progress: cx.progress.clone(),
            };
            exporter.export(request).await.map_err(Shown)
        });
    cancellable(state, scope).await
}

async fn finish(state: &Arc<BuildState>, exporter: &Arc<dyn Exporter>, finalize: Finalize) -> Result<()> {
    let scope =
        state.job.vertex_scope(exporter.kind().vertex_name(), vertex(state, exporter), |cx| async move {
            finalize(cx.progress.clone()).await.map_err(Shown)
        });
    cancellable(state, scope).await
}

async fn cancellable<T>(state: &BuildState, work: impl Future<Output = Result<T, Shown>>) -> Result<T> {
    tokio::select! {
        done = work => done.map_err(|Shown(error)| Error::Export(Box::new(error))),
        () = state.cancel.cancelled() => Err(Error::Cancelled),
    }
}

/// An exporter's vertex is named by its session and position.
fn vertex(state: &BuildState, exporter: &Arc<dyn Exporter>) -> VertexDigest {
    VertexDigest(Digest::of(format!("{}-export-{}", state.info.session_id, exporter.id())))
}

/// An error that shows with all its causes, as vertices show it.
struct Shown(kiln_exporter::Error);

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&chain(&self.0))
    }
}

/// The filesystem states behind a frontend's references.
async fn source(result: &FrontendResult) -> Result<Source> {
    let mut source = Source { metadata: result.metadata.clone(), ..Source::default() };
    match &result.refs {
        References::Single(reference) => source.single = state_of(reference.as_ref()).await?,
        References::Map(map) => {
            for (id, reference) in map {
                source.refs.insert(id.clone(), state_of(reference.as_ref()).await?);
            }
        }
    }
    Ok(source)
}

/// The keys of all results, by id.
async fn keys(result: &FrontendResult) -> Result<BTreeMap<String, ResultKey>> {
    let mut keys = BTreeMap::new();
    for (id, reference) in result.iter() {
        keys.insert(id.to_owned(), solved(reference)?.solve().await?.key);
    }
    Ok(keys)
}

async fn state_of(reference: Option<&Arc<dyn Reference>>) -> Result<Option<kiln_cache::Ref>> {
    let Some(reference) = reference else { return Ok(None) };
    solved(reference)?.state().await
}

fn solved(reference: &Arc<dyn Reference>) -> Result<&SolvedRef> {
    let any: &dyn std::any::Any = reference.as_ref();
    any.downcast_ref::<SolvedRef>()
        .ok_or_else(|| Error::request("the frontend returned a reference that is not of this build"))
}
