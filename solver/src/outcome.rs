//! Why a vertex ended as it did.

use std::time::SystemTime;

use crate::keys::{Origin, RecordId};

/// How the result of a vertex came to be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It was known.
    Hit(Hit),
    /// It was not known and has been run.
    Ran,
    /// It was run because the vertex ignores the cache.
    Forced,
    /// Another build, still active, had run it.
    Shared,
}

/// What a look-up found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hit {
    /// The record that was loaded.
    pub record: RecordId,
    /// When its result was made.
    pub created_at: SystemTime,
    /// Where it came from.
    pub origin: Origin,
    /// Which keys led to it.
    pub matched: Matched,
}

/// Which keys led to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Matched {
    /// Definitions alone.
    Definition,
    /// The content of at least one input.
    Content,
}

impl Hit {
    pub(crate) fn new(record: &crate::keys::CacheRecord, matched: Matched) -> Self {
        Self {
            record: record.id.clone(),
            created_at: record.created_at,
            origin: record.origin.clone(),
            matched,
        }
    }
}
