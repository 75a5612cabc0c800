//! Space that the database has of its own, for the time when the disk is full: even removing needs some.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// Bytes kept. A write takes far less, and a log of this length is written back.
const KEPT: u64 = 8 << 20;
/// With less than this free, the reserve is let go.
const FULL: u64 = 2 << 20;
/// With this much free, it is taken back.
const ROOMY: u64 = 4 * KEPT;

#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
}

impl Reserve {
    /// Takes one beside the database, if there is room.
    pub(super) fn take(database: &Path) -> Self {
        let reserve = Self { path: database.with_extension("reserve") };
        reserve.restock();
        reserve
    }

    fn free(&self) -> Option<u64> {
        let stat = statvfs(self.path.parent()?).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Lets it go when the disk is full. One short call as a rule.
    pub(super) fn release_if_full(&self) {
        if self.free().is_some_and(|free| free < FULL) && std::fs::remove_file(&self.path).is_ok() {
            tracing::warn!("the disk is full: the catalogue uses its reserve");
        }
    }

    /// Takes it, if it is not there and there is room.
    pub(super) fn restock(&self) {
        if self.path.exists() || self.free().is_none_or(|free| free < ROOMY) {
            return;
        }
        let taken =
            File::create(&self.path).and_then(|file| Ok(fallocate(&file, FallocateFlags::empty(), 0, KEPT)?));
        if let Err(error) = taken {
            // A filesystem that cannot do it keeps none.
            tracing::debug!(%error, "no reserve for the catalogue");
            drop(std::fs::File::options().write(true).open(&self.path).and_then(|file| file.set_len(0)));
        }
    }
}
