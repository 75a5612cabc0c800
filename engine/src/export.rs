//! The export phase of a build: every exporter at once, then what they left to do.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::{try_join, try_join_all};
use kiln_digest::Digest;
use kiln_exporter::{Compatibility, ExportRequest, Exported, Exporter, Finalize, Source, Tools};
use kiln_frontend::{FrontendResult, Reference, References};
use kiln_solver::{ResultKey, VertexDigest};

use crate::build::BuildState;
use crate::caches::{self, CacheExport};
use crate::engine::{BuildRequest, BuildResponse};
use crate::error::{Error, Result, chain};
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
    pub(crate) caches: Vec<CacheExport>,
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
    let source = source(&result).await?;
    let running = exporters.iter().map(|exporter| one(state, exporter, compatibility, source.clone()));
    let exported = try_join_all(running).await?;

    let mut response = BTreeMap::new();
    let mut finalizers = Vec::new();
    for (exporter, exported) in exporters.iter().zip(exported) {
        response.extend(exported.response);
        finalizers.extend(exported.finalize.map(|f| finish(state, exporter, f)));
    }
    let keys = if caches.is_empty() { Vec::new() } else { keys(&result).await? };
    let caches = caches::export(state, tools, caches, &keys);
    let (_, written) = try_join(try_join_all(finalizers), caches).await?;
    response.extend(written);
    for (key, value) in &result.metadata {
        if let (true, Ok(value)) = (key.starts_with(FRONTEND), std::str::from_utf8(value)) {
            response.insert(key.clone(), value.to_owned());
        }
    }
    Ok(BuildResponse { exporter_response: response })
}

async fn one(
    state: &Arc<BuildState>,
    exporter: &Arc<dyn Exporter>,
    compatibility: Compatibility,
    source: Source,
) -> Result<Exported> {
    let scope =
        state.job.vertex_scope(exporter.kind().vertex_name(), vertex(state, exporter), |cx| async move {
            let request = ExportRequest {
                source,
                compatibility,
                provider: Arc::new(common::provider(&state.worker, &cx)),
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
    if !result.attestations.is_empty() {
        return Err(Error::request("attestations are not supported yet"));
    }
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

/// The keys of all results.
async fn keys(result: &FrontendResult) -> Result<Vec<ResultKey>> {
    let mut keys = Vec::new();
    for (_, reference) in result.iter() {
        keys.push(solved(reference)?.solve().await?.key.clone());
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
