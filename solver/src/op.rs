//! The port to what computes a vertex.

use std::any::Any;
use std::fmt::{self, Debug};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use kiln_digest::Digest;
use tokio_util::sync::CancellationToken;

use crate::error::OpError;
use crate::key::KeyDigest;
use crate::progress::VertexProgress;
use crate::reason::{ContentChange, Fingerprint};
use crate::tables::push_tight;

/// Computes one vertex.
///
/// 1. `cache_map` is asked with index 0, 1, … until a part says `last`; only an op without inputs may have several.
///    Each part has one dep per input of the vertex.
/// 2. `content_key` is asked only for inputs whose dep has `content`, with that input's result.
/// 3. `exec` gets one result per input (`None`: a nil result) and returns one per output.
/// 4. Each future watches `cx.cancel` and, once it fires, ends soon, with everything it started ended too. It is
///    always awaited, never dropped half way, except when the process ends.
/// 5. An input whose physical part is missing is reported as [`OpErrorKind::LostInput`](crate::OpErrorKind), after
///    which that input is made again.
/// 6. `fingerprint`, `listing` and `content_change` only tell people why the op had to run, and are asked beside `exec`.
///    They are short, bounded and never fail the vertex; no secret is in what they return.
#[async_trait]
pub trait Op: Debug + Send + Sync + 'static {
    /// Says what identifies the op, its `index`-th way.
    async fn cache_map(&self, cx: &OpContext, index: usize) -> Result<CacheMapPart, OpError>;

    /// Returns the digest of the content that matters of input number `input`.
    async fn content_key(
        &self,
        cx: &OpContext,
        input: usize,
        result: Option<&ResultRef>,
    ) -> Result<Digest, OpError>;

    /// Computes all outputs.
    async fn exec(
        &self,
        cx: &OpContext,
        inputs: Vec<Option<ResultRef>>,
    ) -> Result<Vec<Option<ResultRef>>, OpError>;

    /// Returns the one part that `cache_map` would give, where that follows from the definition alone: then no call
    /// is made for it. It must be cheap, and always the same.
    fn known_map(&self) -> Option<CacheMap> {
        None
    }

    /// Returns which gate `exec` passes.
    fn slot(&self) -> Slot {
        Slot::None
    }

    /// Says what it is made of, so that it can be compared with what ran before.
    async fn fingerprint(&self, cx: &OpContext) -> Fingerprint {
        let _ = cx;
        Fingerprint::default()
    }

    /// Writes down, in a form of its own, what of an input's content counts; asked for inputs that have a content key.
    async fn listing(&self, cx: &OpContext, input: usize, result: Option<&ResultRef>) -> Option<Vec<u8>> {
        let _ = (cx, input, result);
        None
    }

    /// Says where two listings of an input differ. `now` is that of `result`, `then` one that was saved.
    async fn content_change(
        &self,
        cx: &OpContext,
        input: usize,
        result: Option<&ResultRef>,
        then: &[u8],
        now: &[u8],
    ) -> Option<ContentChange> {
        let _ = (cx, input, result, then, now);
        None
    }
}

/// A counted handle on a result; dropping the last one releases it.
pub type ResultRef = Arc<dyn ResultValue>;

/// A result, opaque to the solver. Get the concrete type back with [`dyn ResultValue::downcast`].
pub trait ResultValue: Any + Debug + Send + Sync {}

impl dyn ResultValue {
    /// Returns the concrete value, if it is a `T`.
    pub fn downcast<T: ResultValue>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }
}

/// What identifies an op, its inputs apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheMap {
    /// The op digest.
    pub digest: KeyDigest,
    /// One per input.
    pub deps: Vec<Dep>,
}

/// What an op says of one input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dep {
    /// Which part of the input matters.
    pub selector: Option<Digest>,
    /// Whether the input has a content key.
    pub content: bool,
}

/// One answer of [`Op::cache_map`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheMapPart {
    /// The map of the index asked for.
    pub map: CacheMap,
    /// Whether there are no further ones.
    pub last: bool,
}

/// The gate an execution passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Slot {
    /// The generous one.
    #[default]
    None,
    /// The one that limits running processes.
    Process,
    /// None at all: for ops that solve something themselves while they run, which must not hold what they wait for.
    Nested,
}

/// What every call of an op gets.
#[derive(Clone, Debug)]
pub struct OpContext {
    /// Fires when nobody waits for the call any more.
    pub cancel: CancellationToken,
    /// Tells all waiting jobs what happens.
    pub progress: VertexProgress,
    /// Who waits.
    pub waiters: WaiterSet,
}

/// What the creator of a job attached to it.
pub type JobContext = Arc<dyn Any + Send + Sync>;

/// The jobs that wait for a call at this moment.
#[derive(Clone, Default)]
pub struct WaiterSet {
    jobs: Arc<Mutex<Vec<(u64, JobContext)>>>,
}

impl WaiterSet {
    /// Makes a set of fixed contexts, for calls outside a solve.
    pub fn of(contexts: impl IntoIterator<Item = JobContext>) -> Self {
        let jobs = contexts.into_iter().enumerate().map(|(index, context)| (index as u64, context)).collect();
        Self { jobs: Arc::new(Mutex::new(jobs)) }
    }

    /// Returns the contexts of the jobs waiting now, in the order in which they came. Ask again when one fails.
    pub fn current(&self) -> Vec<JobContext> {
        self.lock().iter().map(|(_, context)| Arc::clone(context)).collect()
    }

    pub(crate) fn join(&self, job: u64, context: JobContext) {
        let mut jobs = self.lock();
        if jobs.iter().all(|(other, _)| *other != job) {
            push_tight(&mut jobs, (job, context));
        }
    }

    pub(crate) fn leave(&self, job: u64) {
        self.lock().retain(|(other, _)| *other != job);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(u64, JobContext)>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for WaiterSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.lock().iter().map(|(job, _)| job)).finish()
    }
}
