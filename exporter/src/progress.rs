//! Parts of an export as progress shows them.

use std::time::SystemTime;

use kiln_solver::{StatusUpdate, VertexProgress};

/// A part that has begun and is shown as done when this is dropped, also when it failed.
pub(crate) struct Part {
    progress: VertexProgress,
    update: StatusUpdate,
}

/// Shows that a part begins.
pub(crate) fn begin(progress: &VertexProgress, id: impl Into<String>) -> Part {
    begin_action(progress, id, "")
}

/// Shows that a part begins, with a word for what is done.
pub(crate) fn begin_action(progress: &VertexProgress, id: impl Into<String>, action: &str) -> Part {
    let update = StatusUpdate {
        id: id.into(),
        name: action.to_owned(),
        current: 0,
        total: 0,
        started: Some(SystemTime::now()),
        completed: None,
    };
    progress.status(update.clone());
    Part { progress: progress.clone(), update }
}

impl Part {
    /// Shows how many bytes were done.
    pub(crate) fn current(&mut self, bytes: u64) {
        self.update.current = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.progress.status(self.update.clone());
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.update.completed = Some(SystemTime::now());
        self.progress.status(self.update.clone());
    }
}
