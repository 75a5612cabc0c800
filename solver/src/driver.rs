//! Carrying out what the scheduler decides.

mod calls;
mod imports;
mod job;
mod limits;
#[cfg(test)]
mod tests;
mod watch;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::driver::calls::FollowUp;
use crate::driver::watch::Watch;
#[cfg(not(any(test, feature = "testing")))]
use crate::driver::watch::WatchedJob;
use crate::error::{Error, Result, SolveError};
use crate::key_graph::ResultKey;
use crate::keys::CacheKeys;
use crate::op::{JobContext, ResultRef};
use crate::outcome::Outcome;
use crate::progress::{JobLog, ProgressStream};
use crate::scheduler::{BuildId, Event, JobId, Limits, Scheduler, WorkId};
use crate::tables::HashMap;

#[cfg(any(test, feature = "testing"))]
pub(crate) use crate::driver::calls::find;
pub use crate::driver::imports::JobKeys;
#[cfg(any(test, feature = "testing"))]
pub(crate) use crate::driver::imports::{find_everywhere, load_everywhere};
pub use crate::driver::job::Job;
pub use crate::driver::limits::{LimitExceeded, LimitKind, TimeLimits};
#[cfg(any(test, feature = "testing"))]
pub(crate) use crate::driver::watch::WatchedJob;

/// Solves graphs for many jobs at once. Cheap to clone.
#[derive(Clone)]
pub struct Solver {
    shared: Arc<Shared>,
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

/// The result of an edge.
#[derive(Clone, Debug)]
pub struct CachedResult {
    /// The result, none for a nil one (an empty filesystem).
    pub result: Option<ResultRef>,
    /// Names its keys, for cache exports.
    pub key: ResultKey,
    /// How it came to be.
    pub outcome: Outcome,
}

impl Solver {
    /// Makes a solver.
    ///
    /// # Panics
    /// Outside a tokio runtime, which carries its tasks.
    pub fn new(keys: Arc<dyn CacheKeys>, options: SolverOptions) -> Self {
        let limits =
            Limits { processes: options.max_parallelism.unwrap_or(usize::MAX), light: options.max_light };
        let state = State::new(limits);
        let (tracker, runtime) = (TaskTracker::new(), Handle::current());
        Self { shared: Arc::new(Shared { keys, state: Mutex::new(state), tracker, runtime }) }
    }

    /// Makes a job. `context` is handed to the ops it waits for.
    ///
    /// # Errors
    /// [`Error::JobExists`] while another job has that id.
    pub fn job(&self, id: &str, context: JobContext) -> Result<Job> {
        self.limited_job(id, context, TimeLimits::default())
    }

    /// Makes a job that waits for each step as long as `limits` say. See [`Solver::job`].
    ///
    /// # Errors
    /// [`Error::JobExists`] while another job has that id.
    pub fn limited_job(&self, id: &str, context: JobContext, limits: TimeLimits) -> Result<Job> {
        let mut state = self.shared.lock();
        if state.by_name.contains_key(id) {
            return Err(Error::JobExists(id.to_owned()));
        }
        let job = JobId(state.fresh_id());
        let log = Arc::new(JobLog::new());
        state.by_name.insert(id.to_owned(), job);
        state.jobs.insert(job, WatchedJob::new(Arc::clone(&context), Arc::clone(&log), limits));
        self.shared.step(&mut state, Event::JobOpened(job));
        drop(state);
        Ok(Job::new(Arc::clone(&self.shared), job, id.to_owned(), context, log))
    }

    /// Follows a job's progress from its start; none if no such job is alive.
    pub fn progress(&self, id: &str) -> Option<ProgressStream> {
        let state = self.shared.lock();
        let job = state.jobs.get(state.by_name.get(id)?)?;
        Some(ProgressStream::new(Arc::clone(&job.log)))
    }

    /// Ends all jobs, stops everything and waits for it. Jobs made later fail.
    pub async fn close(&self) {
        {
            let mut state = self.shared.lock();
            state.closed = true;
            let mut jobs: Vec<_> = state.jobs.keys().copied().collect();
            jobs.sort_unstable();
            for job in jobs {
                self.shared.close_job(&mut state, job);
            }
        }
        self.shared.tracker.close();
        self.shared.tracker.wait().await;
    }
}

impl fmt::Debug for Solver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock();
        f.debug_struct("Solver").field("jobs", &state.by_name).finish_non_exhaustive()
    }
}

/// What jobs and running calls have in common.
///
/// Whoever brings an event steps the scheduler and carries out, under the same lock, the effects that take no time;
/// calls become tasks, look-ups are done after the lock is free again. So no queue of events is needed.
struct Shared {
    keys: Arc<dyn CacheKeys>,
    state: Mutex<State>,
    tracker: TaskTracker,
    runtime: Handle,
}

pub(crate) struct State {
    pub(crate) scheduler: Scheduler,
    pub(crate) jobs: HashMap<JobId, WatchedJob>,
    by_name: HashMap<String, JobId>,
    pub(crate) works: HashMap<WorkId, Watch>,
    replies: HashMap<BuildId, oneshot::Sender<Result<Vec<CachedResult>, SolveError>>>,
    /// What was told to stop in the step under way.
    stopping: Vec<CancellationToken>,
    last_id: u64,
    closed: bool,
}

impl State {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            scheduler: Scheduler::new(limits),
            jobs: HashMap::default(),
            by_name: HashMap::default(),
            works: HashMap::default(),
            replies: HashMap::default(),
            stopping: Vec::new(),
            last_id: 0,
            closed: false,
        }
    }

    fn fresh_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies an event and leaves what follows from it to a task.
    fn step(self: &Arc<Self>, state: &mut State, event: Event) {
        let later = self.apply(state, event);
        if !later.is_empty() {
            let shared = Arc::clone(self);
            self.tracker.spawn_on(async move { shared.follow_up(later).await }, &self.runtime);
        }
    }

    /// Applies an event and returns what follows from it.
    fn apply(self: &Arc<Self>, state: &mut State, event: Event) -> FollowUp {
        let mut effects = Vec::new();
        state.scheduler.step(event, &mut effects);
        state.stopping.clear();
        let mut later = FollowUp::default();
        for effect in effects {
            self.carry_out(state, effect, &mut later);
        }
        later
    }

    /// Ends a job; returns what fires when each call that only it waited for is over.
    fn close_job(self: &Arc<Self>, state: &mut State, job: JobId) -> Vec<CancellationToken> {
        state.by_name.retain(|_, other| *other != job);
        self.step(state, Event::JobClosed(job));
        if let Some(job) = state.jobs.remove(&job) {
            job.close(std::time::SystemTime::now());
        }
        std::mem::take(&mut state.stopping)
    }
}
