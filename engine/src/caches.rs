//! The build caches of a build: those it looks into, and those it writes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::future::try_join_all;
use kiln_cache::{IMPORTED, SourceCheck};
use kiln_digest::Digest;
use kiln_exporter::Tools;
use kiln_remotecache::local::LocalCache;
use kiln_remotecache::registry::RegistryCache;
use kiln_remotecache::{
    CacheOrigin, CacheTarget, Export, ExportAttrs, ImportedKeys, LayerStore, Walk, collect, open,
};
use kiln_session::{FixedWaiters, Lender, Sessions};
use kiln_solver::{
    Backlink, CacheRecord, KeyAndSelector, KeyDigest, KeyId, KeySource, Lookup, OpContext, OutputIndex,
    RecordId, ResultKey, ResultRef, StatusUpdate, VertexDigest, VertexProgress,
};
use kiln_source::SessionCredentials;
use kiln_source::image::{LayoutKind, Origin};
use tokio::sync::OnceCell;

use crate::build::BuildState;
use crate::engine::{BuildRequest, CacheSpec};
use crate::error::{Error, Result, chain};
use crate::inline_cache::warning;
use crate::ops::common;
use crate::worker::Worker;

/// How long a cache may take to be opened. Beyond that the build goes on without it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Kinds that the reference has and this engine does not.
const NOT_YET: [&str; 3] = ["gha", "s3", "azblob"];
/// Caches that one build may look into.
const MAX_IMPORTS: usize = 64;

/// Knows which clients that lend layers are still there.
#[derive(Debug)]
pub(crate) struct LiveSources(pub(crate) Sessions);

impl SourceCheck for LiveSources {
    fn may_have(&self, source: &str) -> bool {
        match source.strip_prefix(IMPORTED).map(Origin::parse) {
            Some(Ok(Origin::Layout(layout))) if layout.kind == LayoutKind::Cache => {
                self.0.is_open(&layout.session)
            }
            _ => true,
        }
    }
}

/// A cache to be written when the build is done.
#[derive(Debug)]
pub(crate) struct CacheExport {
    kind: &'static str,
    position: usize,
    attrs: ExportAttrs,
    target: Arc<dyn CacheTarget>,
}

/// The caches that a build writes.
#[derive(Debug, Default)]
pub(crate) struct CacheExports {
    /// Those in places of their own.
    pub(crate) exports: Vec<CacheExport>,
    /// Images carry one. However often that is asked for, they carry one only.
    pub(crate) inline: Option<InlineExport>,
    /// Why some that may fail are left out.
    pub(crate) left_out: Vec<String>,
}

/// The cache that images carry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InlineExport {
    pub(crate) ignore_error: bool,
}

