//! One build: its job, what it may use, and the bridge it solves through.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::future::BoxFuture;
use kiln_frontend::{
    Bridge, Error as FrontendError, FrontendRequest, FrontendResult, Reference, ResolveRequest, SolveRequest,
    SourceMetadata, Warning, WorkerInfo,
};
use kiln_llb::pb;
use kiln_solver::{CachedResult, Job, JobContext, OpContext, VertexDigest, VertexProgress, WaiterSet};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::caller::Caller;
use crate::caps;
use crate::convert::{self, Origins};
use crate::engine::CacheSpec;
use crate::error::{Error, Result, chain};
use crate::frontends::Frontends;
use crate::lending::JobInfo;
use crate::load::{self, GrantedEntitlements, LoadError, LoadOptions, LoadedGraph};
use crate::ops;
use crate::ops::source::Resolutions;
use crate::reference::SolvedRef;
use crate::worker::Worker;

/// What the parts of one build share.
pub(crate) struct BuildState {
    pub(crate) id: String,
    pub(crate) worker: Arc<Worker>,
    pub(crate) job: Job,
    pub(crate) info: Arc<JobInfo>,
    pub(crate) entitlements: Vec<String>,
    pub(crate) frontends: Arc<Frontends>,
    pub(crate) cancel: CancellationToken,
    pub(crate) resolutions: Arc<Resolutions>,
    /// The caches it looks into, by id.
    pub(crate) imports: Mutex<BTreeSet<String>>,
    /// The client, which may drive the build itself. What it holds leads back here, so the build's end clears it.
    pub(crate) client: Arc<Caller>,
    /// What goes on for a moment after those it belongs to; the engine waits for it when it closes.
    pub(crate) tasks: TaskTracker,
    /// Frontends that may run as processes at a time.
    pub(crate) frontend_slots: Semaphore,
}

impl std::fmt::Debug for BuildState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BuildState").field("id", &self.id).finish_non_exhaustive()
    }
}

impl BuildState {
    /// Loads and solves a definition.
    pub(crate) async fn solve_definition(&self, definition: &pb::Definition) -> Result<CachedResult> {
        self.solve_within(definition, 0).await
    }

    /// Loads and solves a definition for a step within `depth` other builds. Boxed, because such a step may be solved
    /// here in turn.
    pub(crate) fn solve_within<'a>(
        &'a self,
        definition: &'a pb::Definition,
        depth: u32,
    ) -> BoxFuture<'a, Result<CachedResult>> {
        Box::pin(self.load_and_solve(definition, depth))
    }

    /// What its steps and containers may have.
    pub(crate) fn granted(&self) -> Result<GrantedEntitlements> {
        let granted = self.entitlements.iter().cloned();
        GrantedEntitlements::with_devices(granted, self.worker.devices.clone()).map_err(Error::request)
    }

    async fn load_and_solve(&self, definition: &pb::Definition, depth: u32) -> Result<CachedResult> {
        let platform = self.worker.platforms.first().cloned().unwrap_or_default();
        let entitlements = self.granted()?;
        let caps = caps::llb();
        let options = LoadOptions::new(&platform, &entitlements).with_caps(&caps);
        let mut loaded =
            load::load(definition, &options).await.map_err(|error| not_loaded(definition, error))?;
        ops::nested::set_apart(&mut loaded, depth);
        ops::set_apart_directories(&mut loaded, &self.info.session_id);
        let origins = Origins::of(&loaded);
        let graph =
            ops::graph(&self.worker, &loaded, &self.resolutions, depth).map_err(|error| match error {
                Error::Vertex { vertex, message, .. } => {
                    Error::Vertex { vertex, sources: origins.sources(definition, vertex), message }
                }
                error => error,
            })?;
        let edge = ops::edge(loaded.edge)?;
        self.note_resources(&loaded);
        self.prune_caches(&loaded).await?;
        // Builds take long, and the graph has all that it needs.
        drop(loaded);
        let solved = tokio::select! {
            solved = self.job.build(graph, vec![edge]) => solved,
            () = self.cancel.cancelled() => return Err(Error::Cancelled),
        };
        let mut results = solved.map_err(|source| {
            let sources = source.vertex().map(|v| origins.sources(definition, v));
            Error::Solve { sources: sources.unwrap_or_default(), source }
        })?;
        results.pop().ok_or_else(|| Error::request("the solver returned no result"))
    }

    /// Limits are told to whoever runs the steps, for all who wait.
    fn note_resources(&self, loaded: &LoadedGraph) {
        let mut known = self.info.resources.lock().unwrap_or_else(PoisonError::into_inner);
        for vertex in &loaded.vertices {
            if let Some(resources) = &vertex.linux_resources {
                known.insert(VertexDigest(vertex.digest.digest()), resources.clone());
            }
        }
    }

    /// Steps that ignore the cache begin with empty cache mounts. Once for the whole definition: several of its steps
    /// may share a mount.
    async fn prune_caches(&self, loaded: &LoadedGraph) -> Result<()> {
        if loaded.pruned_cache_ids.is_empty() {
            return Ok(());
        }
        let ids: Vec<String> = loaded.pruned_cache_ids.keys().cloned().collect();
        let pruned = self.worker.cache.prune_cache_mounts(&ids).await;
        pruned.map_err(|e| Error::request(format!("cannot empty cache mounts: {}", chain(&e))))
    }

    /// What work outside any vertex gets: it waits for itself alone and shows nothing.
    pub(crate) fn outside_context(&self) -> OpContext {
        let context: JobContext = self.info.clone();
        OpContext {
            cancel: self.cancel.clone(),
            progress: VertexProgress::discard(),
            waiters: WaiterSet::of([context]),
        }
    }

    /// What a frontend is asked.
    pub(crate) fn frontend_request(
        &self,
        opts: BTreeMap<String, String>,
        inputs: BTreeMap<String, pb::Definition>,
    ) -> FrontendRequest {
        let mut request = FrontendRequest::new(opts);
        request.inputs = inputs;
        request.session_id.clone_from(&self.info.session_id);
        request.llb_caps = Some(caps::enabled(kiln_llb::caps::LLB, &caps::llb()));
        request.gateway_caps = Some(caps::enabled(kiln_llb::caps::GATEWAY, &caps::gateway()));
        request.workers = vec![WorkerInfo {
            id: self.worker.id.clone(),
            labels: self.worker.labels.clone(),
            platforms: self.worker.platforms.clone(),
        }];
        request
    }
}

