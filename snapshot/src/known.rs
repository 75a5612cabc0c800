//! What is in small layers, kept in memory: whether a deep stack has something of a name is then no look at the disk.
//!
//! A layer that is not known, because it is large or was made by an earlier process, is looked into.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::snapshotter::SnapshotId;

/// Names of a layer that are kept; one with more is not.
const MAX_NAMES: usize = 8;
/// Bytes of its names.
const MAX_BYTES: usize = 512;
/// Layers that are kept. Beyond them all are forgotten: what is made from then on matters most.
const MAX_LAYERS: usize = 16_384;

/// The paths in a layer, its top directory left out; true for those that are directories.
pub(crate) type Names = Arc<[(PathBuf, bool)]>;

/// The layers that are known.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<HashMap<SnapshotId, Names>>);

impl Known {
    /// Keeps what was found in a layer that does not change any more.
    pub(crate) fn insert(&self, id: &SnapshotId, found: Collected) {
        if found.too_many {
            return;
        }
        let mut layers = self.lock();
        if layers.len() >= MAX_LAYERS {
            layers.clear();
        }
        layers.insert(id.clone(), found.names.into());
    }

    /// Forgets a layer that goes or changes.
    pub(crate) fn forget(&self, id: &SnapshotId) {
        self.lock().remove(id);
    }

    /// What is known of each of these layers.
    pub(crate) fn of(&self, ids: &[SnapshotId]) -> Vec<Option<Names>> {
        let layers = self.lock();
        ids.iter().map(|id| layers.get(id).cloned()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SnapshotId, Names>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The names of a layer while it is surveyed.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    names: Vec<(PathBuf, bool)>,
    bytes: usize,
    too_many: bool,
}

impl Collected {
    pub(crate) fn add(&mut self, path: impl FnOnce() -> PathBuf, is_dir: bool) {
        if self.too_many {
            return;
        }
        let path = path();
        self.bytes += path.as_os_str().len();
        self.names.push((path, is_dir));
        if self.names.len() > MAX_NAMES || self.bytes > MAX_BYTES {
            self.too_many = true;
            self.names.clear();
        }
    }
}
