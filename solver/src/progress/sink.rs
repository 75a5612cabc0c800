//! What an op writes its progress to.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use bytes::Bytes;

use crate::progress::clip::{Clip, Limits};
use crate::progress::event::{LogEvent, ProgressEvent, StatusEvent, StatusUpdate, Stream, WarningEvent};
use crate::progress::history::History;
use crate::progress::log::JobLog;
use crate::tables::push_tight;
use crate::vertex::VertexDigest;

/// Bytes of output from which the last lines are taken.
const RECENT: usize = 4 << 10;
/// Lines of output that the error of a step cut short shows.
const LAST_LINES: usize = 10;

/// Tells the watchers of all jobs that wait for a call what it does. Cheap to clone; never blocks.
#[derive(Clone)]
pub struct VertexProgress(Arc<Mutex<Sink>>);

struct Sink {
    begun: Instant,
    limits: Limits,
    clips: [Clip; 2],
    watchers: Vec<Watcher>,
    /// For jobs that join later.
    history: History,
    /// When anything was told last.
    active: Instant,
    /// The end of all output, both streams as they came.
    recent: VecDeque<u8>,
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
            history: History::default(),
            active: Instant::now(),
            recent: VecDeque::new(),
        })))
    }

    /// Writes output of a process. Beyond the limits of a step it is withheld and a notice sent instead.
    pub fn log(&self, stream: Stream, data: &[u8]) {
        let mut sink = self.lock();
        sink.remember(data);
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
        self.lock().send(ProgressEvent::Warning(Box::new(warning)));
    }

    /// Measures speed limits and silence from now on.
    pub(crate) fn restart_clock(&self) {
        let mut sink = self.lock();
        sink.begun = Instant::now();
        sink.active = sink.begun;
    }

    /// Returns when the step last told anything: output, or how far it is.
    pub(crate) fn active(&self) -> Instant {
        self.lock().active
    }

    /// Returns the last lines of output, cut to what a message can show.
    pub(crate) fn last_lines(&self) -> Vec<String> {
        let sink = self.lock();
        let text: Vec<u8> = sink.recent.iter().copied().collect();
        let text = String::from_utf8_lossy(&text).into_owned();
        let plain = |line: &str| line.chars().filter(|c| !c.is_control() || *c == '\t').collect::<String>();
        let mut lines: Vec<String> =
            text.lines().rev().map(plain).filter(|line| !line.trim().is_empty()).take(LAST_LINES).collect();
        lines.reverse();
        lines
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
        sink.history.each(|event| watcher.tell(event));
        push_tight(&mut sink.watchers, watcher);
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
        self.active = Instant::now();
        if self.history.keep(&event) {
            self.watchers.iter().for_each(|watcher| watcher.tell(event.clone()));
        }
    }

    fn remember(&mut self, data: &[u8]) {
        self.active = Instant::now();
        let data = &data[data.len().saturating_sub(RECENT)..];
        let excess = (self.recent.len() + data.len()).saturating_sub(RECENT);
        self.recent.drain(..excess);
        self.recent.extend(data);
    }
}

impl Watcher {
    fn tell(&self, mut event: ProgressEvent) {
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
