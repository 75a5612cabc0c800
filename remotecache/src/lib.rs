//! Build caches in other places: what a build's keys and results are written to, and read from again.
//!
//! - [`Config`] is the document that lists records and layers; [`Records`] makes one out of keys.
//! - [`collect`] walks the keys of a build's results; [`Export`] writes what it found through a [`CacheTarget`].
//! - [`CacheOrigin`] reads a cache's documents and blobs; [`ImportedKeys`] is what was read, as a
//!   [`KeySource`](kiln_solver::KeySource) for the solver.
//! - [`Records::into_inline`] writes records for the config of an image; [`open`] reads those too.
//! - [`local`] and [`registry`]: directories of the client, and registries, both ways.
//!
//! Documents are byte-identical with those of moby/buildkit (cache/remotecache/) for the same records. This crate knows
//! nothing of builds, and it stores nothing: sessions and credentials are lent to it for each call.
#![forbid(unsafe_code)]
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod attrs;
mod config;
mod error;
mod export;
mod imported;
mod inline;
pub mod local;
mod open;
mod records;
pub mod registry;
mod walk;

pub use crate::attrs::{ExportAttrs, Mode};
pub use crate::config::Config;
pub use crate::error::{BoxError, Error, Result};
pub use crate::export::{CacheTarget, Documents, Export};
pub use crate::imported::{ImportedKeys, LayerStore};
pub use crate::open::{CacheOrigin, Opened, open};
pub use crate::records::{RecordIndex, Records};
pub use crate::walk::{Walk, collect};

/// The media type of the document that lists a cache's records.
pub const CONFIG_TYPE: &str = "application/vnd.buildkit.cacheconfig.v0";
/// Annotation of a layer: digest of its uncompressed tar.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// Annotation of a layer: when it was made.
const CREATED_AT: &str = "buildkit/createdat";
/// Annotation of a layer: what made it.
const DESCRIPTION: &str = "buildkit/description";
