//! What whoever waits sees of a source.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use kiln_digest::Digest;
use kiln_registry::Observer;
use kiln_solver::{StatusUpdate, Stream, VertexProgress};

/// Positions of a part that change sooner than this after the last are not shown.
const PAUSE: Duration = Duration::from_millis(100);

/// A part of a vertex that begins now and ends, however it ends, with this value.
pub(crate) struct Step<'a> {
    progress: &'a VertexProgress,
    id: String,
    started: SystemTime,
}

impl<'a> Step<'a> {
    pub(crate) fn start(progress: &'a VertexProgress, id: String) -> Self {
        let step = Self { progress, id, started: SystemTime::now() };
        step.show(None);
        step
    }

    fn show(&self, completed: Option<SystemTime>) {
        self.progress.status(StatusUpdate {
            id: self.id.clone(),
            started: Some(self.started),
            completed,
            ..StatusUpdate::default()
        });
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        self.show(Some(SystemTime::now()));
    }
}

/// Shows how much of one thing has come.
pub(crate) struct Transfer {
    id: String,
    name: &'static str,
    progress: VertexProgress,
    started: SystemTime,
    shown: Mutex<Option<Instant>>,
}

impl Transfer {
    pub(crate) fn new(id: String, name: &'static str, progress: VertexProgress) -> Self {
        Self { id, name, progress, started: SystemTime::now(), shown: Mutex::default() }
    }

    /// Shows the position, unless that was shown a moment ago; a `total` of 0 is not known.
    pub(crate) fn show(&self, bytes: u64, total: u64, done: bool) {
        {
            let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            if !done && shown.is_some_and(|shown| now - shown < PAUSE) {
                return;
            }
            *shown = Some(now);
        }
        self.progress.status(StatusUpdate {
            id: self.id.clone(),
            name: self.name.to_owned(),
            current: i64::try_from(bytes).unwrap_or(i64::MAX),
            total: i64::try_from(total).unwrap_or(i64::MAX),
            started: Some(self.started),
            completed: done.then(SystemTime::now),
        });
    }
}

/// Shows the parts of a vertex: one for each blob.
#[derive(Clone)]
pub(crate) struct Reporter {
    progress: VertexProgress,
    parts: Arc<Mutex<HashMap<String, Part>>>,
}

#[derive(Clone, Copy)]
struct Part {
    started: SystemTime,
    shown: Instant,
    done: bool,
}

impl Reporter {
    pub(crate) fn new(progress: VertexProgress) -> Self {
        Self { progress, parts: Arc::default() }
    }

    pub(crate) fn transferred(&self, digest: &Digest, current: u64, total: u64) {
        self.part(&digest.to_string(), "downloading", current, total, current >= total);
    }

    /// Shows how far a part is, unless that was shown a moment ago.
    pub(crate) fn part(&self, id: &str, name: &str, current: u64, total: u64, done: bool) {
        let started = {
            let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let part = match parts.get_mut(id) {
                Some(part) if part.done || (!done && now - part.shown < PAUSE) => return,
                Some(part) => part,
                None => parts.entry(id.to_owned()).or_insert_with(|| Part {
                    started: SystemTime::now(),
                    shown: now,
                    done: false,
                }),
            };
            part.shown = now;
            part.done = done;
            part.started
        };
        self.progress.status(StatusUpdate {
            id: id.to_owned(),
            name: if done { "done" } else { name }.to_owned(),
            current: i64::try_from(current).unwrap_or(i64::MAX),
            total: i64::try_from(total).unwrap_or(i64::MAX),
            started: Some(started),
            completed: done.then(SystemTime::now),
        });
    }
}

impl Observer for Reporter {
    fn received(&self, digest: &Digest, current: u64, total: u64) {
        self.transferred(digest, current, total);
    }

    fn sent(&self, digest: &Digest, current: u64, total: u64) {
        self.part(&digest.to_string(), "pushing", current, total, current >= total);
    }

    fn log(&self, line: &str) {
        self.progress.log(Stream::Stderr, line.as_bytes());
    }

    fn authenticating(&self, what: &str) {
        self.part(what, "", 0, 0, true);
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporter").finish_non_exhaustive()
    }
}
