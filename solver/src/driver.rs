//! Carrying out what the scheduler decides.

use std::future::Future;
use std::sync::Arc;

use crate::error::{Result, SolveError};
use crate::key_graph::ResultKey;
use crate::keys::CacheKeys;
use crate::op::{JobContext, OpContext, ResultRef};
use crate::outcome::Outcome;
use crate::progress::{JobLog, ProgressStream};
use crate::vertex::{Edge, Graph, VertexDigest};

/// Solves graphs for many jobs at once. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Solver {
    keys: Arc<dyn CacheKeys>,
}

/// How a solver works.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SolverOptions {
    /// Processes that run at once; none for no limit.
    pub max_parallelism: Option<usize>,
    /// All other calls of ops that run at once.
    pub max_light: usize,
}

impl Default for SolverOptions {
    fn default() -> Self {
        Self { max_parallelism: None, max_light: 256 }
    }
}

/// A client's build: what it waits for runs; what only it waits for stops with it.
#[derive(Debug)]
pub struct Job {
    log: Arc<JobLog>,
}

/// The result of an edge.
#[derive(Clone, Debug)]
pub struct CachedResult {
    /// The result, none for a nil one (an empty filesystem).
    pub result: Option<ResultRef>,
    /// Its keys and those below, for cache exports.
    pub key: ResultKey,
    /// How it came to be.
    pub outcome: Outcome,
}

impl Solver {
    /// Makes a solver. Call it inside a tokio runtime, which carries its tasks.
    pub fn new(keys: Arc<dyn CacheKeys>, _options: SolverOptions) -> Self {
        Self { keys }
    }

    /// Makes a job. `context` is handed to the ops it waits for.
    ///
    /// # Errors
    /// [`Error::JobExists`](crate::Error::JobExists) while another job has that id.
    pub fn job(&self, _id: &str, _context: JobContext) -> Result<Job> {
        let _ = &self.keys;
        Ok(Job { log: Arc::new(JobLog::new()) })
    }

    /// Follows a job's progress from its start; none if no such job is alive.
    pub fn progress(&self, _id: &str) -> Option<ProgressStream> {
        None
    }

    /// Stops everything and waits for it.
    pub async fn close(&self) {}
}

impl Job {
    /// Computes `edges` of `graph`, and nothing that they do not need.
    ///
    /// May be called many times, also at once; a vertex is computed once per job.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws what only it waits for.
    pub async fn build(&self, _graph: Graph, _edges: Vec<Edge>) -> Result<Vec<CachedResult>, SolveError> {
        Err(SolveError::Cancelled)
    }

    /// Runs `work` shown as a vertex that is in no graph.
    ///
    /// # Errors
    /// Those of `work`, whose text is shown on the vertex.
    pub async fn vertex_scope<T, E, F>(
        &self,
        _name: &str,
        _digest: VertexDigest,
        _work: impl FnOnce(OpContext) -> F + Send,
    ) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>> + Send,
        E: std::fmt::Display,
    {
        unimplemented!()
    }

    /// Follows the job's progress from its start.
    pub fn progress(&self) -> ProgressStream {
        ProgressStream::new(Arc::clone(&self.log))
    }

    /// Ends the job and waits until everything that only it wanted has stopped. Dropping a job does the same without
    /// waiting.
    pub async fn discard(self) {}
}
