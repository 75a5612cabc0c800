//! Errors of solves, of ops, and of this crate.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use crate::vertex::VertexDigest;

/// A boxed error of an op or a store.
pub(crate) type BoxError = Box<dyn StdError + Send + Sync>;

/// What this crate's own calls run into.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The graph is not usable.
    #[error("invalid graph: {0}")]
    Graph(String),
    /// The store of keys failed.
    #[error("cache keys: {0}")]
    Keys(String, #[source] Arc<dyn StdError + Send + Sync>),
    /// A job with this id exists already.
    #[error("job `{0}` exists already")]
    JobExists(String),
}

impl Error {
    /// Wraps what went wrong inside a [`CacheKeys`](crate::CacheKeys) implementation.
    pub fn keys(what: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Self::Keys(what.into(), Arc::from(source.into()))
    }
}

/// Short for results of this crate's own calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call of an op ended without a result. Shows as its source does.
#[derive(Clone, Debug)]
pub struct OpError {
    kind: OpErrorKind,
    source: Arc<dyn StdError + Send + Sync>,
}

/// What follows from an op's error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OpErrorKind {
    /// The vertex fails.
    Failed,
    /// The call was cancelled.
    Cancelled,
    /// What the call needed of its jobs (credentials, secrets, files) none of those had that waited when it started.
    /// The vertex fails for them; for jobs that came since the call starts again.
    NotLent,
    /// The physical part of the result of this input (by position) is gone: it is made again, then the call repeated.
    LostInput(usize),
}

impl OpError {
    /// The vertex fails with `source`.
    pub fn failed(source: impl Into<BoxError>) -> Self {
        Self::with_kind(OpErrorKind::Failed, source)
    }

    /// The call was cancelled.
    pub fn cancelled() -> Self {
        Self::with_kind(OpErrorKind::Cancelled, "context canceled")
    }

    /// None of the jobs that wait could lend what the call needs.
    pub fn not_lent(source: impl Into<BoxError>) -> Self {
        Self::with_kind(OpErrorKind::NotLent, source)
    }

    /// The physical part of input number `input` is gone.
    pub fn lost_input(input: usize, source: impl Into<BoxError>) -> Self {
        Self::with_kind(OpErrorKind::LostInput(input), source)
    }

    /// Makes an error of any kind.
    pub fn with_kind(kind: OpErrorKind, source: impl Into<BoxError>) -> Self {
        Self { kind, source: Arc::from(source.into()) }
    }

    /// Returns what follows from it.
    pub const fn kind(&self) -> OpErrorKind {
        self.kind
    }

    /// Returns the whole text: the error and its causes, joined by `: `, as steps show it.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source.source();
        while let Some(error) = cause {
            let message = error.to_string();
            // An error that shows as its cause says nothing new.
            if !text.ends_with(&message) {
                text.push_str(": ");
                text.push_str(&message);
            }
            cause = error.source();
        }
        text
    }

    /// Returns what went wrong, for downcasting.
    pub fn inner(&self) -> &(dyn StdError + Send + Sync + 'static) {
        &*self.source
    }
}

impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.source, f)
    }
}

impl StdError for OpError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.source()
    }
}

/// Why a build ended without results.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SolveError {
    /// A vertex failed.
    #[error("{source}")]
    Vertex {
        /// Which one.
        vertex: VertexDigest,
        /// Its name.
        name: String,
        /// What went wrong in it.
        source: OpError,
    },
    /// The build, its job or the solver was told to stop.
    #[error("context canceled")]
    Cancelled,
    /// The request itself cannot be served.
    #[error("{0}")]
    Request(#[from] Error),
}

impl SolveError {
    /// Returns the vertex that failed, if one did.
    pub const fn vertex(&self) -> Option<VertexDigest> {
        match self {
            Self::Vertex { vertex, .. } => Some(*vertex),
            _ => None,
        }
    }
}