/// Checks a request's cache exports before anything is built for them. What may fail is left out, with the reason.
pub(crate) fn resolve(worker: &Worker, request: &BuildRequest) -> Result<CacheExports> {
    let mut resolved = CacheExports::default();
    for (position, spec) in request.cache_exports.iter().enumerate() {
        if request.cache_exports.iter().take(position).any(|other| other == spec) {
            return Err(Error::request(format!("duplicate cache exports [{} {:?}]", spec.kind, spec.attrs)));
        }
        let attrs = match ExportAttrs::parse(&spec.attrs) {
            Ok(attrs) => attrs,
            Err(error) => return Err(not_configured(spec, &chain(&error))),
        };
        if spec.kind == "inline" {
            resolved.inline = Some(InlineExport { ignore_error: attrs.ignore_error });
            continue;
        }
        match target(worker, request, spec) {
            Ok((kind, target)) => resolved.exports.push(CacheExport { kind, position, attrs, target }),
            Err(error) if attrs.ignore_error => resolved.left_out.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    Ok(resolved)
}

fn not_configured(spec: &CacheSpec, reason: &str) -> Error {
    Error::request(format!("failed to configure {} cache exporter: {reason}", spec.kind))
}

fn target(
    worker: &Worker,
    request: &BuildRequest,
    spec: &CacheSpec,
) -> Result<(&'static str, Arc<dyn CacheTarget>)> {
    let configured = |error: kiln_remotecache::Error| not_configured(spec, &chain(&error));
    match spec.kind.as_str() {
        "local" => {
            let target = LocalCache::target(&worker.sessions, &request.session_id, &spec.attrs);
            Ok(("exporting cache to client directory", Arc::new(target.map_err(configured)?)))
        }
        "registry" => {
            let target = registry(worker, &request.session_id, &spec.attrs);
            Ok(("exporting cache to registry", Arc::new(target.map_err(configured)?)))
        }
        kind if NOT_YET.contains(&kind) => {
            Err(Error::request(format!("cache exporter `{kind}` is not supported yet")))
        }
        other => Err(Error::request(format!("unknown cache exporter: {other:?}"))),
    }
}

fn registry(
    worker: &Worker,
    session: &str,
    attrs: &BTreeMap<String, String>,
) -> kiln_remotecache::Result<RegistryCache> {
    let waiters = Arc::new(FixedWaiters(vec![session.to_owned()]));
    let credentials = SessionCredentials::new(Lender::new(worker.sessions.clone(), waiters));
    RegistryCache::new(&worker.registry, Arc::new(credentials), attrs)
}

/// Writes all caches of a build at once; returns what the client is told.
pub(crate) async fn export(
    state: &Arc<BuildState>,
    tools: &Tools,
    exports: &[CacheExport],
    results: &[ResultKey],
) -> Result<BTreeMap<String, String>> {
    let running = exports.iter().map(|export| export_one(state, tools, export, results));
    let roots = try_join_all(running).await?;
    let mut response = BTreeMap::new();
    for (export, root) in exports.iter().zip(roots) {
        let Some(root) = root else { continue };
        // Several exports have several roots. Clients of the reference know the first key alone.
        if exports.len() > 1 {
            response.insert(format!("cache.manifest.{}", export.position), root.clone());
        }
        response.insert("cache.manifest".to_owned(), root);
    }
    Ok(response)
}

async fn export_one(
    state: &Arc<BuildState>,
    tools: &Tools,
    export: &CacheExport,
    results: &[ResultKey],
) -> Result<Option<String>> {
    let digest = VertexDigest(Digest::of(format!("{}-cache-{}", state.info.session_id, export.position)));
    let scope = state.job.vertex_scope(export.kind, digest, |cx| async move {
        let provider = common::provider(&state.worker, &cx);
        let keys = state.job.keys();
        let walk = Walk {
            keys: &keys,
            mode: export.attrs.mode,
            layers: &export.attrs.layers,
            maker: tools.layers(),
            provider: &provider,
        };
        let Ok(graph) = state.job.key_graph(results) else { return Ok(None) };
        let part = Part::begin(&cx.progress, "preparing build cache for export");
        let records = collect(walk, &graph).await.map_err(Shown)?;
        drop(part);
        let _part = Part::begin(&cx.progress, "sending cache export");
        let writing = Export {
            attrs: &export.attrs,
            content: &*state.worker.content,
            maker: tools.layers(),
            provider: &provider,
            progress: &cx.progress,
        };
        let root = writing.write(records, &*export.target).await.map_err(Shown)?;
        let described = root.map(|root| kiln_content::json::compact(&root));
        Ok(described.map(|json| String::from_utf8_lossy(&json).into_owned()))
    });
    let done: Result<Option<String>, Shown> = tokio::select! {
        done = scope => done,
        () = state.cancel.cancelled() => return Err(Error::Cancelled),
    };
    match done {
        Ok(response) => Ok(response),
        Err(Shown(error)) if export.attrs.ignore_error => {
            tracing::warn!(error = chain(&error), "a cache export failed, which its client ignores");
            Ok(None)
        }
        Err(Shown(error)) => Err(Error::Export(Box::new(error))),
    }
}

/// An error that shows with all its causes, as vertices show it.
struct Shown(kiln_remotecache::Error);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&chain(&self.0))
    }
}

/// A part of a vertex that is shown as done when this is dropped.
struct Part(VertexProgress, StatusUpdate);

impl Part {
    fn begin(progress: &VertexProgress, id: &str) -> Self {
        let started = Some(SystemTime::now());
        let update = StatusUpdate { id: id.to_owned(), started, ..StatusUpdate::default() };
        progress.status(update.clone());
        Self(progress.clone(), update)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.1.completed = Some(SystemTime::now());
        self.0.status(self.1.clone());
    }
}

impl BuildState {
    /// Looks into these caches from now on; each is opened when it is first asked, once.
    ///
    /// # Errors
    /// More of them than any honest build has.
    pub(crate) fn import(self: &Arc<Self>, specs: impl IntoIterator<Item = CacheSpec>) -> Result<()> {
        for spec in specs {
            let id = import_id(&spec);
            let mut imports = self.imports.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if imports.contains(&id) {
                continue;
            }
            if imports.len() == MAX_IMPORTS {
                return Err(Error::request(format!("a build may import at most {MAX_IMPORTS} caches")));
            }
            imports.insert(id.clone());
            drop(imports);
            let build = Arc::downgrade(self);
            self.job.import(Arc::new(Import { build, id, spec, opened: OnceCell::new() }));
        }
        Ok(())
    }
}

/// Waits for a cache as long as for any; the error says that this was not long enough.
async fn patient<T>(reading: impl Future<Output = T>) -> Result<T, String> {
    let late = |_| format!("no answer within {} s", PATIENCE.as_secs());
    tokio::time::timeout(PATIENCE, reading).await.map_err(late)
}

