//! What an op writes its progress to.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use bytes::Bytes;

use crate::progress::clip::{Clip, Limits};
use crate::progress::event::{LogEvent, ProgressEvent, StatusEvent, StatusUpdate, Stream, WarningEvent};
use crate::progress::log::JobLog;
use crate::vertex::VertexDigest;

/// Tells the watchers of all jobs that wait for a call what it does. Cheap to clone; never blocks.
#[derive(Clone)]
pub struct VertexProgress(Arc<Mutex<Sink>>);

struct Sink {
    begun: Instant,
    limits: Limits,
    clips: [Clip; 2],
    watchers: Vec<Watcher>,
    /// For jobs that join later. Its vertex digests mean nothing.
    history: Vec<ProgressEvent>,
}

struct Watcher {
    job: u64,
    vertex: VertexDigest,
    log: Arc<JobLog>,
}

impl VertexProgress {
    /// Makes one that nobody watches.
    pub fn discard() -> Self {
        Self::new()
    }

    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Sink {
            begun: Instant::now(),
            limits: Limits::default(),
            clips: [Clip::default(), Clip::default()],
            watchers: Vec::new(),
            history: Vec::new(),
        })))
    }

    /// Writes output of a process. Beyond the limits of a step it is withheld and a notice sent instead.
    pub fn log(&self, stream: Stream, data: &[u8]) {
        let mut sink = self.lock();
        let (limits, elapsed) = (sink.limits, sink.begun.elapsed());
        let (taken, notice) = sink.clip(stream).pass(limits, elapsed, data);
        if taken > 0 {
            sink.send_log(stream, Bytes::copy_from_slice(&data[..taken]));
        }
        if let Some(notice) = notice {
            sink.send_log(stream, Bytes::from(notice));
        }
    }

    /// Says how far a part of the vertex is.
    pub fn status(&self, update: StatusUpdate) {
        self.lock().send(ProgressEvent::Status(StatusEvent {
            vertex: nobody(),
            id: update.id,
            name: update.name,
            current: update.current,
            total: update.total,
            timestamp: SystemTime::now(),
            started: update.started,
            completed: update.completed,
        }));
    }

    /// Warns of something. The event's vertex is filled in.
    pub fn warn(&self, mut warning: WarningEvent) {
        warning.level = warning.level.max(1);
        self.lock().send(ProgressEvent::Warning(warning));
    }

    /// Measures speed limits from now on.
    pub(crate) fn restart_clock(&self) {
        self.lock().begun = Instant::now();
    }

    /// Repeats the end of streams of which a part was withheld. For steps that failed.
    pub(crate) fn send_tails(&self) {
        let mut sink = self.lock();
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(tail) = sink.clip(stream).tail() {
                sink.send_log(stream, tail);
            }
        }
    }

    /// Adds a watching job, which gets what happened so far. A job is told of one vertex only.
    pub(crate) fn join(&self, job: u64, vertex: VertexDigest, log: &Arc<JobLog>) {
        let mut sink = self.lock();
        if sink.watchers.iter().any(|watcher| watcher.job == job) {
            return;
        }
        let watcher = Watcher { job, vertex, log: Arc::clone(log) };
        for event in &sink.history {
            watcher.tell(event);
        }
        sink.watchers.push(watcher);
    }

    pub(crate) fn leave(&self, job: u64) {
        self.lock().watchers.retain(|watcher| watcher.job != job);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Sink> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink {
    fn clip(&mut self, stream: Stream) -> &mut Clip {
        match stream {
            Stream::Stdout => &mut self.clips[0],
            Stream::Stderr => &mut self.clips[1],
        }
    }

    fn send_log(&mut self, stream: Stream, data: Bytes) {
        let timestamp = SystemTime::now();
        self.send(ProgressEvent::Log(LogEvent { vertex: nobody(), stream, timestamp, data }));
    }

    fn send(&mut self, event: ProgressEvent) {
        for watcher in &self.watchers {
            watcher.tell(&event);
        }
        if let ProgressEvent::Status(new) = &event {
            let same = |old: &ProgressEvent| matches!(old, ProgressEvent::Status(old) if old.id == new.id);
            if let Some(index) = self.history.iter().rposition(same) {
                self.history.remove(index);
            }
        }
        self.history.push(event);
    }
}

impl Watcher {
    fn tell(&self, event: &ProgressEvent) {
        let mut event = event.clone();
        match &mut event {
            ProgressEvent::Status(status) => {
                status.vertex = self.vertex;
                self.log.status(status.clone());
                return;
            }
            ProgressEvent::Log(log) => log.vertex = self.vertex,
            ProgressEvent::Warning(warning) => warning.vertex = self.vertex,
            ProgressEvent::Vertex(_) => return,
        }
        self.log.other(event);
    }
}

/// Stands where each watcher's own vertex digest is filled in.
fn nobody() -> VertexDigest {
    VertexDigest(kiln_digest::Digest::from_bytes([0; 32]))
}

impl fmt::Debug for VertexProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VertexProgress").finish_non_exhaustive()
    }
}
