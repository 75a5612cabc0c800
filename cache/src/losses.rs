//! What the stores have lost, counted.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::CacheManager;

/// What the stores were found to have lost since the catalogue was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Snapshots that were gone, or not whole.
    pub snapshots: u64,
    /// Blobs that were not whole, or gone although nobody else has them.
    pub blobs: u64,
    /// Records that could not be had in another way, and have to be made again.
    pub records: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) snapshots: AtomicU64,
    pub(crate) blobs: AtomicU64,
    pub(crate) records: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64, more: usize) {
    counter.fetch_add(more as u64, Ordering::Relaxed);
}

impl CacheManager {
    /// What the stores were found to have lost so far. Each loss was a miss: fetched, unpacked or made again.
    pub fn losses(&self) -> Losses {
        let counters = &self.0.losses;
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Losses {
            snapshots: value(&counters.snapshots),
            blobs: value(&counters.blobs),
            records: value(&counters.records),
        }
    }
}
