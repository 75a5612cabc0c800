//! Builds from request to response.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use kiln_content::{CodecPool, Descriptor};
use kiln_digest::Digest;
use kiln_exporter::{RegistryPusher, Tools};
use kiln_frontend::{FrontendResult, References};
use kiln_llb::pb;
use kiln_registry::Credentials;
use kiln_session::{FixedWaiters, Lender};
use kiln_solver::{JobContext, LimitExceeded, ProgressStream, Solver, SolverOptions, VertexDigest};
use kiln_source::SessionCredentials;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::build::{BuildBridge, BuildState};
use crate::caches;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::export;
use crate::frontends::{Frontends, MAX_PROCESSES};
use crate::lending::JobInfo;
use crate::limits::BuildLimits;
use crate::worker::Worker;

/// How long the progress of an ended build can be asked for.
const FINISHED_KEPT: Duration = Duration::from_secs(10);
/// Ended builds whose progress is kept; past that the oldest is forgotten early.
const MAX_FINISHED: usize = 64;

/// Runs builds on one worker.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    worker: Arc<Worker>,
    solver: Solver,
    frontends: Arc<Frontends>,
    tools: Tools,
    limits: BuildLimits,
    builds: Mutex<HashMap<String, Weak<BuildState>>>,
    /// Progress of builds that ended a moment ago, oldest first.
    finished: Mutex<VecDeque<Finished>>,
    /// Told whenever a build starts.
    started: Notify,
    /// What ends for itself soon after the build it belongs to.
    tasks: TaskTracker,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("worker", &self.inner.worker.id).finish_non_exhaustive()
    }
}

/// What a client asks for.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct BuildRequest {
    /// Identifies the build; chosen by the client.
    pub id: String,
    /// The client's session.
    pub session_id: String,
    /// A graph to solve; exclusive with `frontend`. With neither, the client drives the build itself.
    pub definition: Option<pb::Definition>,
    /// Name of the frontend.
    pub frontend: String,
    /// Its options.
    pub attrs: BTreeMap<String, String>,
    /// Its inputs.
    pub inputs: BTreeMap<String, pb::Definition>,
    /// What to do with the result, in order.
    pub exporters: Vec<ExporterSpec>,
    /// Caches to export.
    pub cache_exports: Vec<CacheSpec>,
    /// Caches to import.
    pub cache_imports: Vec<CacheSpec>,
    /// The version whose defaults apply; 0 is the current one.
    pub compatibility: u64,
    /// What steps may do beyond the ordinary.
    pub entitlements: Vec<String>,
}

/// One exporter of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExporterSpec {
    /// `image`, `oci`, `docker`, `local` or `tar`.
    pub kind: String,
    /// Its attributes.
    pub attrs: BTreeMap<String, String>,
}

/// One cache of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheSpec {
    /// `registry`, `local`, `inline`, …
    pub kind: String,
    /// Its attributes.
    pub attrs: BTreeMap<String, String>,
}

/// What a build gives back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildResponse {
    /// Keys of the exporters and the frontend.
    pub exporter_response: BTreeMap<String, String>,
    /// What the frontend said beside its result.
    pub metadata: BTreeMap<String, Vec<u8>>,
    /// The top documents of what was exported, by the places of their exporters in the request.
    pub results: BTreeMap<usize, Descriptor>,
}

impl Engine {
    /// An engine over `worker` with these frontends. Call it inside a tokio runtime.
    pub fn new(worker: Worker, options: SolverOptions, frontends: Frontends) -> Self {
        Self::limited(worker, options, frontends, BuildLimits::default())
    }

