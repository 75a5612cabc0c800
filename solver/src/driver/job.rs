//! A client's build.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::driver::{CachedResult, JobKeys, LimitExceeded, Shared};
use crate::error::SolveError;
use crate::key_graph::{KeyGraph, ResultKey};
use crate::key_source::KeySource;
use crate::op::{JobContext, OpContext, ResultRef, WaiterSet};
use crate::progress::{JobLog, ProgressEvent, ProgressStream, VertexEvent, VertexProgress, WarningEvent};
use crate::scheduler::{BuildId, Event, JobId};
use crate::vertex::{Edge, Graph, VertexDigest};

/// A client's build: what it waits for runs; what only it waits for stops with it.
pub struct Job {
    shared: Arc<Shared>,
    id: JobId,
    name: String,
    context: JobContext,
    log: Arc<JobLog>,
    /// Fires when the job ends; for what runs in scopes.
    ended: CancellationToken,
}

impl Job {
    pub(super) fn new(
        shared: Arc<Shared>,
        id: JobId,
        name: String,
        context: JobContext,
        log: Arc<JobLog>,
    ) -> Self {
        Self { shared, id, name, context, log, ended: CancellationToken::new() }
    }

    /// Returns the id it was made with.
    pub fn id(&self) -> &str {
        &self.name
    }

    /// Computes `edges` of `graph`, and nothing that they do not need.
    ///
    /// May be called many times, also at once; a vertex is computed once per job.
    ///
    /// # Errors
    /// That of the first vertex that failed, or [`SolveError::Cancelled`] when the job or the solver ends.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws what only it waits for.
    pub async fn build(
        &self,
        graph: impl Into<Arc<Graph>>,
        edges: Vec<Edge>,
    ) -> Result<Vec<CachedResult>, SolveError> {
        let (reply, answer) = oneshot::channel();
        let build = {
            let mut state = self.shared.lock();
            if state.closed {
                return Err(SolveError::Cancelled);
            }
            let build = BuildId(state.fresh_id());
            state.replies.insert(build, reply);
            let event = Event::BuildWanted { job: self.id, build, graph: graph.into(), edges };
            self.shared.step(&mut state, event);
            build
        };
        let _withdraw = Withdraw { shared: &self.shared, build };
        answer.await.unwrap_or(Err(SolveError::Cancelled))
    }

    /// Says that a result of [`Job::build`] has turned out to be lost. A build that comes now makes it again.
    pub fn lost(&self, result: &ResultRef) {
        let mut state = self.shared.lock();
        self.shared.step(&mut state, Event::ResultLost { job: self.id, result: Arc::clone(result) });
    }

    /// Looks into `source`, too, from now on.
    pub fn import(&self, source: Arc<dyn KeySource>) {
        let mut state = self.shared.lock();
        if let Some(job) = state.jobs.get_mut(&self.id) {
            job.imports.get_or_insert_default().add(source);
        }
    }

    /// Returns all stores of keys as this job sees them now.
    pub fn keys(&self) -> JobKeys {
        let imports = self.shared.lock().jobs.get(&self.id).and_then(|job| job.imports.clone());
        JobKeys::new(Arc::clone(&self.shared), imports)
    }

    /// Writes down the keys of results of this job and of all that they are made of, as they are known now.
    ///
    /// # Errors
    /// [`SolveError::Cancelled`] when the job has ended with its solver.
    pub fn key_graph(&self, results: &[ResultKey]) -> Result<KeyGraph, SolveError> {
        let state = self.shared.lock();
        state.scheduler.key_graph(self.id, results).ok_or(SolveError::Cancelled)
    }

    /// Runs `work` shown as a vertex that is in no graph. Its context is cancelled with the job.
    ///
    /// # Errors
    /// Those of `work`, whose text is shown on the vertex.
    pub async fn vertex_scope<T, E, F>(
        &self,
        name: &str,
        digest: VertexDigest,
        work: impl FnOnce(OpContext) -> F + Send,
    ) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>> + Send,
        E: fmt::Display,
    {
        let progress = VertexProgress::new();
        let mut event = VertexEvent::announced(digest, name);
        event.started = Some(SystemTime::now());
        self.log.vertex(Arc::new(event.clone()));
        progress.join(self.id.0, digest, &self.log);
        let waiters = WaiterSet::of([Arc::clone(&self.context)]);
        let cx = OpContext { cancel: self.ended.child_token(), progress: progress.clone(), waiters };
        let result = work(cx).await;
        if let Err(error) = &result {
            progress.send_tails();
            event.error = Some(error.to_string());
        }
        event.completed = Some(SystemTime::now());
        self.log.vertex(Arc::new(event));
        result
    }

    /// Shows a warning that no call of an op is behind.
    pub fn warn(&self, warning: WarningEvent) {
        self.log.other(ProgressEvent::Warning(Box::new(warning)));
    }

    /// Follows the job's progress from its start.
    pub fn progress(&self) -> ProgressStream {
        ProgressStream::new(Arc::clone(&self.log))
    }

    /// Fails everything that the job waits for, because a limit of it has passed.
    pub fn expire(&self, exceeded: &LimitExceeded) {
        let mut state = self.shared.lock();
        self.shared.expire(&mut state, self.id, exceeded);
    }

    /// Ends the job and waits until what only it waited for has stopped. Dropping it does the same without waiting.
    ///
    /// # Cancel safety
    /// The job ends in any case.
    pub async fn discard(self) {
        for call in self.close() {
            call.cancelled().await;
        }
    }

    fn close(&self) -> Vec<CancellationToken> {
        self.ended.cancel();
        let mut state = self.shared.lock();
        self.shared.close_job(&mut state, self.id)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("id", &self.name).finish_non_exhaustive()
    }
}

/// Withdraws a build whose future is dropped.
struct Withdraw<'a> {
    shared: &'a Arc<Shared>,
    build: BuildId,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if state.replies.remove(&self.build).is_some() {
            self.shared.step(&mut state, Event::BuildDropped(self.build));
        }
    }
}
