//! A job's events, kept for watchers that come late.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::progress::event::{CANCELED, ProgressEvent, SourceRange, StatusEvent, VertexEvent};
use crate::progress::inference::CachedInference;
use crate::tables::HashMap;
use crate::vertex::VertexDigest;

/// Distinct status ids kept per job; updates of further ones are dropped (updates may always be).
const MAX_STATUSES: usize = 100_000;
/// Bytes of all other events kept per job, with what keeping them takes. Past that the oldest are forgotten: who reads
/// along has seen them, who comes late or is far behind sees the rest.
const MAX_KEPT: usize = 128 << 20;
/// What keeping an event takes beside its texts, in bytes.
const EVENT_COST: usize = 400;
/// Events handed out at once.
const MAX_BATCH: usize = 1024;

/// All events of a job, in order. Superseded status updates are forgotten, logs are clipped per step before they come
/// here, and [`MAX_KEPT`] bounds the rest. No reader holds anything up.
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
    /// Places and costs of the events that are no status updates.
    kept: VecDeque<(u64, usize)>,
    cost: usize,
    inference: CachedInference,
    closed: bool,
}

impl JobLog {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), changed: watch::Sender::new(0), closed: CancellationToken::new() }
    }

    pub(crate) fn vertex(&self, event: Arc<VertexEvent>) {
        self.vertices([event]);
    }

    /// The same for several, which watchers are woken for once.
    pub(crate) fn vertices(&self, events: impl IntoIterator<Item = Arc<VertexEvent>>) {
        self.append(|state| {
            for event in events {
                // What was seen to be cached meanwhile is not cancelled by being left.
                if event.error.as_deref() == Some(CANCELED) && !state.inference.is_open(&event.digest) {
                    continue;
                }
                for cached in state.inference.observe(&event) {
                    state.push_kept(ProgressEvent::Vertex(Arc::new(cached)));
                }
                state.push_kept(ProgressEvent::Vertex(event));
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
        self.append(|state| state.push_kept(event));
    }

    /// Completes what is open and ends all streams once they have read everything.
    pub(crate) fn close(&self, now: SystemTime) {
        self.append(|state| {
            for mut vertex in state.inference.unfinished() {
                vertex.completed = Some(now);
                vertex.error = Some(CANCELED.to_owned());
                state.push_kept(ProgressEvent::Vertex(Arc::new(vertex)));
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
    fn push_kept(&mut self, event: ProgressEvent) {
        let cost = cost(&event);
        self.kept.push_back((self.next, cost));
        self.cost += cost;
        self.push(event);
        while self.cost > MAX_KEPT && self.kept.len() > 1 {
            let Some((oldest, cost)) = self.kept.pop_front() else { break };
            self.events.remove(&oldest);
            self.cost -= cost;
        }
    }

    fn push(&mut self, event: ProgressEvent) {
        self.events.insert(self.next, Arc::new(event));
        self.next += 1;
    }
}

fn cost(event: &ProgressEvent) -> usize {
    let texts = match event {
        ProgressEvent::Vertex(event) => {
            let error = event.error.as_ref().map_or(0, String::len);
            event.inputs.len() * size_of::<VertexDigest>() + event.name.len() + error
        }
        ProgressEvent::Status(_) => 0,
        ProgressEvent::Log(event) => event.data.len(),
        ProgressEvent::Warning(event) => {
            let detail = event.detail.iter().map(bytes::Bytes::len).sum::<usize>();
            let texts = event.short.len() + event.url.len() + event.file.len() + event.language.len();
            detail + texts + event.data.len() + event.ranges.len() * size_of::<SourceRange>()
        }
    };
    EVENT_COST + texts
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

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use crate::progress::event::{LogEvent, Stream};

    #[test]
    fn a_job_keeps_a_bounded_amount_for_those_who_come_late() {
        let log = Arc::new(JobLog::new());
        let mut reader = ProgressStream::new(Arc::clone(&log));
        let data = bytes::Bytes::from(vec![b'x'; 1 << 20]);
        let event = |number: u64| LogEvent {
            vertex: VertexDigest(kiln_digest::Digest::of("v")),
            stream: Stream::Stdout,
            timestamp: SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number),
            data: data.clone(),
        };
        let all = 200;
        let mut seen = 0;
        for number in 0..all {
            log.other(ProgressEvent::Log(event(number)));
            seen += reader.next().now_or_never().flatten().map_or(0, |batch| batch.len() as u64);
        }
        assert_eq!(seen, all, "who reads along misses nothing");
        log.close(SystemTime::UNIX_EPOCH);
        let mut late = ProgressStream::new(log);
        let mut times = Vec::new();
        while let Some(batch) = late.next().now_or_never().flatten() {
            times.extend(batch.iter().filter_map(|event| match &**event {
                ProgressEvent::Log(event) => Some(event.timestamp),
                _ => None,
            }));
        }
        assert_eq!(times.len(), 127);
        assert_eq!(times.last(), Some(&event(all - 1).timestamp));
    }
}
