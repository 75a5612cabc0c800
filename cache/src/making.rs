//! Snapshots that this run has made and that no row may name yet. In the store they look like orphans.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use kiln_snapshot::SnapshotId;

/// The set of them. One leaves it once a row names it, or once it is removed.
#[derive(Debug, Default)]
pub(crate) struct Making(Mutex<HashSet<SnapshotId>>);

impl Making {
    fn lock(&self) -> MutexGuard<'_, HashSet<SnapshotId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn begin(&self, id: &SnapshotId) {
        self.lock().insert(id.clone());
    }

    pub(crate) fn end(&self, id: &SnapshotId) {
        self.lock().remove(id);
    }

    /// Whether it is being made. Ask this before asking whether a row names it: it leaves only after a row does.
    pub(crate) fn contains(&self, id: &SnapshotId) -> bool {
        self.lock().contains(id)
    }

    pub(crate) fn all(&self) -> Vec<SnapshotId> {
        self.lock().iter().cloned().collect()
    }
}
