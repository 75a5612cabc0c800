//! Disk usage and what may be removed: the questions and the answers.

use std::time::{Duration, SystemTime};

use crate::record::{RecordId, RecordType};

/// One record as `du` and `prune` show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRecord {
    /// Its identity.
    pub id: RecordId,
    /// It can still change.
    pub mutable: bool,
    /// A build uses it, or it is below something that a build uses.
    pub in_use: bool,
    /// Allocated bytes on disk, blobs included.
    pub size: i64,
    /// Records it stands on.
    pub parents: Vec<RecordId>,
    /// When it was made.
    pub created_at: SystemTime,
    /// When a build last used it.
    pub last_used_at: Option<SystemTime>,
    /// How often builds used it.
    pub usage_count: i64,
    /// What it is, for people.
    pub description: String,
    /// What it is for.
    pub record_type: RecordType,
    /// Another owner of the store has it too.
    pub shared: bool,
}

/// Which records to list.
#[derive(Clone, Debug, Default)]
pub struct UsageQuery {
    /// Filters in containerd's syntax; one of them has to match. Empty: all.
    pub filters: Vec<String>,
    /// Leaves out what was used more recently than this.
    pub age_limit: Option<Duration>,
}

/// What to remove.
#[derive(Clone, Debug, Default)]
pub struct PruneOptions {
    /// Filters in containerd's syntax; one of them has to match. Empty: all.
    pub filters: Vec<String>,
    /// Also internal, frontend and shared records.
    pub all: bool,
    /// Keep what was used within this time.
    pub keep_duration: Option<Duration>,
    /// Never go below this many bytes (0: no floor).
    pub reserved_space: i64,
    /// Stop below this many bytes (0: no ceiling).
    pub max_used_space: i64,
    /// Wanted free bytes of the file system (0: none).
    pub min_free_space: i64,
}

/// One rule of the garbage collector: prune with these values.
#[derive(Clone, Debug, Default)]
pub struct GcPolicy(pub PruneOptions);
