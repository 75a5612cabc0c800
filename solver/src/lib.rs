//! The generic build scheduler: vertices, cache maps, keys, single flight, progress.
//!
//! A [`Graph`] of [`Vertex`]es is given to a [`Job`] of a [`Solver`]. The solver asks every vertex's [`Op`] for its
//! [`CacheMap`], finds what is already known through [`CacheKeys`], runs what is not, once per cache key whoever waits
//! for it, and tells each job's [`ProgressStream`] what happens.
//!
//! All decisions are made by the `Scheduler`, a pure state machine without clock or I/O; the [`Solver`] carries its
//! effects out. The crate knows nothing of LLB, snapshots or networks: an op and its results are opaque here.
//! The key algorithm is that of moby/buildkit, docs/dev/solver.md; nothing is aliased or merged while it runs.
#![forbid(unsafe_code)]

mod driver;
mod error;
mod key;
mod key_graph;
mod key_source;
mod keys;
mod op;
mod outcome;
mod progress;
mod reason;
mod scheduler;
mod tables;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod vertex;

pub use crate::driver::{
    CachedResult, Job, JobKeys, LimitExceeded, LimitKind, Solver, SolverOptions, TimeLimits,
};
pub use crate::error::{Error, OpError, OpErrorKind, Result, SolveError};
pub use crate::key::{KeyDigest, KeyId, ParseKeyError};
pub use crate::key_graph::{KeyGraph, KeyInput, KeyNode, KeyNodeIndex, KeyOrigin, ResultKey};
pub use crate::key_source::{Backlink, KeySource};
pub use crate::keys::{Asked, CacheKeys, CacheRecord, KeyAndSelector, Lookup, NewKey, Origin, RecordId};
pub use crate::op::{
    CacheMap, CacheMapPart, Dep, JobContext, Op, OpContext, ResultRef, ResultValue, Slot, WaiterSet,
};
pub use crate::outcome::{Hit, Matched, Outcome};
pub use crate::progress::{
    CachedInference, LogEvent, ProgressEvent, ProgressStream, SourceRange, StatusEvent, StatusUpdate, Stream,
    VertexEvent, VertexProgress, WarningEvent,
};
pub use crate::reason::{
    Change, Component, ContentChange, Difference, Fingerprint, GoneWhy, Memo, MemoInput, Miss, Remembered,
    Wanted,
};
pub use crate::vertex::{
    Edge, Graph, OutputIndex, ProgressGroup, Vertex, VertexDigest, VertexIndex, VertexOptions,
};
