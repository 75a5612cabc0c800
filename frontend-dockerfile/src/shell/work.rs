use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many steps and bytes expansion may take for one file. Enough for any file that is meant, and a second's work.
const MAX_WORK: u64 = 1 << 27;

/// Counts what the expansion of one file takes, so that variables that double each other end in an error. Clones share
/// the count.
#[derive(Clone, Debug, Default)]
pub(crate) struct Work(Arc<AtomicU64>);

impl Work {
    /// Adds steps or bytes, to be noticed by the next check.
    pub(crate) fn add(&self, units: usize) {
        let units = u64::try_from(units).unwrap_or(u64::MAX).min(MAX_WORK);
        // Nobody counts on after an error, so the sum stays far below its end.
        self.0.fetch_add(units, Ordering::Relaxed);
    }

    /// # Errors
    /// If it was too much.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self.0.load(Ordering::Relaxed) {
            0..=MAX_WORK => Ok(()),
            _ => Err(format!(
                "the Dockerfile expands too far: its variables, patterns and lists come to more than {MAX_WORK} steps"
            )),
        }
    }

    pub(crate) fn spend(&self, units: usize) -> Result<(), String> {
        self.add(units);
        self.check()
    }
}
