//! Records of builds that have ended, and the blobs that tell more of them.
//!
//! What a record says is its writer's business. A blob that a record has stays as long as the record does.

use std::time::{Duration, SystemTime};

use kiln_digest::Digest;

use crate::{CacheManager, Result, db::builds};

/// A build that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildRecord {
    /// As its client has called it.
    pub id: String,
    /// When it began.
    pub created_at: SystemTime,
    /// When it ended.
    pub completed_at: SystemTime,
    /// Counts what was changed of the record.
    pub generation: u32,
    /// Whether it stays until somebody removes it.
    pub pinned: bool,
    /// What there is to say of it.
    pub body: Vec<u8>,
}

/// Which records of builds stay. One goes when it is both older and beyond the newest so many; pinned ones stay, and are
/// not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildRetention {
    /// Age that every record may have.
    pub age: Duration,
    /// How many stay whatever their age.
    pub count: usize,
}

impl Default for BuildRetention {
    fn default() -> Self {
        Self { age: Duration::from_secs(48 * 3600), count: 50 }
    }
}

impl CacheManager {
    /// Saves the record of a build, in place of one with its id, with the blobs that it has.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn save_build(&self, build: BuildRecord, blobs: Vec<Digest>) -> Result<()> {
        let freed = self.0.db().write(move |transaction| builds::save(transaction, &build, &blobs)).await?;
        self.0.janitor.remove_blobs(freed);
        Ok(())
    }

    /// Finds a record of a build.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn build_record(&self, id: &str) -> Result<Option<BuildRecord>> {
        self.0.db().read(|connection| builds::find(connection, id))
    }

    /// The ids of all builds on record: in the order of ids, or those that began last first.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn build_ids(&self, newest_first: bool) -> Result<Vec<String>> {
        self.0.db().read(|connection| builds::ids(connection, newest_first))
    }

    /// Keeps a record until it is removed, or no longer. `None`: there is no such record.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn pin_build(&self, id: &str, pinned: bool) -> Result<Option<BuildRecord>> {
        let id = id.to_owned();
        self.0.db().write(move |transaction| builds::pin(transaction, &id, pinned)).await
    }

    /// Removes a record and what only it has. Returns whether there was one.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn remove_build(&self, id: &str) -> Result<bool> {
        let id = id.to_owned();
        let removed = self.0.db().write(move |transaction| builds::remove(transaction, &id)).await?;
        let found = removed.is_some();
        self.0.janitor.remove_blobs(removed.unwrap_or_default());
        Ok(found)
    }

    /// Removes the records that do not stay; returns their ids.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn expire_builds(&self, retention: BuildRetention) -> Result<Vec<String>> {
        let now = SystemTime::now();
        let oldest = now.checked_sub(retention.age).unwrap_or(SystemTime::UNIX_EPOCH);
        let expired = self.0.db().read(|connection| builds::expired(connection, oldest, retention.count))?;
        let mut removed = Vec::new();
        // One at a time, so that no build waits for the writer.
        for id in expired {
            if self.remove_build(&id).await? {
                removed.push(id);
            }
        }
        Ok(removed)
    }
}