/// A definition that does not load, with the vertex to blame and its places in the input, where there is one.
fn not_loaded(definition: &pb::Definition, error: LoadError) -> Error {
    let LoadError::At(located) = &error else { return Error::Load(error) };
    let vertex = located.vertex;
    let sources = convert::places(definition, vertex, Some(located.sent));
    let error = Error::Load(error);
    Error::Vertex { vertex: VertexDigest(vertex.digest()), sources, message: chain(&error) }
}

/// The bridge of one build, for one of those who call back through it.
#[derive(Clone, Debug)]
pub struct BuildBridge {
    pub(crate) state: Arc<BuildState>,
    pub(crate) caller: Arc<Caller>,
}

impl BuildBridge {
    /// Id of the build.
    pub fn id(&self) -> &str {
        &self.state.id
    }

    /// Completes when the build has ended, or is about to.
    pub async fn ended(&self) {
        self.state.cancel.cancelled().await;
    }

    /// The worker it runs on.
    pub fn worker(&self) -> &Worker {
        &self.state.worker
    }

    /// Inputs of the request that the caller serves.
    pub fn inputs(&self) -> &BTreeMap<String, pb::Definition> {
        self.caller.inputs()
    }

    /// Ends what the caller was asked for, with its result. Only the first call counts; `false` for later ones.
    pub fn finish(&self, result: Result<FrontendResult>) -> bool {
        self.caller.finish(result)
    }

    /// Keeps a reference for the caller until it has ended; its id.
    ///
    /// # Errors
    /// A caller holds a bounded number of them.
    pub fn keep(&self, reference: Arc<dyn Reference>) -> Result<String> {
        self.caller.keep(&self.state.id, reference)
    }

    /// The reference with that id.
    ///
    /// # Errors
    /// In the words of the reference, for an id that is empty or unknown.
    pub fn find(&self, id: &str) -> Result<Arc<dyn Reference>> {
        self.caller.find(id)
    }

    /// A reference to the result of a definition, solved when read; `None` for an empty definition.
    pub fn reference(&self, definition: pb::Definition) -> Option<Arc<SolvedRef>> {
        (!definition.def.is_empty()).then(|| Arc::new(SolvedRef::new(self.state.clone(), definition)))
    }
}

#[async_trait]
impl Bridge for BuildBridge {
    async fn solve(&self, request: SolveRequest) -> Result<FrontendResult, FrontendError> {
        let imports = request.cache_imports.into_iter();
        let imports = imports.map(|import| CacheSpec { kind: import.kind, attrs: import.attrs });
        self.state.import(imports).map_err(|error| FrontendError::input(error.to_string()))?;
        let definition = request.definition.filter(|d| !d.def.is_empty());
        match (definition, request.frontend.as_str()) {
            (Some(_), name) if !name.is_empty() => {
                Err(FrontendError::input("cannot solve with both Definition and Frontend specified"))
            }
            (Some(definition), _) => {
                let reference = Arc::new(SolvedRef::new(self.state.clone(), definition));
                if request.evaluate {
                    kiln_frontend::Reference::evaluate(&*reference).await?;
                }
                Ok(FrontendResult::single(Some(reference)))
            }
            (None, "") => Ok(FrontendResult::default()),
            (None, name) => {
                let result = self.run_frontend(name, request.opts, request.inputs).await?;
                if request.evaluate {
                    for (_, reference) in result.iter() {
                        reference.evaluate().await?;
                    }
                }
                Ok(result)
            }
        }
    }

    async fn resolve_source_metadata(
        &self,
        request: ResolveRequest,
    ) -> Result<SourceMetadata, FrontendError> {
        crate::metadata::resolve(&self.state, request).await
    }

    async fn warn(&self, warning: Warning) -> Result<(), FrontendError> {
        self.state.job.warn(convert::warning(warning));
        Ok(())
    }
}