    /// As [`Engine::new`], with limits that hold for every build.
    pub fn limited(
        worker: Worker,
        options: SolverOptions,
        frontends: Frontends,
        limits: BuildLimits,
    ) -> Self {
        worker.cache.check_sources(Arc::new(caches::LiveSources(worker.sessions.clone())));
        let solver = Solver::new(worker.cache.keys(), options);
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let tools = Tools::new(worker.content.clone(), CodecPool::new(threads));
        let sessions = worker.sessions.clone();
        let lend = Arc::new(move |session: &str| -> Arc<dyn Credentials> {
            let waiters = FixedWaiters(vec![session.to_owned()]);
            Arc::new(SessionCredentials::new(Lender::new(sessions.clone(), Arc::new(waiters))))
        });
        let pusher = RegistryPusher::new(worker.registry.clone(), worker.content.clone(), lend);
        let inner = Inner {
            tools: tools.with_pusher(Arc::new(pusher)),
            worker: Arc::new(worker),
            solver,
            limits,
            frontends: Arc::new(frontends),
            builds: Mutex::default(),
            finished: Mutex::default(),
            started: Notify::new(),
            tasks: TaskTracker::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The worker.
    pub fn worker(&self) -> &Arc<Worker> {
        &self.inner.worker
    }

    /// Runs a build to its end.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws the build: what nobody else waits for stops.
    pub async fn build(&self, mut request: BuildRequest) -> Result<BuildResponse> {
        let limits = self.inner.limits.tightened(&mut request.attrs)?;
        check(&request, &self.inner.worker)?;
        let definition = request.definition.take();
        let exporters = export::resolve(&self.inner.tools, &request)?;
        let caches = caches::resolve(&self.inner.worker, &request)?;
        let left_out = attestations(&request)?;
        let info = Arc::new(JobInfo { session_id: request.session_id.clone(), ..JobInfo::default() });
        let context: JobContext = info.clone();
        let job = self
            .inner
            .solver
            .limited_job(&request.id, context, limits.of_steps())
            .map_err(|_| Error::JobExists { id: request.id.clone() })?;
        let (returned, result) = oneshot::channel();
        let cancel = CancellationToken::new();
        let _cancel_on_drop = cancel.clone().drop_guard();
        let state = Arc::new(BuildState {
            id: request.id.clone(),
            worker: self.inner.worker.clone(),
            job,
            info,
            entitlements: request.entitlements.clone(),
            frontends: self.inner.frontends.clone(),
            cancel,
            resolutions: Arc::default(),
            imports: Mutex::default(),
            tasks: self.inner.tasks.clone(),
            client: Arc::new(Caller::new(request.inputs.clone(), 0, Some(returned))),
            frontend_slots: Semaphore::new(MAX_PROCESSES),
        });
        // The job was made a moment ago: nobody has set it before.
        let _unset = state.info.build.set(Arc::downgrade(&state));
        let _registered = self.register(&state);
        let attestations = left_out
            .iter()
            .map(|kind| format!("[internal] {kind} attestation is not supported yet: exporting without it"));
        let caches_left_out = caches.left_out.iter().map(|reason| format!("[internal] {reason}: ignored"));
        let notes = attestations.chain(caches_left_out).collect();
        let phase = export::Phase { tools: &self.inner.tools, exporters, caches };
        let run = self.run(&request, definition, &state, notes, phase, result);
        let Some(limit) = limits.build else { return run.await };
        // Outlives the moment at which the steps under way are told why they stop.
        tokio::pin!(run);
        tokio::select! {
            outcome = &mut run => outcome,
            () = tokio::time::sleep(limit) => {
                let exceeded = LimitExceeded::build(limit);
                state.job.expire(&exceeded);
                Err(Error::TimeLimit(exceeded))
            }
        }
    }

    async fn run(
        &self,
        request: &BuildRequest,
        definition: Option<pb::Definition>,
        state: &Arc<BuildState>,
        notes: Vec<String>,
        phase: export::Phase<'_>,
        result: oneshot::Receiver<Result<FrontendResult>>,
    ) -> Result<BuildResponse> {
        let bridge = BuildBridge { state: state.clone(), caller: state.client.clone() };
        for name in notes {
            let digest = VertexDigest(Digest::of(name.as_bytes()));
            state.job.vertex_scope(&name, digest, |_| async { Ok::<(), Error>(()) }).await?;
        }
        state.import(request.cache_imports.iter().cloned())?;
        let result = self.result(request, definition, &bridge, result).await?;
        self.evaluate(&result).await?;
        export::export(state, request, phase, result).await
    }

    /// Follows the progress of a build from its start. Waits for a build that has not begun, as long as the caller does.
    pub async fn progress(&self, id: &str) -> ProgressStream {
        loop {
            let started = self.inner.started.notified();
            tokio::pin!(started);
            started.as_mut().enable();
            if let Some(stream) = self.inner.solver.progress(id).or_else(|| self.finished(id)) {
                return stream;
            }
            started.await;
        }
    }

    /// The bridge of a build that its client drives. Waits for one that has not begun, as long as the caller does.
    pub async fn bridge(&self, id: &str) -> BuildBridge {
        loop {
            let started = self.inner.started.notified();
            tokio::pin!(started);
            started.as_mut().enable();
            if let Some(state) = self.builds().get(id).and_then(Weak::upgrade) {
                let caller = state.client.clone();
                return BuildBridge { state, caller };
            }
            started.await;
        }
    }

    /// Forgets the progress of builds that ended some time ago. For the daemon's housekeeping: idle, it holds nothing.
    pub fn expire(&self) {
        let mut finished = self.inner.finished.lock().unwrap_or_else(PoisonError::into_inner);
        finished.retain(|f| f.ended.elapsed() < FINISHED_KEPT);
    }

    fn finished(&self, id: &str) -> Option<ProgressStream> {
        let finished = self.inner.finished.lock().unwrap_or_else(PoisonError::into_inner);
        finished.iter().rev().find(|f| f.id == id).map(|f| f.progress.clone())
    }

    fn retain_progress(&self, state: &BuildState) {
        self.expire();
        let mut finished = self.inner.finished.lock().unwrap_or_else(PoisonError::into_inner);
        if finished.len() == MAX_FINISHED {
            finished.pop_front();
        }
        let ended = Instant::now();
        finished.push_back(Finished { id: state.id.clone(), progress: state.job.progress(), ended });
    }

    /// Stops all work and waits for it.
    pub async fn close(&self) {
        let builds: Vec<_> = self.builds().values().filter_map(Weak::upgrade).collect();
        builds.iter().for_each(|build| build.cancel.cancel());
        drop(builds);
        self.inner.solver.close().await;
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    async fn result(
        &self,
        request: &BuildRequest,
        definition: Option<pb::Definition>,
        bridge: &BuildBridge,
        returned: oneshot::Receiver<Result<FrontendResult>>,
    ) -> Result<FrontendResult> {
        if let Some(definition) = definition {
            let reference = bridge.reference(definition);
            let refs = References::Single(reference.map(|r| r as Arc<dyn kiln_frontend::Reference>));
            let mut result = FrontendResult::default();
            result.refs = refs;
            return Ok(result);
        }
        if request.frontend.is_empty() {
            return tokio::select! {
                result = returned => result.unwrap_or(Err(Error::Cancelled)),
                () = bridge.state.cancel.cancelled() => Err(Error::Cancelled),
            };
        }
        let (attrs, inputs) = (request.attrs.clone(), request.inputs.clone());
        bridge.run_frontend(&request.frontend, attrs, inputs).await.map_err(Error::Frontend)
    }

    /// Solves all references of a result at once.
    async fn evaluate(&self, result: &FrontendResult) -> Result<()> {
        let all = result.iter().map(|(_, reference)| reference.evaluate());
        futures::future::try_join_all(all).await.map(drop).map_err(flatten)
    }

    fn register(&self, state: &Arc<BuildState>) -> Registered {
        self.builds().insert(state.id.clone(), Arc::downgrade(state));
        self.inner.started.notify_waiters();
        Registered { engine: self.clone(), state: state.clone() }
    }

    fn builds(&self) -> std::sync::MutexGuard<'_, HashMap<String, Weak<BuildState>>> {
        let mut builds = self.inner.builds.lock().unwrap_or_else(PoisonError::into_inner);
        builds.retain(|_, b| b.strong_count() > 0);
        builds
    }
}

/// The progress of a build that has ended. A client asks for it beside the build itself, and a build that is all cached
/// may be over before the question arrives.
struct Finished {
    id: String,
    progress: ProgressStream,
    ended: Instant,
}

/// A build while it can be found by its id.
struct Registered {
    engine: Engine,
    state: Arc<BuildState>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.engine.retain_progress(&self.state);
        self.engine.builds().remove(&self.state.id);
        self.state.client.clear();
    }
}

/// A solve error that went through a frontend's type is ours again.
pub(crate) fn flatten(error: kiln_frontend::Error) -> Error {
    match error {
        kiln_frontend::Error::Solve { source, sources } => match source.downcast::<Error>() {
            Ok(ours) => *ours,
            Err(source) => Error::Frontend(kiln_frontend::Error::Solve { source, sources }),
        },
        other => Error::Frontend(other),
    }
}

/// The attestations that a client asks for by its own default, which are left out; one that its user asked for is an
/// error. Clients mark the former as `inline-only`.
fn attestations(request: &BuildRequest) -> Result<Vec<String>> {
    let mut left_out = Vec::new();
    for (key, value) in &request.attrs {
        let Some(kind) =
            key.strip_prefix("attest:").or_else(|| key.strip_prefix("build-arg:BUILDKIT_ATTEST_"))
        else {
            continue;
        };
        let kind = kind.to_lowercase();
        let flag = |name: &str| value.split(',').any(|field| field.trim() == name);
        if flag("disabled=true") {
            continue;
        }
        if !flag("inline-only=true") {
            return Err(Error::request(format!(
                "attestation `{kind}` is not supported yet: build without it"
            )));
        }
        left_out.push(kind);
    }
    Ok(left_out)
}

fn check(request: &BuildRequest, worker: &Worker) -> Result<()> {
    if request.definition.is_some() && !request.frontend.is_empty() {
        return Err(Error::request(format!("invalid definition for frontend {}", request.frontend)));
    }
    for entitlement in &request.entitlements {
        let name = entitlement.split('=').next().unwrap_or_default();
        if !matches!(name, "network.host" | "security.insecure" | "device") {
            return Err(Error::request(format!("unknown entitlement {entitlement}")));
        }
        if !worker.entitlements.iter().any(|allowed| allowed == name) {
            return Err(Error::request(format!(
                "granting entitlement {entitlement} is not allowed by build daemon configuration"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_attestations_nobody_asked_for_are_left_out() {
        let ask = |value: &str| {
            let attrs = BTreeMap::from([("attest:provenance".to_owned(), value.to_owned())]);
            attestations(&BuildRequest { attrs, ..BuildRequest::default() }).map_err(|e| e.to_string())
        };
        assert_eq!(ask("mode=min,inline-only=true").unwrap(), ["provenance"]);
        assert_eq!(ask("disabled=true").unwrap(), [] as [&str; 0]);
        assert!(ask("mode=max").unwrap_err().contains("`provenance` is not supported yet"));
    }
}
