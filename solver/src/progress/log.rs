//! A job's events, kept for watchers that come late.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::progress::event::{ProgressEvent, StatusEvent, VertexEvent};
use crate::progress::inference::CachedInference;
use crate::vertex::VertexDigest;

/// Distinct status ids kept per job; updates of further ones are dropped (updates may always be).
const MAX_STATUSES: usize = 100_000;
/// Events handed out at once.
const MAX_BATCH: usize = 1024;

/// All events of a job, in order. Superseded status updates are forgotten, and logs are clipped per step before they
/// come here, which bounds it.
#[derive(Debug)]
pub(crate) struct JobLog {
    state: Mutex<State>,
    /// Incremented after each append; closed with the log.
    changed: watch::Sender<u64>,
    closed: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    events: BTreeMap<u64, Arc<ProgressEvent>>,
    next: u64,
    statuses: HashMap<(VertexDigest, String), u64>,
    inference: CachedInference,
    closed: bool,
}

impl JobLog {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), changed: watch::Sender::new(0), closed: CancellationToken::new() }
    }

    pub(crate) fn vertex(&self, event: VertexEvent) {
        self.vertices([event]);
    }

    /// The same for several, which watchers are woken for once.
    pub(crate) fn vertices(&self, events: impl IntoIterator<Item = VertexEvent>) {
        self.append(|state| {
            for event in events {
                for cached in state.inference.observe(&event) {
                    state.push(ProgressEvent::Vertex(cached));
                }
                state.push(ProgressEvent::Vertex(event));
            }
        });
    }

    pub(crate) fn status(&self, event: StatusEvent) {
        self.append(|state| {
            let key = (event.vertex, event.id.clone());
            let next = state.next;
            if let Some(seq) = state.statuses.get_mut(&key) {
                let old = std::mem::replace(seq, next);
                state.events.remove(&old);
            } else if state.statuses.len() < MAX_STATUSES {
                state.statuses.insert(key, next);
            } else {
                return;
            }
            state.push(ProgressEvent::Status(event));
        });
    }

    /// For logs and warnings.
    pub(crate) fn other(&self, event: ProgressEvent) {
        self.append(|state| state.push(event));
    }

    /// Completes what is open and ends all streams once they have read everything.
    pub(crate) fn close(&self, now: SystemTime) {
        self.append(|state| {
            for mut vertex in state.inference.unfinished() {
                vertex.completed = Some(now);
                vertex.error = Some("context canceled".to_owned());
                state.push(ProgressEvent::Vertex(vertex));
            }
            state.closed = true;
        });
        self.closed.cancel();
    }

    fn append(&self, change: impl FnOnce(&mut State)) {
        let next = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.closed {
                return;
            }
            change(&mut state);
            state.next
        };
        self.changed.send_modify(|seen| *seen = (*seen + 1).max(next));
    }

    fn read(&self, from: u64) -> (Vec<Arc<ProgressEvent>>, u64, bool) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cursor = from;
        let mut batch = Vec::new();
        for (seq, event) in state.events.range(from..).take(MAX_BATCH) {
            batch.push(Arc::clone(event));
            cursor = seq + 1;
        }
        (batch, cursor, state.closed)
    }
}

impl State {
    fn push(&mut self, event: ProgressEvent) {
        self.events.insert(self.next, Arc::new(event));
        self.next += 1;
    }
}

/// A job's events from the start on, then as they come. A clone goes on from the same place.
#[derive(Clone, Debug)]
pub struct ProgressStream {
    log: Arc<JobLog>,
    cursor: u64,
    changed: watch::Receiver<u64>,
}

impl ProgressStream {
    pub(crate) fn new(log: Arc<JobLog>) -> Self {
        let changed = log.changed.subscribe();
        Self { log, cursor: 0, changed }
    }

    /// Waits until no more events will come.
    pub async fn closed(&self) {
        self.log.closed.cancelled().await;
    }

    /// Waits for events and returns those that came, in order; `None` after the last one of a discarded job.
    ///
    /// # Cancel safety
    /// A dropped future has taken nothing.
    pub async fn next(&mut self) -> Option<Vec<Arc<ProgressEvent>>> {
        loop {
            self.changed.borrow_and_update();
            let (batch, cursor, closed) = self.log.read(self.cursor);
            if !batch.is_empty() {
                self.cursor = cursor;
                return Some(batch);
            }
            if closed || self.changed.changed().await.is_err() {
                return None;
            }
        }
    }
}
