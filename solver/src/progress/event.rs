//! The events of a job.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::outcome::Outcome;
use crate::reason::Miss;
use crate::vertex::{ProgressGroup, VertexDigest};

/// The error of a vertex that nobody waits for any more.
pub(crate) const CANCELED: &str = "context canceled";

/// One thing that happened in a job.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProgressEvent {
    /// A vertex was announced, started or completed. The latest event of a digest counts.
    Vertex(Arc<VertexEvent>),
    /// Part of a vertex went on. The latest event of an id counts; earlier ones may be dropped.
    Status(StatusEvent),
    /// A process wrote something.
    Log(LogEvent),
    /// Something a user should look at.
    Warning(Box<WarningEvent>),
}

impl ProgressEvent {
    /// Returns the vertex it is about.
    pub fn vertex(&self) -> VertexDigest {
        match self {
            Self::Vertex(event) => event.digest,
            Self::Status(event) => event.vertex,
            Self::Log(event) => event.vertex,
            Self::Warning(event) => event.vertex,
        }
    }
}

/// The state of a vertex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VertexEvent {
    /// Which vertex.
    pub digest: VertexDigest,
    /// The vertices it reads.
    pub inputs: Arc<[VertexDigest]>,
    /// What people see.
    pub name: Arc<str>,
    /// When it started; none while it is merely announced.
    pub started: Option<SystemTime>,
    /// When it ended.
    pub completed: Option<SystemTime>,
    /// Whether nothing had to be run.
    pub cached: bool,
    /// Why it failed.
    pub error: Option<String>,
    /// The group it is shown in.
    pub group: Option<ProgressGroup>,
    /// How its result came to be; on the last event of a vertex that has one.
    pub outcome: Option<Outcome>,
    /// Why it had to run; on the last event of a vertex that did, also if it failed.
    pub miss: Option<Arc<Miss>>,
}

impl VertexEvent {
    /// A vertex of which nothing has happened yet, and which reads nothing.
    pub fn announced(digest: VertexDigest, name: &str) -> Self {
        Self {
            digest,
            inputs: Arc::from([]),
            name: Arc::from(name),
            started: None,
            completed: None,
            cached: false,
            error: None,
            group: None,
            outcome: None,
            miss: None,
        }
    }
}

/// How far part of a vertex is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusEvent {
    /// Which vertex.
    pub vertex: VertexDigest,
    /// Unique in the vertex, and what people see.
    pub id: String,
    /// What is being done.
    pub name: String,
    /// Done so far.
    pub current: i64,
    /// To do altogether, 0 if unknown.
    pub total: i64,
    /// When this was so.
    pub timestamp: SystemTime,
    /// When the part started.
    pub started: Option<SystemTime>,
    /// When it ended.
    pub completed: Option<SystemTime>,
}

/// What an op says of a part of its vertex.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusUpdate {
    /// Unique in the vertex, and what people see.
    pub id: String,
    /// What is being done.
    pub name: String,
    /// Done so far.
    pub current: i64,
    /// To do altogether, 0 if unknown.
    pub total: i64,
    /// When the part started.
    pub started: Option<SystemTime>,
    /// When it ended.
    pub completed: Option<SystemTime>,
}

/// Which of its streams a process wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// Standard output, 1 on the wire.
    Stdout,
    /// Standard error, 2 on the wire.
    Stderr,
}

/// Raw output, cut anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEvent {
    /// Which vertex.
    pub vertex: VertexDigest,
    /// Which stream.
    pub stream: Stream,
    /// When it came.
    pub timestamp: SystemTime,
    /// The bytes.
    pub data: Bytes,
}

/// Something a user should look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarningEvent {
    /// Which vertex.
    pub vertex: VertexDigest,
    /// 1 unless said otherwise.
    pub level: i64,
    /// One line.
    pub short: Bytes,
    /// Further lines.
    pub detail: Vec<Bytes>,
    /// Where to read on.
    pub url: String,
    /// Name of the file it is about, if any.
    pub file: String,
    /// That file's language, if known.
    pub language: String,
    /// That file.
    pub data: Bytes,
    /// Where in that file.
    pub ranges: Vec<SourceRange>,
}

/// A range of a text file; lines from 1, characters from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceRange {
    /// Line and character of the start.
    pub start: (i32, i32),
    /// Line and character of the end.
    pub end: (i32, i32),
}
