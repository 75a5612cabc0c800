//! How many requests go to one host at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A document must never wait behind slow blobs, so the host has one slot that only documents use.
#[derive(Debug)]
struct Gate {
    blobs: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// The gates of all hosts.
#[derive(Debug)]
pub(crate) struct Gates {
    limit: usize,
    hosts: Mutex<HashMap<String, Arc<Gate>>>,
}

/// A slot; held until the body of the answer is read.
#[derive(Debug)]
pub(crate) struct Slot {
    _permits: [Option<OwnedSemaphorePermit>; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    Document,
    Blob,
}

/// Above this many hosts, gates that nobody holds are dropped.
const MAX_IDLE_GATES: usize = 64;

impl Gates {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), hosts: Mutex::default() }
    }

    pub(crate) async fn enter(&self, host: &str, traffic: Traffic) -> Slot {
        let gate = self.gate(host);
        // The semaphores are never closed, so `acquire_owned` cannot fail; a failure would only mean
        // that the request is not counted.
        let blobs = match traffic {
            Traffic::Blob => gate.blobs.clone().acquire_owned().await.ok(),
            Traffic::Document => None,
        };
        let all = gate.all.clone().acquire_owned().await.ok();
        Slot { _permits: [blobs, all] }
    }

    fn gate(&self, host: &str) -> Arc<Gate> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() > MAX_IDLE_GATES && !hosts.contains_key(host) {
            hosts.retain(|_, gate| Arc::strong_count(gate) > 1 || gate.all.available_permits() <= self.limit);
        }
        hosts
            .entry(host.to_owned())
            .or_insert_with(|| {
                Arc::new(Gate {
                    blobs: Arc::new(Semaphore::new(self.limit)),
                    all: Arc::new(Semaphore::new(self.limit + 1)),
                })
            })
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn documents_have_a_slot_that_blobs_cannot_take() {
        let gates = Gates::new(2);
        let _first = gates.enter("h", Traffic::Blob).await;
        let second = gates.enter("h", Traffic::Blob).await;
        assert!(gates.enter("h", Traffic::Blob).now_or_never().is_none());
        assert!(gates.enter("other", Traffic::Blob).now_or_never().is_some());
        let document = gates.enter("h", Traffic::Document).now_or_never();
        assert!(document.is_some());
        assert!(gates.enter("h", Traffic::Document).now_or_never().is_none());
        drop(second);
        assert!(gates.enter("h", Traffic::Blob).now_or_never().is_some());
    }
}