/// What people call an import, and what tells it from others of its build.
fn import_id(spec: &CacheSpec) -> String {
    match spec.attrs.get("ref") {
        Some(reference) if spec.kind == "registry" => reference.clone(),
        _ => {
            let entry = kiln_content::json::compact(&(&spec.kind, &spec.attrs));
            format!("{}:{}", spec.kind, Digest::of(entry).hex())
        }
    }
}

/// A cache that a build imports: opened when it is first asked.
struct Import {
    /// Not held: the build holds this.
    build: Weak<BuildState>,
    id: String,
    spec: CacheSpec,
    opened: OnceCell<Option<ImportedKeys>>,
}

impl Import {
    /// Opens it, once. Where that fails shows on a vertex of its own, and it is empty from then on.
    async fn open(&self) -> Option<&ImportedKeys> {
        let open = || async {
            let build = self.build.upgrade()?;
            let name = format!("importing cache manifest from {}", self.id);
            let digest = VertexDigest(Digest::of(&name));
            let work = |cx: OpContext| self.read(Arc::clone(&build), cx);
            let scope = build.job.vertex_scope(&name, digest, work);
            tokio::select! {
                read = scope => read.ok(),
                () = build.cancel.cancelled() => None,
            }
        };
        self.opened.get_or_init(open).await.as_ref()
    }

    async fn read(&self, build: Arc<BuildState>, cx: OpContext) -> Result<ImportedKeys, String> {
        let not_configured =
            |reason: String| format!("failed to configure {} cache importer: {reason}", self.spec.kind);
        let failed = |error: kiln_remotecache::Error| not_configured(chain(&error));
        let (worker, session) = (&build.worker, &build.info.session_id);
        let reading = async {
            let (origin, root): (Arc<dyn CacheOrigin>, _) = match self.spec.kind.as_str() {
                "local" => {
                    let (origin, root) =
                        LocalCache::origin(&worker.sessions, session, &self.spec.attrs).map_err(failed)?;
                    (Arc::new(origin), root)
                }
                "registry" => {
                    let origin = registry(worker, session, &self.spec.attrs).map_err(failed)?;
                    let root = origin.resolve().await.map_err(failed)?;
                    (Arc::new(origin), root)
                }
                kind if NOT_YET.contains(&kind) => {
                    return Err(not_configured("it is not supported yet".to_owned()));
                }
                other => return Err(format!("unknown cache importer: {other}")),
            };
            let opened = open(&*origin, &root).await.map_err(failed)?;
            drop(Part::begin(&cx.progress, &format!("inferred cache manifest type: {}", opened.kind)));
            for note in &opened.notes {
                cx.progress.warn(warning(note.clone()));
            }
            let target = LayerStore { cache: worker.cache.clone(), content: worker.content.clone() };
            Ok(ImportedKeys::new(&self.id, root.digest, opened, origin, target))
        };
        patient(reading).await.unwrap_or_else(|late| Err(not_configured(late)))
    }

    fn keys(&self) -> Option<&ImportedKeys> {
        self.opened.get().and_then(Option::as_ref)
    }
}

#[async_trait]
impl KeySource for Import {
    async fn query(&self, deps: &[Vec<KeyAndSelector>], digest: &KeyDigest, output: OutputIndex) -> Lookup {
        match self.open().await {
            Some(keys) => keys.query(deps, digest, output).await,
            None => Lookup { keys: Vec::new(), reached: vec![false; deps.len()] },
        }
    }

    fn records(&self, key: &KeyId) -> Vec<CacheRecord> {
        self.keys().map(|keys| keys.records(key)).unwrap_or_default()
    }

    fn key_of(&self, record: &RecordId) -> Option<KeyId> {
        self.keys()?.key_of(record)
    }

    async fn load(&self, record: &CacheRecord) -> Option<Option<ResultRef>> {
        self.keys()?.load(record).await
    }

    fn backlinks(&self, key: &KeyId) -> Vec<Backlink> {
        self.keys().map(|keys| keys.backlinks(key)).unwrap_or_default()
    }
}

impl fmt::Debug for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Import").field("id", &self.id).field("opened", &self.opened.initialized()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_cache_that_does_not_answer_is_given_up() {
        let begun = tokio::time::Instant::now();
        let never = patient(std::future::pending::<()>()).await;
        assert_eq!(never.unwrap_err(), "no answer within 30 s");
        assert_eq!(begun.elapsed(), PATIENCE);
        let late = patient(async {
            tokio::time::sleep(PATIENCE / 2).await;
            7
        });
        assert_eq!(late.await, Ok(7));
    }
}
