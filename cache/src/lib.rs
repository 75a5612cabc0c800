//! The catalogue: what the builds of this machine have made, where it is and who uses it.
//!
//! One SQLite database holds every record, its parents, blobs, cache keys and sizes, and each event is one
//! transaction. Snapshots and blobs live in stores that may lose things: a record whose data has gone is a miss.
//!
//! - [`CacheManager`] opens the catalogue, finds and makes records.
//! - [`Ref`] is a counted lease on an immutable state, [`MutableRef`] a directory that is being written to.
//! - [`Ref::mount`] fetches and unpacks lazy layers through a [`BlobProvider`].
//! - [`ContentSelector`] and [`Ref::content_digest`]: checksums of parts of a tree.
//! - [`BuildRecord`]: what is known of builds that have ended.
//! - [`UsageRecord`], [`PruneOptions`], [`GcPolicy`]: disk usage and what is removed.
//!
//! This crate knows nothing of LLB ops, sessions or registries.
#![forbid(unsafe_code)]

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod builds;
mod check;
mod compare;
mod contenthash;
mod db;
mod error;
mod filter;
mod gc;
mod janitor;
mod keys;
mod live;
mod losses;
mod making;
mod manager;
mod memos;
mod mutable;
mod named;
mod pile;
mod provider;
mod prune;
mod record;
mod recovery;
mod reference;
mod space;
mod stack;
mod unpack;
mod usage;
mod verify;

pub use crate::builds::{BuildRecord, BuildRetention};
pub use crate::check::{CheckOptions, CheckSummary, Fault, Finding, Gravity};
pub use crate::contenthash::{
    ChangeLog, ContentChange, ContentHeader, ContentSelector, EntryKind, ListingChange, nil_content_digest,
};
pub use crate::error::{BoxError, Error, Result};
pub use crate::gc::GcLimits;
pub use crate::losses::Losses;
pub use crate::manager::{CacheManager, CacheOptions};
pub use crate::mutable::{MutableRef, Sharing};
pub use crate::provider::{BlobProvider, IMPORTED, LayerPhase, LayerProgress, NoProvider, SourceCheck};
pub use crate::prune::Disk;
pub use crate::record::{Layer, LayerBlob, RecordId, RecordOptions, RecordType};
pub use crate::reference::Ref;
pub use crate::space::{Disks, Room};
pub use crate::usage::{GcPolicy, PruneOptions, UsageQuery, UsageRecord};
