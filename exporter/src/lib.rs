//! Build results turned into images, archives and directories.
//!
//! - [`resolve`] makes an [`Exporter`] of a type and its attributes; [`Exporter::export`] carries it out.
//! - `image` writes manifests and layers into the content store and pushes them through a [`Pusher`]; `oci` and
//!   `docker` send the same as an archive or into a store of the client; `local` and `tar` send the files.
//! - [`Source`] is what a build resulted in.
//!
//! Documents and archives are byte-identical with those of moby/buildkit (exporter/) for the same input. This crate
//! knows nothing of solves and frontends.
#![forbid(unsafe_code)]
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod annotations;
mod archive;
mod attrs;
mod commit;
mod config;
mod error;
mod exporter;
mod image;
mod layers;
mod local;
mod platforms;
mod progress;
mod push;
mod registry_push;
mod source;
mod tar;
mod timestamp;
mod trees;

pub use crate::config::INLINE_CACHE;
pub use crate::error::{BoxError, Error, Result};
pub use crate::exporter::{
    Compatibility, ExportRequest, Exported, Exporter, Finalize, InlineCache, Kind, Tools, resolve,
};
pub use crate::layers::{ExportedLayer, LayerMaker, LayerOptions};
pub use crate::platforms::{ResultPlatform, result_platforms};
pub use crate::push::{PushRequest, Pusher};
pub use crate::registry_push::{LendCredentials, RegistryPusher};
pub use crate::source::{Attestation, Source, keys};
pub use crate::timestamp::Timestamp;
